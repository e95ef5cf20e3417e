//! `[track]` and, of one camera, `[camera.track]`, `[[camera.zone]]`, `[[camera.ignore]]` and `[[camera.filter]]`: what becomes
//! of detections over time.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::raw::DAY;
use crate::config::reader::{At, Section, nearest, quoted};
use crate::types::{Area, Filter, Prompt, Tracking, Updates, Zone, label_key};

/// The longest name of a zone, in bytes.
const NAME: usize = 64;

/// What the table says; a key that is not written is as in `base`.
pub(super) fn rules(mut section: Section<'_, '_>, base: &Tracking) -> Tracking {
    let seconds = |section: &mut Section<'_, '_>, key, least, most, base: Duration| {
        Duration::from_secs_f64(section.number(key, least..=most, base.as_secs_f64()))
    };
    let share = |section: &mut Section<'_, '_>, key, base: f32| section.number(key, 0.0..=1.0, base.into()) as f32;
    // Zero stands for never: an update without a reason would come with every look.
    let unless_zero = |number: f64| (number > 0.0).then_some(number);
    let of = &base.updates;
    let tracking = Tracking {
        confirm_looks: section.integer("confirm_looks", 1..=100, base.confirm_looks.into()) as u32,
        confirm: seconds(&mut section, "confirm", 0.0, 3600.0, base.confirm),
        lost_after: seconds(&mut section, "lost_after", 0.1, DAY, base.lost_after),
        stationary_after: seconds(&mut section, "stationary_after", 1.0, DAY, base.stationary_after),
        stationary_lost_after: seconds(&mut section, "stationary_lost_after", 0.1, DAY, base.stationary_lost_after),
        start_score: share(&mut section, "start_score", base.start_score),
        keep_score: share(&mut section, "keep_score", base.keep_score),
        updates: Updates {
            every: seconds(&mut section, "update_interval", 0.0, 3600.0, of.every),
            moved: unless_zero(section.number("update_moved", 0.0..=100.0, of.moved.unwrap_or(0.0).into())).map(|sizes| sizes as f32),
            score: unless_zero(section.number("update_score", 0.0..=1.0, of.score.unwrap_or(0.0).into())).map(|rise| rise as f32),
            zones: section.flag("update_zones", of.zones).value,
            heartbeat: unless_zero(section.number("heartbeat", 0.0..=DAY, of.heartbeat.unwrap_or_default().as_secs_f64()))
                .map(Duration::from_secs_f64),
        },
        ..base.clone()
    };
    // Where neither is written both are those of `base`, whose fault it is.
    if let Some(key) = ["start_score", "keep_score"].into_iter().find(|key| section.holds(key))
        && tracking.start_score < tracking.keep_score
    {
        let message = match key {
            "start_score" => format!("is {}; must be at least keep_score, {}", tracking.start_score, tracking.keep_score),
            _ => format!("is {}; must be at most start_score, {}", tracking.keep_score, tracking.start_score),
        };
        section.fault(key, section.offset_of(key), &message);
    }
    section.finish();
    tracking
}

/// All that a camera says of its objects; `prompt` is `None` where it has a fault.
pub(super) fn camera(section: &mut Section<'_, '_>, prompt: Option<&Prompt>, base: &Tracking) -> Tracking {
    let tracking = rules(section.section("track"), base);
    // What a free task answers is not known.
    let asked: Option<BTreeSet<String>> =
        prompt.map(Prompt::labels).filter(|labels| !labels.is_empty()).map(|labels| labels.iter().map(|label| label_key(label)).collect());
    let asked = asked.as_ref();
    let mut names = BTreeSet::new();
    let zones = section.sections("zone").into_iter().filter_map(|section| zone(section, asked, &mut names)).collect();
    let ignores = section.sections("ignore").into_iter().filter_map(|section| ignore(section, asked)).collect();
    let mut filtered = BTreeSet::new();
    let filters = section.sections("filter").into_iter().filter_map(|section| filter(section, asked, &mut filtered)).collect();
    Tracking { zones, ignores, filters, ..tracking }
}

fn zone(mut section: Section<'_, '_>, asked: Option<&BTreeSet<String>>, names: &mut BTreeSet<String>) -> Option<Zone> {
    let name = section.text("name");
    match &name {
        None => section.missing("name", "the zone's name, such as \"gate\""),
        Some(name) if name.value.trim().is_empty() || name.value.len() > NAME || name.value.chars().any(char::is_control) => {
            section.fault("name", name.offset, &format!("is {:?}; must be 1 to {NAME} bytes on one line", name.value));
        }
        Some(name) if !names.insert(label_key(&name.value)) => {
            section.fault("name", name.offset, &format!("is {:?} once more; each zone of a camera needs its own", name.value));
        }
        Some(_) => {}
    }
    let area = area(&mut section, asked);
    let [inertia, loitering] = ["inertia", "loitering"].map(|key| Duration::from_secs_f64(section.number(key, 0.0..=DAY, 0.0)));
    section.finish();
    Some(Zone { name: name?.value.trim().into(), area: area?, inertia, loitering })
}

fn ignore(mut section: Section<'_, '_>, asked: Option<&BTreeSet<String>>) -> Option<Area> {
    let area = area(&mut section, asked);
    section.finish();
    area
}

fn area(section: &mut Section<'_, '_>, asked: Option<&BTreeSet<String>>) -> Option<Area> {
    let points = section.polygon("points");
    let labels = section.texts("labels");
    if let Some(labels) = &labels {
        if labels.value.is_empty() {
            section.fault("labels", labels.offset, "is empty; must name at least one, or be left out for all");
        }
        for label in &labels.value {
            judge(section, "labels", &At { value: label.clone(), offset: labels.offset }, asked);
        }
    }
    let labels = labels.map(|labels| labels.value.iter().map(|label| label_key(label)).collect()).unwrap_or_default();
    Some(Area { points: points?, labels })
}

fn filter(mut section: Section<'_, '_>, asked: Option<&BTreeSet<String>>, known: &mut BTreeSet<String>) -> Option<Filter> {
    let label = section.text("label");
    match &label {
        None => section.missing("label", "the label that it is for"),
        Some(label) if !known.insert(label_key(&label.value)) => {
            section.fault("label", label.offset, &format!("is {:?} once more; a label has one filter", label.value));
        }
        Some(label) => judge(&section, "label", label, asked),
    }
    let min_score = section.number("min_score", 0.0..=1.0, 0.0) as f32;
    let [min_area, max_area] = bounds(&mut section, ["min_area", "max_area"], 1.0);
    let [min_ratio, max_ratio] = bounds(&mut section, ["min_ratio", "max_ratio"], 1000.0);
    section.finish();
    Some(Filter { label: label_key(&label?.value), min_score, min_area, max_area, min_ratio, max_ratio })
}

/// From 0 to `most`, the lower one first.
fn bounds(section: &mut Section<'_, '_>, keys: [&'static str; 2], most: f64) -> [f32; 2] {
    let [low, high] = [section.number(keys[0], 0.0..=most, 0.0), section.number(keys[1], 0.0..=most, most)];
    if low > high {
        section.fault(keys[0], section.offset_of(keys[0]), &format!("is {low}; must be at most {}, {high}", keys[1]));
    }
    [low as f32, high as f32]
}

/// A label that the camera does not ask for is a slip of the pen.
fn judge(section: &Section<'_, '_>, key: &str, label: &At<String>, asked: Option<&BTreeSet<String>>) {
    let Some(asked) = asked.filter(|asked| !asked.contains(&label_key(&label.value))) else { return };
    let hint = match nearest(&label_key(&label.value), asked.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None => format!("asked for: {}", asked.iter().map(|label| quoted(label)).collect::<Vec<_>>().join(", ")),
    };
    section.fault(key, label.offset, &format!("has {:?}, which the camera does not ask for; {hint}", label.value));
}
