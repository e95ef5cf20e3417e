//! Secrets that the service manager hands over. Files in `/etc/palisade/credentials` can be read by root only; the unit
//! has them copied for the daemon at each start (`LoadCredential=credentials:/etc/palisade/credentials`), and a file that
//! the configuration names there is read from its copy. So the same configuration is right for the service and for
//! root's `palisade check`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::raw::Env;

/// Where root puts them.
const FOLDER: &str = "/etc/palisade/credentials";

/// A file with a secret in it, bytes.
const MOST: u64 = 65_536;

/// What the unit calls the folder: a copy's name begins with it.
const ID: &str = "credentials";

/// Where a file is read: at its copy where it has one, else at its own place.
pub(super) fn place(file: &str, env: Env<'_>) -> PathBuf {
    copy(file, env).filter(|copy| copy.exists()).unwrap_or_else(|| file.into())
}

/// The text of a file.
///
/// # Errors
/// A sentence that names the file as the configuration does.
pub(super) fn read(file: &str, env: Env<'_>) -> Result<String, String> {
    read_small(&place(file, env)).map_err(|error| {
        // The daemon may not even see whether it is there.
        let late = copy(file, env).is_some() && matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound);
        let hint = if late { "; what is put there while the service runs is handed over at its next start" } else { "" };
        format!("{file} cannot be read: {error}{hint}")
    })
}

/// What a file holds; no more than any secret has, and no device: the configuration may be somebody's who only asks whether it holds.
fn read_small(path: &Path) -> std::io::Result<String> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MOST {
        return Err(std::io::Error::other(format!("must be a file of at most {MOST} bytes")));
    }
    std::fs::read_to_string(path)
}

/// Where the copy of a file in the folder is, should it have one; `None` where no service manager hands anything over.
fn copy(file: &str, env: Env<'_>) -> Option<PathBuf> {
    let name = Path::new(file).strip_prefix(FOLDER).ok()?.to_str()?;
    // Files of folders below it are named by their whole way.
    let name = format!("{ID}_{}", name.replace('/', "_"));
    Some(Path::new(&env("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty())?).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_folder_is_read_at_its_copy() {
        let handed = tempfile::tempdir().unwrap();
        let env = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| handed.path().to_str().unwrap().to_owned());
        let copies = [("mqtt", "credentials_mqtt"), ("cameras/gate", "credentials_cameras_gate")];
        for (name, copy) in copies {
            std::fs::write(handed.path().join(copy), format!("of {name}")).unwrap();
            let file = format!("{FOLDER}/{name}");
            assert_eq!(place(&file, &env), handed.path().join(copy));
            assert_eq!(read(&file, &env).unwrap(), format!("of {name}"));
            assert_eq!(place(&file, &|_| None), Path::new(&file), "without a service manager it is read at its own place");
        }
        for elsewhere in ["/etc/palisade/mqtt", "/srv/credentials/mqtt", "mqtt"] {
            assert_eq!(place(elsewhere, &env), Path::new(elsewhere), "a file of the same name elsewhere is another");
        }
    }

    #[test]
    fn a_file_without_a_copy_is_told_under_its_own_name() {
        let handed = tempfile::tempdir().unwrap();
        let env = |_: &str| Some(handed.path().to_str().unwrap().to_owned());
        let late = read("/etc/palisade/credentials/no-such-file", &env).unwrap_err();
        assert!(
            late.starts_with("/etc/palisade/credentials/no-such-file cannot be read: ") && late.contains("at its next start"),
            "{late}"
        );
        let missing = read("/no/such/file", &env).unwrap_err();
        assert!(missing.starts_with("/no/such/file cannot be read: ") && !missing.contains("next start"), "{missing}");
        let by_hand = read("/etc/palisade/credentials/no-such-file", &|_| None).unwrap_err();
        assert!(!by_hand.contains("next start"), "{by_hand}");
    }
}
