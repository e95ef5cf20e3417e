//! The figures of `bench cameras`, as a table and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::bench::{NONE, rounded};
use crate::base::metrics::Metrics;
use crate::config::Decode;

/// The most that the sources hold over TCP, where no packet is lost; those that come in order wait for nothing.
const JITTER_BUFFER_MS: u32 = 1000;

/// What has gone through the sources, all cameras together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    received: u64,
    decoded: u64,
    sampled: u64,
    dropped: u64,
    reconnects: u64,
}

impl Flow {
    /// Up to now.
    pub fn of(metrics: &Metrics) -> Self {
        let counts = metrics.counts();
        let sum = |wanted| counts.iter().filter(|(name, ..)| *name == wanted).map(|(.., count)| count).sum();
        Self {
            received: sum("frames_in"),
            decoded: sum("frames_decoded"),
            sampled: sum("frames_sampled"),
            // By the mailbox, for want of a decoder, and because they came out damaged.
            dropped: ["frames_dropped", "frames_skipped", "frames_damaged"].map(sum).iter().sum(),
            reconnects: sum("reconnects"),
        }
    }

    /// What has come to it after `first`.
    pub fn since(self, first: Self) -> Self {
        Self {
            received: self.received - first.received,
            decoded: self.decoded - first.decoded,
            sampled: self.sampled - first.sampled,
            dropped: self.dropped - first.dropped,
            reconnects: self.reconnects - first.reconnects,
        }
    }
}

/// What was measured. `None` is what this system does not tell, or nothing came of.
pub struct Report {
    /// How many.
    pub cameras: u16,
    /// Between looks.
    pub interval: Duration,
    /// Of the measurement.
    pub time: Duration,
    /// Which frames were decoded.
    pub decode: Decode,
    /// Processor seconds of this process for a camera's second.
    pub cpu: Option<f64>,
    /// The same of the process that was the cameras.
    pub server_cpu: Option<f64>,
    /// MiB a camera.
    pub memory: Option<f64>,
    /// Of this process.
    pub threads: Option<usize>,
    /// Of this process.
    pub descriptors: Option<usize>,
    /// Frames in all, by stage.
    pub flow: Flow,
    /// Frames that came to the detector, by camera; at least one.
    pub frames: Vec<u64>,
    /// Milliseconds from the camera to the detector.
    pub p50: Option<f64>,
    /// The same.
    pub p99: Option<f64>,
    /// How many frames that rests on.
    pub timed: u64,
}

impl Report {
    /// Frames of a camera: the mean, the least, and the least in shares of the mean.
    fn even(&self) -> (f64, u64, Option<f64>) {
        let mean = self.frames.iter().sum::<u64>() as f64 / self.frames.len() as f64;
        let min = self.frames.iter().copied().min().unwrap_or_default();
        (mean, min, (mean > 0.0).then(|| min as f64 / mean))
    }

    /// One object.
    pub fn as_json(&self) -> Value {
        let digits = |value: Option<f64>, digits| value.map(|value| rounded(value, digits));
        let (mean, min, fairness) = self.even();
        let Flow { received, decoded, sampled, dropped, reconnects } = self.flow;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cameras": self.cameras,
            "interval": self.interval.as_secs_f64(),
            "seconds": self.time.as_secs_f64(),
            "decode": name(self.decode),
            "cpu_s_per_camera_s": digits(self.cpu, 5),
            "server_cpu_s_per_camera_s": digits(self.server_cpu, 5),
            "rss_mib_per_camera": digits(self.memory, 2),
            "threads": self.threads,
            "descriptors": self.descriptors,
            "frames_in": received,
            "frames_decoded": decoded,
            "frames_sampled": sampled,
            "frames_dropped": dropped,
            "reconnects": reconnects,
            "frames_a_camera": {"mean": rounded(mean, 2), "min": min, "fairness": digits(fairness, 3)},
            "latency_ms": {"p50": digits(self.p50, 1), "p99": digits(self.p99, 1), "frames": self.timed},
            "jitter_buffer_ms": JITTER_BUFFER_MS,
        })
    }

    /// A table.
    pub fn as_text(&self) -> String {
        let text = |value: Option<f64>, digits: usize| value.map_or(NONE.to_owned(), |value| format!("{value:.digits$}"));
        let whole = |value: Option<usize>| value.map_or(NONE.to_owned(), |value| value.to_string());
        let percent = |value: Option<f64>| text(value.map(|value| value * 100.0), 2);
        let (mean, min, fairness) = self.even();
        let Flow { received, decoded, sampled, dropped, reconnects } = self.flow;
        let mut table = format!(
            "cameras: {}, a look each {} s, decode {}, measured for {} s, palisade {}\n",
            self.cameras,
            self.interval.as_secs_f64(),
            name(self.decode),
            self.time.as_secs_f64(),
            env!("CARGO_PKG_VERSION"),
        );
        for (what, value, beside) in [
            ("of a core a camera", percent(self.cpu), "%".to_owned()),
            ("  the cameras' side", percent(self.server_cpu), "%, in a process of its own".to_owned()),
            ("memory a camera", text(self.memory, 1), "MiB".to_owned()),
            ("threads", whole(self.threads), String::new()),
            ("descriptors", whole(self.descriptors), String::new()),
            ("frames received", received.to_string(), String::new()),
            ("frames decoded", decoded.to_string(), String::new()),
            ("frames sampled", sampled.to_string(), format!("{dropped} of them replaced by a newer one")),
            ("reconnects", reconnects.to_string(), String::new()),
            ("frames a camera", text(Some(mean), 1), format!("the least {min}, {} of the mean", text(fairness, 2))),
            ("latency, median", text(self.p50, 0), "ms from the camera to the detector".to_owned()),
            ("latency, p99", text(self.p99, 0), format!("ms, of {} frames with the camera's time", self.timed)),
            ("jitter buffer", JITTER_BUFFER_MS.to_string(), "ms, the most that it may hold; packets in order wait for nothing".to_owned()),
        ] {
            // Writing to a String cannot fail.
            let _ = write!(table, "\n{}", format!("{what:<20}{value:>10}   {beside}").trim_end());
        }
        table
    }
}

/// As in the configuration.
fn name(decode: Decode) -> &'static str {
    match decode {
        Decode::Auto => "auto",
        Decode::Keyframes => "keyframes",
        Decode::All => "all",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            cameras: 2,
            interval: Duration::from_millis(500),
            time: Duration::from_secs(30),
            decode: Decode::Keyframes,
            cpu: Some(0.012_345_6),
            server_cpu: Some(0.004),
            memory: Some(4.567),
            threads: Some(21),
            descriptors: None,
            flow: Flow { received: 1800, decoded: 60, sampled: 59, dropped: 1, reconnects: 0 },
            frames: vec![30, 28],
            p50: Some(231.26),
            p99: Some(260.0),
            timed: 57,
        }
    }

    #[test]
    fn the_object_has_every_figure() {
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cameras": 2,
            "interval": 0.5,
            "seconds": 30.0,
            "decode": "keyframes",
            "cpu_s_per_camera_s": 0.01235,
            "server_cpu_s_per_camera_s": 0.004,
            "rss_mib_per_camera": 4.57,
            "threads": 21,
            "descriptors": null,
            "frames_in": 1800,
            "frames_decoded": 60,
            "frames_sampled": 59,
            "frames_dropped": 1,
            "reconnects": 0,
            "frames_a_camera": {"mean": 29.0, "min": 28, "fairness": 0.966},
            "latency_ms": {"p50": 231.3, "p99": 260.0, "frames": 57},
            "jitter_buffer_ms": 1000,
        });
        assert_eq!(report().as_json(), expected);
        let silent = Report { frames: vec![0, 0], p50: None, ..report() }.as_json();
        assert!(silent["frames_a_camera"]["fairness"].is_null() && silent["latency_ms"]["p50"].is_null());
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = format!(
            "\
cameras: 2, a look each 0.5 s, decode keyframes, measured for 30 s, palisade {}

of a core a camera        1.23   %
  the cameras' side       0.40   %, in a process of its own
memory a camera            4.6   MiB
threads                     21
descriptors                  –
frames received           1800
frames decoded              60
frames sampled              59   1 of them replaced by a newer one
reconnects                   0
frames a camera           29.0   the least 28, 0.97 of the mean
latency, median            231   ms from the camera to the detector
latency, p99               260   ms, of 57 frames with the camera's time
jitter buffer             1000   ms, the most that it may hold; packets in order wait for nothing",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(report().as_text(), expected);
    }

    #[test]
    fn counts_of_all_cameras_are_added_up_from_a_moment_on() {
        let metrics = Metrics::new();
        metrics.counter("frames_in", "cam-0").add_many(5);
        let first = Flow::of(&metrics);
        metrics.counter("frames_in", "cam-0").add_many(2);
        metrics.counter("frames_in", "cam-1").add_many(3);
        metrics.counter("reconnects", "cam-1").add();
        assert_eq!(Flow::of(&metrics).since(first), Flow { received: 5, reconnects: 1, ..Flow::default() });
    }
}
