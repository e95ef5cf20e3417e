//! The figures of the moment on `P/stats`, for whoever watches the daemon over the broker.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::clock::Utc;
use crate::base::metrics::Metrics;
use crate::mqtt::cameras::Cameras;
use crate::mqtt::payload::rounded;

/// The version of the object.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct StatsWire<'a> {
    schema: u32,
    time: String,
    epoch: f64,
    cameras: BTreeMap<&'a str, CameraWire>,
    inference_ms: PercentilesWire,
    outbox: OutboxWire,
}

/// Counts since the start.
#[derive(Serialize)]
struct CameraWire {
    fps: f64,
    frames_in: u64,
    sampled: u64,
    gated: u64,
    analysed: u64,
    dropped: u64,
    reconnects: u64,
}

/// Of the newest answers; null before the first.
#[derive(Serialize)]
struct PercentilesWire {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
}

#[derive(Serialize)]
struct OutboxWire {
    records: usize,
    bytes: usize,
}

/// The object at the moment `now`; `depth` is what waits for the broker, in records and bytes.
pub fn stats(cameras: &Cameras, metrics: &Metrics, (records, bytes): (usize, usize), now: Utc) -> Vec<u8> {
    let camera = |id: &str, fps| {
        let count = |name| metrics.counter(name, id).get();
        CameraWire {
            fps: rounded(fps, 2),
            frames_in: count("frames_in"),
            sampled: count("frames_sampled"),
            gated: count("frames_gated"),
            analysed: count("frames_analysed"),
            dropped: count("frames_dropped"),
            reconnects: count("reconnects"),
        }
    };
    let inference = metrics.latency("inference", "all");
    let share = |share| inference.percentile(share).map(|millis| rounded(millis, 1));
    let wire = StatsWire {
        schema: SCHEMA,
        time: now.to_string(),
        epoch: now.epoch(),
        cameras: cameras.rates().map(|(id, fps)| (id.as_str(), camera(id.as_str(), fps))).collect(),
        inference_ms: PercentilesWire { p50: share(0.5), p90: share(0.9), p99: share(0.99) },
        outbox: OutboxWire { records, bytes },
    };
    serde_json::to_vec(&wire).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::types::CameraId;

    #[test]
    fn the_figures_of_every_camera_are_there() {
        let (mut cameras, metrics) = (Cameras::default(), Metrics::new());
        cameras.rate(&CameraId::new("street").unwrap(), 24.8999);
        let names = ["frames_in", "frames_sampled", "frames_gated", "frames_analysed", "frames_dropped", "reconnects"];
        (1..).zip(names).for_each(|(count, name)| metrics.counter(name, "street").add_many(count));
        let at = Utc::from_millis(1_795_442_587_120);
        let read = || serde_json::from_slice::<Value>(&stats(&cameras, &metrics, (7, 700), at)).unwrap();
        let camera = json!({"fps": 24.9, "frames_in": 1, "sampled": 2, "gated": 3, "analysed": 4, "dropped": 5, "reconnects": 6});
        let mut expected = json!({
            "schema": 1, "time": "2026-11-23T14:03:07.120Z", "epoch": 1_795_442_587.12, "cameras": {"street": camera},
            "inference_ms": {"p50": null, "p90": null, "p99": null}, "outbox": {"records": 7, "bytes": 700}
        });
        assert_eq!(read(), expected);
        (1..=100).for_each(|millis| metrics.latency("inference", "all").record(Duration::from_millis(millis)));
        expected["inference_ms"] = json!({"p50": 50.0, "p90": 90.0, "p99": 99.0});
        assert_eq!(read(), expected);
    }
}
