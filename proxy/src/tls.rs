//! TLS: our certificate towards clients, trust towards shards.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256, Sha384, Sha512};
use thiserror::Error;

use crate::settings::{ShardSettings, ShardTls, TlsSettings};

/// ALPN name of the Postgres protocol; required for direct TLS.
pub const ALPN: &[u8] = b"postgresql";

/// Why TLS could not be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A PEM file.
    #[error("could not read \"{path}\": {cause}")]
    Pem {
        /// Which file.
        path: String,
        /// Why.
        cause: rustls_pki_types::pem::Error,
    },
    /// The file has no certificate.
    #[error("no certificate in \"{0}\"")]
    Empty(String),
    /// Certificate and key do not work together.
    #[error("could not use certificate and key: {0}")]
    Config(#[from] rustls::Error),
    /// The trusted roots.
    #[error("could not use the trusted roots: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// TLS towards clients.
#[derive(Clone)]
pub struct ServerTls {
    /// Accepts handshakes.
    pub acceptor: tokio_rustls::TlsAcceptor,
    /// `tls-server-end-point` of our certificate (RFC 5929), for SCRAM-SHA-256-PLUS.
    pub certificate_hash: Arc<[u8]>,
    /// Refuse clients without TLS.
    pub required: bool,
}

impl ServerTls {
    /// Reads certificate and key.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let certificates = certificates(&settings.certificate)?;
        let first = certificates
            .first()
            .ok_or_else(|| TlsError::Empty(settings.certificate.display().to_string()))?;
        let certificate_hash = end_point_hash(first).into();
        let key = PrivateKeyDer::from_pem_file(&settings.key).map_err(|cause| TlsError::Pem {
            path: settings.key.display().to_string(),
            cause,
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(certificates, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(ServerTls {
            acceptor: Arc::new(config).into(),
            certificate_hash,
            required: settings.required,
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |cause| TlsError::Pem {
        path: path.display().to_string(),
        cause,
    };
    CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)
}

/// The hash of the certificate by its own signature's hash, SHA-256 at least (RFC 5929, 4.1).
pub fn end_point_hash(certificate: &[u8]) -> Vec<u8> {
    let signature = x509_parser::parse_x509_certificate(certificate)
        .map(|(_, parsed)| parsed.signature_algorithm.algorithm.to_id_string())
        .unwrap_or_default();
    match signature.as_str() {
        // sha384WithRSAEncryption, ecdsa-with-SHA384
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        // sha512WithRSAEncryption, ecdsa-with-SHA512
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => Sha256::digest(certificate).to_vec(),
    }
}

/// TLS towards one shard; `None` when it is never used.
pub fn shard_connector(
    settings: &ShardSettings,
) -> Result<Option<tokio_rustls::TlsConnector>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match settings.tls {
        ShardTls::Disable => return Ok(None),
        ShardTls::Prefer | ShardTls::Require if settings.tls_root.is_none() => {
            Arc::new(Unverified(provider.clone()))
        }
        ShardTls::VerifyFull => webpki(settings, &provider)?,
        // libpq: `require` with a root file checks the chain like verify-ca.
        ShardTls::Prefer | ShardTls::Require | ShardTls::VerifyCa => {
            Arc::new(AnyName(webpki(settings, &provider)?))
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(Arc::new(config).into()))
}

fn webpki(
    settings: &ShardSettings,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    match &settings.tls_root {
        Some(path) => {
            roots.add_parsable_certificates(certificates(path)?);
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?)
}

/// `sslmode=require`: encrypted, not authenticated.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

/// `sslmode=verify-ca`: the chain is checked, the name is not.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self
            .0
            .verify_server_cert(certificate, chain, name, ocsp, now)
        {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
