//! `[events]`: where it is written down what was seen. `[events.snapshots]`: where pictures of objects go, what they show, and how
//! many stay.

use std::time::Duration;

use crate::config::raw::{DAY, required, retention};
use crate::config::reader::Section;
use crate::config::{GalleryConfig, HistoryConfig};

/// The tables, as far as there are any.
pub(super) fn table(root: &mut Section<'_, '_>) -> (Option<GalleryConfig>, Option<HistoryConfig>) {
    let mut events = root.section("events");
    let mut section = events.section("snapshots");
    let exists = section.exists();
    let config = exists.then(|| read(&mut section)).flatten();
    section.finish();
    let history = history(&mut events);
    events.finish();
    (config, history)
}

fn history(events: &mut Section<'_, '_>) -> Option<HistoryConfig> {
    if !events.holds("database") {
        if events.holds("keep_days") {
            events.missing("database", "the file that keep_days is for");
        }
        // Known all the same, so that it is not told of twice.
        events.number("keep_days", 0.001..=3650.0, 30.0);
        return None;
    }
    let file = required(events, "database", "an SQLite file, which is made where there is none");
    let default = HistoryConfig::new(file.as_ref().map(|file| file.value.clone().into()).unwrap_or_default());
    let days = events.number("keep_days", 0.001..=3650.0, default.keep_for.as_secs_f64() / DAY);
    file.map(|_| HistoryConfig { keep_for: Duration::from_secs_f64(days * DAY), ..default })
}

fn read(section: &mut Section<'_, '_>) -> Option<GalleryConfig> {
    let dir = required(section, "dir", "the folder for the pictures");
    let default = GalleryConfig::new(dir.as_ref().map(|dir| dir.value.clone().into()).unwrap_or_default());
    let crop = section.flag("crop", default.crop).value;
    let annotate = section.flag("annotate", default.annotate).value;
    let quality = section.integer("quality", 1..=100, default.quality.into()) as u8;
    let max_height = section.holds("max_height").then(|| section.integer("max_height", 64..=8192, 64) as u32);
    let (keep_for, keep_bytes) = retention(section, default.keep_for, default.keep_bytes);
    dir.map(|_| GalleryConfig { crop, annotate, quality, max_height, keep_for, keep_bytes, ..default })
}
