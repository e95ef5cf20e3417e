//! `[output.file]`: where video files go, how long they are, and how many stay.

use std::path::Path;
use std::time::Duration;

use crate::config::FileConfig;
use crate::config::raw::{DAY, GIGABYTE, required};
use crate::config::reader::Section;

/// Bytes of a megabyte, as disks are sold.
const MEGABYTE: f64 = 1e6;

/// The table.
pub(super) fn table(mut section: Section<'_, '_>, several: bool) -> Option<FileConfig> {
    section.exists().then_some(())?;
    let path = required(&mut section, "path", "a file name such as \"out/{camera}.mp4\"");
    if let Some(path) = &path {
        if Path::new(&path.value).extension().is_none_or(|extension| extension != "mp4" && extension != "mkv") {
            section.fault("path", path.offset, &format!("is {:?}; must end in .mp4 or .mkv", path.value));
        }
        if several && !path.value.contains("{camera}") {
            section.fault("path", path.offset, "lacks {camera}; several cameras cannot share one file");
        }
    }
    let default = FileConfig::new(path.map(|path| path.value).unwrap_or_default());
    let max_file = Duration::from_secs_f64(section.number("max_file", 10.0..=DAY, default.max_file.as_secs_f64()));
    let mut optional = |key, range, unit: f64| section.holds(key).then(|| section.number(key, range, 1.0) * unit);
    let max_bytes = optional("max_mb", 1.0..=1e6, MEGABYTE).map(|bytes| bytes as u64);
    let keep_for = optional("keep_days", 0.001..=3650.0, DAY).map(Duration::from_secs_f64);
    let keep_bytes = optional("keep_gb", 0.001..=1e6, GIGABYTE).map(|bytes| bytes as u64);
    section.know(&["max_mb", "keep_days", "keep_gb"]);
    let config = FileConfig { max_file, max_bytes, keep_for, keep_bytes, ..default };
    if config.folder().is_none() && !config.path.is_empty() {
        for key in ["keep_days", "keep_gb"].into_iter().filter(|key| section.holds(key)) {
            let line = "has no meaning for this path; must stand beside one that ends in /{camera}/{time}.mp4 or .mkv, for only such files are removed";
            section.fault(key, section.offset_of(key), line);
        }
    }
    section.finish();
    Some(config).filter(|config| !config.path.is_empty())
}
