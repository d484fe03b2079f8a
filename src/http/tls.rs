//! The listener's certificate and key.

use axum_server::tls_rustls::RustlsConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Mode bits that a key file must not have: write for the group, anything for others.
const MODE_REFUSED: u32 = 0o027;

/// Where the certificate chain and its key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The private key, unencrypted; not for others to read.
    pub key: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The key file can be read or changed by too many.
    #[error("{}: mode {mode:03o}; a key file may be at most 640", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file's mode cannot be read.
    #[error("{}", .0.display())]
    Metadata(PathBuf, #[source] std::io::Error),
    /// The file is not the PEM that is expected.
    #[error("{}", .0.display())]
    Pem(PathBuf, #[source] rustls::pki_types::pem::Error),
    /// There is no certificate in the file.
    #[error("{}: no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// Certificate and key do not fit.
    #[error("the TLS certificate and key are not usable")]
    Rustls(#[from] rustls::Error),
}

/// Reads the files. TLS 1.2 and 1.3, HTTP/1.1 only.
///
/// # Errors
///
/// [`TlsError`], see its variants.
pub fn load(files: &TlsFiles) -> Result<RustlsConfig, TlsError> {
    check_mode(&files.key)?;
    let pem = |error| TlsError::Pem(files.cert.clone(), error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.cert)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(files.cert.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| TlsError::Pem(files.key.clone(), error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(RustlsConfig::from_config(Arc::new(config)))
}

fn check_mode(path: &Path) -> Result<(), TlsError> {
    let metadata =
        std::fs::metadata(path).map_err(|error| TlsError::Metadata(path.to_owned(), error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & MODE_REFUSED != 0 {
        return Err(TlsError::Mode { path: path.to_owned(), mode });
    }
    Ok(())
}
