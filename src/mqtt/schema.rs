//! The JSON Schemas (draft 2020-12) of the payloads that are objects, as files beside this one. They hold what consumers
//! may count on: every key that is always there is required, and more keys may come.

/// Each payload's name and schema: `detections` and `events` of a camera, the `status` of a camera, the `stats` of the node.
pub const ALL: [(&str, &str); 4] = [
    ("detections", include_str!("schema/detections.json")),
    ("status", include_str!("schema/status.json")),
    ("events", include_str!("schema/events.json")),
    ("stats", include_str!("schema/stats.json")),
];
