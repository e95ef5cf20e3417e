//! A text's letters as they are drawn one after another: composed, Arabic ones joined, all from left to right; and in plain Latin
//! where nothing has them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use deunicode::deunicode_char;
use unicode_bidi::{BidiClass, BidiInfo, bidi_class};
use unicode_normalization::UnicodeNormalization;

const TATWEEL: char = '\u{640}';
const LAM: char = '\u{644}';

/// Blocks whose letters change their shape or place among others by rules that are the font's alone. Drawn one by one they
/// would be wrong, so they are spelled.
const SHAPED: [(char, char); 14] = [
    // Syriac, Thaana, N'Ko, Samaritan, Mandaic
    ('\u{700}', '\u{74f}'),
    ('\u{780}', '\u{86f}'),
    // Devanagari to Sinhala
    ('\u{900}', '\u{dff}'),
    // Tibetan, Myanmar
    ('\u{f00}', '\u{109f}'),
    // Tagalog to Mongolian
    ('\u{1700}', '\u{18af}'),
    ('\u{1900}', '\u{1aaf}'),
    ('\u{1b00}', '\u{1c4f}'),
    ('\u{1cd0}', '\u{1cff}'),
    ('\u{a800}', '\u{a82f}'),
    ('\u{a840}', '\u{a95f}'),
    ('\u{a980}', '\u{aaff}'),
    ('\u{abc0}', '\u{abff}'),
    ('\u{10a00}', '\u{10fff}'),
    ('\u{11000}', '\u{11fff}'),
];

/// A letter's presentation forms, as many as it has: isolated, final, initial, medial.
type Forms = Vec<char>;

/// Of each Arabic letter, and of lam with each alef. Unicode has a letter's forms side by side in this order.
static FORMS: LazyLock<HashMap<String, Forms>> = LazyLock::new(|| {
    let mut forms: HashMap<String, Forms> = HashMap::new();
    // The last letters of the first block belong to no letter of ours; alef maksura has two there, and its own in the second.
    for form in ('\u{fb50}'..='\u{fbb1}').chain('\u{fbfc}'..='\u{fbff}').chain('\u{fe80}'..='\u{fefc}') {
        forms.entry(form.nfkc().collect()).or_default().push(form);
    }
    forms.insert(TATWEEL.to_string(), vec![TATWEEL; 4]);
    forms
});

/// The text composed, in one line, without what is not seen.
pub(super) fn composed(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let line = text.chars().filter(|c| !c.is_control() || c.is_whitespace()).map(|c| if c.is_whitespace() { ' ' } else { c });
    Cow::Owned(line.nfc().filter(|c| !unseen(*c)).collect())
}

/// Marks of direction, joiners but those that keep Arabic letters apart, selectors of an emoji's look; and the vowel points of
/// Hebrew and Arabic, for which the letters' anchors would be needed, and which readers do without.
fn unseen(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}' | '\u{200d}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{1f3fb}'..='\u{1f3ff}' | '\u{e0000}'..='\u{e0fff}');
    hidden || (('\u{590}'..='\u{8ff}').contains(&c) && bidi_class(c) == BidiClass::NSM)
}

/// Whether a letter cannot be drawn by itself.
pub(super) fn needs_shaping(c: char) -> bool {
    SHAPED.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// Arabic letters in the forms that join them.
pub(super) fn joined(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| ('\u{600}'..='\u{6ff}').contains(&c)) {
        return Cow::Borrowed(text);
    }
    // Letters, and lam with alef as one.
    let mut letters: Vec<String> = Vec::new();
    for c in text.chars() {
        match letters.last_mut() {
            Some(last) if last.starts_with(LAM) && last.chars().count() == 1 && FORMS.contains_key(&format!("{last}{c}")) => last.push(c),
            _ => letters.push(c.to_string()),
        }
    }
    let forms: Vec<Option<&Forms>> = letters.iter().map(|letter| FORMS.get(letter)).collect();
    let joins_next = |index: usize| forms[index].is_some_and(|forms| forms.len() == 4);
    let joins_before = |index: usize| forms[index].is_some_and(|forms| forms.len() >= 2);
    let drawn = letters.iter().enumerate().map(|(index, letter)| {
        let Some(forms) = forms[index] else { return letter.clone() };
        let before = index > 0 && joins_next(index - 1) && joins_before(index);
        let after = joins_next(index) && index + 1 < letters.len() && joins_before(index + 1);
        let form = usize::from(before) + 2 * usize::from(after);
        forms.get(form).map_or_else(|| letter.clone(), char::to_string)
    });
    // What keeps letters apart has done so.
    Cow::Owned(drawn.filter(|letter| letter != "\u{200c}").collect())
}

/// The letters' places from left to right, each with whether its mirror image is drawn there; `None` where they stand so already.
pub(super) fn order(text: &str) -> Option<Vec<(usize, bool)>> {
    if text.is_ascii() {
        return None;
    }
    let info = BidiInfo::new(text, None);
    let paragraph = info.paragraphs.first().filter(|_| info.has_rtl())?;
    let levels = info.reordered_levels_per_char(paragraph, paragraph.range.clone());
    let places = BidiInfo::reorder_visual(&levels);
    Some(places.into_iter().map(|place| (place, levels[place].is_rtl())).collect())
}

/// A bracket that opens towards the other side.
pub(super) fn mirrored(c: char) -> char {
    const PAIRS: [(char, char); 6] = [('(', ')'), ('[', ']'), ('{', '}'), ('<', '>'), ('«', '»'), ('‹', '›')];
    let other = PAIRS.iter().find_map(|(open, close)| match c {
        c if c == *open => Some(*close),
        c if c == *close => Some(*open),
        _ => None,
    });
    other.unwrap_or(c)
}

/// A letter in plain Latin, `?` where nobody knows how. Ends with a space where it is a word.
pub(super) fn spelled(c: char) -> Cow<'static, str> {
    match deunicode_char(c) {
        None => Cow::Borrowed("?"),
        // The names of emoji are numbered where several would be alike: no reader needs that.
        Some(name) if c >= '\u{1f000}' && name.ends_with(' ') => Cow::Owned(format!("{} ", name.trim_end_matches([' ', '2', '3', '4']))),
        Some(name) => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_composed_with_their_letters_and_what_is_unseen_goes() {
        assert_eq!(composed("e\u{301}te\u{301}"), "été");
        assert_eq!(composed("a\u{0}\tb\nc\u{200d}\u{202e}d\u{fe0f}"), "a b cd");
        assert_eq!(composed("שָׁלוֹם"), "שלום");
        assert_eq!(composed("plain"), "plain");
    }

    #[test]
    fn arabic_letters_take_the_forms_that_join_them() {
        // qaf initial, tah medial, teh marbuta final
        assert_eq!(joined("قطة"), "\u{fed7}\u{fec4}\u{fe94}");
        // seen initial, lam and alef as one, meem alone: nothing joins an alef's left
        assert_eq!(joined("سلام"), "\u{feb3}\u{fefc}\u{fee1}");
        // Persian gaf and yeh
        assert_eq!(joined("گربه ی"), "\u{fb94}\u{feae}\u{fe91}\u{feea} \u{fbfc}");
        // A non-joiner keeps letters apart and is not drawn.
        assert_eq!(joined("ب\u{200c}ب"), "\u{fe8f}\u{fe8f}");
        // Alef maksura ends a word.
        assert_eq!(joined("على"), "\u{fecb}\u{fee0}\u{fef0}");
        assert_eq!(joined("cat"), "cat");
    }

    #[test]
    fn what_reads_from_the_right_stands_from_the_right() {
        let drawn = |text: &str| {
            let letters: Vec<char> = text.chars().collect();
            let places = order(text).unwrap();
            places.iter().map(|(place, mirror)| if *mirror { mirrored(letters[*place]) } else { letters[*place] }).collect::<String>()
        };
        assert_eq!(drawn("אבג"), "גבא");
        assert_eq!(drawn("אב 12"), "12 בא");
        assert_eq!(drawn("אב (גד)"), "(דג) בא");
        assert_eq!(drawn("cat אב dog"), "cat בא dog");
        assert!(order("собака").is_none() && order("cat").is_none());
    }

    #[test]
    fn letters_and_emoji_are_spelled() {
        assert_eq!(spelled('猫'), "Mao ");
        assert_eq!(spelled('🐈'), "cat ");
        assert_eq!(spelled('\u{e000}'), "?");
        assert!(needs_shaping('ब') && !needs_shaping('ب') && !needs_shaping('แ') && !needs_shaping('ㄱ'));
    }
}
