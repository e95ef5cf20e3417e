//! `[events.snapshots]`: where pictures of objects go, what they show, and how many stay.

use crate::config::GalleryConfig;
use crate::config::raw::{required, retention};
use crate::config::reader::Section;

/// The table, if there is one.
pub(super) fn table(root: &mut Section<'_, '_>) -> Option<GalleryConfig> {
    let mut events = root.section("events");
    let mut section = events.section("snapshots");
    let exists = section.exists();
    let config = exists.then(|| read(&mut section)).flatten();
    section.finish();
    events.finish();
    config
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
