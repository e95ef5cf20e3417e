//! `/metrics`: every count in the text format of Prometheus, version 0.0.4. One table says what each is called and what it means.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::base::metrics::Metrics;
use crate::console::Desk;
use crate::types::CameraState;

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A count: its name within the daemon, and without `palisade_` and `_total`; what its subject is called, if it has one; what it is.
pub struct Count(pub &'static str, pub &'static str, pub &'static str, pub &'static str);

/// Every count. Those of one name differ by a label more: the part behind `|`.
pub const COUNTS: [Count; 74] = [
    Count("answer_tokens", "answer_tokens", "camera", "Tokens that the model wrote or that a draft had right."),
    Count("batches", "batches", "size", "Batches that the model looked at, by how many frames were in each."),
    Count("camera_backoff", "camera_states|state=backoff", "camera", "Changes of a camera's state, by the state that it came to."),
    Count("camera_connecting", "camera_states|state=connecting", "camera", ""),
    Count("camera_disabled", "camera_states|state=disabled", "camera", ""),
    Count("camera_failed", "camera_states|state=failed", "camera", ""),
    Count("camera_running", "camera_states|state=running", "camera", ""),
    Count("camera_stalled", "camera_states|state=stalled", "camera", ""),
    Count("clip_units_dropped", "clip_pictures_dropped", "camera", "Pictures that belong into a clip, or ahead of one, and are not in it."),
    Count("clips_failed", "clips_failed", "camera", "Clips that the disk did not take."),
    Count("clips_removed", "clips_removed", "", "Clips that were too old or too many."),
    Count("clips_written", "clips_written", "camera", "Clips."),
    Count("detections_not_followed", "detections_not_followed", "camera", "Detections beyond the objects that are followed at once."),
    Count("draft_tokens_accepted", "draft_tokens_accepted", "camera", "Tokens that a draft had right."),
    Count("event_snapshots_dropped", "object_pictures_dropped", "camera", "Pictures of objects that the disk did not keep up with."),
    Count("event_snapshots_failed", "object_pictures_failed", "camera", "Pictures of objects that could not be drawn or written."),
    Count("event_snapshots_removed", "object_pictures_removed", "", "Pictures of objects that were too old or too many."),
    Count("event_snapshots_written", "object_pictures_written", "camera", "Pictures of objects as files."),
    Count("events_dropped", "events_dropped", "camera", "Events that were not told, for too many waited for pictures."),
    Count("events_without_snapshot", "events_without_picture", "camera", "Objects whose first event names no picture."),
    Count("frames_analysed", "frames_analysed", "camera", "Frames that the model has looked at."),
    Count("frames_damaged", "frames_damaged", "camera", "Pictures that the decoder marked as damaged."),
    Count("frames_decoded", "frames_decoded", "camera", "Pictures that were decoded."),
    Count("frames_dropped", "frames_dropped", "camera", "Frames that a newer one replaced before the model took them."),
    Count("frames_failed", "frames_failed", "camera", "Frames that could not be looked at."),
    Count("frames_gated", "frames_gated", "camera", "Frames that were due and not looked at, for nothing moved."),
    Count("frames_in", "frames_in", "camera", "Pictures that the camera sent."),
    Count("frames_sampled", "frames_sampled", "camera", "Frames that were due for a look, and pictures for the playground."),
    Count("frames_skipped", "frames_skipped", "camera", "Pictures that no decoder came round to."),
    Count("history_damaged", "history_files_damaged", "", "Files of the history of objects that were damaged and moved aside."),
    Count("history_dropped", "history_events_dropped", "", "Events that found no room on their way to the history."),
    Count("history_failed", "history_writes_failed", "", "Tries to write the history that the disk did not take."),
    Count("history_removed", "history_objects_removed", "", "Objects of the history that were too old."),
    Count("history_written", "history_objects_written", "", "States of objects that were written to the history."),
    Count("hls_segments", "hls_segments", "camera", "Files of HLS."),
    Count("hls_segments_dropped", "hls_segments_dropped", "camera", "Files of HLS that were too large."),
    Count("http_refused", "http_requests_refused", "", "Requests over HTTP that were refused: by the guard, for want of a place, or late."),
    Count("http_requests", "http_requests", "", "Requests over HTTP."),
    Count("jpeg_pictures_encoded", "jpeg_pictures_encoded", "camera", "Live pictures that were encoded as JPEG."),
    Count("jpeg_pictures_skipped", "jpeg_pictures_skipped", "camera", "Live pictures that a viewer was too slow for."),
    Count("live_pictures_dropped", "live_pictures_dropped", "camera", "Pictures that live video did not come round to."),
    Count("live_units_dropped", "live_units_dropped", "camera", "Pictures of live video that a viewer was too slow for."),
    Count("motion_checks", "motion_checks", "camera", "Frames that were looked through for motion."),
    Count("motion_score", "motion_score", "camera", "Sum over those of the share of the picture that moved, in thousandths."),
    Count("motion_seen", "motion_seen", "camera", "Frames in which something moved."),
    Count("mqtt_connects", "mqtt_connects", "link", "Connections to the broker."),
    Count("mqtt_dropped", "mqtt_records_dropped", "camera", "Records for the broker that were dropped."),
    Count(
        "mqtt_dropped_closed",
        "mqtt_records_dropped_by_reason|reason=closed",
        "camera",
        "Records for the broker that were dropped, by reason.",
    ),
    Count("mqtt_dropped_damaged", "mqtt_records_dropped_by_reason|reason=damaged", "camera", ""),
    Count("mqtt_dropped_full", "mqtt_records_dropped_by_reason|reason=full", "camera", ""),
    Count("mqtt_dropped_large", "mqtt_records_dropped_by_reason|reason=large", "camera", ""),
    Count("mqtt_dropped_old", "mqtt_records_dropped_by_reason|reason=old", "camera", ""),
    Count("mqtt_dropped_refused", "mqtt_records_dropped_by_reason|reason=refused", "camera", ""),
    Count("mqtt_published", "mqtt_records_published", "camera", "Records that the broker has acknowledged."),
    Count("push_connects", "push_connects", "push", "Connections to servers that live video is sent to."),
    Count("push_failures", "push_failures", "push", "Connections to those that failed or broke."),
    Count("push_pictures", "push_pictures", "push", "Pictures that were sent to those."),
    Count("push_pictures_dropped", "push_pictures_dropped", "push", "Pictures that those were too slow for."),
    Count("questions_answered", "questions_answered", "", "Pictures of the playground that were looked at."),
    Count("questions_failed", "questions_failed", "", "Pictures of the playground that could not be looked at."),
    Count("questions_refused", "questions_refused", "", "Pictures of the playground that found no room."),
    Count("reconnects", "camera_reconnects", "camera", "How often a camera was lost and tried again."),
    Count("reloads", "reloads", "", "Configurations that were read anew and are in force."),
    Count("reloads_refused", "reloads_refused", "", "Configurations that were read anew and not taken over."),
    Count("rtsp_pictures_encoded", "live_pictures_encoded", "camera", "Pictures of live video that were encoded."),
    Count("rtsp_units_dropped", "rtsp_units_dropped", "camera", "Pictures that an RTSP stream was too slow for."),
    Count("sink_frames_dropped", "sink_frames_dropped", "sink", "Annotated frames that a sink was too slow for."),
    Count("sink_frames_failed", "sink_frames_failed", "sink", "Annotated frames that a sink could not take."),
    Count("sink_frames_written", "sink_frames_written", "sink", "Annotated frames that a sink took."),
    Count("snapshots_failed", "event_pictures_failed", "camera", "Pictures for the broker that could not be made."),
    Count("teardowns_abandoned", "teardowns_abandoned", "camera", "Pipelines that hang and were left behind."),
    Count("v4l2_failures", "v4l2_failures", "camera", "Tries at a device for live video that failed."),
    Count("v4l2_pictures", "v4l2_pictures", "camera", "Pictures that were played into a device."),
    Count("video_files_removed", "video_files_removed", "", "Video files that were too old or too many."),
];

/// Times, as summaries: name within the daemon, without `palisade_` and `_seconds`, and what it is.
pub const TIMES: [(&str, &str, &str); 2] = [
    ("inference", "inference", "A batch in the model; quantiles of the newest 4096."),
    ("total", "look", "From a frame's arrival to the end of its look; quantiles of the newest 4096."),
];

/// What is true at the moment: name without `palisade_`, and what it is.
pub const GAUGES: [(&str, &str); 6] = [
    ("build_info", "The version and the model, by labels; always 1."),
    ("start_time_seconds", "When the daemon started, in seconds since 1970."),
    ("camera_up", "Whether pictures of a camera come: 1 or 0."),
    ("camera_objects", "Objects that were told of and have not ended."),
    ("mqtt_connected", "Whether there is a link to the broker: 1 or 0."),
    ("mqtt_outbox_records", "Records that wait for the broker."),
];

/// All of it.
pub async fn metrics(State(desk): State<Desk>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, KIND)], text(&desk))
}

fn text(desk: &Desk) -> String {
    let back = &desk.screens.back;
    let mut page = Page::default();
    let late = back.late();
    let model = late.map(|late| late.model.as_str()).unwrap_or_default();
    let cameras = back.board.cameras();
    for (name, help) in GAUGES {
        let samples: Vec<(Vec<(&str, &str)>, f64)> = match name {
            "build_info" => vec![(vec![("version", env!("CARGO_PKG_VERSION")), ("model", model)], 1.0)],
            "start_time_seconds" => vec![(Vec::new(), back.started.epoch())],
            "camera_up" => {
                let up = |state| if state == CameraState::Running { 1.0 } else { 0.0 };
                cameras.iter().map(|now| (vec![("camera", now.watched.id.as_str())], up(now.status.state))).collect()
            }
            "camera_objects" => cameras.iter().map(|now| (vec![("camera", now.watched.id.as_str())], now.objects.len() as f64)).collect(),
            _ => match late.and_then(|late| late.publisher.as_ref()) {
                Some(publisher) if name == "mqtt_connected" => vec![(Vec::new(), f64::from(u8::from(publisher.trouble().is_none())))],
                Some(publisher) => vec![(Vec::new(), publisher.waiting() as f64)],
                None => Vec::new(),
            },
        };
        let name = format!("palisade_{name}");
        page.head(&name, "gauge", help, !samples.is_empty());
        samples.iter().for_each(|(labels, value)| page.sample(&name, labels, *value));
    }
    page.counts(&back.metrics);
    page.times(&back.metrics);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
    /// The name whose head was written last.
    headed: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str, there: bool) {
        if there && self.headed != name {
            // Writing to a String cannot fail.
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            name.clone_into(&mut self.headed);
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    fn counts(&mut self, metrics: &Metrics) {
        let counts = metrics.counts();
        let mut help = "";
        for Count(inner, outer, label, text) in COUNTS {
            let (outer, more) = outer.split_once('|').unwrap_or((outer, ""));
            let name = format!("palisade_{outer}_total");
            // Those of one name follow each other, and the first has the words.
            help = if text.is_empty() { help } else { text };
            for (_, subject, count) in counts.iter().filter(|(known, ..)| *known == inner) {
                self.head(&name, "counter", help, true);
                let mut labels = if label.is_empty() { Vec::new() } else { vec![(label, subject.as_str())] };
                labels.extend(more.split_once('='));
                self.sample(&name, &labels, *count as f64);
            }
        }
    }

    fn times(&mut self, metrics: &Metrics) {
        for (inner, outer, help) in TIMES {
            let (series, name) = (metrics.latency(inner, "all"), format!("palisade_{outer}_seconds"));
            self.head(&name, "summary", help, true);
            for quantile in [0.5, 0.9, 0.99] {
                let millis = series.percentile(quantile).unwrap_or(f64::NAN);
                self.sample(&name, &[("quantile", &quantile.to_string())], millis / 1000.0);
            }
            let (count, sum) = series.all();
            self.sample(&format!("{name}_sum"), &[], sum.as_secs_f64());
            self.sample(&format!("{name}_count"), &[], count as f64);
        }
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counts_have_one_head_a_name_and_escaped_labels() {
        let metrics = Metrics::new();
        metrics.counter("camera_backoff", "a").add_many(2);
        metrics.counter("camera_running", "a").add();
        metrics.counter("sink_frames_dropped", "x\"\\\n").add();
        metrics.counter("clips_removed", "all").add();
        metrics.latency("inference", "all").record(Duration::from_millis(250));
        let mut page = Page::default();
        page.counts(&metrics);
        page.times(&metrics);
        let expected = "\
# HELP palisade_camera_states_total Changes of a camera's state, by the state that it came to.
# TYPE palisade_camera_states_total counter
palisade_camera_states_total{camera=\"a\",state=\"backoff\"} 2
palisade_camera_states_total{camera=\"a\",state=\"running\"} 1
# HELP palisade_clips_removed_total Clips that were too old or too many.
# TYPE palisade_clips_removed_total counter
palisade_clips_removed_total 1
# HELP palisade_sink_frames_dropped_total Annotated frames that a sink was too slow for.
# TYPE palisade_sink_frames_dropped_total counter
palisade_sink_frames_dropped_total{sink=\"x\\\"\\\\\\n\"} 1
# HELP palisade_inference_seconds A batch in the model; quantiles of the newest 4096.
# TYPE palisade_inference_seconds summary
palisade_inference_seconds{quantile=\"0.5\"} 0.25
palisade_inference_seconds{quantile=\"0.9\"} 0.25
palisade_inference_seconds{quantile=\"0.99\"} 0.25
palisade_inference_seconds_sum 0.25
palisade_inference_seconds_count 1
";
        assert!(page.text.starts_with(expected), "{}", page.text);
        assert!(page.text.contains("palisade_look_seconds{quantile=\"0.5\"} NaN\n"), "{}", page.text);
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard: serde_json::Value = serde_json::from_str(include_str!("../../config/grafana.json")).unwrap();
        let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let asked: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
        let known = |name: &str| {
            let inner = name.trim_start_matches("palisade_");
            GAUGES.iter().any(|(gauge, _)| *gauge == inner)
                || COUNTS.iter().any(|count| inner.strip_suffix("_total") == count.1.split('|').next())
                || TIMES
                    .iter()
                    .any(|(_, time, _)| inner.trim_end_matches("_sum").trim_end_matches("_count").strip_suffix("_seconds") == Some(time))
        };
        let names = |text: &str| {
            let parts = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            parts.filter(|part| part.starts_with("palisade_")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(asked.len() > 15);
        for expression in asked {
            let names = names(expression);
            assert!(!names.is_empty() && names.iter().all(|name| known(name)), "{expression}");
        }
    }

    #[test]
    fn the_names_are_in_order_and_none_is_there_twice() {
        let inner: Vec<&str> = COUNTS.iter().map(|count| count.0).collect();
        assert!(inner.is_sorted() && inner.windows(2).all(|pair| pair[0] != pair[1]), "{inner:?}");
        let mut outer: Vec<&str> = COUNTS.iter().map(|count| count.1).collect();
        outer.sort_unstable();
        assert!(outer.windows(2).all(|pair| pair[0] != pair[1]), "{outer:?}");
    }
}
