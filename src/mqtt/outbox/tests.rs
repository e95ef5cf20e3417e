//! The records' order, bounds and counts, with a store that is only a list.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn lane() -> Arc<Lane> {
    Arc::new(Lane::new("t".to_owned(), "a", &Metrics::new()))
}

fn push(outbox: &mut Outbox, lane: &Arc<Lane>, bytes: usize) -> usize {
    outbox.push(lane, vec![0; bytes], Utc::from_millis(0), true)
}

fn numbers(outbox: &mut Outbox) -> Vec<u64> {
    std::iter::from_fn(|| outbox.next(|_| true).map(|record| record.number)).collect()
}

#[test]
fn without_a_store_the_oldest_are_dropped_first_and_counted() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 3, bytes: 1000 }, 0));
    let dropped: Vec<usize> = (0..5).map(|_| push(&mut outbox, &lane, 9)).collect();
    assert_eq!(dropped, [0, 0, 0, 1, 1]);
    assert_eq!((numbers(&mut outbox), lane.dropped.get()), (vec![3, 4, 5], 2));
    let mut outbox = Outbox::new(Limits { records: 100, bytes: 30 }, 0);
    (0..3).for_each(|_| assert_eq!(push(&mut outbox, &lane, 9), 0));
    assert_eq!(push(&mut outbox, &lane, 19), 2, "bytes bound it too");
    assert_eq!(numbers(&mut outbox), [3, 4]);
}

#[test]
fn what_is_under_way_stays_until_acked_and_comes_again_after_a_loss() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 0));
    (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    assert_eq!((outbox.next(|_| true).unwrap().number, outbox.next(|_| true).unwrap().number), (1, 2));
    push(&mut outbox, &lane, 1); // full: number 3 goes, not 1 and 2
    outbox.acked(2);
    outbox.rewind();
    assert_eq!(numbers(&mut outbox), [1, 4, 5]);
    assert_eq!((lane.published.get(), lane.dropped.get()), (1, 1));
    outbox.acked(2); // a second acknowledgement changes nothing
    outbox.given_up(2, Why::Refused);
    [1, 4, 5].into_iter().for_each(|number| outbox.acked(number));
    assert!(outbox.is_empty() && outbox.bytes == 0 && lane.published.get() == 4);
}

/// Saves all, and returns the numbers that the store then has.
fn save(outbox: &mut Outbox, disk: &mut Vec<u64>) {
    let (records, deletes) = outbox.take(1000);
    disk.extend(records.iter().map(|record| record.number));
    disk.retain(|number| !deletes.contains(number));
    outbox.saved(None);
}

#[test]
fn with_a_store_nothing_is_dropped_and_all_comes_in_order() {
    let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 0), Vec::new());
    outbox.attach(None);
    for _ in 0..20 {
        assert_eq!(push(&mut outbox, &lane, 1), 0);
        save(&mut outbox, &mut disk);
    }
    assert_eq!((outbox.waiting(), outbox.tail.len(), disk.len()), ((20, 40), 4, 20));
    let mut seen = Vec::new();
    while !outbox.is_empty() {
        match outbox.next(|_| true).map(|record| record.number) {
            Some(number) => {
                seen.push(number);
                outbox.acked(number);
                save(&mut outbox, &mut disk);
            }
            None => {
                let wanted = outbox.spilled().unwrap();
                let Spilled { first, last, records, bytes } = wanted;
                assert!(outbox.wants_load());
                let some: Vec<u64> = disk.iter().copied().filter(|number| (first..=last).contains(number)).take(3).collect();
                let left = (some.len() < records).then(|| Spilled {
                    first: some.last().unwrap() + 1,
                    last,
                    records: records - some.len(),
                    bytes: bytes - 2 * some.len(),
                });
                let read = some.into_iter().map(|number| Record::kept(number, Utc::from_millis(0), lane.clone(), [0].into()));
                outbox.loaded(read.collect(), wanted, left);
            }
        }
    }
    assert_eq!((seen, disk, outbox.bytes), ((1..=20).collect(), vec![], 0));
}

#[test]
fn what_is_acknowledged_before_it_was_saved_never_touches_the_disk() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 0));
    outbox.attach(None);
    push(&mut outbox, &lane, 1);
    assert_eq!(numbers(&mut outbox), [1]);
    outbox.acked(1);
    assert_eq!(outbox.take(9).1, Vec::<u64>::new());
    // Acknowledged while it was being saved, it is deleted afterwards.
    push(&mut outbox, &lane, 1);
    assert_eq!((numbers(&mut outbox), outbox.take(9).0.len()), (vec![2], 1));
    outbox.acked(2);
    outbox.saved(None);
    assert_eq!(outbox.take(9).1, [2]);
}

#[test]
fn a_new_start_goes_on_behind_what_is_on_disk() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 9));
    let found = Spilled { first: 5, last: 9, records: 3, bytes: 30 };
    outbox.attach(Some(found));
    push(&mut outbox, &lane, 1);
    assert_eq!(outbox.next(|_| true).map(|record| record.number), None, "the oldest are read back first");
    push(&mut outbox, &lane, 1);
    assert_eq!(outbox.take(9).0.iter().map(|record| record.number).collect::<Vec<_>>(), [10, 11]);
    outbox.loaded(vec![], found, None);
    assert_eq!(numbers(&mut outbox), [10, 11]);
}

#[test]
fn without_its_store_it_drops_the_oldest_and_goes_on_when_it_is_back() {
    let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 2, bytes: 1000 }, 0), Vec::new());
    outbox.attach(None);
    (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    outbox.take(9);
    outbox.detach(Vec::new());
    assert_eq!(push(&mut outbox, &lane, 1), 1);
    outbox.back();
    outbox.takes();
    push(&mut outbox, &lane, 1);
    save(&mut outbox, &mut disk);
    assert_eq!((disk, lane.dropped.get()), (vec![2, 3, 4], 1));
}

#[test]
fn what_is_spilled_while_others_are_read_back_is_not_forgotten() {
    let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 0), Vec::new());
    outbox.attach(None);
    (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    save(&mut outbox, &mut disk);
    push(&mut outbox, &lane, 1);
    assert!(outbox.next(|_| true).is_none(), "the first is on disk alone");
    let wanted = outbox.spilled().unwrap();
    push(&mut outbox, &lane, 1);
    outbox.loaded(vec![Record::kept(1, Utc::from_millis(0), lane.clone(), [0].into())], wanted, None);
    assert_eq!(numbers(&mut outbox), [1]);
    assert_eq!(outbox.spilled().map(|spilled| (spilled.first, spilled.last, spilled.records)), Some((2, 2, 1)));
    assert!(outbox.is_pressing());
}

#[test]
fn a_disk_that_fails_for_a_while_loses_nothing_that_it_had() {
    let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 4, bytes: 1000 }, 0), Vec::new());
    outbox.attach(None);
    (0..4).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    save(&mut outbox, &mut disk);
    outbox.detach(Vec::new());
    (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0, "the oldest are on disk"));
    assert!(outbox.next(|_| true).is_none() && !outbox.is_pressing(), "in order, and without spinning");
    outbox.back();
    assert!(outbox.next(|_| true).is_none() && outbox.is_pressing(), "what it has can be read, whether it takes more or not");
    assert!(!outbox.keeps());
    outbox.takes();
    assert_eq!(outbox.take(9).1, Vec::<u64>::new());
    assert_eq!(outbox.spilled().map(|spilled| (spilled.first, spilled.last)), Some((1, 2)));
    outbox.detach(Vec::new());
    assert_eq!((outbox.forsake(), numbers(&mut outbox)), (2, vec![3, 4, 5, 6]));
}

#[test]
fn at_the_end_what_nobody_keeps_counts_as_dropped() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 9, bytes: 1000 }, 0));
    (0..3).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    outbox.acked(1);
    assert_eq!((outbox.abandon(), lane.dropped.get(), lane.published.get()), (2, 2, 1));
    outbox.attach(None);
    push(&mut outbox, &lane, 1);
    outbox.push(&lane, vec![1], Utc::from_millis(0), false);
    assert_eq!((outbox.abandon(), outbox.waiting().0), (1, 1), "what a store keeps is not lost");
}

#[test]
fn a_store_that_comes_late_comes_first_and_keeps_what_waited_for_it() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 9, bytes: 1000 }, 100));
    (0..3).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    assert_eq!(outbox.next(|_| true).map(|record| record.number), Some(101), "nobody waits for a disk that may never come");
    let found = Spilled { first: 98, last: outbox.floor(), records: 2, bytes: 4 };
    assert_eq!((found.last, outbox.attach(Some(found))), (100, 0));
    assert_eq!(outbox.waiting(), (5, 10));
    assert!(outbox.next(|_| true).is_none() && outbox.wants_load());
    assert_eq!(outbox.take(9).0.iter().map(|record| record.number).collect::<Vec<_>>(), [101, 102, 103], "each of them once");
    outbox.saved(None);
    outbox.acked(101);
    let (records, deletes) = outbox.take(9);
    assert_eq!((records.len(), deletes), (0, vec![101]));
    outbox.saved(None);
    let read = |number| Record::kept(number, Utc::from_millis(0), lane.clone(), [0].into());
    outbox.loaded(vec![read(98), read(100)], found, None);
    assert_eq!(numbers(&mut outbox), [98, 100, 102, 103]);
    outbox.rewind();
    assert_eq!(numbers(&mut outbox), [98, 100, 102, 103], "after a loss too");
}

#[test]
fn what_is_under_way_when_a_store_comes_late_comes_again_behind_what_was_found() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 2, bytes: 1000 }, 100));
    (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    assert_eq!(numbers(&mut outbox), [101, 102]);
    assert_eq!((push(&mut outbox, &lane, 1), outbox.head.len()), (1, 2), "what is under way stays");
    let found = Spilled { first: 100, last: 100, records: 1, bytes: 2 };
    outbox.attach(Some(found));
    outbox.acked(101);
    outbox.rewind();
    assert!(outbox.next(|_| true).is_none());
    outbox.loaded(vec![Record::kept(100, Utc::from_millis(0), lane.clone(), [0].into())], found, None);
    assert_eq!(numbers(&mut outbox), [100, 102]);
    [100, 102].into_iter().for_each(|number| outbox.acked(number));
    assert!(outbox.is_empty() && outbox.bytes == 0);
}

#[test]
fn another_store_has_none_of_what_the_one_before_had() {
    let (lane, mut outbox, mut disk) = (lane(), Outbox::new(Limits { records: 2, bytes: 1000 }, 100), Vec::new());
    outbox.attach(None);
    (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    save(&mut outbox, &mut disk);
    push(&mut outbox, &lane, 1);
    save(&mut outbox, &mut disk);
    assert_eq!((outbox.spilled().map(|spilled| spilled.records), disk.len()), (Some(1), 3));
    outbox.detach(vec![55]);
    disk.clear();
    assert_eq!((outbox.floor(), outbox.attach(None)), (101, 1), "what was on disk alone is lost");
    save(&mut outbox, &mut disk);
    assert_eq!((disk, numbers(&mut outbox)), (vec![102, 103], vec![102, 103]));
}

#[test]
fn what_may_not_go_yet_is_not_handed_out() {
    let (lane, mut outbox) = (lane(), Outbox::new(Limits { records: 2, bytes: 1000 }, 0));
    (0..2).for_each(|_| assert_eq!(push(&mut outbox, &lane, 1), 0));
    assert!(outbox.next(|number| number > 1).is_none());
    assert_eq!(numbers(&mut outbox), [1, 2]);
}

#[test]
fn events_are_told_by_their_topic() {
    for (topic, class) in [("P/a/events", Class::Events), ("frigate/events", Class::Events), ("P/events/detections", Class::Detections)] {
        assert_eq!(Lane::new(topic.to_owned(), "a", &Metrics::new()).class, class, "{topic}");
    }
    assert_eq!(Class::ALL.map(|class| class as usize), [0, 1]);
}
