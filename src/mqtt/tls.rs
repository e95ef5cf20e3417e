//! Encryption of the broker connection: built and checked at the start, so that a bad file is fatal there and nothing ever
//! goes on without it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rumqttc::tokio_native_tls::native_tls::{Certificate, Identity, Protocol, TlsConnector};
use rumqttc::{TlsConfiguration, Transport};

use crate::config::{ClientCertificate, TlsConfig, TlsFault};

/// What stands before a PKCS#1 key in its PKCS#8 form: version 0 and the algorithm `rsaEncryption` (RFC 5208, RFC 8017).
const RSA: [u8; 18] = [0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A transport that checks the broker's certificate and host name, TLS 1.2 or newer. With a `ca_file` only its
/// authorities are trusted, else the system's. With a client certificate it shows that to a broker that asks.
///
/// # Errors
/// When a file cannot be read, holds no certificate or key in PEM form, or key and certificate do not belong together.
pub fn transport(config: &TlsConfig) -> Result<Transport, TlsFault> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some(path) = &config.ca_file {
        builder.disable_built_in_roots(true);
        for certificate in certificates("ca_file", path, "one or more CA certificates")?.1 {
            builder.add_root_certificate(certificate);
        }
    }
    let unusable = |error| TlsFault { key: "tls", why: format!("TLS for the broker cannot be set up: {error}") };
    let mut connector = builder.build().map_err(unusable)?;
    if let Some(client) = &config.client {
        builder.identity(identity(client)?);
        let strange = |error| {
            let (cert, key) = (client.cert_file.display(), client.key_file.display());
            TlsFault { key: "key_file", why: format!("{key} is not the key of the certificate in {cert}: {error}") }
        };
        connector = builder.build().map_err(strange)?;
    }
    Ok(Transport::tls_with_config(TlsConfiguration::NativeConnector(connector)))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
    std::fs::read(path).map_err(|error| TlsFault { key, why: format!("{} cannot be read: {error}", path.display()) })
}

/// The text of a file and the certificates in it, at least one.
fn certificates(key: &'static str, path: &Path, right: &str) -> Result<(Vec<u8>, Vec<Certificate>), TlsFault> {
    let pem = read(key, path)?;
    let fault =
        |cause: &str| TlsFault { key, why: format!("{} is no certificate; must be a PEM file with {right}{cause}", path.display()) };
    let found = Certificate::stack_from_pem(&pem).map_err(|error| fault(&format!(": {error}")))?;
    if found.is_empty() {
        return Err(fault(""));
    }
    Ok((pem, found))
}

fn identity(client: &ClientCertificate) -> Result<Identity, TlsFault> {
    let (chain, _) = certificates("cert_file", &client.cert_file, "the certificate that the broker shall know the daemon by")?;
    let pem = read("key_file", &client.key_file)?;
    // No cause beside it: none may repeat a part of the key.
    let fault = |what: &str| {
        let right = "must be a PKCS#8 or PKCS#1 key in PEM form without a passphrase, as \"openssl pkey -in OLD -out NEW\" writes it";
        TlsFault { key: "key_file", why: format!("{} {what}; {right}", client.key_file.display()) }
    };
    let pem = std::str::from_utf8(&pem).map_err(|_| fault("is no PEM file"))?;
    let key = match (block(pem, "PRIVATE KEY"), block(pem, "RSA PRIVATE KEY")) {
        (Some(key), _) => key.to_owned(),
        (None, Some(key)) if !key.contains("ENCRYPTED") => pkcs8(key).ok_or_else(|| fault("holds a damaged key"))?,
        _ if pem.contains("ENCRYPTED") => return Err(fault("holds an encrypted key")),
        _ if pem.contains("PRIVATE KEY-----") => return Err(fault("holds a key of another form")),
        _ => return Err(fault("holds no key")),
    };
    Identity::from_pkcs8(&chain, key.as_bytes()).map_err(|_| fault("holds a damaged key"))
}

/// The block `label` of a PEM file with its first and last line.
fn block<'p>(pem: &'p str, label: &str) -> Option<&'p str> {
    let (first, last) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let from = &pem[pem.find(&first)?..];
    Some(&from[..from.find(&last)? + last.len()])
}

/// The same RSA key in PKCS#8 form, which is all that the library takes; `None` for what is no PEM block.
fn pkcs8(pkcs1: &str) -> Option<String> {
    let lines = pkcs1.lines().filter(|line| !line.starts_with("-----"));
    let key = STANDARD.decode(lines.flat_map(|line| line.trim().chars()).collect::<String>()).ok()?;
    let inner = [RSA.as_slice(), &der(0x04, &key)?].concat();
    let body = STANDARD.encode(der(0x30, &inner)?);
    // Lines of 64 characters, for OpenSSL reads none that are much longer.
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Some(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
}

/// `content` with its tag and length in two bytes, which holds for RSA keys of any usual size.
fn der(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).ok().filter(|length| *length >= 256)?.to_be_bytes();
    Some([&[tag, 0x82, high, low], content].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_ca_file_that_is_missing_or_no_certificate_is_fatal() {
        let with = |path: &Path| transport(&TlsConfig { ca_file: Some(path.to_owned()), client: None }).err().unwrap();
        let missing = with(Path::new("/nowhere/ca.pem"));
        assert!(missing.why.starts_with("/nowhere/ca.pem cannot be read: "), "{missing:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for garbage in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, garbage).unwrap();
            let fault = with(&path);
            assert!(fault.why.contains("must be a PEM file"), "{fault:?}");
            assert_eq!(fault.key, "ca_file");
        }
    }

    #[test]
    fn without_a_ca_file_the_system_is_trusted() {
        assert!(matches!(transport(&TlsConfig::default()), Ok(Transport::Tls(_))));
    }

    /// Runs openssl in `folder`.
    fn openssl(folder: &Path, words: &str) {
        let output = Command::new("openssl").current_dir(folder).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_client_certificate_is_taken_with_its_own_key_in_either_form_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let make = |words: &str| openssl(folder.path(), words);
        make("req -x509 -newkey rsa:2048 -nodes -subj /CN=node -days 2 -keyout rsa8.pem -out cert.pem");
        make("rsa -in rsa8.pem -traditional -out rsa1.pem");
        make("pkey -in rsa8.pem -aes128 -passout pass:x -out locked8.pem");
        make("rsa -in rsa8.pem -traditional -aes128 -passout pass:x -out locked1.pem");
        make("ecparam -name prime256v1 -genkey -noout -out sec1.pem");
        make("genrsa -out other.pem 2048");
        std::fs::write(path("cut.pem"), &std::fs::read(path("rsa1.pem")).unwrap()[..600]).unwrap();
        std::fs::write(path("empty.pem"), "").unwrap();
        std::fs::write(path("both.pem"), [std::fs::read(path("cert.pem")).unwrap(), std::fs::read(path("rsa1.pem")).unwrap()].concat())
            .unwrap();
        let with = |cert: PathBuf, key: PathBuf| {
            transport(&TlsConfig { ca_file: None, client: Some(ClientCertificate { cert_file: cert, key_file: key }) })
        };
        for (cert, key) in [("cert.pem", "rsa8.pem"), ("cert.pem", "rsa1.pem"), ("both.pem", "both.pem")] {
            assert!(with(path(cert), path(key)).is_ok(), "{cert} {key}");
        }
        let refused = [
            ("locked8.pem", "holds an encrypted key; must be a PKCS#8 or PKCS#1 key"),
            ("locked1.pem", "holds an encrypted key; "),
            ("sec1.pem", "holds a key of another form; "),
            ("cut.pem", "holds a key of another form; "),
            ("empty.pem", "holds no key; "),
            ("other.pem", "is not the key of the certificate in "),
            ("missing.pem", "cannot be read: "),
        ];
        for (key, why) in refused {
            let fault = with(path("cert.pem"), path(key)).err().unwrap();
            assert_eq!(fault.key, "key_file");
            assert!(fault.why.contains(why), "{key}: {fault:?}");
        }
        for (cert, why) in [("empty.pem", "is no certificate; "), ("rsa8.pem", "is no certificate; "), ("missing.pem", "cannot be read: ")]
        {
            let fault = with(path(cert), path("rsa8.pem")).err().unwrap();
            assert!(fault.key == "cert_file" && fault.why.contains(why), "{cert}: {fault:?}");
        }
    }
}
