//! The answer's grammar: `<locY0><locX0><locY1><locX1> label`, pieces separated by ` ; `.
//!
//! A location is a 1024th of the height or width (`<loc0000>` to `<loc1023>`). The segmentation task puts up to sixteen
//! `<segNNN>` tokens between box and label; they are passed over. Whatever looks almost like a token is text. A text
//! without any location, a caption say, is no failed detection: it gives neither detections nor rejections.

use std::ops::Range;

use crate::types::{Box01, Detection, MinScore, Rejected};

/// One token of an answer: the bytes it wrote, and how sure the model was.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its place in the text; empty within a character.
    pub range: Range<usize>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// What a stretch of text is.
enum Item {
    Location(u16),
    Segment,
    Separator,
    Text,
}

/// A piece as far as it was read.
#[derive(Default)]
struct Piece {
    locs: Vec<u16>,
    label: String,
    /// The bytes of locations and label, which the score is taken over.
    scored: Vec<Range<usize>>,
    /// From its first to its last byte that counts.
    span: Option<Range<usize>>,
}

/// Reads an answer. Detections below their label's least score come back rejected.
pub fn parse(text: &str, tokens: &[Written], min_score: &MinScore) -> (Vec<Detection>, Vec<Rejected>) {
    let mut found = (Vec::new(), Vec::new());
    let items = items(text);
    if !items.iter().any(|(item, _)| matches!(item, Item::Location(_))) {
        return found;
    }
    let mut piece = Piece::default();
    for (item, range) in items {
        // A location after a label begins a piece even without a separator.
        let begins = matches!(item, Item::Location(_)) && !piece.label.is_empty();
        if begins || matches!(item, Item::Separator) {
            std::mem::take(&mut piece).finish(text, tokens, min_score, &mut found);
        }
        piece.add(&item, range, text);
    }
    piece.finish(text, tokens, min_score, &mut found);
    found
}

impl Piece {
    fn add(&mut self, item: &Item, range: Range<usize>, text: &str) {
        let range = match item {
            Item::Separator => return,
            Item::Segment => range,
            Item::Location(loc) => {
                self.locs.push(*loc);
                self.scored.push(range.clone());
                range
            }
            Item::Text => {
                let written = &text[range.clone()];
                if written.trim().is_empty() {
                    return;
                }
                if !self.label.is_empty() {
                    self.label.push(' ');
                }
                self.label.push_str(written.trim());
                // The space before a label belongs to the label's first token.
                let trimmed = range.start..range.start + written.trim_end().len();
                self.scored.push(trimmed.clone());
                trimmed
            }
        };
        self.span = Some(self.span.take().map_or(range.start, |span| span.start)..range.end);
    }

    fn finish(self, text: &str, tokens: &[Written], min_score: &MinScore, found: &mut (Vec<Detection>, Vec<Rejected>)) {
        let Some(span) = self.span.clone() else { return };
        match self.check(tokens, min_score) {
            Ok(detection) => found.0.push(detection),
            Err(why) => found.1.push(Rejected { text: text[span].trim().to_owned(), why }),
        }
    }

    fn check(self, tokens: &[Written], min_score: &MinScore) -> Result<Detection, &'static str> {
        let locs: [u16; 4] = match *self.locs.as_slice() {
            [y_min, x_min, y_max, x_max] => [y_min, x_min, y_max, x_max],
            [] => return Err("no box"),
            [_] => return Err("1 location token instead of 4"),
            [_, _] => return Err("2 location tokens instead of 4"),
            [_, _, _] => return Err("3 location tokens instead of 4"),
            _ => return Err("more than 4 location tokens"),
        };
        if self.label.is_empty() {
            return Err("no label");
        }
        let [y_min, x_min, y_max, x_max] = locs;
        if y_min >= y_max || x_min >= x_max {
            return Err("empty box");
        }
        let score = self.score(tokens);
        if score < min_score.of(&self.label) {
            return Err("below min_score");
        }
        Ok(Detection { label: self.label, score, locs, box01: Box01::from_locs(locs) })
    }

    /// `exp` of the mean log-probability of the tokens that wrote the locations and the label.
    fn score(&self, tokens: &[Written]) -> f32 {
        let own = tokens.iter().filter(|token| self.scored.iter().any(|range| touches(&token.range, range)));
        let (sum, count) = own.fold((0.0, 0_u32), |(sum, count), token| (sum + f64::from(token.logprob), count + 1));
        let score = (sum / f64::from(count)).exp();
        if score.is_nan() { 0.0 } else { score.min(1.0) as f32 }
    }
}

fn touches(token: &Range<usize>, range: &Range<usize>) -> bool {
    if token.is_empty() { range.contains(&token.start) } else { token.start < range.end && range.start < token.end }
}

/// Cuts a text into tokens of the grammar and what lies between.
fn items(text: &str) -> Vec<(Item, Range<usize>)> {
    let mut items = Vec::new();
    let (mut at, mut text_from) = (0, 0);
    while at < text.len() {
        let Some((item, len)) = item_at(&text.as_bytes()[at..]) else {
            at += 1;
            continue;
        };
        if text_from < at {
            items.push((Item::Text, text_from..at));
        }
        items.push((item, at..at + len));
        at += len;
        text_from = at;
    }
    if text_from < text.len() {
        items.push((Item::Text, text_from..text.len()));
    }
    items
}

/// The item that begins a stretch of bytes, and its length; all of it ASCII.
fn item_at(bytes: &[u8]) -> Option<(Item, usize)> {
    match bytes {
        [b';', ..] => Some((Item::Separator, 1)),
        [b'<', b'l', b'o', b'c', a, b, c, d, b'>', ..] => {
            let value = number(&[*a, *b, *c, *d])?;
            (value < 1024).then_some((Item::Location(value), 9))
        }
        [b'<', b's', b'e', b'g', a, b, c, b'>', ..] => {
            let value = number(&[*a, *b, *c])?;
            (value < 128).then_some((Item::Segment, 8))
        }
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    let digit = |value: u16, digit: &u8| digit.is_ascii_digit().then(|| value * 10 + u16::from(digit - b'0'));
    digits.iter().try_fold(0, digit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    /// As if each token, word with its leading space, and separator were one token of probability 1/2.
    fn tokens(text: &str) -> Vec<Written> {
        let words = |range: Range<usize>| {
            let starts: Vec<usize> = text[range.clone()].match_indices(' ').map(|(at, _)| range.start + at).collect();
            let mut cuts = vec![range.start];
            cuts.extend(starts.iter().copied().filter(|&at| at > range.start));
            cuts.push(range.end);
            cuts.windows(2).map(|cut| cut[0]..cut[1]).collect::<Vec<_>>()
        };
        let ranges = items(text).into_iter().flat_map(|(item, range)| if matches!(item, Item::Text) { words(range) } else { vec![range] });
        ranges.map(|range| Written { range, logprob: 0.5_f32.ln() }).collect()
    }

    fn read(text: &str) -> (Vec<Detection>, Vec<Rejected>) {
        parse(text, &tokens(text), &MinScore::default())
    }

    fn labels(text: &str) -> Vec<String> {
        read(text).0.into_iter().map(|detection| detection.label).collect()
    }

    fn why(text: &str) -> Vec<(String, &'static str)> {
        read(text).1.into_iter().map(|rejected| (rejected.text, rejected.why)).collect()
    }

    const BOX: &str = "<loc0251><loc0104><loc0893><loc0610>";

    #[test]
    fn one_object_and_several() {
        let (found, dropped) = read(&format!("{BOX} cat ; <loc0000><loc0000><loc1023><loc1023> traffic light"));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].label.as_str(), found[0].locs), ("cat", [251, 104, 893, 610]));
        assert_eq!(found[1].label, "traffic light");
        assert!((found[0].score - 0.5).abs() < 1e-6);
        assert!(dropped.is_empty());
    }

    #[test]
    fn labels_of_any_script_and_segments_and_missing_separators() {
        assert_eq!(labels(&format!("{BOX} Zürich 猫 ;{BOX}tram")), ["Zürich 猫", "tram"]);
        assert_eq!(labels(&format!("{BOX}{} horse", "<seg012>".repeat(16))), ["horse"]);
        assert_eq!(labels(&format!("{BOX} cat{BOX} dog{BOX} cat")), ["cat", "dog", "cat"]);
        assert_eq!(labels(&format!("; {BOX} cat ; ; ")), ["cat"]);
        assert_eq!(labels(&format!("{BOX} <loc12> <loc1024> <seg128> cat")), ["<loc12> <loc1024> <seg128> cat"]);
    }

    #[test]
    fn what_is_no_detection_says_why() {
        assert_eq!(
            why("<loc0001><loc0002><loc0003> cat"),
            [("<loc0001><loc0002><loc0003> cat".to_owned(), "3 location tokens instead of 4")]
        );
        assert_eq!(why("<loc0001>")[0].1, "1 location token instead of 4");
        assert_eq!(why(&format!("{BOX}<loc0001> cat"))[0].1, "more than 4 location tokens");
        assert_eq!(why(BOX)[0].1, "no label");
        assert_eq!(why(&format!("{BOX} cat ; dog ;")), [("dog".to_owned(), "no box")]);
        assert_eq!(why(&format!("a {BOX} cat")), [("a".to_owned(), "no box")]);
        assert_eq!(why("<loc0500><loc0000><loc0500><loc1000> cat")[0].1, "empty box");
        assert_eq!(why("<loc0000><loc0600><loc0500><loc0100> cat")[0].1, "empty box");
    }

    #[test]
    fn plain_text_is_no_dropped_detection() {
        for text in ["", "a cat on a mat ; and a dog", "<seg001>", "<loc12>"] {
            assert_eq!(read(text), (vec![], vec![]), "{text}");
        }
    }

    #[test]
    fn each_task_gives_what_boxes_it_has() {
        // caption, answer, ocr: free text, whatever it looks like.
        for text in ["A red car parked on the street ; a man walks by.", "yes", "unanswerable", "STOP\nALL WAY", "<seg>", "a < b ; <loc>"] {
            assert_eq!(read(text), (vec![], vec![]), "{text}");
        }
        // segment: sixteen codes of the mask between box and label.
        let codes: String = (0..16).map(|code| format!("<seg{:03}>", code * 8)).collect();
        let (found, dropped) = read(&format!("{BOX}{codes} cat ; {BOX} {codes} traffic light"));
        let found: Vec<_> = found.iter().map(|one| (one.label.as_str(), one.locs)).collect();
        assert_eq!(found, [("cat", [251, 104, 893, 610]), ("traffic light", [251, 104, 893, 610])]);
        assert!(dropped.is_empty());
        // One cut off amid the codes has no label yet.
        assert_eq!(why(&format!("{BOX}{codes} cat ; {BOX}<seg001><seg002>"))[0], (format!("{BOX}<seg001><seg002>"), "no label"));
        // Boxes within a text: what is one counts, the words around it are told.
        let (found, dropped) = read(&format!("there is ; {BOX} cat"));
        assert_eq!((found.len(), dropped[0].why), (1, "no box"));
    }

    #[test]
    fn a_label_may_have_a_least_score_of_its_own() {
        let text = format!("{BOX} Cat ; {BOX} dog");
        let strict = MinScore::new(0.25, [("cat".to_owned(), 0.75)]);
        let (found, dropped) = parse(&text, &tokens(&text), &strict);
        assert_eq!((found.len(), found[0].label.as_str()), (1, "dog"));
        assert_eq!(dropped, [Rejected { text: format!("{BOX} Cat"), why: "below min_score" }]);
    }

    #[test]
    fn scores_are_of_the_own_tokens_only() {
        let text = format!("{BOX} cat ; {BOX} traffic light");
        let mut sure = tokens(&text);
        for token in &mut sure {
            let separates = text[token.range.clone()].trim_matches([' ', ';']).is_empty();
            token.logprob = if separates { -50.0 } else { 0.9_f32.ln() };
        }
        let (found, _) = parse(&text, &sure, &MinScore::default());
        assert!(found.iter().all(|detection| (detection.score - 0.9).abs() < 1e-6), "{found:?}");
        let (found, dropped) = parse(&text, &sure, &0.95.into());
        assert!(found.is_empty() && dropped.iter().all(|rejected| rejected.why == "below min_score"));
        sure[0].logprob = f32::NAN;
        assert_eq!(parse(&text, &sure, &MinScore::default()).0[0].score, 0.0);
    }

    #[test]
    fn segments_do_not_weigh_on_the_score() {
        let text = format!("{BOX}<seg001><seg002> horse");
        let mut tokens = tokens(&text);
        tokens.iter_mut().filter(|token| text[token.range.clone()].starts_with("<seg")).for_each(|token| token.logprob = -50.0);
        assert!((parse(&text, &tokens, &MinScore::default()).0[0].score - 0.5).abs() < 1e-6);
    }

    fn corner() -> impl Strategy<Value = (u16, u16)> {
        (0..1023_u16, 0..1023_u16)
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "((<loc[0-9]{3,5}>)|(<seg[0-9]{3}>)|[ ;<>é猫a-z]|.){0,40}", min_score in 0.0..1.0_f32) {
            let (found, dropped) = parse(&text, &tokens(&text), &min_score.into());
            for detection in found {
                let Box01 { y_min, x_min, y_max, x_max } = detection.box01;
                prop_assert!(!detection.label.trim().is_empty());
                prop_assert!(0.0 <= y_min && y_min < y_max && y_max < 1.0);
                prop_assert!(0.0 <= x_min && x_min < x_max && x_max < 1.0);
                prop_assert!(detection.score >= min_score && detection.score <= 1.0);
            }
            prop_assert!(dropped.iter().all(|rejected| !rejected.text.is_empty()));
        }

        #[test]
        fn a_valid_answer_comes_back(
            pieces in proptest::collection::vec((corner(), corner(), "[a-zé猫]{1,8}( [a-z]{1,5}){0,2}"), 1..8)
        ) {
            let pieces: Vec<([u16; 4], String)> = pieces
                .into_iter()
                .map(|((ya, xa), (yb, xb), label)| ([ya.min(yb), xa.min(xb), ya.max(yb) + 1, xa.max(xb) + 1], label))
                .collect();
            let written: Vec<String> = pieces
                .iter()
                .map(|([a, b, c, d], label)| format!("<loc{a:04}><loc{b:04}><loc{c:04}><loc{d:04}> {label}"))
                .collect();
            let (found, dropped) = read(&written.join(" ; "));
            prop_assert!(dropped.is_empty());
            let back: Vec<([u16; 4], String)> = found.into_iter().map(|detection| (detection.locs, detection.label)).collect();
            prop_assert_eq!(back, pieces);
        }
    }
}
