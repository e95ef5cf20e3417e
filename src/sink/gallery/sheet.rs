//! The file of one object: what was asked for, what was done.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the objects' side, the writer and whoever names the file.
#[derive(Debug)]
pub struct Sheet {
    path: PathBuf,
    asked: AtomicU64,
    done: AtomicU64,
    written: AtomicBool,
    failed: AtomicBool,
}

impl Sheet {
    /// Nothing is there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, asked: AtomicU64::new(0), done: AtomicU64::new(0), written: AtomicBool::new(false), failed: AtomicBool::new(false) }
    }

    /// Where it is, once it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more picture is asked for.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
    }

    /// There was no room for it.
    pub fn withdraw(&self) {
        self.asked.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many pictures were asked for.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// The oldest picture that was asked for is on the disk.
    pub fn write(&self) {
        self.written.store(true, Ordering::Release);
        self.failed.store(false, Ordering::Release);
        self.done.fetch_add(1, Ordering::AcqRel);
    }

    /// It could not be made; where the disk is at fault another try is worth it.
    pub fn fail(&self, of_disk: bool) {
        self.failed.store(of_disk, Ordering::Release);
        self.done.fetch_add(1, Ordering::AcqRel);
    }

    /// How many of them are on the disk, or given up.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Whether there is a picture.
    pub fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// Whether the disk did not take the newest.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}
