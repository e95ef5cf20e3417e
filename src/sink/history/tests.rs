use std::path::Path;

use super::*;

fn entry(id: &str, start: i64) -> Entry {
    Entry {
        track_id: id.to_owned(),
        camera: "street".to_owned(),
        label: "cat".to_owned(),
        start: Utc::from_millis(start),
        seen: Utc::from_millis(start + 500),
        ended: false,
        score: 0.5,
        top_score: 0.75,
        zones: Vec::new(),
        stationary: false,
        box01: Box01 { y_min: 0.25, x_min: 0.125, y_max: 0.5, x_max: 0.75 },
        reason: "first seen".to_owned(),
        snapshot: None,
        clip: None,
    }
}

fn start(file: &Path, keep_for: Duration, metrics: &Metrics) -> History {
    History::start(&HistoryConfig { file: file.to_owned(), keep_for }, metrics).unwrap()
}

/// Long enough for anything.
const AGES: Duration = Duration::from_secs(100 * 365 * 86_400);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ids(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.track_id.as_str()).collect()
}

#[test]
fn an_object_is_one_row_from_new_to_end_and_keeps_its_first_clip() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deep/events.sqlite");
    let metrics = Metrics::new();
    let history = start(&file, AGES, &metrics);
    let mut reader = history.reader();
    let first = Entry { clip: Some("a.mp4".into()), snapshot: Some("a.jpg".into()), zones: vec!["gate".into()], ..entry("1-a", 1000) };
    history.put(first.clone());
    until("written", || reader.get("1-a").unwrap() == Some(first.clone()));
    // In a transaction of its own, and several of one object in one.
    let later = Entry { seen: Utc::from_millis(9000), clip: Some("b.mp4".into()), snapshot: None, reason: "moved".into(), ..first.clone() };
    history.put(later.clone());
    let end = Entry { ended: true, reason: "lost".into(), top_score: 0.875, ..later };
    history.put(end.clone());
    history.finish(soon());
    let kept = reader.get("1-a").unwrap().unwrap();
    assert_eq!(kept, Entry { clip: first.clip, snapshot: first.snapshot, ..end });
    assert_eq!(reader.get("1-b").unwrap(), None);
    history.put(kept);
    assert_eq!(metrics.counter("history_dropped", "all").get(), 1, "after the end nothing is taken");
}

#[test]
fn what_was_there_at_a_kill_has_ended_when_it_was_last_seen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.sqlite");
    let history = start(&file, AGES, &Metrics::new());
    history.put(entry("1-a", 1000));
    history.finish(soon());
    assert!(!history.reader().get("1-a").unwrap().unwrap().ended);
    let again = start(&file, AGES, &Metrics::new());
    until("closed", || again.reader().get("1-a").unwrap().unwrap().ended);
    assert_eq!(again.reader().get("1-a").unwrap().unwrap().seen, Utc::from_millis(1500));
    again.finish(soon());
}

#[test]
fn objects_are_found_by_camera_label_zone_and_time_a_page_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let history = start(&folder.path().join("events.sqlite"), AGES, &Metrics::new());
    let mut reader = history.reader();
    for (id, time, camera, label, zones) in [
        ("a", 1000, "street", "cat", vec!["gate"]),
        ("b", 2000, "yard", "cat", vec!["gate", "path"]),
        ("c", 2000, "street", "dog", vec![]),
        ("d", 3000, "street", "it's \"a\" cat", vec!["ga%"]),
    ] {
        let zones = zones.into_iter().map(str::to_owned).collect();
        history.put(Entry { camera: camera.into(), label: label.into(), zones, ..entry(id, time) });
    }
    history.finish(soon());
    let all = Query { limit: 50, ..Query::default() };
    let some = |text: &str| Some(text.to_owned());
    let time = |millis| Some(Utc::from_millis(millis));
    for (query, found) in [
        (all.clone(), vec!["d", "c", "b", "a"]),
        (Query { camera: some("street"), ..all.clone() }, vec!["d", "c", "a"]),
        (Query { label: some("cat"), ..all.clone() }, vec!["b", "a"]),
        (Query { label: some("it's \"a\" cat"), ..all.clone() }, vec!["d"]),
        (Query { zone: some("gate"), ..all.clone() }, vec!["b", "a"]),
        (Query { zone: some("path"), camera: some("street"), ..all.clone() }, vec![]),
        (Query { after: time(2000), ..all.clone() }, vec!["d", "c", "b"]),
        (Query { before: time(2000), ..all.clone() }, vec!["a"]),
        (Query { behind: Some((Utc::from_millis(2000), "c".into())), ..all.clone() }, vec!["b", "a"]),
    ] {
        let page = reader.find(&query).unwrap();
        assert_eq!((ids(&page), page.more), (found, false), "{query:?}");
    }
    let page = reader.find(&Query { limit: 2, ..Query::default() }).unwrap();
    assert_eq!((ids(&page), page.more), (vec!["d", "c"], true));
}

#[test]
fn rows_that_are_too_old_go_and_objects_that_are_there_stay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.sqlite");
    let (now, metrics) = (Utc::now().millis(), Metrics::new());
    let history = start(&file, AGES, &metrics);
    history.put(Entry { ended: true, ..entry("old", now - 3 * 86_400_000) });
    history.put(Entry { ended: true, ..entry("young", now - 1000) });
    history.finish(soon());
    let again = start(&file, Duration::from_secs(2 * 86_400), &metrics);
    until("removed", || metrics.counter("history_removed", "all").get() == 1);
    assert_eq!(ids(&again.reader().find(&Query { limit: 9, ..Query::default() }).unwrap()), ["young"]);
    again.finish(soon());
}

#[test]
fn a_damaged_file_is_moved_aside_and_another_one_begun() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.sqlite");
    for damage in ["no database at all, but long enough to be looked at as one".repeat(99), "cut".to_owned()] {
        let metrics = Metrics::new();
        if damage == "cut" {
            // Pages beyond the first are not what they were.
            let history = start(&file, AGES, &metrics);
            (0..2000).for_each(|number| history.put(entry(&format!("{number}"), number)));
            history.finish(soon());
            let mut bytes = std::fs::read(&file).unwrap();
            let half = bytes.len() / 2;
            bytes[half..].fill(0xa5);
            std::fs::write(&file, bytes).unwrap();
        } else {
            std::fs::write(&file, damage).unwrap();
        }
        let history = start(&file, AGES, &metrics);
        let mut reader = history.reader();
        history.put(entry("new", 1000));
        until("written", || reader.get("new").ok().flatten().is_some());
        assert_eq!(reader.find(&Query { limit: 9, ..Query::default() }).unwrap().entries.len(), 1);
        assert_eq!(metrics.counter("history_damaged", "all").get(), 1);
        history.finish(soon());
        let aside = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let aside: Vec<String> = aside.filter(|name| name.starts_with("events.sqlite.damaged-")).collect();
        assert!(!aside.is_empty());
    }
}

#[test]
fn a_disk_that_takes_nothing_gets_the_newest_later() {
    let folder = tempfile::tempdir().unwrap();
    let way = folder.path().join("in-the-way");
    std::fs::write(&way, "a file where the folder should be").unwrap();
    let metrics = Metrics::new();
    let history = start(&way.join("events.sqlite"), AGES, &metrics);
    history.put(entry("a", 1000));
    until("tried", || metrics.counter("history_failed", "all").get() > 0);
    assert_eq!(ids(&history.reader().find(&Query { limit: 9, ..Query::default() }).unwrap()), [""; 0]);
    std::fs::remove_file(&way).unwrap();
    // The last is tried once more at the end.
    history.put(Entry { ended: true, ..entry("a", 1000) });
    history.finish(soon());
    assert!(history.reader().get("a").unwrap().unwrap().ended);
}

#[test]
fn a_file_of_a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.sqlite");
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE mine (x); PRAGMA user_version = 2").unwrap();
    let metrics = Metrics::new();
    let history = start(&file, AGES, &metrics);
    until("tried", || metrics.counter("history_failed", "all").get() > 0);
    history.finish(soon());
    assert_eq!(metrics.counter("history_damaged", "all").get(), 0);
    assert!(Table::open(&file).err().unwrap().to_string().contains("version 2"));
}
