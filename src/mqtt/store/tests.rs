//! What a store holds over restarts, what it does with files of its first kind, cut short, or with bits that flipped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::channel;

use super::*;
use crate::base::metrics::Metrics;

const BOUNDS: Bounds = Bounds { records: 1000, bytes: 1 << 24, age: Duration::from_secs(3600) };
const TOPICS: [&str; 2] = ["P/a/events", "P/a/detections"];

fn lane(topic: &str) -> Arc<Lane> {
    Arc::new(Lane::new(topic.to_owned(), "a", &Metrics::new()))
}

fn record(number: u64, at: i64, lane: &Arc<Lane>) -> Record {
    Record::kept(number, Utc::from_millis(at), lane.clone(), number.to_string().into_bytes().into())
}

fn batch(records: Vec<Record>, deletes: &[u64]) -> Batch {
    Batch { records, deletes: deletes.to_vec() }
}

/// As a test that is run for long has it, or among many others.
fn share(full: usize, short: usize) -> usize {
    if std::env::var_os("PALISADE_SOAK").is_some() { full } else { short }
}

/// All of a class, and how many were damaged.
fn read(store: &Store, class: Class, found: Option<Spilled>) -> Result<(Vec<Record>, usize)> {
    let (mut records, mut damaged, mut wanted) = (Vec::new(), 0, found);
    while let Some(some) = wanted {
        let loaded = store.load(class, some, &|topic| self::lane(topic))?;
        assert!(loaded.records.len() <= LOAD_RECORDS);
        records.extend(loaded.records);
        damaged += loaded.damaged.len();
        wanted = loaded.left;
    }
    Ok((records, damaged))
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.number).collect()
}

#[test]
fn what_is_committed_is_there_after_a_new_start() {
    let folder = tempfile::tempdir().unwrap();
    let (lanes, now) = (TOPICS.map(lane), Utc::now());
    let mut store = Store::open(folder.path()).unwrap();
    let id = store.id();
    assert_eq!(Class::ALL.map(|class| store.place(class, 1000)), [None; 2]);
    let [events, detections] = [0, 1].map(|class| (1001..=1600).map(|number| record(number, now.millis(), &lanes[class])).collect());
    let (events, detections): (Vec<Record>, Vec<Record>) = (events, detections);
    let find = |topic: &str| lane(topic);
    let written = [&batch(events[..5].to_vec(), &[]), &batch(detections, &[])];
    assert_eq!(store.commit(written, [BOUNDS; 2], now, &find).unwrap(), [None; 2]);
    store.commit([&Batch::default(), &batch(vec![], &[1001, 1003])], [BOUNDS; 2], now, &find).unwrap();
    assert!(Store::open(folder.path()).err().unwrap().chain().contains("in use by another process"));
    drop(store);

    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.id(), id);
    let found = Class::ALL.map(|class| store.place(class, 5000));
    assert_eq!(
        found.map(|found| found.map(|found| (found.first, found.last, found.records))),
        [Some((4996, 5000, 5)), Some((4402, 5000, 598))]
    );
    for class in Class::ALL {
        let (records, damaged) = read(&store, class, found[class as usize]).unwrap();
        assert!(damaged == 0 && records.iter().all(|record| record.lane.topic == TOPICS[class as usize]));
        let shift = if class == Class::Events { 3995 } else { 3400 };
        assert!(records.iter().all(|record| *record.payload == *(record.number - shift).to_string().as_bytes()));
        if class == Class::Detections {
            assert_eq!(numbers(&records), [4402].into_iter().chain(4404..=5000).collect::<Vec<u64>>());
        }
    }
    // What comes later goes behind it, and the same numbers are the same records as long as the daemon runs.
    let shifts = store.shifts();
    store.commit([&batch(vec![record(5001, now.millis(), &lanes[0])], &[4996]), &Batch::default()], [BOUNDS; 2], now, &find).unwrap();
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    store.replace(shifts);
    let (records, _) = read(&store, Class::Events, Some(Spilled { first: 4996, last: 5001, records: 5, bytes: 0 })).unwrap();
    assert_eq!(numbers(&records), [4997, 4998, 4999, 5000, 5001]);
}

#[test]
fn the_oldest_go_first_by_number_bytes_and_age_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (lanes, now) = (TOPICS.map(lane), Utc::from_millis(10_000_000));
    let mut store = Store::open(folder.path()).unwrap();
    let records = |class: usize| (1..=9).map(|number| record(number, number as i64 * 1_000_000, &lanes[class])).collect();
    let commit = |store: &mut Store, batches: [&Batch; 2], bounds| {
        let find = |topic: &str| lanes[Class::of(topic) as usize].clone();
        store.commit(batches, [BOUNDS, bounds], now, &find).unwrap()[1]
    };
    let (age, none) = (Duration::from_secs(7000), Batch::default());
    let each = TOPICS[1].len() + 1;
    assert_eq!(commit(&mut store, [&batch(records(0), &[]), &batch(records(1), &[])], Bounds { age, ..BOUNDS }), Some(2));
    assert_eq!(commit(&mut store, [&none, &none], Bounds { records: 5, age, ..BOUNDS }), Some(4));
    assert_eq!(commit(&mut store, [&none, &none], Bounds { bytes: 3 * each, age, ..BOUNDS }), Some(6));
    assert_eq!((store.tables[1].records, store.tables[1].bytes, lanes[1].dropped.get()), (3, 3 * each, 6));
    // By age alone, from their own bounds.
    assert_eq!((store.tables[0].records, lanes[0].dropped.get()), (3, 6));
}

#[test]
fn a_folder_that_cannot_be_used_is_a_sentence() {
    let error = Store::open(Path::new("/proc/nowhere")).err().unwrap().chain();
    assert!(error.starts_with("/proc/nowhere cannot be made: "), "{error}");
}

#[test]
fn a_file_of_the_first_kind_is_rewritten_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = Builder::new().create(folder.path().join(FILE)).unwrap();
    let write = database.begin_write().unwrap();
    for number in 7..=6000_u64 {
        let topic = TOPICS[usize::from(number % 10 != 0)];
        write.open_table(OLD).unwrap().insert(number, (number as i64, topic, number.to_string().as_bytes())).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let mut store = Store::open(folder.path()).unwrap();
        let mut all = BTreeMap::new();
        for class in Class::ALL {
            let found = store.place(class, 10_000).unwrap();
            let shift = store.shifts()[class as usize];
            let (records, damaged) = read(&store, class, Some(found)).unwrap();
            assert!(damaged == 0 && records.len() == found.records && numbers(&records).is_sorted());
            assert!(records.iter().all(|record| record.lane.topic == TOPICS[class as usize]));
            all.extend(records.into_iter().map(|record| (record.number - shift, record)));
        }
        assert!(all.keys().copied().eq(7..=6000));
        assert!(
            all.iter().all(|(number, record)| *record.payload == *number.to_string().as_bytes() && record.at.millis() == *number as i64)
        );
        let names: Vec<String> = store.database.begin_read().unwrap().list_tables().unwrap().map(|table| table.name().to_owned()).collect();
        assert_eq!(names, ["about", "detections", "events"]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was moved aside");
}

/// The bytes of a store with both classes in several commits, and everything that was ever put there by number.
fn sample(now: Utc) -> (Vec<u8>, BTreeMap<u64, String>) {
    let folder = tempfile::tempdir().unwrap();
    let lanes = TOPICS.map(lane);
    let mut store = Store::open(folder.path()).unwrap();
    let mut written = BTreeMap::new();
    for round in 0..6 {
        let [events, detections] = [0, 1].map(|class| {
            let numbers = (round * 100..round * 100 + 90).filter(|number| number % 2 == class);
            let records = numbers.map(|number| {
                let text = format!("record {number} ").repeat(1 + number as usize % 40);
                written.insert(number, text.clone());
                Record::kept(number, now, lanes[class as usize].clone(), text.into_bytes().into())
            });
            batch(records.collect(), &if round == 3 { vec![0, 1, 2, 3, 100, 101] } else { vec![] })
        });
        store.commit([&events, &detections], [BOUNDS; 2], now, &|topic| self::lane(topic)).unwrap();
    }
    drop(store);
    (std::fs::read(folder.path().join(FILE)).unwrap(), written)
}

/// Opens a store made of these bytes, and reads, writes and reads it once more. Asserts that what comes back is what was put
/// there; returns how many records that were and whether damage was seen.
fn survives(bytes: &[u8], written: &BTreeMap<u64, String>, now: Utc) -> (usize, bool) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), bytes).unwrap();
    let (mut seen, mut noticed) = (0, false);
    for round in 0..2 {
        let mut store = Store::open(folder.path()).unwrap_or_else(|error| panic!("{}", error.chain()));
        for class in Class::ALL {
            let found = store.tables[class as usize].found;
            let Ok((records, damaged)) = read(&store, class, found) else {
                noticed = true;
                continue;
            };
            noticed |= damaged > 0;
            for record in records.iter().filter(|record| record.number < 10_000) {
                let text = written.get(&record.number).map(String::as_bytes);
                assert_eq!(text, Some(&*record.payload), "record {} is not as it was written", record.number);
                assert_eq!((record.lane.topic.as_str(), record.at), (TOPICS[record.number as usize % 2], now));
            }
            seen += if round == 0 { records.len() } else { 0 };
        }
        let new = batch(vec![record(10_000 + round, now.millis(), &lane(TOPICS[1]))], &[]);
        noticed |= store.commit([&Batch::default(), &new], [BOUNDS; 2], now, &|topic| self::lane(topic)).is_err();
        store.abandon();
    }
    noticed |= std::fs::read_dir(folder.path()).unwrap().count() > 1;
    (seen, noticed)
}

/// As `survives`, in a thread: what hangs fails the test.
fn survives_in_time(what: String, bytes: Vec<u8>, written: &Arc<BTreeMap<u64, String>>, now: Utc) -> (usize, bool) {
    let (send, done) = channel();
    let written = written.clone();
    let body = move || send.send(survives(&bytes, &written, now)).unwrap();
    let thread = std::thread::Builder::new().name(what.clone()).spawn(body).unwrap();
    match done.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(error) => panic!("{what}: {error}; ended: {}", thread.is_finished()),
    }
}

/// At every cut the daemon must start, with what is left or with a new file.
#[test]
fn a_file_cut_short_anywhere_is_opened_or_moved_aside() {
    let now = Utc::now();
    let (bytes, written) = sample(now);
    let written = Arc::new(written);
    let mut seen = 0;
    for length in (0..bytes.len()).step_by(share(512, 512 * 61)).chain([1, 511, 4095, 4097]) {
        let (_, noticed) = survives_in_time(format!("cut at {length}"), bytes[..length].to_vec(), &written, now);
        seen += usize::from(noticed);
    }
    assert!(seen > 0, "no cut was ever noticed");
}

/// From one to eight bits, anywhere in the file; each second time where something is written.
#[test]
fn flipped_bits_are_noticed_and_never_passed_on() {
    let now = Utc::now();
    let (bytes, written) = sample(now);
    let (written, all) = (Arc::new(written), bytes.len());
    let used: Vec<usize> = (0..all).filter(|at| bytes[*at] != 0).collect();
    let (whole, clean) = survives(&bytes, &written, now);
    assert!(whole == 6 * 90 - 6 && !clean, "{whole}");
    let mut tally = [0; 2];
    for seed in 0..share(5000, 200) as u64 {
        let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut next = |below: usize| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 33) as usize % below
        };
        let mut flipped = bytes.clone();
        for _ in 0..=next(8) {
            let at = if seed % 2 == 0 { next(all) } else { used[next(used.len())] };
            flipped[at] ^= 1 << next(8);
        }
        let (seen, noticed) = survives_in_time(format!("flip {seed}"), flipped, &written, now);
        tally[usize::from(noticed)] += 1;
        assert!(noticed || seen >= whole, "flip {seed}: {} records are gone without a word", whole - seen);
    }
    println!("of {all} bytes {} are used; {} flips did not matter, {} were noticed", used.len(), tally[0], tally[1]);
    assert!(tally[1] > 20, "hardly any flip was noticed: the test proves nothing");
}

/// The library does not look at a page's checksum when it reads it later.
#[test]
fn a_record_that_is_damaged_while_the_file_is_open_is_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (now, metrics) = (Utc::now(), Metrics::new());
    let lane = lane(TOPICS[1]);
    let text = |number: u64| format!("record {number:04} ").repeat(1000);
    let mut store = Store::open(folder.path()).unwrap();
    // More than the page cache holds.
    let records = (1..=800).map(|number| Record::kept(number, now, lane.clone(), text(number).into_bytes().into())).collect();
    store.commit([&Batch::default(), &batch(records, &[])], [BOUNDS; 2], now, &|_| lane.clone()).unwrap();
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    let found = store.tables[1].found.unwrap();
    let path = folder.path().join(FILE);
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for number in [3, 5] {
        let begin = text(number).into_bytes();
        let at: Vec<usize> = (0..bytes.len() - begin.len()).filter(|at| bytes[*at..].starts_with(&begin)).collect();
        assert!(!at.is_empty());
        at.iter().for_each(|at| file.write_all_at(&[bytes[at + 500] ^ 4], *at as u64 + 500).unwrap());
    }
    let nobody = Arc::new(Lane::new(NOBODY.to_owned(), "unknown", &metrics));
    let find = |topic: &str| if topic == NOBODY { nobody.clone() } else { lane.clone() };
    let loaded = store.load(Class::Detections, found, &find).unwrap();
    assert_eq!(loaded.damaged, [3, 5]);
    assert_eq!(numbers(&loaded.records)[..4], [1, 2, 4, 6]);
    assert!(loaded.records.iter().all(|record| *record.payload == *text(record.number).as_bytes()));
    let left = loaded.left.unwrap();
    assert_eq!(loaded.records.len() + 2 + left.records, 800);
    assert_eq!(["mqtt_dropped", "mqtt_dropped_damaged"].map(|name| metrics.counter(name, "unknown").get()), [2, 2]);
    // The oldest that must go may be one of them.
    store.commit([&Batch::default(), &batch(vec![], &[1, 2])], [BOUNDS; 2], now, &find).unwrap();
    assert_eq!(metrics.counter("mqtt_dropped_damaged", "unknown").get(), 3);
}
