//! The labels that a prompt asks for, and what each is called in a topic.

use crate::base::hash::{FNV_OFFSET, fnv1a};
use crate::mqtt::topic::slug;
use crate::types::label_key;

/// A label that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// As it was first written.
    pub name: String,
    /// As a topic level, its own among the labels of its prompt.
    pub slug: String,
    /// What it has in common with every other way to write it.
    pub key: String,
}

/// The labels of a prompt, each once.
///
/// A slug loses every letter but a-z and 0-9. Where two labels would so come to share one, each that lost something has
/// eight hexadecimal digits of its own behind it: they depend on the label alone, not on its place in the prompt.
pub fn labels(names: &[String]) -> Vec<Label> {
    let mut labels: Vec<Label> = Vec::with_capacity(names.len());
    for name in names {
        let key = key(name);
        if !labels.iter().any(|known| known.key == key) {
            labels.push(Label { name: name.clone(), slug: slug(name), key });
        }
    }
    let slugs: Vec<String> = labels.iter().map(|label| label.slug.clone()).collect();
    for label in &mut labels {
        let shared = slugs.iter().filter(|slug| **slug == label.slug).count() > 1;
        if shared && label.slug != label.key {
            label.slug = format!("{}_{:08x}", label.slug, fnv1a(FNV_OFFSET, label.key.as_bytes()));
        }
    }
    labels
}

/// The names of a camera's zones as topic levels, in their order. As with labels, those that would come to share one have
/// eight digits behind them, but for one that is written so. No two names differ in case only.
pub fn places(names: &[&str]) -> Vec<String> {
    let slugs: Vec<String> = names.iter().map(|name| slug(name)).collect();
    let shared = |slug: &String| slugs.iter().filter(|other| *other == slug).count() > 1;
    let level = |(name, slug): (&&str, &String)| match label_key(name) {
        key if shared(slug) && key != *slug => format!("{slug}_{:08x}", fnv1a(FNV_OFFSET, key.as_bytes())),
        _ => slug.clone(),
    };
    names.iter().zip(&slugs).map(level).collect()
}

/// What two labels have in common that differ in case and in what stands between words only.
pub fn key(label: &str) -> String {
    let label = label.trim().to_lowercase();
    let between = |c: char| c.is_whitespace() || (c.is_ascii() && !c.is_ascii_alphanumeric());
    let words: Vec<&str> = label.split(between).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { label } else { words.join("_") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn slugs(names: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        labels(&names).into_iter().map(|label| label.slug).collect()
    }

    #[test]
    fn labels_that_mean_the_same_are_one() {
        assert_eq!(slugs(&["Cat", "cat", " CAT ", "traffic light", "Traffic-Light"]), ["cat", "traffic_light"]);
        assert_eq!(slugs(&["лошадь", "ЛОШАДЬ"]).len(), 1);
    }

    #[test]
    fn a_slug_stays_as_it_is_where_nobody_else_has_it() {
        assert_eq!(slugs(&["größe", "cat", "猫1"]), ["gr_e", "cat", "1"]);
    }

    #[test]
    fn labels_that_would_share_a_slug_are_told_apart_whatever_their_order() {
        for names in [["猫1", "犬1"], ["größe", "grüße"], ["a\u{2013}b", "a\u{2014}b"], ["🐱 7", "🐶 7"]] {
            let there = slugs(&names);
            let back = slugs(&[names[1], names[0]]);
            assert_eq!((&there[0], &there[1]), (&back[1], &back[0]), "{names:?}");
            assert_ne!(there[0], there[1]);
            let (stem, digits) = there[0].rsplit_once('_').unwrap();
            assert!(stem == slug(names[0]) && digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{there:?}");
            assert_eq!(slug(&there[0]), there[0], "a topic level as it is");
        }
        let mixed = slugs(&["1", "猫1"]);
        assert!(mixed[0] == "1" && mixed[1].starts_with("1_"), "what lost nothing keeps its name: {mixed:?}");
        assert_eq!(slugs(&["猫1", "1", "犬1", "dog"])[3], "dog");
    }
}
