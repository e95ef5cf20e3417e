//! Words to tokens and back: the prompt as the reference's processor builds it, the answer with its tokens' places.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tokenizers::Tokenizer as Inner;

use crate::base::{Context, Error, Kind, Result};
use crate::model::config::Config;

/// `tokenizer.json` with the ids the prompt is built of.
pub struct Tokenizer {
    inner: Inner,
    image_token: u32,
    image_tokens: usize,
    bos: u32,
    vocab_size: usize,
    /// Special tokens, which leave no trace in an answer. Locations and segments are part of it, however marked.
    unseen: HashSet<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a snapshot folder.
    ///
    /// # Errors
    /// When it is missing, unreadable, or knows another `<image>` token than `config.json`.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let text = super::weights::read_text(&path)?;
        let inner: Inner = text.parse().context(Kind::Model, || format!("{} is no tokenizer", path.display()))?;
        if let Some(id) = inner.token_to_id("<image>").filter(|&id| id != config.image_token) {
            let expected = config.image_token;
            return Err(Error::new(
                Kind::Model,
                format!("<image> is token {id} in {}; must be {expected}, config.json's image_token_index", path.display()),
            ));
        }
        let bos = inner.token_to_id("<bos>").unwrap_or(config.bos);
        let added = inner.get_added_tokens_decoder();
        let in_answer = |text: &str| text.starts_with("<loc") || text.starts_with("<seg");
        let unseen = added.iter().filter(|(_, token)| token.special && !in_answer(&token.content)).map(|(&id, _)| id).collect();
        Ok(Self {
            inner,
            image_token: config.image_token,
            image_tokens: config.vision.patches(),
            bos,
            vocab_size: config.text.vocab_size,
            unseen,
        })
    }

    /// Placeholders for the image, `<bos>`, the prompt, a newline; no end token.
    ///
    /// # Errors
    /// When the prompt holds the image token, which would leave more placeholders than patches.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(format!("{prompt}\n"), false);
        let encoding = encoding.context(Kind::Input, || format!("cannot read prompt {prompt:?} as tokens"))?;
        if encoding.get_ids().contains(&self.image_token) {
            return Err(Error::new(
                Kind::Input,
                format!("prompt {prompt:?} holds <image>; must be words only, the picture is added by itself"),
            ));
        }
        if let Some(id) = encoding.get_ids().iter().find(|&&id| id as usize >= self.vocab_size) {
            let size = self.vocab_size;
            return Err(Error::new(
                Kind::Model,
                format!("tokenizer.json gives token {id} for prompt {prompt:?}; must be below {size}, the vocab_size"),
            ));
        }
        let mut ids = vec![self.image_token; self.image_tokens];
        ids.push(self.bos);
        ids.extend_from_slice(encoding.get_ids());
        Ok(ids)
    }

    /// The text of an answer, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let seen: Vec<u32> = ids.iter().copied().filter(|id| !self.unseen.contains(id)).collect();
        self.inner.decode(&seen, false).context(Kind::Model, || "cannot turn the model's answer into text".to_owned())
    }

    /// For each token the bytes of `text` (what [`Tokenizer::decode`] gave) that it wrote; `None` for special tokens.
    /// A token in the middle of a character has an empty range at the character's start.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn ranges(&self, ids: &[u32], text: &str) -> Result<Vec<Option<Range<usize>>>> {
        let mut start = 0;
        (0..ids.len())
            .map(|last| {
                if self.unseen.contains(&ids[last]) {
                    return Ok(None);
                }
                let end = common_prefix(&self.decode(&ids[..=last])?, text).max(start);
                let range = start..end;
                start = end;
                Ok(Some(range))
            })
            .collect()
    }
}

/// Prompts kept as tokens; far more than cameras ask at a time.
const REMEMBERED: usize = 256;

/// Prompts as tokens, each made once: a camera asks the same thing about every frame.
#[derive(Default)]
pub struct Prompts(HashMap<String, Arc<[u32]>>);

impl Prompts {
    /// As [`Tokenizer::prompt`].
    ///
    /// # Errors
    /// As [`Tokenizer::prompt`]; nothing is kept then.
    pub fn tokens(&mut self, tokenizer: &Tokenizer, prompt: &str) -> Result<Arc<[u32]>> {
        if let Some(tokens) = self.0.get(prompt) {
            return Ok(Arc::clone(tokens));
        }
        let tokens: Arc<[u32]> = tokenizer.prompt(prompt)?.into();
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(prompt.to_owned(), Arc::clone(&tokens));
        Ok(tokens)
    }
}

/// How many bytes two texts share from the start, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    /// The reference cases' tokenizer, over a configuration with 4 image tokens.
    fn open() -> Tokenizer {
        let json = r#"{"image_token_index": 1505, "vision_config": {"image_size": 28, "patch_size": 14}}"#;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        Tokenizer::open(folder.path(), &crate::model::config::read(folder.path()).unwrap()).unwrap()
    }

    #[test]
    fn the_prompt_is_built_as_the_reference_builds_it() {
        assert_eq!(
            open().prompt("detect cat ; dog").unwrap(),
            [1505, 1505, 1505, 1505, 2, 266, 267, 282, 267, 265, 282, 308, 352, 316, 260]
        );
        assert!(open().prompt("what is in <image>?").is_err());
    }

    #[test]
    fn prompts_are_kept_within_bounds() {
        let (tokenizer, mut prompts) = (open(), Prompts::default());
        for at in 0..2 * REMEMBERED {
            let prompt = format!("detect {at}");
            let tokens = prompts.tokens(&tokenizer, &prompt).unwrap();
            assert_eq!(*tokens, tokenizer.prompt(&prompt).unwrap());
            assert!(Arc::ptr_eq(&tokens, &prompts.tokens(&tokenizer, &prompt).unwrap()) && prompts.0.len() <= REMEMBERED);
        }
        assert!(prompts.tokens(&tokenizer, "<image>").is_err());
    }

    #[test]
    fn every_token_knows_its_place_in_the_text() {
        let tokenizer = open();
        // A location, " cat", the three bytes of a Chinese character one by one, a byte that begins nothing, the end token.
        let byte = |byte: u8| 4 + u32::from(byte);
        let ids = [1129, 308, byte(0xe7), byte(0x8c), byte(0xab), byte(0xff), 352, 1];
        let text = tokenizer.decode(&ids).unwrap();
        let ranges = tokenizer.ranges(&ids, &text).unwrap();
        assert!(text.starts_with("<loc0776> cat"), "{text}");
        assert_eq!((ranges[0].clone(), ranges[1].clone(), ranges[7].clone()), (Some(0..9), Some(9..13), None));
        let covered: Vec<usize> = ranges.iter().flatten().flat_map(|range| range.clone()).collect();
        assert_eq!(covered, (0..text.len()).collect::<Vec<_>>(), "each byte has one token: {ranges:?} of {text:?}");
    }
}
