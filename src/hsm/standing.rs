//! Whether a token is up, for all threads that must know; and who is told when that changes.

use crate::core::id::HsmName;
use crate::hsm::condition::{Condition, Refusal, Rung};
use crate::hsm::lock;
use crate::hsm::news::News;
use crate::ports::signer::{HsmNews, SignerError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Of one token.
pub(super) struct Standing {
    name: HsmName,
    start: Instant,
    inner: Mutex<Inner>,
    changed: Condvar,
    news: Arc<News>,
}

struct Inner {
    condition: Condition,
    ends: bool,
}

impl Standing {
    pub(super) fn new(name: HsmName, news: Arc<News>) -> Self {
        metrics::gauge!("claviger_hsm_up", "hsm" => name.to_string()).set(1.0);
        let inner = Inner { condition: Condition::up(), ends: false };
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        Self { name, start: Instant::now(), inner, changed, news }
    }

    /// What the configuration calls the token.
    pub(super) const fn name(&self) -> &HsmName {
        &self.name
    }

    /// Whether something may be asked of the token.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit(&self) -> Result<(), SignerError> {
        let refusal = lock(&self.inner).condition.refusal(self.start.elapsed());
        let Some(Refusal { reason, retry_after_s, is_condemned }) = refusal else { return Ok(()) };
        if is_condemned {
            return Err(SignerError::Condemned(reason));
        }
        Err(SignerError::Down { reason, retry_after_s })
    }

    /// A key has signed.
    pub(super) fn worked(&self) {
        lock(&self.inner).condition.worked();
    }

    /// A job met an error that does not say that the token is gone; answers whether it was one too many.
    pub(super) fn troubled(&self) -> bool {
        lock(&self.inner).condition.troubled()
    }

    /// The token is gone.
    pub(super) fn fell(&self, reason: &str, module_gone: bool) {
        let mut inner = lock(&self.inner);
        if inner.condition.fell(reason, module_gone, self.start.elapsed(), luck()) {
            tracing::error!(hsm = %self.name, reason, "the HSM is down");
            self.is_down(reason);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// The token has refused the PIN.
    pub(super) fn condemn(&self, why: &str) {
        let mut inner = lock(&self.inner);
        if inner.condition.condemn(why) {
            tracing::error!(hsm = %self.name, reason = why, "the HSM is down until a person has looked");
            // Also in an outage: that it ends by a person only is news.
            self.is_down(why);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Something a person must look at.
    pub(super) fn alarm(&self, news: HsmNews) {
        self.news.add(&self.name, news);
    }

    fn is_down(&self, reason: &str) {
        metrics::gauge!("claviger_hsm_up", "hsm" => self.name.to_string()).set(0.0);
        self.news.add(&self.name, HsmNews::Down { reason: reason.to_owned() });
    }

    /// What was done about the outage did not help.
    pub(super) fn failed(&self, reason: &str, module_gone: bool) {
        lock(&self.inner).condition.failed(reason, module_gone, self.start.elapsed(), luck());
    }

    /// The token is back, by this rung.
    pub(super) fn rose(&self, by: Rung) {
        let mut inner = lock(&self.inner);
        let Some(since) = inner.condition.rose(self.start.elapsed()) else { return };
        let lasted = self.start.elapsed().saturating_sub(since);
        tracing::info!(hsm = %self.name, ?lasted, "the HSM is up again");
        metrics::gauge!("claviger_hsm_up", "hsm" => self.name.to_string()).set(1.0);
        metrics::counter!("claviger_hsm_recoveries_total", "rung" => by.name()).increment(1);
        self.news.add(&self.name, HsmNews::Up { lasted });
    }

    /// Waits until something is to be done about an outage. `None` once it all ends.
    pub(super) fn next(&self) -> Option<Rung> {
        let mut inner = lock(&self.inner);
        loop {
            if inner.ends {
                return None;
            }
            let now = self.start.elapsed();
            if let Some(rung) = inner.condition.due(now) {
                return Some(rung);
            }
            inner = match inner.condition.wait(now) {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let waited = self.changed.wait_timeout(inner, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Nothing is to be done any more.
    pub(super) fn end(&self) {
        lock(&self.inner).ends = true;
        self.changed.notify_all();
    }
}

/// Any number: the standard library seeds each of its hashers anew.
pub(super) fn luck() -> u64 {
    RandomState::new().build_hasher().finish()
}
