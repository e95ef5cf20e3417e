//! Small files that are written whole or not at all.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::base::error::{Context, Kind, Result};

/// Writes `bytes` beside `file` and then puts them in its place, so that no half file is ever there, not after a power cut
/// either. Makes the folder where it is missing.
///
/// # Errors
/// When the disk does not take it; what was there before is then still there.
pub fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let fail = || format!("{} cannot be written", file.display());
    let beside = file.with_extension("new");
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).context(Kind::Io, fail)?;
    let mut new = File::create(&beside).context(Kind::Io, fail)?;
    let written = new.write_all(bytes).and_then(|()| new.sync_all()).and_then(|()| fs::rename(&beside, file));
    if written.is_err() {
        // What is of no use must not fill the disk further.
        fs::remove_file(&beside).ok();
    }
    written.context(Kind::Io, fail)?;
    // The new name is on disk when the folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).context(Kind::Io, fail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/a.json");
        for text in ["first", "2"] {
            write(&file, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        // A folder in its place is not replaced, and nothing stays beside it either.
        fs::create_dir(folder.path().join("state/b.json")).unwrap();
        assert!(write(&folder.path().join("state/b.json"), b"x").is_err());
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 2);
        assert!(write(&file.join("below"), b"x").unwrap_err().to_string().ends_with("below cannot be written"));
    }
}
