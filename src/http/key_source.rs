//! Where an issuer's keys come from, and how they stay fresh without a request waiting for them.
//!
//! - A file is looked at once a second and read again when it has changed.
//! - An https URL is fetched again every five minutes, in the background.
//! - A `kid` that is not known causes one more look, at most every ten seconds.
//! - A refresh that fails keeps the old keys, for an hour: after that nobody can say whether a key
//!   was withdrawn, and tokens are refused.

use crate::core::time::Timestamp;
use crate::http::jwks::{JwksError, KeySet, TokenAlgorithm};
use crate::http::problem::{Cause, Problem};
use crate::ports::clock::Clock;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use url::Url;

/// Longest key set, in bytes.
const SET_BYTES_MAX: usize = 256 * 1024;
/// How often a file is looked at, and how soon first keys are tried for again.
const FILE_CHECK_MS: i64 = 1_000;
/// How often a URL is fetched.
const FETCH_MS: i64 = 300_000;
/// How soon a refresh that failed is tried again.
const RETRY_MS: i64 = 10_000;
/// How often an unknown `kid` may cause a look.
const UNKNOWN_KEY_MS: i64 = 10_000;
/// How long keys are trusted without a successful look.
const STALE_MS: i64 = 3_600_000;

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksSource {
    /// A file.
    File(PathBuf),
    /// An https URL; redirects are not followed.
    Https(Url),
}

impl FromStr for JwksSource {
    type Err = String;

    /// `https://…` is a URL, any other scheme is refused, and the rest is a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("https://") {
            return Url::parse(text).map(Self::Https).map_err(|error| error.to_string());
        }
        if text.contains("://") {
            return Err(format!("`{text}`: a key set comes from a file or over https"));
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

/// The keys of one issuer.
pub struct KeySource {
    iss: String,
    source: JwksSource,
    allowed: Vec<TokenAlgorithm>,
    client: reqwest::Client,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    loading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    digest: [u8; 32],
    stamp: Option<Stamp>,
    /// When a look last succeeded.
    confirmed_at: Timestamp,
    /// When a look last began.
    tried_at: Option<Timestamp>,
    unknown_key_at: Option<Timestamp>,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    NotNow,
    First,
    Behind,
}

impl KeySource {
    /// A source that has not looked yet.
    #[must_use]
    pub fn new(
        iss: String,
        source: JwksSource,
        allowed: Vec<TokenAlgorithm>,
        client: reqwest::Client,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let loading = tokio::sync::Mutex::default();
        Self { iss, source, allowed, client, clock, state: RwLock::default(), loading }
    }

    /// The keys as they are now. Waits only if there are none that may be trusted.
    ///
    /// # Errors
    ///
    /// [`Problem::IssuerUnavailable`] if there are none.
    pub async fn current(self: &Arc<Self>) -> Result<Arc<KeySet>, Problem> {
        let now = self.clock.now();
        match self.claim(now) {
            Look::NotNow => {}
            Look::First => self.look(false).await,
            Look::Behind => {
                let this = Arc::clone(self);
                tokio::spawn(async move { this.look(false).await });
            }
        }
        if let Some(keys) = self.trusted(now) {
            return Ok(keys);
        }
        // Another request may be looking for the first keys right now.
        drop(self.loading.lock().await);
        self.trusted(now).ok_or_else(|| {
            let cause = Cause::new(format!("no trusted keys of the issuer {}", self.iss));
            Problem::IssuerUnavailable(Some(cause))
        })
    }

    /// The keys after a `kid` was not among them: looks again, unless that was just done.
    ///
    /// # Errors
    ///
    /// [`Problem::IssuerUnavailable`] if there are none.
    pub async fn after_unknown_key(self: &Arc<Self>) -> Result<Arc<KeySet>, Problem> {
        let now = self.clock.now();
        let due = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let due = elapsed(state.unknown_key_at, now, UNKNOWN_KEY_MS);
            if due {
                state.unknown_key_at = Some(now);
            }
            due
        };
        if due {
            self.look(true).await;
        }
        self.current().await
    }

    /// Decides who looks: the first request that finds a look due, and no other.
    fn claim(&self, now: Timestamp) -> Look {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let trusted = state.keys.is_some() && now.since(state.confirmed_at) <= STALE_MS;
        let failed = state.tried_at.is_some_and(|tried| tried != state.confirmed_at);
        let wait_ms = match (&self.source, trusted, failed) {
            (_, false, _) | (JwksSource::File(_), true, false) => FILE_CHECK_MS,
            (_, true, true) => RETRY_MS,
            (JwksSource::Https(_), true, false) => FETCH_MS,
        };
        if !elapsed(state.tried_at, now, wait_ms) {
            return Look::NotNow;
        }
        state.tried_at = Some(now);
        match (&self.source, trusted) {
            (JwksSource::Https(_), true) => Look::Behind,
            (JwksSource::File(_), _) | (JwksSource::Https(_), false) => Look::First,
        }
    }

    fn trusted(&self, now: Timestamp) -> Option<Arc<KeySet>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = now.since(state.confirmed_at) <= STALE_MS;
        state.keys.as_ref().filter(|_| fresh).map(Arc::clone)
    }

    /// One look at the source. `thorough` reads a file even if it seems not to have changed.
    async fn look(&self, thorough: bool) {
        let _alone = self.loading.lock().await;
        let began_at = self.clock.now();
        let looked = match &self.source {
            JwksSource::File(path) => self.look_at_file(path, thorough).await,
            JwksSource::Https(url) => {
                fetch(&self.client, url).await.and_then(|bytes| self.take(&bytes, None))
            }
        };
        match looked {
            Ok(()) => {
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.confirmed_at = began_at;
                state.tried_at = Some(began_at);
            }
            Err(error) => {
                let cause = Cause::new(error);
                tracing::warn!(iss = self.iss, %cause, "the issuer's keys cannot be refreshed");
            }
        }
    }

    async fn look_at_file(&self, path: &Path, thorough: bool) -> Result<(), JwksError> {
        let unreadable = |error: std::io::Error| JwksError::Unreadable(error.into());
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        let modified = metadata.modified().map_err(unreadable)?;
        let stamp = Stamp { modified, bytes: metadata.len() };
        let seen = self.state.read().unwrap_or_else(PoisonError::into_inner).stamp;
        if seen == Some(stamp) && !thorough {
            return Ok(());
        }
        if usize::try_from(stamp.bytes).is_ok_and(|bytes| bytes > SET_BYTES_MAX) {
            return Err(JwksError::TooLong(SET_BYTES_MAX));
        }
        let bytes = tokio::fs::read(path).await.map_err(unreadable)?;
        self.take(&bytes, Some(stamp))
    }

    /// Takes over a key set. The same bytes keep the same set, and so the tokens it verified.
    fn take(&self, bytes: &[u8], stamp: Option<Stamp>) -> Result<(), JwksError> {
        let digest: [u8; 32] = Sha256::digest(bytes).into();
        let keys = KeySet::parse(bytes, &self.allowed)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.keys.is_none() || state.digest != digest {
            state.keys = Some(Arc::new(keys));
            state.digest = digest;
        }
        state.stamp = stamp;
        Ok(())
    }
}

/// Whether so much time has passed. A clock that went back counts as passed.
fn elapsed(since: Option<Timestamp>, now: Timestamp, ms: i64) -> bool {
    since.is_none_or(|then| {
        let passed = now.since(then);
        passed < 0 || passed >= ms
    })
}

async fn fetch(client: &reqwest::Client, url: &Url) -> Result<Vec<u8>, JwksError> {
    let unreadable = |error: reqwest::Error| JwksError::Unreadable(error.into());
    let mut response = client.get(url.clone()).send().await.map_err(unreadable)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(JwksError::Unreadable(format!("status {}", response.status()).into()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreadable)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > SET_BYTES_MAX {
            return Err(JwksError::TooLong(SET_BYTES_MAX));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicI64, Ordering};

    const X: [&str; 2] = [
        "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "5wCLmyB3TjYMLu4XHLJ9H3T4vCNTdcOuJNAEJFUgTLU",
    ];

    #[derive(Default)]
    struct TestClock(AtomicI64);

    impl TestClock {
        fn advance(&self, ms: i64) {
            self.0.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clock for TestClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    struct Stage {
        _dir: tempfile::TempDir,
        path: PathBuf,
        clock: Arc<TestClock>,
        source: Arc<KeySource>,
    }

    impl Stage {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("jwks.json");
            let clock = Arc::new(TestClock::default());
            clock.advance(1_000_000);
            let source = KeySource::new(
                "test".into(),
                JwksSource::File(path.clone()),
                TokenAlgorithm::ALL.to_vec(),
                reqwest::Client::new(),
                Arc::<TestClock>::clone(&clock),
            );
            Self { _dir: dir, path, clock, source: Arc::new(source) }
        }

        fn publish(&self, kids: &[&str]) {
            let keys: Vec<_> = kids
                .iter()
                .zip(X)
                .map(|(kid, x)| json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}))
                .collect();
            std::fs::write(&self.path, json!({ "keys": keys }).to_string()).unwrap();
        }

        async fn knows(&self, kid: &str) -> bool {
            self.source.current().await.is_ok_and(|keys| keys.find(Some(kid)).is_some())
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_withdrawn_key_is_gone() {
        let stage = Stage::new();
        stage.publish(&["one", "two"]);
        assert!(stage.knows("two").await);
        stage.publish(&["one"]);
        assert!(stage.knows("two").await, "not looked at within the second");
        stage.clock.advance(FILE_CHECK_MS);
        assert!(!stage.knows("two").await);
    }

    #[tokio::test]
    async fn the_same_keys_stay_the_same_set() {
        let stage = Stage::new();
        stage.publish(&["one"]);
        let before = stage.source.current().await.ok().unwrap();
        stage.publish(&["one"]);
        let after = stage.source.after_unknown_key().await.ok().unwrap();
        assert!(Arc::ptr_eq(&before, &after));
    }

    #[tokio::test]
    async fn an_unknown_key_is_looked_for_but_not_more_than_every_ten_seconds() {
        let stage = Stage::new();
        stage.publish(&["one"]);
        assert!(stage.source.after_unknown_key().await.unwrap().find(Some("two")).is_none());
        stage.publish(&["one", "two"]);
        let found = stage.source.after_unknown_key().await.unwrap().find(Some("two")).is_some();
        assert!(!found, "too soon");
        stage.clock.advance(UNKNOWN_KEY_MS);
        assert!(stage.source.after_unknown_key().await.unwrap().find(Some("two")).is_some());
    }

    #[tokio::test]
    async fn a_failing_refresh_keeps_the_old_keys_for_an_hour() {
        let stage = Stage::new();
        stage.publish(&["one"]);
        assert!(stage.knows("one").await);
        std::fs::write(&stage.path, "{").unwrap();
        stage.clock.advance(STALE_MS);
        assert!(stage.knows("one").await);
        stage.clock.advance(RETRY_MS);
        let problem = stage.source.current().await.err().unwrap();
        assert!(matches!(problem, Problem::IssuerUnavailable(_)));
        stage.publish(&["one"]);
        stage.clock.advance(FILE_CHECK_MS);
        assert!(stage.knows("one").await);
    }

    #[tokio::test]
    async fn no_keys_at_all_is_unavailable_not_unauthenticated() {
        let stage = Stage::new();
        let problem = stage.source.current().await.err().unwrap();
        assert!(matches!(problem, Problem::IssuerUnavailable(_)));
    }

    #[test]
    fn only_files_and_https() {
        assert!(matches!("https://id.example/keys".parse(), Ok(JwksSource::Https(_))));
        assert!(matches!("keys/jwks.json".parse(), Ok(JwksSource::File(_))));
        assert!("http://id.example/keys".parse::<JwksSource>().is_err());
    }
}
