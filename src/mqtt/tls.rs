//! Encryption of the broker connection: built and checked at the start, so that a bad file is fatal there and nothing ever
//! goes on without it.

use rumqttc::tokio_native_tls::native_tls::{Certificate, Protocol, TlsConnector};
use rumqttc::{TlsConfiguration, Transport};

use crate::base::error::{Context, Error, Kind, Result};
use crate::config::TlsConfig;

/// A transport that checks the broker's certificate and host name, TLS 1.2 or newer. With a `ca_file` only its
/// authorities are trusted, else the system's.
///
/// # Errors
/// When the file cannot be read or holds no certificate in PEM form.
pub fn transport(config: &TlsConfig) -> Result<Transport> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some(path) = &config.ca_file {
        let name = path.display();
        let pem = std::fs::read(path).context(Kind::Config, || format!("{name} cannot be read"))?;
        let unusable = || format!("{name} is no certificate; must be a PEM file with one or more CA certificates");
        let certificates = Certificate::stack_from_pem(&pem).context(Kind::Config, unusable)?;
        if certificates.is_empty() {
            return Err(Error::new(Kind::Config, unusable()));
        }
        builder.disable_built_in_roots(true);
        for certificate in certificates {
            builder.add_root_certificate(certificate);
        }
    }
    let connector = builder.build().context(Kind::Mqtt, || "TLS for the broker cannot be set up")?;
    Ok(Transport::tls_with_config(TlsConfiguration::NativeConnector(connector)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_ca_file_that_is_missing_or_no_certificate_is_fatal() {
        let missing = transport(&TlsConfig { ca_file: Some(PathBuf::from("/nowhere/ca.pem")) }).err().unwrap();
        assert!(missing.chain().starts_with("/nowhere/ca.pem cannot be read: "), "{}", missing.chain());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for garbage in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, garbage).unwrap();
            let error = transport(&TlsConfig { ca_file: Some(path.clone()) }).err().unwrap();
            assert!(error.chain().contains("must be a PEM file"), "{}", error.chain());
            assert_eq!(error.kind(), Kind::Config);
        }
    }

    #[test]
    fn without_a_ca_file_the_system_is_trusted() {
        assert!(matches!(transport(&TlsConfig { ca_file: None }), Ok(Transport::Tls(_))));
    }
}
