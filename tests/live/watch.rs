//! One encoder for everybody, whatever way they watch; and pictures for who wants none encoded.

use crossbeam_channel::RecvTimeoutError;
use palisade::sink::video::Pictures;

use super::*;

/// Waits for a picture that is as wanted.
fn shown(pictures: &Pictures, what: &str, wanted: impl Fn(&RgbImage) -> bool) -> RgbImage {
    let deadline = Instant::now() + PATIENCE;
    while let Ok(shown) = pictures.shown().recv_deadline(deadline) {
        if let Some(picture) = shown.rgb().filter(&wanted) {
            return picture;
        }
    }
    panic!("never {what}");
}

#[test]
fn who_takes_pictures_gets_the_boxes_and_has_nothing_encoded() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    rig.mark(Duration::from_secs(600));
    let pictures = rig.live.pictures(&id()).unwrap();
    let picture = shown(&pictures, "boxed", boxed);
    assert_eq!(picture.dimensions(), (640, 360));
    let begin = Instant::now();
    let count = std::iter::from_fn(|| pictures.shown().recv_deadline(begin + Duration::from_secs(2)).ok()).count();
    assert!((40..60).contains(&count), "{count} pictures in two seconds");
    assert_eq!((rig.encoded(), threads("live-")), (0, 1));
    // Beside it somebody watches, and the encoder goes with them.
    let viewing = rig.live.watch(&id()).unwrap();
    assert!(viewing.next(PATIENCE).unwrap().key);
    drop(viewing);
    std::thread::sleep(Duration::from_secs(1));
    let before = rig.encoded();
    assert!(before > 0);
    shown(&pictures, "boxed still", boxed);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((rig.encoded(), threads("live-")), (before, 1));
    drop(pictures);
    until("without a thread that shows", || threads("live-") == 0);
}

#[test]
fn boxes_come_onto_pictures_of_ten_bits_too() {
    let camera = Camera::launch(&GREY.replace("format=I420,", "format=I420_10LE,"));
    let rig = Rig::start(&camera.uri()).running();
    rig.mark(Duration::from_secs(600));
    shown(&rig.live.pictures(&id()).unwrap(), "boxed", boxed);
    rig.viewer().until("boxed over rtsp", boxed);
}

#[test]
fn whoever_watches_begins_with_a_keyframe_of_the_one_encoder() {
    let camera = Camera::launch(GREY);
    let mut rig = Rig::start(&camera.uri()).running();
    let first = rig.live.watch(&id()).unwrap();
    let begin = first.next(PATIENCE).unwrap();
    assert!(begin.key && begin.parameters().is_some(), "{begin:?}");
    let viewer = rig.viewer();
    viewer.until("shown", |picture| close(picture.get_pixel(320, 180), [150; 3]));
    std::thread::sleep(Duration::from_millis(500));
    // Amid a group of 60 pictures.
    let asked = Instant::now();
    let second = rig.live.watch(&id()).unwrap();
    let joined = second.next(PATIENCE).unwrap();
    assert!(joined.key && joined.parameters().is_some(), "{joined:?}");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(joined.connected, begin.connected, "the encoder is the same");
    first.units().try_iter().for_each(drop);
    let (before, since) = (rig.encoded(), Instant::now());
    let end = since + Duration::from_secs(3);
    let units: Vec<_> = std::iter::from_fn(|| first.units().recv_deadline(end).ok()).collect();
    let encoded = rig.encoded() - before;
    assert!((60..90).contains(&units.len()) && encoded.abs_diff(units.len() as u64) < 5, "{} of {encoded}", units.len());
    let times: Vec<_> = units.iter().map(|unit| unit.time).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(threads("live-"), 1);
    // At the end everybody is told, and nobody begins anew.
    rig.sink.finish().unwrap();
    first.units().try_iter().for_each(drop);
    assert_eq!(first.next(PATIENCE).unwrap_err(), RecvTimeoutError::Disconnected);
    assert!(rig.live.watch(&id()).is_err() && rig.live.pictures(&id()).is_err());
    assert_eq!((threads("live-"), threads("rtsp-cam")), (0, 0));
}

#[test]
fn viewers_who_come_in_the_same_moment_all_see() {
    let camera = Camera::launch(GREY);
    let rig = Rig::start(&camera.uri()).running();
    for round in 0..6 {
        let viewers: Vec<_> = std::thread::scope(|scope| {
            let open: Vec<_> = (0..4).map(|_| scope.spawn(|| rig.viewer())).collect();
            open.into_iter().map(|viewer| viewer.join().unwrap()).collect()
        });
        for viewer in &viewers {
            viewer.until("shown", |picture| close(picture.get_pixel(320, 180), [150; 3]));
        }
        drop(viewers);
        // By turns into the encoder of those who leave, and after it.
        if round % 2 == 0 {
            until("without a thread that shows", || threads("live-") == 0);
        }
    }
}
