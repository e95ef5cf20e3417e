//! What lies on this machine: devices, folders and their disks, the clock.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access, statvfs};

use crate::app::doctor::Finding;
use crate::config::{Config, DecoderKind, EncoderKind, Input};
use crate::model::HubOptions;
use crate::types::ModelSource;

/// With less than this a disk is as good as full.
const LITTLE: u64 = 64 << 20;

/// With less than this it soon will be.
const SOON_FULL: u64 = 1 << 30;

/// Cameras, loopback devices and graphics cards that the configuration names.
pub(super) fn devices(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    for camera in config.cameras.iter().filter(|camera| camera.enabled) {
        let subject = format!("camera {}", camera.id);
        if let Input::Uri(uri) = &camera.input
            && let Some(device) = uri.strip_prefix("v4l2://")
        {
            found.push(device_at(&subject, Path::new(device), "ls -l /dev/video*; plug the camera in, or mend uri"));
        }
        if camera.decoder == DecoderKind::Va {
            found.push(device_at(
                &subject,
                Path::new("/dev/dri/renderD128"),
                "install the graphics card's driver, or set decoder = \"software\"",
            ));
        }
        if camera.decoder == DecoderKind::Nvidia {
            found.push(device_at(&subject, Path::new("/dev/nvidia0"), "install NVIDIA's driver, or set decoder = \"software\""));
        }
    }
    for output in &config.output.v4l2 {
        found.push(device_at(
            "output.v4l2",
            &output.device,
            "sudo modprobe v4l2loopback exclusive_caps=1, with the video_nr of the device",
        ));
    }
    if config.output.encoder == EncoderKind::Va {
        let cure = "install the graphics card's driver, or set output.live.encoder = \"x264\"";
        found.push(device_at("output.live", Path::new("/dev/dri/renderD128"), cure));
    }
    found
}

fn device_at(subject: &str, device: &Path, absent: &str) -> Finding {
    let place = device.display();
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Finding::good(subject, format!("{place} can be opened")),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::bad(subject, format!("{place} is not there"), absent),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let cure = "sudo usermod -aG video,render \"$USER\", then log in anew; the service's account has both groups";
            Finding::bad(subject, format!("{place} may not be opened by this user"), cure)
        }
        // Held by the daemon, or by another program.
        Err(error) => Finding::doubtful(subject, format!("{place} cannot be opened now: {error}"), format!("sudo fuser -v {place}")),
    }
}

/// Folders that are written to, and how much room they have.
pub(super) fn folders(config: &Config) -> Vec<Finding> {
    let mut kept: Vec<(&str, PathBuf, u64)> = Vec::new();
    if let Some(record) = &config.record {
        kept.push(("record.dir", record.dir.clone(), record.keep_bytes));
    }
    if let Some(gallery) = &config.gallery {
        kept.push(("events.snapshots.dir", gallery.dir.clone(), gallery.keep_bytes));
    }
    if let Some(history) = &config.history {
        let folder = history.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        kept.push(("events.database", folder.to_owned(), 0));
    }
    if let Some(console) = config.console.as_ref().filter(|console| console.control && config.mqtt.is_none()) {
        kept.push(("console.state_dir", console.state_dir.clone(), 0));
    }
    if let Some(snapshots) = &config.output.snapshots {
        kept.push(("output.snapshots.dir", snapshots.dir.clone(), 0));
    }
    if let Some(file) = &config.output.file {
        let folder =
            Path::new(&file.path).parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.to_string_lossy().contains('{'));
        kept.extend(folder.map(|folder| ("output.file.path", folder.to_owned(), 0)));
    }
    if let Some(folder) = config.mqtt.as_ref().and_then(|mqtt| mqtt.state_dir.clone()) {
        kept.push(("mqtt.state_dir", folder, 0));
    }
    if matches!(config.model.source, ModelSource::Hub { .. }) {
        kept.extend(HubOptions::from_env().cache.map(|cache| ("the model's cache", cache, 0)));
    }
    kept.into_iter().map(|(key, folder, most)| folder_at(key, &folder, most)).collect()
}

/// `most` bytes are to be kept there; 0: it is not known how many.
fn folder_at(key: &str, folder: &Path, most: u64) -> Finding {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let place = whole.display();
    // What is not there yet is made at the start.
    let Some(there) = whole.ancestors().find(|folder| folder.exists()) else {
        return Finding::bad(key, format!("{place} cannot be made"), format!("sudo install -d -o palisade {place}"));
    };
    if !there.is_dir() {
        return Finding::bad(key, format!("{} is no folder", there.display()), format!("move it away, or mend {key}"));
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let what = format!("{} cannot be written to: {error}", there.display());
        return Finding::bad(key, what, format!("sudo install -d -o palisade {place}"));
    }
    let Ok(disk) = statvfs(there) else { return Finding::good(key, format!("{place} can be written to")) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let room = format!("{place} can be written to, {} are free", gigabytes(free));
    if free < LITTLE {
        return Finding::bad(
            key,
            format!("the disk of {place} is full: {} are free", gigabytes(free)),
            format!("make room: sudo du -xh {place} | sort -h | tail"),
        );
    }
    if most > free.saturating_add(used(&whole)) {
        let what = format!("{room}, but {} may be kept there", gigabytes(most));
        return Finding::doubtful(key, what, "lower its keep_gb, or name a folder on a larger disk");
    }
    if free < SOON_FULL {
        return Finding::doubtful(key, room, format!("make room: sudo du -xh {place} | sort -h | tail"));
    }
    Finding::good(key, room)
}

/// Bytes of the files in the folders of `folder`, as clips and pictures lie: a folder for each camera.
fn used(folder: &Path) -> u64 {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = |folder: PathBuf| entries(&folder).filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>();
    entries(folder).map(|camera| files(camera.path())).sum()
}

fn gigabytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// Whether the clock is set over the network: events carry its time, and certificates are judged by it.
pub(super) fn clock() -> Finding {
    let asked = Command::new("timedatectl").args(["show", "--property", "NTPSynchronized", "--value"]).output();
    let told = asked.ok().filter(|asked| asked.status.success()).map(|asked| String::from_utf8_lossy(&asked.stdout).trim().to_owned());
    match told.as_deref() {
        Some("yes") => Finding::good("clock", "set over the network"),
        Some("no") => {
            let cure = "sudo apt install systemd-timesyncd && sudo timedatectl set-ntp true";
            Finding::doubtful("clock", "not set over the network: the times of events may be wrong", cure)
        }
        // A container, whose clock is its host's, or a system without systemd.
        _ if Path::new("/run/systemd/timesync/synchronized").exists() => Finding::good("clock", "set over the network"),
        _ => Finding::doubtful(
            "clock",
            "timedatectl does not say whether it is set over the network",
            "date -u, and look whether it is right",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::doctor::Verdict;

    #[test]
    fn folders_that_cannot_serve_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "no folder").unwrap();
        let of = |path: &Path, most| {
            let finding = folder_at("record.dir", path, most);
            (finding.verdict, finding.what)
        };
        assert_eq!(of(&folder.path().join("new/deep"), 1).0, Verdict::Good);
        assert!(of(&file.join("below"), 0).1.ends_with("is no folder"));
        let (verdict, what) = of(folder.path(), u64::MAX);
        assert!(verdict == Verdict::Doubtful && what.contains("may be kept there"), "{what}");
        // A disk that nobody can write to, not even root.
        assert_eq!(of(Path::new("/proc/palisade"), 0).0, Verdict::Bad);
    }

    #[test]
    fn a_device_that_is_not_there_is_told_with_its_cure() {
        let finding = device_at("camera gate", Path::new("/dev/video-none"), "plug it in");
        assert_eq!((finding.verdict, finding.cure.as_deref()), (Verdict::Bad, Some("plug it in")));
        assert_eq!(device_at("x", Path::new("/dev/null"), "").verdict, Verdict::Good);
    }

    #[test]
    fn what_is_kept_in_the_folders_of_cameras_counts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("street")).unwrap();
        std::fs::write(folder.path().join("street/a.mp4"), [0; 100]).unwrap();
        assert_eq!(used(folder.path()), 100);
    }
}
