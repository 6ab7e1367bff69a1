//! The proxy's own TLS certificate: self-signed, made once, kept.

use std::path::Path;

use anyhow::{Context, Result};
use automator67_proxy::settings::TlsSettings;
use rcgen::{CertificateParams, DnType, KeyPair};

use super::directory::write_private;

/// The certificate of a data directory; a new one when there is none.
pub fn keep(directory: &Path) -> Result<TlsSettings> {
    let certificate = directory.join("certificate.pem");
    let key = directory.join("key.pem");
    // The certificate is written last, so one that is there has its key.
    if !certificate.exists() {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).context("could not make a certificate")?;
        params
            .distinguished_name
            .push(DnType::CommonName, "automator67 dev");
        let pair = KeyPair::generate().context("could not make a key")?;
        let signed = params.self_signed(&pair).context("could not sign")?;
        write_private(&key, &pair.serialize_pem())?;
        write_private(&certificate, &signed.pem())?;
    }
    Ok(TlsSettings {
        certificate,
        key,
        required: false,
    })
}
