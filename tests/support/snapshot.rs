//! Reference cases as snapshot folders. The five cases share one tokenizer, so it is kept once and put beside each.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};

use palisade::model::Snapshot;

/// The reference case's own folder.
pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case)
}

/// A copy of a reference case that a test may damage.
pub fn copy_of(case: &str) -> (tempfile::TempDir, Snapshot) {
    let folder = tempfile::tempdir().unwrap();
    for entry in golden(case).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    std::fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let snapshot = Snapshot { folder: folder.path().to_owned(), name: case.to_owned() };
    (folder, snapshot)
}
