//! Whose certificates a camera may show: the file is read before anything is opened, so that a wrong one is a mistake in
//! the configuration and not a camera that is never reached.

use std::path::Path;

use gio::prelude::*;
use gio::{TlsCertificate, TlsDatabase, TlsFileDatabase};

use crate::base::error::{Context, Error, Kind, Result};

/// The certificates of a file: authorities, or a camera's own.
#[derive(Clone)]
pub struct Trust {
    database: TlsDatabase,
    certificates: Vec<TlsCertificate>,
}

impl Trust {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// When it cannot be read, holds no certificate or a damaged one, or this installation cannot encrypt.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        std::fs::read(path).context(Kind::Config, || format!("{name} cannot be read"))?;
        let damaged = || format!("{name} holds a certificate that cannot be decoded");
        let certificates = TlsCertificate::list_new_from_file(path).context(Kind::Config, damaged)?;
        if certificates.is_empty() {
            return Err(Error::new(Kind::Config, format!("{name} holds no certificate; must be a PEM file with one or more")));
        }
        let unable = || format!("{name} cannot be used; is glib-networking installed?");
        let database = TlsFileDatabase::new(path).context(Kind::Config, unable)?.upcast();
        Ok(Self { database, certificates })
    }

    /// The authorities, for the library that checks a chain.
    pub fn database(&self) -> &TlsDatabase {
        &self.database
    }

    /// Whether the file holds this very certificate: a camera's own, whatever name it was made out to.
    pub fn names(&self, shown: &TlsCertificate) -> bool {
        self.certificates.iter().any(|certificate| certificate.is_same(shown))
    }
}

/// Checks that a file can be read and holds one X.509 certificate or more in PEM form. Whether it is still valid and signs
/// the camera's is seen at the connection.
///
/// # Errors
/// As `Trust::read`.
pub fn check_ca(path: &Path) -> Result<()> {
    Trust::read(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBbzCCARWgAwIBAgIUI2s1arR18KSRn2t7L5Ca0AYL+iIwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAgFw0yNjExMjUxNTM2MDlaGA8yMTI2MTEwMTE1MzYwOVow
DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBvhwVEKwvcq
zb2wYTLiIWt/be7nHUkx2/9Zf9lmvA38EUdZ3zBAXgs6Mu6Rgtwu7vvVC9HRokYw
iM6jiDziBzCjUzBRMB0GA1UdDgQWBBRdB3Xtw0t/uDz43aZAx/eUmYykEzAfBgNV
HSMEGDAWgBRdB3Xtw0t/uDz43aZAx/eUmYykEzAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0gAMEUCIGrFWnMx0wSmHOaEOSfkbs60C4IX4b8FvRyT2wAFvRiW
AiEA6poTH1jOTyVeDsVfqX2me2TCB2IF4TIp1u6uwA9Q9Bw=
-----END CERTIFICATE-----
";

    fn told(content: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        let error = check_ca(&path).err()?;
        assert_eq!(error.kind(), Kind::Config);
        Some(error.chain().replace(folder.path().to_str().unwrap(), ""))
    }

    #[test]
    fn one_certificate_or_several_are_taken() {
        assert_eq!(told(CERTIFICATE), None);
        assert_eq!(told(&format!("subject: a camera\r\n{}{CERTIFICATE}", CERTIFICATE.replace('\n', "\r\n"))), None);
    }

    #[test]
    fn what_is_missing_or_damaged_is_told() {
        let missing = check_ca(Path::new("/nowhere/ca.pem")).unwrap_err().chain();
        assert!(missing.starts_with("/nowhere/ca.pem cannot be read: "), "{missing}");
        let key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        for text in ["", "garbage", &key] {
            let told = told(text).unwrap();
            assert!(told.starts_with("/ca.pem holds no certificate"), "{text}: {told}");
        }
        for (from, to) in [("MIIBbz", "MIIBcz"), ("9Bw=", "")] {
            let told = told(&CERTIFICATE.replace(from, to)).unwrap();
            assert!(told.starts_with("/ca.pem holds"), "{from}: {told}");
        }
    }
}
