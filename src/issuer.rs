//! The development token issuer: one Ed25519 key, and tokens that live an hour at most.
//!
//! `claviger init` makes it and `claviger token issue` uses it. Production has an issuer of its
//! own, and this one is then simply not configured.

use crate::core::access::Role;
use crate::core::time::Timestamp;
use aws_lc_rs::signature::Ed25519KeyPair;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretSlice};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longest life of a token, in seconds.
pub const TTL_S_MAX: i64 = 3_600;

/// Longest key file, in bytes; a PKCS#8 document of this kind has 48.
const KEY_BYTES_MAX: u64 = 4_096;

/// What [`create`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFiles {
    /// The private key: PKCS#8 (RFC 8410), DER, mode 0600.
    pub key: PathBuf,
    /// The public key set (RFC 7517).
    pub jwks: PathBuf,
    /// The key's id: its thumbprint (RFC 7638).
    pub key_id: String,
}

/// What a token shall say.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    /// The issuer's name.
    pub iss: &'a str,
    /// For whom.
    pub aud: &'a str,
    /// About whom.
    pub sub: &'a str,
    /// As what.
    pub roles: &'a [Role],
    /// Seconds it lives, 1 to [`TTL_S_MAX`].
    pub ttl_s: i64,
    /// Its unique id.
    pub jti: &'a str,
}

/// Why the issuer does not work.
#[derive(Debug, Error)]
pub enum IssuerError {
    /// A file cannot be read or written; an existing one is never overwritten.
    #[error("{}", .0.display())]
    File(PathBuf, #[source] io::Error),
    /// Others may read the key file.
    #[error("{}: mode {mode:03o}; the issuer's key file must be 600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key cannot be made, or the file is not one.
    #[error("the issuer's key is not usable")]
    Key,
    /// The lifetime is not allowed.
    #[error("a token lives 1 to {TTL_S_MAX} seconds")]
    Ttl,
    /// A token without a role could do nothing.
    #[error("a token needs at least one role")]
    NoRole,
    /// The token cannot be made.
    #[error("the token cannot be made")]
    Token(#[source] jsonwebtoken::errors::Error),
}

/// Makes a key in an existing directory: `issuer.p8` and `jwks.json`.
///
/// # Errors
///
/// [`IssuerError::File`], also if one of the files is there already.
pub fn create(dir: &Path) -> Result<IssuerFiles, IssuerError> {
    let pair = Ed25519KeyPair::generate().map_err(|_| IssuerError::Key)?;
    let document = pair.to_pkcs8v1().map_err(|_| IssuerError::Key)?;
    let (jwk, key_id) = public_half(&EncodingKey::from_ed_der(document.as_ref()))?;
    let set =
        serde_json::to_vec_pretty(&JwkSet { keys: vec![jwk] }).map_err(|_| IssuerError::Key)?;
    let files = IssuerFiles { key: dir.join("issuer.p8"), jwks: dir.join("jwks.json"), key_id };
    write_new(&files.key, document.as_ref(), 0o600)?;
    write_new(&files.jwks, &set, 0o644)?;
    Ok(files)
}

/// Signs a token with the key of [`create`].
///
/// # Errors
///
/// [`IssuerError`], see its variants.
pub fn issue(key: &Path, grant: &Grant<'_>, now: Timestamp) -> Result<String, IssuerError> {
    #[derive(Serialize)]
    struct Claims<'a> {
        iss: &'a str,
        sub: &'a str,
        aud: &'a str,
        exp: i64,
        iat: i64,
        jti: &'a str,
        roles: &'a [Role],
    }

    if !(1..=TTL_S_MAX).contains(&grant.ttl_s) {
        return Err(IssuerError::Ttl);
    }
    if grant.roles.is_empty() {
        return Err(IssuerError::NoRole);
    }
    let key = EncodingKey::from_ed_der(read_key(key)?.expose_secret());
    let (_, key_id) = public_half(&key)?;
    let iat = now.millis().div_euclid(1_000);
    let Grant { iss, aud, sub, roles, ttl_s, jti } = *grant;
    let claims = Claims { iss, sub, aud, exp: iat.saturating_add(ttl_s), iat, jti, roles };
    let header = Header { kid: Some(key_id), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, &claims, &key).map_err(IssuerError::Token)
}

/// The public key, and its thumbprint, which is its id.
fn public_half(key: &EncodingKey) -> Result<(Jwk, String), IssuerError> {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).map_err(|_| IssuerError::Key)?;
    let key_id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| IssuerError::Key)?;
    jwk.common.key_id = Some(key_id.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok((jwk, key_id))
}

fn read_key(path: &Path) -> Result<SecretSlice<u8>, IssuerError> {
    let failed = |error| IssuerError::File(path.to_owned(), error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IssuerError::Mode { path: path.to_owned(), mode });
    }
    if metadata.len() > KEY_BYTES_MAX {
        return Err(IssuerError::Key);
    }
    Ok(SecretSlice::from(std::fs::read(path).map_err(failed)?))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IssuerError> {
    let failed = |error| IssuerError::File(path.to_owned(), error);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(ttl_s: i64, roles: &[Role]) -> Grant<'_> {
        Grant { iss: "dev", aud: "claviger", sub: "alice", roles, ttl_s, jti: "1" }
    }

    #[test]
    fn the_key_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let files = create(dir.path()).unwrap();
        let mode = std::fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let set = std::fs::read_to_string(&files.jwks).unwrap();
        assert!(set.contains(&files.key_id) && !set.contains("\"d\""), "{set}");
        assert!(matches!(create(dir.path()), Err(IssuerError::File(..))));
    }

    #[test]
    fn a_token_lives_an_hour_at_most_and_has_a_role() {
        let dir = tempfile::tempdir().unwrap();
        let files = create(dir.path()).unwrap();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let roles = [Role::Client];
        assert!(issue(&files.key, &grant(3_600, &roles), now).is_ok());
        for ttl_s in [0, -1, 3_601, i64::MAX] {
            assert!(matches!(issue(&files.key, &grant(ttl_s, &roles), now), Err(IssuerError::Ttl)));
        }
        assert!(matches!(issue(&files.key, &grant(60, &[]), now), Err(IssuerError::NoRole)));
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = create(dir.path()).unwrap();
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o640)).unwrap();
        let made = issue(&files.key, &grant(60, &[Role::Client]), Timestamp::default());
        assert!(matches!(made, Err(IssuerError::Mode { mode: 0o640, .. })));
    }
}
