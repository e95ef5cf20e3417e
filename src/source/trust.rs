//! The file that says whose certificate a camera may show: read before anything is opened, so that a wrong one is a
//! mistake in the configuration and not a camera that is never reached.

use std::path::Path;

use gstreamer::glib;

use crate::base::error::{Context, Error, Kind, Result};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// DER's tags of what a certificate is made of.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// Checks that a file can be read and holds one X.509 certificate or more in PEM form (RFC 7468). Whether it is still
/// valid and signs the camera's is seen at the connection.
///
/// # Errors
/// When it cannot be read, or holds no certificate or a damaged one.
pub fn check_ca(path: &Path) -> Result<()> {
    let name = path.display();
    let bytes = std::fs::read(path).context(Kind::Config, || format!("{name} cannot be read"))?;
    let text = String::from_utf8_lossy(&bytes);
    let blocks: Vec<&str> = text.split(BEGIN).skip(1).collect();
    let whole = |block: &&str| block.split_once(END).and_then(|(body, _)| decode(body)).is_some_and(|der| is_certificate(&der));
    if blocks.is_empty() {
        return Err(Error::new(Kind::Config, format!("{name} holds no certificate; must be a PEM file with one or more")));
    }
    match blocks.iter().position(|block| !whole(block)) {
        None => Ok(()),
        Some(index) => {
            let which = format!("{name} is damaged: its certificate {} of {} cannot be decoded", index + 1, blocks.len());
            Err(Error::new(Kind::Config, which))
        }
    }
}

/// Base64 over several lines; `None` where there is another character, which GLib would pass over.
fn decode(body: &str) -> Option<Vec<u8>> {
    let text: String = body.split_whitespace().collect();
    let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    (text.len().is_multiple_of(4) && text.chars().all(right)).then(|| glib::base64_decode(&text))
}

/// RFC 5280: a certificate is a sequence of what is signed, the algorithm and the signature, and nothing follows it.
fn is_certificate(der: &[u8]) -> bool {
    let parts = || {
        let (signed, end) = element(der, SEQUENCE)?;
        let (_, rest) = element(signed, SEQUENCE)?;
        let (_, rest) = element(rest, SEQUENCE)?;
        let (_, rest) = element(rest, BIT_STRING)?;
        Some(rest.is_empty() && end.is_empty())
    };
    parts() == Some(true)
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    // Up to 127 it is the length itself, above that the number of bytes that hold it.
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
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
        let none = "/ca.pem holds no certificate; must be a PEM file with one or more";
        let key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        for text in ["", "garbage", &key] {
            assert_eq!(told(text).unwrap(), none);
        }
        let damaged = "/ca.pem is damaged: its certificate 1 of 1 cannot be decoded";
        for (from, to) in [("MIIBbz", "MIIBcz"), ("MIIBbz", "M*IBbz"), ("9Bw=", ""), ("-----END", "----END"), ("BAMCA0g", "BAMCBEg")] {
            assert_eq!(told(&CERTIFICATE.replace(from, to)).unwrap(), damaged, "{from}");
        }
        assert_eq!(told("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap(), damaged);
        let second = format!("{CERTIFICATE}{}", CERTIFICATE.replace("MIIB", ""));
        assert_eq!(told(&second).unwrap(), "/ca.pem is damaged: its certificate 2 of 2 cannot be decoded");
    }
}
