//! Which model, on what, in what precision.

use std::path::PathBuf;
use std::str::FromStr;

use crate::base::error::{Error, Kind, Result};

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
    /// The Apple GPU of this number.
    Metal(usize),
}

impl ModelSource {
    /// A repository `owner/name` at a revision. Both become parts of paths and addresses, so only plain names are taken.
    ///
    /// # Errors
    /// When either is no name that the hub knows.
    pub fn hub(id: &str, revision: Option<&str>) -> Result<Self> {
        let plain = |part: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !part.is_empty() && part.len() <= 96 && part.bytes().all(fits) && !part.starts_with(['.', '-']) && !part.contains("..")
        };
        if !id.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name)) {
            return Err(Error::new(
                Kind::Config,
                format!("{id:?} is not a hub id; must be owner/name, such as google/paligemma2-3b-mix-224"),
            ));
        }
        match revision {
            Some(revision) if !revision.split('/').all(plain) => {
                Err(Error::new(Kind::Config, format!("{revision:?} cannot be a revision; must be a branch, tag or commit")))
            }
            _ => Ok(Self::Hub { id: id.to_owned(), revision: revision.map(str::to_owned) }),
        }
    }

    /// As `hub`, from one text `owner/name[@revision]`.
    ///
    /// # Errors
    /// As `hub`.
    pub fn from_hub_name(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
        Self::hub(id, revision)
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, number) = text.split_once(':').unwrap_or((text, "0"));
        match (kind, number.parse()) {
            ("auto" | "cpu", _) if kind != text => Err(()),
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", Ok(number)) => Ok(Self::Cuda(number)),
            ("metal", Ok(number)) => Ok(Self::Metal(number)),
            _ => Err(()),
        }
        .map_err(|()| format!("is {text:?}; must be auto, cpu, cuda:N or metal:N"))
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, dtype)| *dtype);
        found.ok_or_else(|| format!("is {text:?}; must be one of {}", Self::NAMES.map(|(name, _)| name).join(", ")))
    }
}

impl Dtype {
    /// Every type with its name in the file and on the command line.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("auto", Self::Auto),
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("bf16", Self::Bf16),
        ("q8_0", Self::Q8_0),
        ("q6k", Self::Q6K),
        ("q4k", Self::Q4K),
    ];

    /// Its name in the file and on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, dtype)| *dtype == self).map_or("auto", |(name, _)| name)
    }
}

/// The weights' type in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// The best for the device.
    Auto,
    /// Computed in 32-bit floats: exact.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit integers, a scale for each 32.
    Q8_0,
    /// 6-bit integers with scales for each 16.
    Q6K,
    /// 4-bit integers with scales and minimums for each 32.
    Q4K,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_kind_and_gpus_a_number() {
        let read = |text: &str| text.parse::<Device>();
        assert_eq!((read("auto"), read("cpu")), (Ok(Device::Auto), Ok(Device::Cpu)));
        assert_eq!((read("cuda"), read("cuda:3"), read("metal:1")), (Ok(Device::Cuda(0)), Ok(Device::Cuda(3)), Ok(Device::Metal(1))));
        for bad in ["", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "metal:0:1", "gpu", "CPU"] {
            assert!(read(bad).is_err_and(|why| why.contains("must be auto, cpu, cuda:N or metal:N")), "{bad}");
        }
    }

    #[test]
    fn hub_names_are_plain() {
        let hub = |id: &str, revision: Option<&str>| ModelSource::Hub { id: id.into(), revision: revision.map(str::to_owned) };
        assert_eq!(ModelSource::from_hub_name("google/paligemma2-3b-mix-224").unwrap(), hub("google/paligemma2-3b-mix-224", None));
        assert_eq!(ModelSource::from_hub_name("a/b@refs/pr/1").unwrap(), hub("a/b", Some("refs/pr/1")));
        for bad in ["paligemma", "a/b/c", "../etc", "a/..", "a/b@", "a/b@../x", "a/b@x//y", "a/b@a b", "a b/c", "o/a..b", ""] {
            assert!(ModelSource::from_hub_name(bad).is_err(), "{bad}");
        }
    }
}
