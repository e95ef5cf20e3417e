//! The files of one camera: the newest few, and the list of them that a player is told.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::clock::Utc;
use crate::base::metrics::{Counter, Metrics};
use crate::types::CameraId;

/// Files in the list.
const LISTED: usize = 6;

/// Files that have left the list and are still there, for who was told of them: as long as the list (RFC 8216, 6.2.2).
const LEFT: usize = 6;

/// Bytes of all files; the oldest go first.
const MOST: usize = 48 << 20;

/// Bytes of a file; a larger one is not kept.
const LARGEST: usize = 16 << 20;

/// Seconds that no file is longer than, as a player is told: it must not change while it watches.
const TARGET: u64 = 3;

/// The files begin to be counted at the seconds since this moment (14 November 2023), so that numbers grow over restarts too: what a
/// player has of an earlier run never has the name of something else.
const EPOCH: f64 = 1_700_000_000.0;

/// One camera's.
pub struct Reel {
    /// A thread fills it.
    runs: bool,
    /// Counts the muxers that fill it: what one that is taken down still writes belongs nowhere.
    muxer: u64,
    /// Nothing is made any more.
    closed: bool,
    asked: Instant,
    next: u64,
    files: VecDeque<File>,
    /// Breaks ahead of the first file that is there.
    breaks: u64,
    target: u64,
    open: Option<Open>,
    /// What comes does not go on from what was.
    broken: bool,
    made: Counter,
    dropped: Counter,
}

struct File {
    number: u64,
    bytes: Arc<[u8]>,
    lasts: Duration,
    /// It does not go on from the one before.
    broken: bool,
}

/// The file that is being written.
struct Open {
    begins: Duration,
    bytes: Vec<u8>,
}

impl Reel {
    /// Empty.
    pub fn new(camera: &CameraId, metrics: &Metrics) -> Self {
        let counter = |name| metrics.counter(name, camera.as_str());
        let next = (Utc::now().epoch() - EPOCH).max(0.0) as u64;
        Self {
            runs: false,
            muxer: 0,
            closed: false,
            asked: Instant::now(),
            next,
            files: VecDeque::new(),
            // There are fewer breaks than files, so this grows over restarts, too.
            breaks: next,
            target: TARGET,
            open: None,
            broken: true,
            made: counter("hls_segments"),
            dropped: counter("hls_segments_dropped"),
        }
    }

    /// Somebody wants the list; whether a thread must begin, which the caller then sees to.
    pub fn ask(&mut self) -> bool {
        self.asked = Instant::now();
        !self.closed && !std::mem::replace(&mut self.runs, true)
    }

    /// Whether somebody asked lately. Where not, the thread that fills it is to end.
    pub fn goes_on(&self, idle: Duration) -> bool {
        !self.closed && self.asked.elapsed() < idle
    }

    /// Its thread has ended: nothing is there any more, and the next who asks begins anew.
    pub fn end(&mut self) {
        self.runs = false;
        self.muxer += 1;
        self.breaks += self.files.drain(..).filter(|file| file.broken).count() as u64;
        self.target = TARGET;
        self.breaks();
    }

    /// The same for ever.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// A muxer begins to fill it; its number is to stand with all that comes of it.
    pub fn begin(&mut self) -> u64 {
        self.muxer += 1;
        self.muxer
    }

    /// Whether what comes of a muxer belongs here.
    pub fn is_of(&self, muxer: u64) -> bool {
        self.muxer == muxer
    }

    /// What was begun is given up, and what follows does not go on from it.
    pub fn breaks(&mut self) {
        (self.open, self.broken) = (None, true);
    }

    /// Ends a file and begins another, at this time of the stream.
    pub fn cut(&mut self, at: Duration) {
        let done = self.open.replace(Open { begins: at, bytes: Vec::new() });
        let Some(Open { begins, bytes }) = done.filter(|open| !open.bytes.is_empty()) else { return };
        let lasts = at.saturating_sub(begins);
        self.target = self.target.max(lasts.as_secs_f64().round() as u64);
        let broken = std::mem::take(&mut self.broken);
        self.files.push_back(File { number: self.next, bytes: bytes.into(), lasts, broken });
        self.next += 1;
        self.made.add();
        while self.files.len() > LISTED + LEFT || (self.files.len() > 1 && self.bytes() > MOST) {
            self.breaks += u64::from(self.files.pop_front().is_some_and(|file| file.broken));
        }
    }

    /// What belongs to the file that was begun last.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.open else { return };
        open.bytes.extend_from_slice(bytes);
        if open.bytes.len() > LARGEST {
            self.dropped.add();
            self.breaks();
        }
    }

    /// The list; `None` while there is nothing in it.
    pub fn playlist(&self) -> Option<String> {
        let hidden = self.files.len().saturating_sub(LISTED);
        let first = self.files.get(hidden)?;
        let breaks = self.breaks + self.files.iter().take(hidden).filter(|file| file.broken).count() as u64;
        let mut list = format!(
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{}\n#EXT-X-MEDIA-SEQUENCE:{}\n#EXT-X-DISCONTINUITY-SEQUENCE:{breaks}\n\
             #EXT-X-INDEPENDENT-SEGMENTS\n",
            self.target, first.number
        );
        for file in self.files.iter().skip(hidden) {
            let broken = if file.broken { "#EXT-X-DISCONTINUITY\n" } else { "" };
            // A text takes whatever is written to it.
            write!(list, "{broken}#EXTINF:{:.3},\n{}.ts\n", file.lasts.as_secs_f64(), file.number).ok()?;
        }
        Some(list)
    }

    /// A file.
    pub fn segment(&mut self, number: u64) -> Option<Arc<[u8]>> {
        self.asked = Instant::now();
        let file = self.files.iter().find(|file| file.number == number)?;
        Some(file.bytes.clone())
    }

    fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.bytes.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reel() -> (Reel, u64) {
        let reel = Reel::new(&CameraId::new("a").unwrap(), &Metrics::new());
        let first = reel.next;
        (reel, first)
    }

    fn fill(reel: &mut Reel, from: u64, files: u64) {
        for second in from..from + files {
            reel.cut(Duration::from_secs(2 * second));
            reel.write(&[second as u8; 100]);
        }
    }

    #[test]
    fn the_list_slides_and_what_left_it_stays_for_a_while() {
        let (mut reel, first) = reel();
        assert!(reel.ask() && !reel.ask());
        fill(&mut reel, 0, 1);
        assert_eq!(reel.playlist(), None, "a file is not there before it has ended");
        fill(&mut reel, 1, 2);
        let list = reel.playlist().unwrap();
        let head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n";
        let files = format!("#EXT-X-DISCONTINUITY\n#EXTINF:2.000,\n{first}.ts\n#EXTINF:2.000,\n{}.ts\n", first + 1);
        let expected =
            format!("{head}#EXT-X-MEDIA-SEQUENCE:{first}\n#EXT-X-DISCONTINUITY-SEQUENCE:{first}\n#EXT-X-INDEPENDENT-SEGMENTS\n{files}");
        assert_eq!(list, expected);
        fill(&mut reel, 3, 18);
        let list = reel.playlist().unwrap();
        assert!(list.contains(&format!("SEQUENCE:{}\n#EXT-X-DISCONTINUITY-SEQUENCE:{}\n", first + 14, first + 1)), "{list}");
        assert_eq!(list.matches("#EXTINF").count(), LISTED);
        assert_eq!(reel.segment(first + 8).unwrap()[..], [8; 100]);
        assert!(reel.segment(first + 7).is_none() && reel.segment(first + 20).is_none());
    }

    #[test]
    fn what_begins_anew_is_told_apart_and_goes_on_counting() {
        let (mut reel, first) = reel();
        reel.ask();
        fill(&mut reel, 0, 3);
        // The encoder began anew: what was open is lost.
        reel.breaks();
        fill(&mut reel, 0, 2);
        let list = reel.playlist().unwrap();
        assert_eq!(list.matches("#EXT-X-DISCONTINUITY\n").count(), 2, "{list}");
        assert!(list.ends_with(&format!("#EXT-X-DISCONTINUITY\n#EXTINF:2.000,\n{}.ts\n", first + 2)), "{list}");
        assert!(!reel.goes_on(Duration::ZERO) && !reel.ask(), "its thread has not ended yet: no other begins");
        let muxer = reel.begin();
        assert!(reel.is_of(muxer));
        reel.end();
        assert!(!reel.is_of(muxer) && reel.playlist().is_none() && reel.segment(first).is_none());
        assert!(reel.ask(), "a thread begins anew");
        fill(&mut reel, 0, 2);
        let list = reel.playlist().unwrap();
        assert!(list.contains(&format!("SEQUENCE:{}\n#EXT-X-DISCONTINUITY-SEQUENCE:{}\n", first + 3, first + 2)), "{list}");
        reel.close();
        assert!(!reel.goes_on(Duration::MAX) && !reel.ask());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut reel, first) = reel();
        let large = vec![0; LARGEST - 1000];
        for second in 0..9 {
            reel.cut(Duration::from_secs(second));
            reel.write(&large);
        }
        assert!(reel.bytes() <= MOST && reel.segment(first + 7).is_some());
        reel.write(&[0; 1001]);
        assert_eq!(reel.dropped.get(), 1);
        reel.write(&[0; 10]);
        reel.cut(Duration::from_secs(9));
        assert!(reel.segment(first + 8).is_none());
    }
}
