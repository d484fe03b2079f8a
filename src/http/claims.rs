//! What a token says, and when it may say it (RFC 7519 section 4.1).

use crate::core::access::Role;
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::http::problem::Problem;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use thiserror::Error;

/// How far the issuer's clock may be ahead of ours, in milliseconds.
const SKEW_MS: i64 = 30_000;

/// Longest `sub` and `jti`, in bytes: they go to logs and rows.
const NAME_BYTES_MAX: usize = 255;

/// Why a token is not accepted. Each text may be shown: it is about the token, never about keys.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenFault {
    /// No token at all.
    #[error("there is no Authorization header")]
    Missing,
    /// More than one `Authorization` header.
    #[error("there is more than one Authorization header")]
    Several,
    /// Another scheme than `Bearer`, or no token after it.
    #[error("the Authorization header is not `Bearer` and one token")]
    NotBearer,
    /// A token in the query (RFC 6750 section 2.3, which we do not offer).
    #[error("a token belongs in the Authorization header, never in the URL")]
    InUrl,
    /// Longer than a token may be.
    #[error("the token is longer than 8192 bytes")]
    TooLong,
    /// Not a JWS in compact form, or an algorithm nobody may use.
    #[error("the token is not a JWT with an algorithm that is accepted")]
    Malformed,
    /// A `crit` header: something must be understood that is not.
    #[error("the token has critical headers that are not understood")]
    Critical,
    /// Signed for an issuer that is not configured.
    #[error("the token's issuer is not known")]
    UnknownIssuer,
    /// No key of the issuer has this `kid`.
    #[error("the token's key is not one of its issuer's")]
    UnknownKey,
    /// No `kid`, and the issuer has several keys.
    #[error("the token names no key, and its issuer has several")]
    NoKeyId,
    /// The header's algorithm is not the key's.
    #[error("the token's algorithm is not that of its key")]
    WrongAlgorithm,
    /// The signature does not verify.
    #[error("the token's signature is not valid")]
    BadSignature,
    /// A claim is absent or malformed.
    #[error("the token's claims are not valid: {0}")]
    Claims(String),
    /// Not for us.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Past its `exp`.
    #[error("the token has expired")]
    Expired,
    /// Before its `nbf` or `iat`.
    #[error("the token is not valid yet")]
    NotYet,
    /// `exp` is further ahead than allowed.
    #[error("the token lives too long: at most {0} seconds ahead are accepted")]
    LivesTooLong(i64),
    /// A binding that this version cannot honour.
    #[error("the token is bound by `{0}`, which this server cannot check yet")]
    Bound(&'static str),
}

impl From<TokenFault> for Problem {
    fn from(fault: TokenFault) -> Self {
        let presented = fault != TokenFault::Missing;
        Self::Unauthenticated { detail: fault.to_string(), presented }
    }
}

/// The claims of a token whose signature is good. Times are seconds, as in the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss` and `sub`.
    pub principal: Principal,
    /// `roles`, without repetition.
    pub roles: Vec<Role>,
    /// `jti`.
    pub token_id: String,
    exp_s: i64,
    iat_s: i64,
    nbf_s: Option<i64>,
}

/// The claims as they come. Unknown ones are ignored, as RFC 7519 section 4 demands; a known one
/// that comes twice is an error.
#[derive(Deserialize)]
pub(super) struct RawClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    jti: String,
    roles: Vec<String>,
    #[serde(default)]
    cnf: Present,
    #[serde(default)]
    bdh: Present,
    #[serde(default)]
    htm: Present,
    #[serde(default)]
    htu: Present,
}

/// `aud` is one string or a list of them (RFC 7519 section 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Whether a claim is there at all, whatever its value: `null` counts.
#[derive(Clone, Copy, Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

impl RawClaims {
    /// What does not change with time: who, for whom, in which roles, and bound to nothing.
    pub(super) fn check(self, iss: &str, audience: &str) -> Result<Claims, TokenFault> {
        let bindings = [("cnf", self.cnf), ("bdh", self.bdh), ("htm", self.htm), ("htu", self.htu)];
        if let Some((name, _)) = bindings.into_iter().find(|(_, present)| present.0) {
            return Err(TokenFault::Bound(name));
        }
        if self.iss != iss {
            return Err(TokenFault::UnknownIssuer);
        }
        let for_us = match &self.aud {
            Audience::One(aud) => aud == audience,
            Audience::Many(all) => all.iter().any(|aud| aud == audience),
        };
        if !for_us {
            return Err(TokenFault::WrongAudience);
        }
        named("sub", &self.sub)?;
        named("jti", &self.jti)?;
        Ok(Claims {
            principal: Principal { iss: self.iss, sub: self.sub },
            roles: roles(&self.roles)?,
            token_id: self.jti,
            exp_s: self.exp,
            iat_s: self.iat,
            nbf_s: self.nbf,
        })
    }
}

impl Claims {
    /// When the token ends.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        Timestamp::from_millis(self.exp_s.saturating_mul(1_000))
    }

    /// Whether the token may be used now. Looked at on each use, cached or not.
    ///
    /// `exp` is strict: at that second the token is dead. `exp` is at most `ttl_s_max` ahead of
    /// now; an issuer whose clock is ahead, within the skew, gets it from its own `iat`.
    ///
    /// # Errors
    ///
    /// [`TokenFault::Expired`], [`TokenFault::NotYet`], [`TokenFault::LivesTooLong`].
    pub fn check_time(&self, now: Timestamp, ttl_s_max: i64) -> Result<(), TokenFault> {
        let now = now.millis();
        let millis = |seconds: i64| seconds.saturating_mul(1_000);
        if now >= millis(self.exp_s) {
            return Err(TokenFault::Expired);
        }
        let begins = millis(self.nbf_s.unwrap_or(self.iat_s).max(self.iat_s));
        if begins > now.saturating_add(SKEW_MS) {
            return Err(TokenFault::NotYet);
        }
        let issued = now.max(millis(self.iat_s));
        if millis(self.exp_s) > issued.saturating_add(millis(ttl_s_max)) {
            return Err(TokenFault::LivesTooLong(ttl_s_max));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Claims {
    pub(super) fn for_test(principal: Principal) -> Self {
        let (exp_s, iat_s, nbf_s) = (0, 0, None);
        Self { principal, roles: vec![Role::Client], token_id: "t".into(), exp_s, iat_s, nbf_s }
    }
}

fn named(claim: &str, value: &str) -> Result<(), TokenFault> {
    if value.is_empty() || value.len() > NAME_BYTES_MAX || value.chars().any(char::is_control) {
        let rule = format!("`{claim}` must have 1 to {NAME_BYTES_MAX} bytes, none of control");
        return Err(TokenFault::Claims(rule));
    }
    Ok(())
}

fn roles(names: &[String]) -> Result<Vec<Role>, TokenFault> {
    let mut roles = Vec::new();
    for name in names {
        let role: Role = name.parse().map_err(TokenFault::Claims)?;
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    if roles.is_empty() {
        return Err(TokenFault::Claims("`roles` is empty".to_owned()));
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp_s: i64, iat_s: i64, nbf_s: Option<i64>) -> Claims {
        let base = Claims::for_test(Principal { iss: "i".into(), sub: "s".into() });
        Claims { exp_s, iat_s, nbf_s, ..base }
    }

    #[test]
    fn time_is_checked_to_the_second() {
        let now = Timestamp::from_millis(1_000_000_500);
        let at = 1_000_000;
        for (exp, iat, nbf, result) in [
            (at + 1, at, None, Ok(())),
            (at, at - 10, None, Err(TokenFault::Expired)),
            (at + 3_600, at, None, Ok(())),
            (at + 3_601, at, None, Err(TokenFault::LivesTooLong(3_600))),
            (at + 3_601, at - 600, None, Err(TokenFault::LivesTooLong(3_600))),
            (at + 3_620, at + 20, None, Ok(())),
            (at + 60, at + 31, None, Err(TokenFault::NotYet)),
            (at + 60, at, Some(at + 31), Err(TokenFault::NotYet)),
            (at + 60, at, Some(at + 30), Ok(())),
            (i64::MAX, at, None, Err(TokenFault::LivesTooLong(3_600))),
            (i64::MIN, i64::MIN, None, Err(TokenFault::Expired)),
        ] {
            assert_eq!(claims(exp, iat, nbf).check_time(now, 3_600), result, "{exp} {iat} {nbf:?}");
        }
    }
}
