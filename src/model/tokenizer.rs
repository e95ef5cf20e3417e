//! Words to tokens and back: the prompt as the reference's processor builds it, the answer with its tokens' places.

use std::ops::Range;
use std::path::Path;

use tokenizers::Tokenizer as Inner;

use crate::base::{Context, Error, Kind, Result};
use crate::model::config::Config;

/// `tokenizer.json` with the ids the prompt is built of.
pub struct Tokenizer {
    inner: Inner,
    image_token: u32,
    image_tokens: usize,
    bos: u32,
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
        Ok(Self { inner, image_token: config.image_token, image_tokens: config.vision.patches(), bos })
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
        self.inner.decode(ids, true).context(Kind::Model, || "cannot turn the model's answer into text".to_owned())
    }

    /// For each token the bytes of `text` (what [`Tokenizer::decode`] gave) that it wrote; `None` for special tokens.
    /// A token in the middle of a character has an empty range at the character's start.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn ranges(&self, ids: &[u32], text: &str) -> Result<Vec<Option<Range<usize>>>> {
        let added = self.inner.get_added_vocabulary();
        let mut start = 0;
        (0..ids.len())
            .map(|last| {
                let special = self.inner.id_to_token(ids[last]).is_some_and(|token| added.is_special_token(&token));
                if special {
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

/// How many bytes two texts share from the start, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}
