//! What the record module's tests are made of, and the queue to a writer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use uuid::Uuid;

use super::*;
use crate::base::clock::Utc;
use crate::types::{Box01, Codec, EventKind, Reason, Track};

/// A picture of `bytes` bytes that was taken, and is shown, at `millis`; a keyframe of ten has a parameter set.
pub fn unit(key: bool, millis: i64, bytes: usize) -> EncodedUnit {
    let content = if key && bytes == 10 { vec![0, 0, 1, 0x67, 1, 0, 0, 1, 0x65, 1] } else { vec![0; bytes] };
    let time = Duration::from_millis(millis.try_into().unwrap());
    let now = std::time::Instant::now();
    EncodedUnit {
        codec: Codec::H264,
        caps: "video/x-h264".into(),
        bytes: content.into(),
        key,
        time,
        dts: None,
        duration: None,
        connected: now,
        received: now,
        captured: Utc::from_millis(millis),
    }
}

/// An event of the object `id`, first seen at `start`, last at `last`, told at `now`, all in milliseconds.
pub fn event(kind: EventKind, id: &str, start: i64, last: i64, now: i64) -> Event {
    let track = Track {
        id: id.into(),
        label: "cat".into(),
        score: 0.9,
        top_score: 0.9,
        start: Utc::from_millis(start),
        last: Utc::from_millis(last),
        box01: Box01 { y_min: 0.1, x_min: 0.1, y_max: 0.2, x_max: 0.2 },
        stationary: false,
        zones: Vec::new(),
        entered_zones: Vec::new(),
    };
    Event {
        id: Uuid::now_v7(),
        kind,
        reason: Reason::Moved,
        camera: CameraId::new("street").unwrap(),
        time: Utc::from_millis(now),
        track,
        before: None,
        frame: (1280, 720),
        prompt_id: "5d41402a".into(),
        snapshot: None,
        clip: None,
    }
}

fn desk(orders: Sender<Order>) -> Desk {
    let rules = Rules {
        pre_roll: Duration::from_secs(5),
        lag: Duration::ZERO,
        post_roll: Duration::from_secs(5),
        max_clip: Duration::from_secs(300),
        most_bytes: RING_BYTES,
    };
    Desk {
        camera: CameraId::new("street").unwrap(),
        plan: Plan::new(rules),
        orders: Some(orders),
        waiting: Arc::default(),
        dropped: Counter::default(),
        skips: false,
        told: false,
    }
}

#[test]
fn a_writer_that_stands_still_costs_pictures_up_to_a_keyframe_and_each_is_counted() {
    let (orders, waits) = bounded(WAITING + WAITING_WORDS);
    let mut desk = desk(orders);
    let large = 1 << 20;
    for n in 0..200 {
        desk.send(vec![Order::Unit(unit(n % 10 == 0, n * 100, large))]);
    }
    let fit = WAITING_BYTES / large;
    assert_eq!((waits.len(), desk.dropped.get()), (fit, 200 - fit as u64));
    // The writer goes on: pictures do as well, from the next keyframe on.
    for order in waits.try_iter() {
        let Order::Unit(unit) = order else { panic!("no picture") };
        desk.waiting.remove(&unit);
    }
    for n in 205..215 {
        desk.send(vec![Order::Unit(unit(n % 10 == 0, n * 100, large))]);
    }
    let taken: Vec<bool> = waits.try_iter().map(|order| matches!(order, Order::Unit(unit) if unit.key)).collect();
    assert_eq!(taken, [true, false, false, false, false]);
}

#[test]
fn small_pictures_are_bounded_in_number_and_leave_room_for_words() {
    let (orders, waits) = bounded(WAITING + WAITING_WORDS);
    let mut desk = desk(orders);
    for n in 0..WAITING as i64 + 100 {
        desk.send(vec![Order::Unit(unit(true, n, 10))]);
    }
    assert_eq!((waits.len(), desk.dropped.get()), (WAITING, 100));
    (0..WAITING_WORDS + 5).for_each(|_| desk.send(vec![Order::End]));
    assert_eq!(waits.len(), WAITING + WAITING_WORDS);
}
