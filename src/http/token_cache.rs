//! Tokens whose signature was verified already. Bounded: two generations, the older one dropped
//! when the younger is full, so that a flood of tokens costs signatures but never memory.

use crate::http::claims::Claims;
use crate::http::jwks::KeySet;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Entries of one generation.
const GENERATION_MAX: usize = 4_096;

/// SHA-256 of a token: the token itself is not kept.
pub type TokenDigest = [u8; 32];

/// What a verified token said, and the very set of keys that verified it. When the issuer's keys
/// change, the token must be verified again: its key may be gone.
#[derive(Clone)]
pub struct Verified {
    /// The claims; their times are checked on each use.
    pub claims: Arc<Claims>,
    /// The issuer's keys at that time; compared by pointer.
    pub keys: Arc<KeySet>,
}

/// The cache.
pub struct TokenCache {
    generation_max: usize,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<TokenDigest, Verified>,
    old: HashMap<TokenDigest, Verified>,
}

impl Default for TokenCache {
    fn default() -> Self {
        Self { generation_max: GENERATION_MAX, generations: Mutex::default() }
    }
}

impl TokenCache {
    /// The name of a token here.
    #[must_use]
    pub fn digest(token: &str) -> TokenDigest {
        Sha256::digest(token.as_bytes()).into()
    }

    /// A token that was verified before. One found in the old generation is young again.
    #[must_use]
    pub fn get(&self, digest: &TokenDigest) -> Option<Verified> {
        let mut all = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.young.get(digest) {
            return Some(found.clone());
        }
        let found = all.old.remove(digest)?;
        self.insert(&mut all, *digest, found.clone());
        Some(found)
    }

    /// Remembers a verified token.
    pub fn put(&self, digest: TokenDigest, verified: Verified) {
        let mut all = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        self.insert(&mut all, digest, verified);
    }

    fn insert(&self, all: &mut Generations, digest: TokenDigest, verified: Verified) {
        if all.young.len() >= self.generation_max {
            all.old = std::mem::take(&mut all.young);
        }
        all.young.insert(digest, verified);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::principal::Principal;

    fn verified() -> Verified {
        let claims = Claims::for_test(Principal { iss: "i".into(), sub: "s".into() });
        Verified { claims: Arc::new(claims), keys: Arc::new(KeySet::empty_for_test()) }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = TokenCache { generation_max: 4, generations: Mutex::default() };
        let used = TokenCache::digest("used");
        cache.put(used, verified());
        for n in 0..100 {
            cache.put(TokenCache::digest(&n.to_string()), verified());
            assert!(cache.get(&used).is_some(), "after {n}");
            let all = cache.generations.lock().unwrap();
            assert!(all.young.len() <= 4 && all.old.len() <= 4);
        }
        assert!(cache.get(&TokenCache::digest("0")).is_none());
    }
}
