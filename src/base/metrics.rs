//! Counters and latency samples: one registry, read by the summary and the status messages.
//!
//! A counter is created by the stage that counts and named once; every drop in the daemon has one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::base::sync;

/// How many latency samples a series keeps: the newest ones, for percentiles.
const SAMPLES: usize = 4096;

/// A number that only grows. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn add(&self) {
        self.add_many(1);
    }

    /// Counts `more` at once.
    pub fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A series of durations, the newest 4096 kept. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Mutex<Ring>>);

#[derive(Debug, Default)]
struct Ring {
    millis: Vec<f64>,
    next: usize,
    count: u64,
    sum: Duration,
}

impl Latency {
    /// Adds one sample.
    pub fn record(&self, took: Duration) {
        let mut ring = sync::lock(&self.0);
        ring.count += 1;
        ring.sum = ring.sum.saturating_add(took);
        let millis = took.as_secs_f64() * 1000.0;
        if ring.millis.len() < SAMPLES {
            ring.millis.push(millis);
        } else {
            let next = ring.next;
            ring.millis[next] = millis;
            ring.next = (next + 1) % SAMPLES;
        }
    }

    /// How many samples there ever were, and their sum.
    pub fn all(&self) -> (u64, Duration) {
        let ring = sync::lock(&self.0);
        (ring.count, ring.sum)
    }

    /// The value in milliseconds below which `share` (0..=1) of the kept samples lie (nearest rank); `None` without samples.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let mut millis = sync::lock(&self.0).millis.clone();
        millis.sort_by(f64::total_cmp);
        let rank = (share * millis.len() as f64).ceil() as usize;
        millis.get(rank.max(1) - 1).copied()
    }
}

/// Every counter and series by name, e.g. `frames_in{camera="street"}`. Clones share the registry.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    counters: BTreeMap<(&'static str, String), Counter>,
    latencies: BTreeMap<(&'static str, String), Latency>,
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter `name` of `subject` (a camera, a sink, a size), made at its first use.
    pub fn counter(&self, name: &'static str, subject: &str) -> Counter {
        let mut tables = sync::lock(&self.0);
        tables.counters.entry((name, subject.to_owned())).or_default().clone()
    }

    /// The latency series `name` of `subject`, made at its first use.
    pub fn latency(&self, name: &'static str, subject: &str) -> Latency {
        let mut tables = sync::lock(&self.0);
        tables.latencies.entry((name, subject.to_owned())).or_default().clone()
    }

    /// Name, subject and count of every counter, in order of name.
    pub fn counts(&self) -> Vec<(&'static str, String, u64)> {
        let tables = sync::lock(&self.0);
        tables.counters.iter().map(|((name, subject), counter)| (*name, subject.clone(), counter.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let latency = Latency::default();
        assert_eq!(latency.percentile(0.5), None);
        for ms in 1..=100 {
            latency.record(Duration::from_millis(ms));
        }
        assert_eq!(latency.percentile(0.5), Some(50.0));
        assert_eq!(latency.percentile(0.99), Some(99.0));
        assert_eq!(latency.percentile(1.0), Some(100.0));
    }

    #[test]
    fn a_full_series_forgets_the_oldest() {
        let latency = Latency::default();
        latency.record(Duration::from_secs(3600));
        for _ in 0..SAMPLES {
            latency.record(Duration::from_millis(1));
        }
        assert_eq!(latency.percentile(1.0), Some(1.0));
        assert_eq!(latency.all(), (SAMPLES as u64 + 1, Duration::from_millis(3_600_000 + SAMPLES as u64)));
    }

    #[test]
    fn the_same_name_is_the_same_counter() {
        let metrics = Metrics::new();
        metrics.counter("frames_in", "a").add();
        metrics.counter("frames_in", "a").add_many(2);
        assert_eq!(metrics.counts(), [("frames_in", "a".to_owned(), 3)]);
    }
}
