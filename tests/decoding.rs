//! What is decoded, by whom, and whether it is whole: real encoders, real servers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::support::media::{clip, launch};
use crate::support::rtsp::RtspServer;
use crate::support::source::{Open, camera, file, limits, open, open_watched, open_with};
use palisade::config::{CameraConfig, Decode, DecoderKind, Input};
use palisade::types::{CameraState, TimeSource};

/// A clip of `seconds` at 10 frames a second, made by a `gst-launch` chain from raw 320×240 video on.
fn encoded(dir: &Path, name: &str, seconds: u32, chain: &str) -> PathBuf {
    let path = dir.join(name);
    launch(&format!(
        "videotestsrc num-buffers={} pattern=smpte75 ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 ! {chain} \
         ! filesink location=\"{}\"",
        seconds * 10,
        path.display()
    ));
    path
}

/// The colours of the bars' middles, by the pattern's definition at 75 %.
fn has_bars(image: &RgbImage) -> bool {
    let (width, height) = image.dimensions();
    let bars = [[191, 191, 191], [191, 191, 0], [0, 191, 191], [0, 191, 0], [191, 0, 191], [191, 0, 0], [0, 0, 191]];
    bars.iter().enumerate().all(|(bar, colour)| {
        let pixel = image.get_pixel(width * (2 * bar as u32 + 1) / 14, height / 3).0;
        pixel.iter().zip(colour).all(|(a, b): (&u8, &u8)| a.abs_diff(*b) <= 25)
    })
}

#[test]
fn every_usual_format_is_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let x264 = "x264enc speed-preset=ultrafast key-int-max=5 ! h264parse";
    let x265 = "x265enc speed-preset=ultrafast key-int-max=5 ! h265parse";
    let formats = [
        ("h264.mp4", format!("{x264} ! mp4mux")),
        ("h264.mkv", format!("{x264} ! matroskamux")),
        ("h264.avi", format!("{x264} ! avimux")),
        ("h264.ts", format!("{x264} ! mpegtsmux")),
        ("h265.mp4", format!("{x265} ! mp4mux")),
        ("h265.mkv", format!("{x265} ! matroskamux")),
        ("h265.ts", format!("{x265} ! mpegtsmux")),
        ("vp8.mkv", "vp8enc deadline=1 keyframe-max-dist=5 ! matroskamux".to_owned()),
        ("vp9.mkv", "vp9enc deadline=1 keyframe-max-dist=5 ! matroskamux".to_owned()),
        ("av1.mkv", "av1enc cpu-used=8 keyframe-max-dist=5 ! av1parse ! matroskamux".to_owned()),
        ("mjpeg.avi", "jpegenc ! avimux".to_owned()),
        ("mpeg4.avi", "avenc_mpeg4 gop-size=5 ! mpeg4videoparse ! avimux".to_owned()),
        ("raw.avi", "videoconvert ! video/x-raw,format=BGR ! avimux".to_owned()),
    ];
    for (name, chain) in formats {
        let path = encoded(dir.path(), name, 1, &chain);
        for decode in [Decode::All, Decode::Keyframes] {
            let open = open(CameraConfig { decode, ..file(&path) });
            let frames = open.all_frames();
            assert!(frames.iter().all(|frame| has_bars(&frame.image)), "{name}, {decode:?}");
            let expected = if decode == Decode::All || name == "mjpeg.avi" || name == "raw.avi" { 10 } else { 2 };
            assert_eq!((frames.len(), open.count("frames_in")), (expected, 10), "{name}, {decode:?}");
        }
    }
}

/// A picture with something to see everywhere, as a file.
fn scene(dir: &Path) -> (PathBuf, RgbImage) {
    let picture = RgbImage::from_fn(320, 240, |x, y| {
        Rgb([(x * 255 / 319) as u8, (y * 255 / 239) as u8, if (x / 40 + y / 40) % 2 == 0 { 200 } else { 60 }])
    });
    let path = dir.join("scene.png");
    picture.save(&path).unwrap();
    (path, picture)
}

/// The mean difference of two pictures' lower thirds, in levels.
fn apart(a: &RgbImage, b: &RgbImage) -> f64 {
    let rows = a.height() / 3 * 2..a.height();
    let pixels = rows.flat_map(|y| (0..a.width()).map(move |x| (x, y)));
    let (sum, count) = pixels.fold((0.0, 0.0), |(sum, count), (x, y)| {
        let differ: u32 = a.get_pixel(x, y).0.iter().zip(b.get_pixel(x, y).0).map(|(a, b)| u32::from(a.abs_diff(b))).sum();
        (sum + f64::from(differ) / 3.0, count + 1.0)
    });
    sum / count
}

/// A launch line that shows the scene, encoded by `encoder`.
fn scene_line(path: &Path, encoder: &str) -> String {
    format!(
        "filesrc location=\"{}\" ! decodebin ! imagefreeze is-live=true ! video/x-raw,framerate=10/1 ! videoconvert \
         ! video/x-raw,format=I420 ! {encoder} ! rtph264pay name=pay0 pt=96 config-interval=-1",
        path.display()
    )
}

/// Encoders of cameras cut a picture in slices, and servers repeat the parameter sets ahead of each.
#[test]
fn a_keyframe_in_slices_is_shown_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, picture) = scene(dir.path());
    for encoder in [
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=4 bitrate=4000",
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 option-string=slices=6 bitrate=4000",
    ] {
        let server = RtspServer::start(&scene_line(&path, encoder), None);
        for decode in [Decode::Keyframes, Decode::All] {
            let open = open(CameraConfig { decode, ..camera(&server.uri()) });
            for _ in 0..4 {
                let differ = apart(&open.frame().image, &picture);
                assert!(differ < 12.0, "{decode:?}: {differ} levels");
            }
            assert_eq!(open.count("frames_damaged"), 0);
            open.stop();
        }
    }
}

/// Pictures at which an open group begins, or a refresh in stripes, are no keyframes: alone they come out grey.
#[test]
fn what_a_decoder_cannot_show_alone_is_not_taken_for_a_keyframe() {
    let dir = tempfile::tempdir().unwrap();
    let (path, picture) = scene(dir.path());
    for options in ["open-gop=1:keyint=10:min-keyint=10:bframes=2", "intra-refresh=1:keyint=10"] {
        let encoder = format!("x264enc speed-preset=ultrafast bitrate=4000 option-string=\"{options}\"");
        let server = RtspServer::start(&scene_line(&path, &encoder), None);
        // The first client's stream begins with an IDR picture; a later one's does not.
        let first = open(camera(&server.uri()));
        first.frame();
        let open = open(CameraConfig { decode: Decode::Keyframes, ..camera(&server.uri()) });
        std::thread::sleep(Duration::from_secs(3));
        while let Ok(frame) = open.frames.try_recv() {
            let differ = apart(&frame.image, &picture);
            assert!(differ < 12.0, "{options}: {differ} levels");
        }
        open.stop();
        first.stop();
    }
}

/// A decoder holds a picture back where later ones may have to be shown before it, unless it is drained.
#[test]
fn a_keyframe_of_a_stream_with_b_frames_is_not_late() {
    let line = "videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 \
                ! x264enc speed-preset=ultrafast bframes=3 b-adapt=false key-int-max=40 rc-lookahead=0 ! video/x-h264,profile=main \
                ! rtph264pay name=pay0 pt=96 config-interval=-1";
    let server = RtspServer::start(line, None);
    let open = open(CameraConfig { decode: Decode::Keyframes, ..camera(&server.uri()) });
    for _ in 0..2 {
        let before = open.count("frames_in");
        open.frame();
        let since = open.count("frames_in") % 40;
        assert!(since < 15, "{since} pictures after the keyframe, {before} before");
    }
    open.stop();
}

#[test]
fn wide_pictures_are_scaled_down_and_small_ones_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = encoded(dir.path(), "bars.mp4", 1, "x264enc speed-preset=ultrafast key-int-max=5 ! h264parse ! mp4mux");
    for (max_width, size) in [(160, (160, 120)), (101, (100, 76)), (320, (320, 240)), (4000, (320, 240))] {
        let open = open(CameraConfig { max_width: Some(max_width), ..file(&path) });
        let frames = open.all_frames();
        assert!(frames.len() == 10 && frames.iter().all(|frame| frame.image.dimensions() == size), "{max_width}");
        assert!(frames.iter().all(|frame| has_bars(&frame.image)), "{max_width}");
    }
}

/// How many of the pictures that came were decoded over the next `looks`.
fn share(open: &Open, looks: usize) -> f64 {
    let counts = || ["frames_decoded", "frames_in"].map(|name| open.count(name) as f64);
    open.frame();
    let before = counts();
    (0..looks).for_each(|_| drop(open.frame()));
    let after = counts();
    (after[0] - before[0]) / (after[1] - before[1])
}

#[test]
fn auto_decodes_keyframes_where_they_come_as_often_as_looks_and_all_where_not() {
    let line = |keyframes: u32| {
        format!(
            "videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=240,framerate=20/1 \
             ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={keyframes} ! rtph264pay name=pay0 pt=96 config-interval=-1"
        )
    };
    let watched = |server: &RtspServer, interval: f64| {
        let config = CameraConfig { decode: Decode::Auto, interval: Duration::from_secs_f64(interval), ..camera(&server.uri()) };
        open_watched(config)
    };
    let server = RtspServer::start(&line(10), None);
    let rare = watched(&server, 0.5);
    let few = share(&rare, 4);
    assert!(few < 0.15, "{few}");
    rare.stop();
    let often = watched(&server, 0.1);
    share(&often, 4);
    let all = share(&often, 10);
    assert!(all > 0.9, "{all}");
    often.stop();

    // The keyframe that would suit does not come in time: it is known before the second one.
    let server = RtspServer::start(&line(100), None);
    let open = watched(&server, 0.5);
    let began = Instant::now();
    (0..4).for_each(|_| drop(open.frame()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(share(&open, 2) > 0.9);
    open.stop();
}

#[test]
fn a_fragment_gives_pictures_and_tells_no_address() {
    let fragment = |text: &str| {
        let input = Input::Fragment(text.to_owned());
        open_with(limits(), CameraConfig { input, ..camera("") }, |_| true)
    };
    let bars =
        fragment("videotestsrc is-live=true pattern=smpte75 ! video/x-raw,format=NV12,width=320,height=240,framerate=10/1 ! videoconvert");
    let frame = bars.frame();
    assert!(has_bars(&frame.image) && frame.time_source == TimeSource::Pipeline);
    bars.stop();
    let secret = fragment("rtspsrc location=rtsp://viewer:s3cr3t@127.0.0.1:9/x?key=s3cr3t ! rtph264depay ! avdec_h264");
    let reason = secret.reach(CameraState::Backoff).reason;
    assert!(reason.starts_with("the fragment ") && !reason.contains("s3cr3t") && !reason.contains("viewer"), "{reason}");
    secret.stop();
}

/// A decoder that calls itself hardware and fails at each picture.
mod broken {
    use gstreamer::prelude::*;
    use gstreamer::subclass::prelude::*;
    use gstreamer::{Buffer, Caps, FlowError, FlowSuccess, Pad, PadDirection, PadPresence, PadTemplate, glib};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub static FAILED: AtomicUsize = AtomicUsize::new(0);

    pub struct Broken {
        sink: Pad,
        src: Pad,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Broken {
        const NAME: &'static str = "PalisadeBrokenDecoder";
        type Type = super::broken::Element;
        type ParentType = gstreamer::Element;

        fn with_class(class: &Self::Class) -> Self {
            let sink = Pad::builder_from_template(&class.pad_template("sink").unwrap())
                .chain_function(|_, _, _: Buffer| -> Result<FlowSuccess, FlowError> {
                    FAILED.fetch_add(1, Ordering::SeqCst);
                    Err(FlowError::Error)
                })
                .event_function(|_, _, _| true)
                .build();
            Self { sink, src: Pad::from_template(&class.pad_template("src").unwrap()) }
        }
    }

    impl ObjectImpl for Broken {
        fn constructed(&self) {
            self.parent_constructed();
            self.obj().add_pad(&self.sink).unwrap();
            self.obj().add_pad(&self.src).unwrap();
        }
    }
    impl GstObjectImpl for Broken {}
    impl ElementImpl for Broken {
        fn metadata() -> Option<&'static gstreamer::subclass::ElementMetadata> {
            static METADATA: LazyLock<gstreamer::subclass::ElementMetadata> = LazyLock::new(|| {
                gstreamer::subclass::ElementMetadata::new("Broken", "Codec/Decoder/Video/Hardware", "Fails", "palisade's tests")
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [PadTemplate] {
            static TEMPLATES: LazyLock<Vec<PadTemplate>> = LazyLock::new(|| {
                let template =
                    |name, direction, media| PadTemplate::new(name, direction, PadPresence::Always, &Caps::new_empty_simple(media));
                vec![
                    template("sink", PadDirection::Sink, "video/x-h264").unwrap(),
                    template("src", PadDirection::Src, "video/x-raw").unwrap(),
                ]
            });
            &TEMPLATES
        }
    }

    glib::wrapper! {
        pub struct Element(ObjectSubclass<Broken>) @extends gstreamer::Element, gstreamer::Object;
    }

    /// As Debian 12 has those of VA-API: there, and without a rank.
    pub fn register() {
        gstreamer::init().unwrap();
        gstreamer::Element::register(None, "vabrokenh264dec", gstreamer::Rank::NONE, Element::static_type()).unwrap();
    }
}

/// Cameras of other sizes, codecs and colours, decoded in turn by the same few decoders.
#[test]
fn no_camera_is_shown_anothers_pictures() {
    let line = |colour: u32, size: &str, encoder: &str| {
        format!(
            "videotestsrc is-live=true pattern=solid-color foreground-color={colour} ! video/x-raw,format=I420,{size},framerate=20/1 \
             ! {encoder} name=pay0 pt=96"
        )
    };
    let h264 = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=2 ! rtph264pay config-interval=-1";
    let h265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=2 ! rtph265pay config-interval=-1";
    let cameras = [
        (0xffc0_2020, (320, 240), h264),
        (0xff20_c020, (320, 240), h264),
        (0xff20_20c0, (640, 360), h264),
        (0xffc0_c020, (320, 240), h265),
        (0xffc0_20c0, (64, 48), "jpegenc ! rtpjpegpay"),
    ];
    let open: Vec<_> = cameras
        .iter()
        .map(|&(colour, (width, height), encoder)| {
            let server = RtspServer::start(&line(colour, &format!("width={width},height={height}"), encoder), None);
            let open = open(CameraConfig { decode: Decode::Keyframes, ..camera(&server.uri()) });
            (server, open, colour, (width, height))
        })
        .collect();
    for _ in 0..15 {
        for (_, open, colour, size) in &open {
            let frame = open.frame();
            let pixel = frame.image.get_pixel(size.0 / 2, size.1 / 2).0;
            let expected = [16, 8, 0].map(|shift| (colour >> shift) as u8);
            assert_eq!(frame.image.dimensions(), *size);
            assert!(pixel.iter().zip(expected).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 24), "{pixel:?} for {expected:?}");
        }
    }
    open.into_iter().for_each(|(_, open, ..)| open.stop());
}

#[test]
fn hardware_that_fails_gives_way_to_software() {
    broken::register();
    let server = RtspServer::start(crate::support::rtsp::BALL, None);
    for (decoder, decode) in [(DecoderKind::Va, Decode::Keyframes), (DecoderKind::Auto, Decode::All)] {
        let before = broken::FAILED.load(std::sync::atomic::Ordering::SeqCst);
        let open = open(CameraConfig { decoder, decode, ..camera(&server.uri()) });
        (0..3).for_each(|_| drop(open.frame()));
        let failed = broken::FAILED.load(std::sync::atomic::Ordering::SeqCst) - before;
        assert_eq!(failed, 2, "{decoder:?}: it is tried twice");
        assert_eq!(open.count("reconnects"), 0, "{decoder:?}");
        open.stop();
    }
    let open = open(camera(&server.uri()));
    open.frame();
    open.stop();
}

/// Hardware that is not in this machine: software takes over, and a picture comes.
#[test]
fn hardware_that_is_not_there_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let path = clip(dir.path(), "a.mp4", 10, 10, 5);
    for decoder in [DecoderKind::Auto, DecoderKind::Va, DecoderKind::Nvidia, DecoderKind::V4l2] {
        let open = open(CameraConfig { decoder, ..file(&path) });
        assert!(!open.all_frames().is_empty(), "{decoder:?}");
    }
}

#[test]
fn a_stream_may_change_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let part = |name: &str, size: &str| {
        let path = dir.path().join(name);
        launch(&format!(
            "videotestsrc num-buffers=40 pattern=smpte75 ! video/x-raw,format=I420,{size},framerate=10/1 \
             ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 \
             ! video/x-h264,stream-format=byte-stream ! filesink location=\"{}\"",
            path.display()
        ));
        std::fs::read(path).unwrap()
    };
    let film = [part("small.h264", "width=640,height=360"), part("large.h264", "width=1280,height=720")].concat();
    let path = dir.path().join("both.h264");
    std::fs::write(&path, film).unwrap();
    let line = format!("filesrc location=\"{}\" ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1", path.display());
    let server = RtspServer::start(&line, None);
    for decode in [Decode::All, Decode::Keyframes] {
        let open = open(CameraConfig { decode, ..camera(&server.uri()) });
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        while seen.last() != Some(&(1280, 720)) {
            let frame = open.frame();
            assert!(has_bars(&frame.image));
            seen.push(frame.image.dimensions());
            assert!(Instant::now() < deadline, "{seen:?}");
        }
        assert!(seen.contains(&(640, 360)) && open.count("reconnects") == 0, "{decode:?}: {seen:?}");
        open.stop();
    }
}
