//! Reads typed values out of a TOML document and collects every fault with its key path and line, instead of
//! stopping at the first as a derived deserializer would.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Whether a fault may be the mere consequence of text that could not be parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Syntax,
    Missing,
    Wrong,
}

/// One mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what would be right, beginning with the key path.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Who has made so many mistakes mends some before the others are of interest.
const MOST_FAULTS: usize = 300;

/// The document's text and the faults found in it so far.
pub(super) struct Document<'a> {
    text: &'a str,
    faults: RefCell<Vec<(Sort, Fault)>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, faults: RefCell::default() }
    }

    /// Records text that is no TOML.
    pub(super) fn syntax(&self, offset: usize, message: &str) {
        self.fault(Sort::Syntax, offset, format!("not TOML: {message}"));
    }

    /// Whether no more faults are told of. Finding the line of one takes a look at all before it.
    fn is_full(&self) -> bool {
        self.faults.borrow().len() >= MOST_FAULTS
    }

    fn fault(&self, sort: Sort, offset: usize, message: String) {
        if self.is_full() {
            return;
        }
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.faults.borrow_mut().push((sort, Fault { line, message }));
    }

    /// The faults in order of line. Beside text that is no TOML, a missing key is not worth telling: it may stand there.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        if faults.iter().any(|(sort, _)| *sort == Sort::Syntax) {
            faults.retain(|(sort, _)| *sort != Sort::Missing);
        }
        faults.sort_by_key(|(_, fault)| fault.line);
        faults.into_iter().map(|(_, fault)| fault).collect()
    }
}

/// A value together with where it stands, so that a later check can still point at it.
pub(super) struct At<T> {
    pub value: T,
    pub offset: usize,
}

/// One table of the document. Each read marks its key as known; `finish` reports the rest.
pub(super) struct Section<'d, 'a> {
    document: &'d Document<'a>,
    table: Option<&'d DeTable<'a>>,
    path: String,
    /// Where the table begins: the place to report what is missing.
    offset: usize,
    known: BTreeSet<&'static str>,
}

impl<'d, 'a> Section<'d, 'a> {
    pub(super) fn root(document: &'d Document<'a>, table: &'d Spanned<DeTable<'a>>) -> Self {
        Self { document, table: Some(table.get_ref()), path: String::new(), offset: 0, known: BTreeSet::new() }
    }

    /// Where the table begins.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// The dotted path of one of this table's keys.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Records a fault of the key's value.
    pub(super) fn fault(&self, key: &str, offset: usize, message: &str) {
        self.document.fault(Sort::Wrong, offset, format!("{} {message}", self.path(key)));
    }

    /// Records that a required key is not there; one that is there, and wrong, has its fault already.
    pub(super) fn missing(&self, key: &str, right: &str) {
        if !self.holds(key) {
            self.document.fault(Sort::Missing, self.offset, format!("{} is missing; must be {right}", self.path(key)));
        }
    }

    /// Whether the key is written in the file.
    pub(super) fn holds(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    /// Where a key stands; where the table begins if it is not written.
    pub(super) fn offset_of(&self, key: &str) -> usize {
        self.written(key).map_or(self.offset, |(name, _)| name.span().start)
    }

    /// Marks keys as known that another key makes meaningless.
    pub(super) fn know(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    fn written(&self, key: &str) -> Option<(&'d Spanned<DeString<'a>>, &'d Spanned<DeValue<'a>>)> {
        self.table?.iter().find(|(name, _)| name.get_ref().as_ref() == key)
    }

    /// Whether the table is written in the file.
    pub(super) fn exists(&self) -> bool {
        self.table.is_some()
    }

    fn value(&mut self, key: &'static str) -> Option<(&'d DeValue<'a>, usize)> {
        self.known.insert(key);
        let (at, value) = self.written(key)?;
        Some((value.get_ref(), at.span().start))
    }

    fn wrong_type(&self, key: &str, offset: usize, value: &DeValue<'_>, right: &str) {
        self.fault(key, offset, &format!("is {} {}; must be {right}", article(value.type_str()), value.type_str()));
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<At<String>> {
        let (value, offset) = self.value(key)?;
        match value.as_str() {
            Some(text) => Some(At { value: text.to_owned(), offset }),
            None => {
                self.wrong_type(key, offset, value, "text in quotes");
                None
            }
        }
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Option<At<Vec<String>>> {
        let (value, offset) = self.value(key)?;
        let items: Option<Vec<String>> =
            value.as_array().and_then(|items| items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect());
        if items.is_none() {
            self.wrong_type(key, offset, value, "a list of texts such as [\"cat\", \"traffic light\"]");
        }
        Some(At { value: items?, offset })
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> At<bool> {
        let Some((value, offset)) = self.value(key) else { return At { value: default, offset: self.offset } };
        let flag = value.as_bool();
        if flag.is_none() {
            self.wrong_type(key, offset, value, "true or false");
        }
        At { value: flag.unwrap_or(default), offset }
    }

    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<f64>, default: f64) -> f64 {
        let found = self.value(key).and_then(|(value, offset)| self.number_in(key, offset, value, &range));
        found.unwrap_or(default)
    }

    /// Every key of a table whose keys are the user's own, as written, with its number; those that are wrong are left out.
    pub(super) fn numbers(&self, range: RangeInclusive<f64>) -> Vec<(At<String>, f64)> {
        let pairs = self.table.into_iter().flat_map(|table| table.iter());
        let read = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
            let key = At { value: name.get_ref().to_string(), offset: name.span().start };
            let number = self.number_in(&quoted(&key.value), value.span().start, value.get_ref(), &range)?;
            Some((key, number))
        };
        let mut numbers: Vec<_> = pairs.filter_map(read).collect();
        // The table has them by name; what is told about two of them is told in the order of the file.
        numbers.sort_by_key(|(key, _)| key.offset);
        numbers
    }

    fn number_in(&self, key: &str, offset: usize, value: &DeValue<'_>, range: &RangeInclusive<f64>) -> Option<f64> {
        let Some(number) = number(value) else {
            self.wrong_type(key, offset, value, &format!("a number in {}..={}", range.start(), range.end()));
            return None;
        };
        if range.contains(&number) {
            return Some(number);
        }
        self.fault(key, offset, &format!("is {number}; must be in {}..={}", range.start(), range.end()));
        None
    }

    /// A list of polygons, each a list of at least three points `[x, y]` in 0..=1; those that are wrong are left out.
    pub(super) fn polygons(&mut self, key: &'static str) -> Vec<Vec<[f64; 2]>> {
        let Some((value, offset)) = self.value(key) else { return Vec::new() };
        let right = "a list of polygons, each of three points or more, such as [[[0.0, 0.0], [0.5, 0.0], [0.0, 0.3]]]";
        let Some(polygons) = value.as_array() else {
            self.wrong_type(key, offset, value, right);
            return Vec::new();
        };
        let polygon = |(index, value): (usize, &Spanned<DeValue<'_>>)| {
            let polygon = corners(value.get_ref());
            if polygon.is_none() {
                self.fault(&format!("{key}[{index}]"), value.span().start, NO_POLYGON);
            }
            polygon
        };
        polygons.iter().enumerate().filter_map(polygon).collect()
    }

    /// One polygon, which must be there.
    pub(super) fn polygon(&mut self, key: &'static str) -> Option<Vec<[f64; 2]>> {
        let Some((value, offset)) = self.value(key) else {
            self.missing(key, "a polygon such as [[0.0, 0.0], [0.5, 0.0], [0.0, 0.3]]");
            return None;
        };
        let polygon = corners(value);
        if polygon.is_none() {
            self.fault(key, offset, NO_POLYGON);
        }
        polygon
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let Some((value, offset)) = self.value(key) else { return default };
        let Some(integer) = value.as_integer() else {
            self.wrong_type(key, offset, value, &format!("a whole number in {}..={}", range.start(), range.end()));
            return default;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.fault(key, offset, &format!("is {}; must be in {}..={}", integer.as_str(), range.start(), range.end()));
                default
            }
        }
    }

    /// One of several words; a word that is a number may stand without quotes.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let number = self.value(key).and_then(|(value, offset)| Some(At { value: value.as_integer()?.as_str().to_owned(), offset }));
        let Some(text) = number.or_else(|| self.text(key)) else { return default };
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text.value) {
            return *choice;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.fault(key, text.offset, &format!("is {:?}; must be one of {}", text.value, names.join(", ")));
        default
    }

    /// The sub-table `key`; one that is not written reads as empty and does not `exists()`.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'d, 'a> {
        let found = self.value(key);
        let table = found.and_then(|(value, offset)| {
            if value.as_table().is_none() {
                self.wrong_type(key, offset, value, &format!("a table: [{}]", self.path(key)));
            }
            value.as_table()
        });
        let offset = found.map_or(self.offset, |(_, offset)| offset);
        Section { document: self.document, table, path: self.path(key), offset, known: BTreeSet::new() }
    }

    /// The tables of the list `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'d, 'a>> {
        let Some((value, offset)) = self.value(key) else { return Vec::new() };
        let right = format!("a list of tables: [[{}]]", self.path(key));
        let Some(items) = value.as_array() else {
            self.wrong_type(key, offset, value, &right);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path(key));
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    document: self.document,
                    table: Some(table),
                    path,
                    offset: item.span().start,
                    known: BTreeSet::new(),
                }),
                None => self.wrong_type(key, item.span().start, item.get_ref(), &right),
            }
        }
        sections
    }

    /// Reports every key that nothing read.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for (name, _) in table.iter() {
            let key = name.get_ref().as_ref();
            if self.known.contains(key) {
                continue;
            }
            if self.document.is_full() {
                return;
            }
            let hint = match nearest(key, self.known.iter().copied()) {
                Some(known) => format!("; did you mean {known}?"),
                None => format!("; known here: {}", self.known.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            self.fault(key, name.span().start, &format!("is not a known key{hint}"));
        }
    }
}

/// The name that `written` most likely stands for; `None` where none is near.
pub(super) fn nearest<'n>(written: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let (edits, name) = names.map(|name| (strsim::levenshtein(written, name), name)).min()?;
    (edits <= 1 + name.len() / 4).then_some(name)
}

/// A key as it is written in TOML: in quotes where it is no plain word.
pub(super) fn quoted(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !key.is_empty() && key.bytes().all(plain) { key.to_owned() } else { format!("{key:?}") }
}

const NO_POLYGON: &str = "is no polygon; must be three points [x, y] or more, in shares 0..=1 of the picture";

/// The points of a polygon; `None` where it is none.
fn corners(value: &DeValue<'_>) -> Option<Vec<[f64; 2]>> {
    let share = |value: &Spanned<DeValue<'_>>| number(value.get_ref()).filter(|number| (0.0..=1.0).contains(number));
    let point = |value: &Spanned<DeValue<'_>>| match value.get_ref().as_array()?.iter().as_slice() {
        [x, y] => Some([share(x)?, share(y)?]),
        _ => None,
    };
    let points: Option<Vec<[f64; 2]>> = value.as_array()?.iter().map(point).collect();
    points.filter(|points| points.len() >= 3)
}

/// A number, whole or not.
fn number(value: &DeValue<'_>) -> Option<f64> {
    let digits = value.as_float().map(|float| float.as_str()).or_else(|| value.as_integer().map(|integer| integer.as_str()));
    digits?.parse().ok()
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
