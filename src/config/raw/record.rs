//! `[record]`: where clips go, how long they are, and how many stay.

use std::time::Duration;

use crate::config::raw::{required, retention};
use crate::config::reader::Section;
use crate::config::{CameraConfig, Record, RecordConfig};

/// The table, which a camera whose clips are kept cannot do without.
pub(super) fn table(root: &mut Section<'_, '_>, cameras: &[CameraConfig]) -> Option<RecordConfig> {
    let mut section = root.section("record");
    if !section.exists() {
        if cameras.iter().any(|camera| camera.record != Record::Off) {
            root.missing("record", "a table [record] with dir, the folder for the clips: a camera has record = \"events\"");
        }
        return None;
    }
    let dir = required(&mut section, "dir", "the folder for the clips");
    let default = RecordConfig::new(dir.map(|dir| dir.value.into()).unwrap_or_default());
    let mut seconds = |key, range, default: Duration| Duration::from_secs_f64(section.number(key, range, default.as_secs_f64()));
    let pre_roll = seconds("pre_roll", 0.0..=60.0, default.pre_roll);
    let post_roll = seconds("post_roll", 0.0..=600.0, default.post_roll);
    let max_clip = seconds("max_clip", 10.0..=3600.0, default.max_clip);
    let (keep_for, keep_bytes) = retention(&mut section, default.keep_for, default.keep_bytes);
    section.finish();
    Some(RecordConfig { pre_roll, post_roll, max_clip, keep_for, keep_bytes, ..default })
}
