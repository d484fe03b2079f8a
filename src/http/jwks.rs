//! A JSON Web Key Set (RFC 7517), taken apart by us: public, asymmetric, and each key for exactly
//! one algorithm, so that a token's header never chooses how it is verified.

use crate::http::json;
use crate::http::problem::Problem;
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde_json::{Map, Value};
use thiserror::Error;

/// Members of a private or symmetric key (RFC 7518 sections 6.2.2, 6.3.2, 6.4).
const SECRET_MEMBERS: [&str; 8] = ["d", "k", "p", "q", "dp", "dq", "qi", "oth"];

/// Smallest RSA modulus, in bytes: 2048 bits (RFC 7518 section 3.3).
const RSA_BYTES_MIN: usize = 256;

/// An algorithm that tokens may be signed with. There is no HMAC here, and no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519 (RFC 8037).
    EdDsa,
}

impl TokenAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 4] = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// The name in `alg` (RFC 7518 section 3.1, RFC 8037 section 3.1).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The key type in `kty`.
    const fn key_type(self) -> &'static str {
        match self {
            Self::Rs256 | Self::Ps256 => "RSA",
            Self::Es256 => "EC",
            Self::EdDsa => "OKP",
        }
    }

    /// By name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As the verifying library calls it.
    pub(super) const fn library(self) -> Algorithm {
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Ps256 => Algorithm::PS256,
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// Why a key set is refused.
#[derive(Debug, Error)]
pub enum JwksError {
    /// Cannot be read or fetched.
    #[error("the key set cannot be had")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Longer than a key set may be.
    #[error("the key set is longer than {0} bytes")]
    TooLong(usize),
    /// Not `{"keys": [{…}]}`.
    #[error("not a key set: {0}")]
    Malformed(String),
    /// It has private or symmetric material. Whoever published it must replace the key.
    #[error("key {0} has private or symmetric material (`{1}`): it is compromised, replace it")]
    Secret(String, String),
    /// Two keys of one name.
    #[error("two keys have the id `{0}`")]
    Duplicate(String),
    /// An RSA key without `alg`, and an issuer with both RSA algorithms.
    #[error("key {0} has no `alg`, and the issuer is allowed both RS256 and PS256")]
    Ambiguous(String),
    /// A key that breaks the rules of its algorithm.
    #[error("key {0} is not valid for {1}")]
    BadKey(String, &'static str),
    /// Nothing left to verify with.
    #[error("no key is usable with the configured algorithms")]
    Empty,
}

/// A key that verifies tokens, with one algorithm.
pub struct VerifyKey {
    key_id: Option<String>,
    /// The algorithm.
    pub algorithm: TokenAlgorithm,
    /// The public key.
    pub key: DecodingKey,
}

/// An issuer's usable keys.
pub struct KeySet(Vec<VerifyKey>);

impl KeySet {
    /// Reads a key set for an issuer that may use these algorithms. Keys of other types, uses or
    /// algorithms are skipped, as RFC 7517 section 5 advises; secret material refuses the whole.
    ///
    /// # Errors
    ///
    /// [`JwksError`], see its variants.
    pub fn parse(bytes: &[u8], allowed: &[TokenAlgorithm]) -> Result<Self, JwksError> {
        let set: Map<String, Value> = json::from_slice(bytes).map_err(|problem| match problem {
            Problem::InvalidRequest { detail, .. } => JwksError::Malformed(detail),
            _ => JwksError::Malformed("not JSON".to_owned()),
        })?;
        let Some(Value::Array(list)) = set.get("keys") else {
            return Err(JwksError::Malformed("`keys` is not a list".to_owned()));
        };
        let mut keys: Vec<VerifyKey> = Vec::new();
        for (index, value) in list.iter().enumerate() {
            let Value::Object(jwk) = value else {
                return Err(JwksError::Malformed(format!("key {index} is not an object")));
            };
            let Some(key) = read_key(jwk, index, allowed)? else {
                continue;
            };
            if let Some(id) = key.key_id.as_deref()
                && keys.iter().any(|other| other.key_id.as_deref() == Some(id))
            {
                return Err(JwksError::Duplicate(id.to_owned()));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(JwksError::Empty);
        }
        Ok(Self(keys))
    }

    /// The key that a token's header names. Without a `kid`, the only key there is.
    #[must_use]
    pub fn find(&self, key_id: Option<&str>) -> Option<&VerifyKey> {
        match key_id {
            Some(id) => self.0.iter().find(|key| key.key_id.as_deref() == Some(id)),
            None => match self.0.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        }
    }

    #[cfg(test)]
    pub(super) const fn empty_for_test() -> Self {
        Self(Vec::new())
    }
}

fn read_key(
    jwk: &Map<String, Value>,
    index: usize,
    allowed: &[TokenAlgorithm],
) -> Result<Option<VerifyKey>, JwksError> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let key_id = text("kid").map(str::to_owned);
    let name = key_id.as_ref().map_or_else(|| format!("#{index}"), |id| format!("`{id}`"));
    if let Some(member) = SECRET_MEMBERS.iter().find(|member| jwk.contains_key(**member)) {
        return Err(JwksError::Secret(name, (*member).to_owned()));
    }
    let Some(key_type) = text("kty") else {
        return Err(JwksError::Malformed(format!("key {name} has no `kty`")));
    };
    if key_type == "oct" {
        return Err(JwksError::Secret(name, "kty oct".to_owned()));
    }
    if !is_for_verifying(jwk) {
        return Ok(None);
    }
    let Some(algorithm) = algorithm_of(jwk, key_type, &name, allowed)? else {
        return Ok(None);
    };
    let bad = || JwksError::BadKey(name.clone(), algorithm.name());
    let need = |member: &str| text(member).ok_or_else(bad);
    let key = match algorithm {
        TokenAlgorithm::Rs256 | TokenAlgorithm::Ps256 => {
            DecodingKey::from_rsa_components(need("n")?, need("e")?)
        }
        TokenAlgorithm::Es256 if text("crv") == Some("P-256") => {
            DecodingKey::from_ec_components(need("x")?, need("y")?)
        }
        TokenAlgorithm::EdDsa if text("crv") == Some("Ed25519") => {
            DecodingKey::from_ed_components(need("x")?)
        }
        TokenAlgorithm::Es256 | TokenAlgorithm::EdDsa => return Err(bad()),
    };
    let key = key.map_err(|_| bad())?;
    let sized = match (algorithm, key.kind()) {
        (_, DecodingKeyKind::RsaModulusExponent { n, .. }) => n.len() >= RSA_BYTES_MIN,
        (TokenAlgorithm::Es256, DecodingKeyKind::SecretOrDer(point)) => point.len() == 65,
        (_, DecodingKeyKind::SecretOrDer(point)) => point.len() == 32,
    };
    if !sized {
        return Err(bad());
    }
    Ok(Some(VerifyKey { key_id, algorithm, key }))
}

/// `use` and `key_ops`, where given, must speak of signatures (RFC 7517 sections 4.2 and 4.3).
fn is_for_verifying(jwk: &Map<String, Value>) -> bool {
    let used = jwk.get("use").is_none_or(|value| value.as_str() == Some("sig"));
    let operations = jwk.get("key_ops").is_none_or(|value| {
        value.as_array().is_some_and(|all| all.iter().any(|one| one.as_str() == Some("verify")))
    });
    used && operations
}

/// The one algorithm of a key: its own `alg`, or the only allowed one for its type.
fn algorithm_of(
    jwk: &Map<String, Value>,
    key_type: &str,
    name: &str,
    allowed: &[TokenAlgorithm],
) -> Result<Option<TokenAlgorithm>, JwksError> {
    let mut fitting = allowed.iter().copied().filter(|one| one.key_type() == key_type);
    if let Some(alg) = jwk.get("alg") {
        return Ok(fitting.find(|one| alg.as_str() == Some(one.name())));
    }
    match (fitting.next(), fitting.next()) {
        (only, None) => Ok(only),
        (_, Some(_)) => Err(JwksError::Ambiguous(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ED: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn parse(keys: &Value, allowed: &[TokenAlgorithm]) -> Result<KeySet, JwksError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), allowed)
    }

    #[test]
    fn private_and_symmetric_material_is_refused_whatever_else_is_there() {
        let good = json!({"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": ED});
        for (bad, member) in [
            (json!({"kty": "OKP", "crv": "Ed25519", "kid": "b", "x": ED, "d": ED}), "`d`"),
            (json!({"kty": "oct", "kid": "b", "k": "c2VjcmV0"}), "`k`"),
            (json!({"kty": "oct", "kid": "b"}), "oct"),
            (
                json!({"kty": "RSA", "use": "enc", "kid": "b", "n": "AQ", "e": "AQAB", "p": "A"}),
                "`p`",
            ),
        ] {
            let error = parse(&json!([good, bad]), &TokenAlgorithm::ALL).err().unwrap();
            let text = error.to_string();
            assert!(text.contains("compromised") && text.contains(member), "{text}");
        }
    }

    #[test]
    fn a_key_has_one_algorithm() {
        let rsa = json!([{"kty": "RSA", "kid": "a", "n": "A".repeat(400), "e": "AQAB"}]);
        let both = [TokenAlgorithm::Rs256, TokenAlgorithm::Ps256];
        assert!(matches!(parse(&rsa, &both), Err(JwksError::Ambiguous(_))));
        let set = parse(&rsa, &[TokenAlgorithm::Ps256, TokenAlgorithm::EdDsa]).ok().unwrap();
        assert_eq!(set.find(Some("a")).unwrap().algorithm, TokenAlgorithm::Ps256);
        assert!(matches!(parse(&rsa, &[TokenAlgorithm::EdDsa]), Err(JwksError::Empty)));
    }

    #[test]
    fn what_is_not_for_verifying_is_skipped_and_what_is_malformed_refused() {
        let all = &TokenAlgorithm::ALL;
        let skipped = json!([
            {"kty": "OKP", "crv": "Ed25519", "use": "enc", "x": ED},
            {"kty": "OKP", "crv": "Ed25519", "key_ops": ["sign"], "x": ED},
            {"kty": "EC", "crv": "P-384", "alg": "ES384", "x": ED, "y": ED},
            {"kty": "new", "x": ED},
        ]);
        assert!(matches!(parse(&skipped, all), Err(JwksError::Empty)));
        for bad in [
            json!({"kty": "OKP", "crv": "Ed448", "x": ED}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "AQ"}),
            json!({"kty": "EC", "crv": "secp256k1", "x": ED, "y": ED}),
            json!({"kty": "EC", "crv": "P-256", "x": ED}),
            json!({"kty": "RSA", "alg": "RS256", "n": "AQAB", "e": "AQAB"}),
        ] {
            assert!(matches!(parse(&json!([bad]), all), Err(JwksError::BadKey(..))), "{bad}");
        }
        let one = json!({"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": ED});
        assert!(matches!(parse(&json!([one, one]), all), Err(JwksError::Duplicate(_))));
        assert!(matches!(KeySet::parse(b"{}", all), Err(JwksError::Malformed(_))));
    }

    #[test]
    fn without_a_kid_only_an_only_key_is_found() {
        let one = json!({"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": ED});
        let two = json!({"kty": "OKP", "crv": "Ed25519", "kid": "b", "x": ED});
        let set = parse(&json!([one]), &TokenAlgorithm::ALL).ok().unwrap();
        assert!(set.find(None).is_some() && set.find(Some("b")).is_none());
        let set = parse(&json!([one, two]), &TokenAlgorithm::ALL).ok().unwrap();
        assert!(set.find(None).is_none() && set.find(Some("b")).is_some());
    }
}
