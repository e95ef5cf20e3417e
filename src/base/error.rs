//! The one error type: a kind (what the caller may do about it), a sentence, and the cause chain.
//!
//! Voice: lowercase, the offender first, then what would be right, then where; no final dot.

use std::error::Error as StdError;
use std::fmt;

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The configuration is wrong; a person must edit it.
    Config,
    /// A given picture, prompt or argument cannot be used.
    Input,
    /// The model's files are missing, damaged or of another shape.
    Model,
    /// The model hub refused or could not be reached.
    Hub,
    /// A GStreamer pipeline failed.
    Pipeline,
    /// The MQTT link failed.
    Mqtt,
    /// A file or folder could not be read or written.
    Io,
    /// A defect of ours: an invariant did not hold.
    Internal,
}

/// An error with a sentence for a person and the chain of causes behind it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence and every cause, joined by `: `, on one line. A cause that the sentence repeats already is left out.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Turns any error into ours, with a kind and a sentence.
pub trait Context<T> {
    /// Wraps the error; `message` is only built on failure.
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context<M: Into<String>>(self, kind: Kind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::new(kind, message()).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_cause_once() {
        let cause = std::io::Error::other("disk\n on fire\n");
        let inner = Error::new(Kind::Io, "cannot write a.jpg").because(cause);
        let outer = Error::new(Kind::Internal, "sink failed").because(inner);
        assert_eq!(outer.chain(), "sink failed: cannot write a.jpg: disk on fire");
        assert_eq!(outer.kind(), Kind::Internal);
    }
}
