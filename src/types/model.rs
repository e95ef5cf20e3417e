//! Which model, on what, in what precision.

use std::path::PathBuf;
use std::str::FromStr;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A repository on the hub, at a revision (branch, tag or commit; `None`: `main`).
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
    /// A snapshot folder.
    Folder(PathBuf),
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err(format!("is {text:?}; must be auto, cpu or cuda:N")),
        }
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, dtype)| *dtype);
        found.ok_or_else(|| format!("is {text:?}; must be one of {}", Self::NAMES.map(|(name, _)| name).join(", ")))
    }
}

impl Dtype {
    /// Every type with its name in the file and on the command line.
    pub const NAMES: [(&'static str, Self); 4] = [("auto", Self::Auto), ("f32", Self::F32), ("f16", Self::F16), ("bf16", Self::Bf16)];
}

/// The weights' type in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// The best for the device.
    Auto,
    /// 32-bit floats: exact.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
}
