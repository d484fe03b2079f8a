//! Bearer tokens (RFC 6750, RFC 7519), by the practices of RFC 8725.
//!
//! The key decides the algorithm, never the token. What a token claims is believed only as far as
//! the active policy bundle lets its issuer vouch for it: an issuer is not root.

use crate::core::access::Role;
use crate::core::principal::Principal;
use crate::http::caller::Caller;
use crate::http::claims::{Claims, RawClaims, TokenFault};
use crate::http::jwks::{KeySet, TokenAlgorithm, VerifyKey};
use crate::http::key_source::{JwksSource, KeySource};
use crate::http::problem::Problem;
use crate::http::token_cache::{TokenCache, Verified};
use crate::ports::clock::Clock;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 8_192;

/// How far ahead `exp` may be, in seconds, unless configured.
pub const TTL_S_MAX: i64 = 3_600;

/// Whether the active bundle lets this issuer (`iss`) vouch for this subject (`sub`) in this role.
pub type VouchCheck = Arc<dyn Fn(&str, Role, &str) -> bool + Send + Sync>;

/// One `[[auth.issuer]]`.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// The `iss` of its tokens.
    pub iss: String,
    /// What `aud` must contain.
    pub audience: String,
    /// Its public keys.
    pub jwks: JwksSource,
    /// Names of the algorithms it may use; see [`TokenAlgorithm`].
    pub algorithms: Vec<String>,
    /// How far ahead of now `exp` may be, in seconds; [`TTL_S_MAX`] by default.
    pub max_ttl_s: i64,
}

/// Why a configuration of issuers is refused.
#[derive(Debug, Error)]
pub enum AuthConfigError {
    /// No issuer: nobody could ever come in.
    #[error("no token issuer is configured")]
    NoIssuer,
    /// One issuer twice: it would depend on the order which one counts.
    #[error("the issuer `{0}` is configured twice")]
    Twice(String),
    /// `iss` or `audience` is empty.
    #[error("the issuer `{0}` has an empty `iss` or `audience`")]
    Empty(String),
    /// An algorithm that may not be used.
    #[error("the issuer `{0}`: algorithm `{1}` is not one of RS256, PS256, ES256, EdDSA")]
    Algorithm(String, String),
    /// A lifetime that is not positive.
    #[error("the issuer `{0}`: `max_ttl_s` must be positive")]
    Ttl(String),
    /// A key set over something other than https.
    #[error("the issuer `{0}`: a key set comes from a file or over https")]
    NotHttps(String),
    /// The HTTP client cannot be made.
    #[error("the client for key sets cannot be made")]
    Client(#[from] reqwest::Error),
}

/// Verifies tokens.
pub struct Authenticator {
    issuers: HashMap<String, Issuer>,
    cache: TokenCache,
    may_vouch: VouchCheck,
    clock: Arc<dyn Clock>,
}

struct Issuer {
    audience: String,
    ttl_s_max: i64,
    keys: Arc<KeySource>,
}

/// Of an unverified payload, the issuer: it chooses whose keys are tried, and nothing else.
#[derive(Deserialize)]
struct IssuerOnly {
    iss: String,
}

impl Authenticator {
    /// An authenticator for these issuers. No keys are loaded yet; see [`Self::load`].
    ///
    /// # Errors
    ///
    /// [`AuthConfigError`], see its variants.
    pub fn new(
        issuers: Vec<IssuerConfig>,
        may_vouch: VouchCheck,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthConfigError> {
        let client = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(5))
            .build()?;
        Self::with_client(issuers, may_vouch, clock, &client)
    }

    /// The same with a client of the caller's making, such as one that trusts a private CA. It
    /// should have timeouts and follow no redirects.
    ///
    /// # Errors
    ///
    /// [`AuthConfigError`], see its variants.
    pub fn with_client(
        issuers: Vec<IssuerConfig>,
        may_vouch: VouchCheck,
        clock: Arc<dyn Clock>,
        client: &reqwest::Client,
    ) -> Result<Self, AuthConfigError> {
        if issuers.is_empty() {
            return Err(AuthConfigError::NoIssuer);
        }
        let mut by_iss = HashMap::new();
        for config in issuers {
            let iss = config.iss.clone();
            let issuer = Issuer::new(config, client.clone(), Arc::clone(&clock))?;
            if by_iss.insert(iss.clone(), issuer).is_some() {
                return Err(AuthConfigError::Twice(iss));
            }
        }
        Ok(Self { issuers: by_iss, cache: TokenCache::default(), may_vouch, clock })
    }

    /// Loads every issuer's keys, so that a mistake shows at the start and not at the first token.
    ///
    /// # Errors
    ///
    /// [`Problem::IssuerUnavailable`] for the first that has none; the log has the reason.
    pub async fn load(&self) -> Result<(), Problem> {
        for issuer in self.issuers.values() {
            issuer.keys.current().await?;
        }
        Ok(())
    }

    /// Who sends this request.
    ///
    /// # Errors
    ///
    /// `unauthenticated` for any fault of the token; `forbidden` if the token is genuine but names
    /// a role in which its issuer may not vouch for its subject (one such role refuses the whole
    /// token); `issuer-unavailable` if nobody can tell.
    pub async fn authenticate(&self, headers: &HeaderMap, uri: &Uri) -> Result<Caller, Problem> {
        let token = bearer(headers, uri)?;
        let (issuer, claims) = self.verified(token).await?;
        claims.check_time(self.clock.now(), issuer.ttl_s_max)?;
        for role in &claims.roles {
            if !self.may_be(&claims.principal, *role) {
                let detail = format!(
                    "the active policy bundle does not let the token's issuer vouch for its \
                     subject as {role}"
                );
                return Err(Problem::forbidden(detail));
            }
        }
        Ok(Caller::new(&claims))
    }

    /// Whether the active bundle still lets the issuer vouch for all that a caller came in as.
    #[must_use]
    pub fn vouches(&self, caller: &Caller) -> bool {
        caller.roles.iter().all(|role| self.may_be(&caller.principal, *role))
    }

    fn may_be(&self, principal: &Principal, role: Role) -> bool {
        (self.may_vouch)(&principal.iss, role, &principal.sub)
    }

    /// The claims of a token, from the cache or by its signature. Their times are not checked.
    async fn verified(&self, token: &str) -> Result<(&Issuer, Arc<Claims>), Problem> {
        let digest = TokenCache::digest(token);
        if let Some(known) = self.cache.get(&digest)
            && let Some(issuer) = self.issuers.get(&known.claims.principal.iss)
            && Arc::ptr_eq(&issuer.keys.current().await?, &known.keys)
        {
            return Ok((issuer, known.claims));
        }
        let named: IssuerOnly = jsonwebtoken::dangerous::insecure_decode_claims(token)
            .map_err(|_| TokenFault::Malformed)?;
        let issuer = self.issuers.get(&named.iss).ok_or(TokenFault::UnknownIssuer)?;
        let header = decode_header(token).map_err(|_| TokenFault::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenFault::Critical.into());
        }
        let keys = issuer.keys_for(header.kid.as_deref()).await?;
        let no_key =
            if header.kid.is_some() { TokenFault::UnknownKey } else { TokenFault::NoKeyId };
        let key = keys.find(header.kid.as_deref()).ok_or(no_key)?;
        let claims = verify(token, header.alg, key)?.check(&named.iss, &issuer.audience)?;
        let claims = Arc::new(claims);
        self.cache.put(digest, Verified { claims: Arc::clone(&claims), keys: Arc::clone(&keys) });
        Ok((issuer, claims))
    }
}

impl Issuer {
    fn new(
        config: IssuerConfig,
        client: reqwest::Client,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthConfigError> {
        let IssuerConfig { iss, audience, jwks, algorithms, max_ttl_s } = config;
        if iss.is_empty() || audience.is_empty() {
            return Err(AuthConfigError::Empty(iss));
        }
        if max_ttl_s <= 0 {
            return Err(AuthConfigError::Ttl(iss));
        }
        if matches!(&jwks, JwksSource::Https(url) if url.scheme() != "https") {
            return Err(AuthConfigError::NotHttps(iss));
        }
        let mut allowed = Vec::new();
        for name in algorithms {
            let algorithm = TokenAlgorithm::named(&name);
            allowed.push(algorithm.ok_or_else(|| AuthConfigError::Algorithm(iss.clone(), name))?);
        }
        if allowed.is_empty() {
            return Err(AuthConfigError::Algorithm(iss, String::new()));
        }
        let keys = Arc::new(KeySource::new(iss, jwks, allowed, client, clock));
        Ok(Self { audience, ttl_s_max: max_ttl_s, keys })
    }

    /// The issuer's keys; looks once more if this one is not among them.
    async fn keys_for(&self, key_id: Option<&str>) -> Result<Arc<KeySet>, Problem> {
        let keys = self.keys.current().await?;
        if key_id.is_none() || keys.find(key_id).is_some() {
            return Ok(keys);
        }
        self.keys.after_unknown_key().await
    }
}

/// Checks the signature with the key's own algorithm. Every other check is ours, with our clock.
fn verify(
    token: &str,
    named: jsonwebtoken::Algorithm,
    key: &VerifyKey,
) -> Result<RawClaims, TokenFault> {
    let algorithm = key.algorithm.library();
    if named != algorithm {
        return Err(TokenFault::WrongAlgorithm);
    }
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    match decode::<RawClaims>(token, &key.key, &validation) {
        Ok(data) => Ok(data.claims),
        // Decoding comes after the signature, so this text is the issuer's own.
        Err(error) => Err(match error.kind() {
            ErrorKind::Json(error) => TokenFault::Claims(error.to_string()),
            _ => TokenFault::BadSignature,
        }),
    }
}

/// The token of a request: one `Authorization` header with the scheme `Bearer`, in any case
/// (RFC 9110 section 11.1), and nothing in the URL.
fn bearer<'a>(headers: &'a HeaderMap, uri: &Uri) -> Result<&'a str, TokenFault> {
    let query = uri.query().unwrap_or_default().as_bytes();
    if url::form_urlencoded::parse(query).any(|(name, _)| name == "access_token") {
        return Err(TokenFault::InUrl);
    }
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(TokenFault::Missing)?;
    if values.next().is_some() {
        return Err(TokenFault::Several);
    }
    let text = value.to_str().map_err(|_| TokenFault::NotBearer)?;
    let (scheme, token) = text.split_once(' ').ok_or(TokenFault::NotBearer)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains([' ', ',']) {
        return Err(TokenFault::NotBearer);
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenFault::TooLong);
    }
    Ok(token)
}
