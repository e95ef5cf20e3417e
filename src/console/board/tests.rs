use uuid::Uuid;

use super::*;
use crate::types::{Box01, EventKind, Prompt, Reason};

const PACE: Duration = Duration::from_millis(500);

fn id(name: &str) -> CameraId {
    CameraId::new(name).unwrap()
}

fn watched(name: &str, prompt: &str) -> Watched {
    Watched { id: id(name), prompt: Prompt::new(prompt).unwrap(), enabled: true, zones: Vec::new() }
}

fn track(name: &str) -> Track {
    Track {
        id: name.into(),
        label: "cat".into(),
        score: 0.5,
        top_score: 0.5,
        start: Utc::from_millis(1000),
        last: Utc::from_millis(2000),
        box01: Box01 { y_min: 0.0, x_min: 0.0, y_max: 1.0, x_max: 1.0 },
        stationary: false,
        zones: Vec::new(),
        entered_zones: Vec::new(),
    }
}

fn event(name: &str, kind: EventKind, clip: Option<&str>) -> Event {
    Event {
        id: Uuid::nil(),
        kind,
        reason: Reason::Moved,
        camera: id("street"),
        time: Utc::from_millis(2000),
        track: track(name),
        before: None,
        frame: (64, 48),
        prompt_id: "p".into(),
        snapshot: None,
        clip: clip.map(str::to_owned),
    }
}

fn names(news: &News) -> (Vec<&str>, Vec<&str>) {
    let cameras = news.cameras.iter().map(|now| now.watched.id.as_str());
    (cameras.collect(), news.objects.iter().map(|entry| entry.track_id.as_str()).collect())
}

#[test]
fn who_listens_is_told_of_all_cameras_first_then_of_changes_at_its_pace() {
    let board = Board::new(&Metrics::new());
    board.event(&event("early", EventKind::New, None));
    board.add(watched("street", "detect cat"), true);
    board.add(watched("yard", "detect cat"), false);
    let mut listener = board.listen();
    let begin = Instant::now();
    let first = listener.news(begin, PACE);
    assert_eq!((names(&first), first.next), ((vec!["street", "yard"], vec![]), None));
    assert_eq!(names(&listener.news(begin, PACE)), (vec![], vec![]));
    board.watched(&watched("street", "detect dog"));
    board.objects(&id("street"), [track("a")].iter());
    let soon = listener.news(begin + Duration::from_millis(100), PACE);
    assert_eq!((names(&soon), soon.next), ((vec![], vec![]), Some(begin + PACE)));
    let later = listener.news(begin + PACE, PACE);
    assert_eq!(names(&later), (vec!["street"], vec![]));
    assert_eq!((later.cameras[0].watched.prompt.text(), later.cameras[0].objects.len()), ("detect dog", 1));
    board.objects(&id("street"), [track("a")].iter());
    assert_eq!(names(&listener.news(begin + 9 * PACE, PACE)), (vec![], vec![]), "as before");
    board.remove(&id("street"));
    let last = listener.news(begin + PACE * 2, PACE);
    assert_eq!((last.gone.as_slice(), names(&last)), ([id("street")].as_slice(), (vec![], vec![])));
    assert!(listener.news(begin + PACE * 3, PACE).gone.is_empty());
    board.status(&board.camera("yard").unwrap().status);
    assert_eq!(names(&listener.news(begin + 18 * PACE, PACE)), (vec!["yard"], vec![]));
    assert!(board.camera("street").is_none() && board.lens(&id("street")).is_none());
}

#[test]
fn a_slow_listener_has_the_newest_of_each_object_and_of_no_more_than_are_held() {
    let board = Board::new(&Metrics::new());
    let (mut slow, mut idle) = (board.listen(), board.listen());
    board.event(&event("a", EventKind::New, Some("1.mp4")));
    board.event(&event("b", EventKind::New, None));
    assert_eq!(names(&slow.news(Instant::now(), PACE)).1, ["a", "b"]);
    board.event(&event("a", EventKind::Update, Some("2.mp4")));
    board.event(&event("a", EventKind::End, None));
    let news = slow.news(Instant::now(), PACE);
    assert_eq!(names(&news).1, ["a"]);
    assert!(news.objects[0].ended && news.objects[0].clip.as_deref() == Some("1.mp4"), "{news:?}");
    (0..2 * OBJECTS).for_each(|number| board.event(&event(&format!("n{number}"), EventKind::New, None)));
    let news = idle.news(Instant::now(), PACE);
    assert_eq!((news.objects.len(), news.objects[0].track_id.as_str()), (OBJECTS, format!("n{OBJECTS}").as_str()));
    assert_eq!(board.lock().at.len(), OBJECTS);
}

#[test]
fn rates_are_of_the_last_seconds() {
    let metrics = Metrics::new();
    let board = Board::new(&metrics);
    board.add(watched("street", "detect cat"), true);
    let begin = Instant::now();
    let (pictures, looks) = (metrics.counter("frames_in", "street"), metrics.counter("frames_analysed", "street"));
    let rates = |board: &Board| board.camera("street").map(|now| (now.fps, now.looks_per_s)).unwrap();
    board.tick(begin);
    assert_eq!(rates(&board), (None, None));
    for second in 1..=60 {
        pictures.add_many(if second <= 50 { 25 } else { 10 });
        looks.add_many(second % 2);
        board.tick(begin + Duration::from_secs(second));
        board.tick(begin + Duration::from_secs(second) + Duration::from_millis(500));
    }
    assert_eq!(rates(&board), (Some(10.0), Some(0.5)));
}

#[test]
fn a_picture_is_handed_to_all_who_wait_and_to_no_more_than_a_few() {
    let board = Board::new(&Metrics::new());
    let lens = board.add(watched("street", "detect cat"), true);
    assert!(!lens.wants() && board.picture(&id("yard")).is_none());
    let waiting: Vec<_> = (0..WISHES).map(|_| board.picture(&id("street")).unwrap()).collect();
    assert!(lens.wants() && board.picture(&id("street")).is_none());
    let frame = crate::types::Frame {
        camera: id("street"),
        captured: Utc::now(),
        time_source: crate::types::TimeSource::Pipeline,
        received: Instant::now(),
        position: None,
        image: Arc::new(image::RgbImage::new(3, 2)),
    };
    lens.take(&frame);
    assert!(!lens.wants());
    for mut one in waiting {
        assert_eq!(one.try_recv().unwrap().image.dimensions(), (3, 2));
    }
    drop(board.picture(&id("street")).unwrap());
    assert!(board.picture(&id("street")).is_some());
}
