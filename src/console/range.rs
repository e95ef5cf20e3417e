//! A part of a file that a client asks for: the header `Range` (RFC 9110, section 14), one range of bytes.

use std::ops::RangeInclusive;

/// What of a file is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: nothing else was asked for, or nothing that is understood.
    All,
    /// These bytes.
    Some(RangeInclusive<u64>),
    /// What was asked for lies behind its end.
    None,
}

/// Of a file of `length` bytes. Several ranges are more than is understood, and a server may send everything then.
pub fn part(header: Option<&str>, length: u64) -> Part {
    let Some((unit, range)) = header.and_then(|header| header.split_once('=')) else { return Part::All };
    let Some((from, to)) = range.trim().split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes")) else { return Part::All };
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // One that is too large for us is beyond any file.
        true if !text.is_empty() => Some(text.parse().unwrap_or(u64::MAX)),
        _ => None,
    };
    let (first, last) = match (from, to) {
        ("", to) => match number(to) {
            Some(0) => return Part::None,
            Some(count) => (length.saturating_sub(count), u64::MAX),
            None => return Part::All,
        },
        (from, "") => match number(from) {
            Some(first) => (first, u64::MAX),
            None => return Part::All,
        },
        (from, to) => match (number(from), number(to)) {
            (Some(first), Some(last)) if first <= last => (first, last),
            _ => return Part::All,
        },
    };
    if first >= length {
        return Part::None;
    }
    Part::Some(first..=last.min(length - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_as_the_standard_has_it() {
        for (header, expected) in [
            ("bytes=0-0", Part::Some(0..=0)),
            ("bytes=0-", Part::Some(0..=99)),
            ("Bytes = 10-19", Part::Some(10..=19)),
            ("bytes=90-200", Part::Some(90..=99)),
            ("bytes=99-99999999999999999999999", Part::Some(99..=99)),
            ("bytes=-5", Part::Some(95..=99)),
            ("bytes=-500", Part::Some(0..=99)),
            ("bytes=100-", Part::None),
            ("bytes=99999999999999999999999-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=5-4", Part::All),
            ("bytes=0-1,5-9", Part::All),
            ("bytes=-", Part::All),
            ("bytes=a-b", Part::All),
            ("bytes=+1-2", Part::All),
            ("bytes", Part::All),
            ("lines=0-1", Part::All),
            ("", Part::All),
        ] {
            assert_eq!(part(Some(header), 100), expected, "{header}");
        }
        assert_eq!((part(None, 100), part(Some("bytes=0-"), 0)), (Part::All, Part::None));
    }
}
