//! The policy in force, which can change while requests are judged.

use crate::app::AppError;
use crate::core::policy::Bundle;
use crate::ports::store::StoreError;
use alloy::primitives::B256;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What the configuration has against a bundle: issuers, groups, chains that one of them does not know.
pub type Against = Box<dyn Fn(&Bundle) -> Vec<String> + Send + Sync>;

/// How many bundles that wait to be put in force are kept in memory as they loaded.
const LOADED_MAX: usize = 16;

/// A bundle as it loads here, or why it does not.
type Loaded = Result<Arc<Bundle>, String>;

/// Holds the bundle in force. Whoever judges takes it once and goes on with it, so a change drops nothing:
/// what was judged under the old one is judged again before it is given a nonce.
pub struct PolicyInForce {
    state: RwLock<State>,
    against: Against,
    /// By hash: what a hash stands for never changes, and to load it runs its cases.
    loaded: Mutex<BTreeMap<B256, Loaded>>,
}

#[derive(Clone)]
struct State {
    bundle: Arc<Bundle>,
    /// The number of its activation; 0 before it is known to the database.
    serial: i64,
    /// The bundle that is in force and does not load here, and why. The one above is of before: it says who may
    /// read, and decides nothing.
    unreadable: Option<(B256, String)>,
}

impl fmt::Debug for PolicyInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { bundle, serial, .. } = self.state();
        let hash = bundle.hash();
        f.debug_struct("PolicyInForce").field("hash", &hash).field("serial", &serial).finish()
    }
}

impl PolicyInForce {
    /// Begins with this bundle.
    #[must_use]
    pub fn new(bundle: Arc<Bundle>) -> Self {
        Self::within(bundle, Box::new(|_| Vec::new()))
    }

    /// Begins with this bundle, under a configuration that others must fit too.
    #[must_use]
    pub fn within(bundle: Arc<Bundle>, against: Against) -> Self {
        let state = RwLock::new(State { bundle, serial: 0, unreadable: None });
        Self { state, against, loaded: Mutex::default() }
    }

    /// What the configuration has against a bundle; empty where they fit.
    #[must_use]
    pub fn against(&self, bundle: &Bundle) -> Vec<String> {
        (self.against)(bundle)
    }

    fn state(&self) -> State {
        // Nothing panics while it is held, and it is never half written.
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bundle in force.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        self.state().bundle
    }

    /// The bundle in force with the number of its activation.
    #[must_use]
    pub fn numbered(&self) -> (Arc<Bundle>, i64) {
        let State { bundle, serial, .. } = self.state();
        (bundle, serial)
    }

    /// Whether anything can be decided here.
    ///
    /// # Errors
    /// While the bundle in force does not load here: what it forbids is not known. Nothing ends for that.
    pub fn must_be_readable(&self) -> Result<(), AppError> {
        self.state().unreadable.map_or(Ok(()), |(hash, problem)| {
            let problem = format!("the bundle in force, {hash:#x}, cannot be read here: {problem}");
            Err(StoreError::Unavailable(problem).into())
        })
    }

    /// From now on nothing is decided here, until a bundle is followed that loads: this one is in force.
    pub fn close(&self, hash: B256, problem: String) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.unreadable = Some((hash, problem));
    }

    /// What came of loading this bundle; it is loaded only the first time.
    pub fn loaded(&self, hash: B256, load: impl FnOnce() -> Result<Bundle, String>) -> Loaded {
        let found = |all: &BTreeMap<B256, Loaded>| all.get(&hash).cloned();
        let before = found(&self.loaded.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(before) = before {
            return before;
        }
        // Not under the lock: it may take a while.
        let now = load().map(Arc::new);
        let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= LOADED_MAX {
            all.clear();
        }
        all.insert(hash, now.clone());
        now
    }

    /// Puts the bundle of an activation in force, unless a later one is. From the return on, whoever begins to
    /// judge judges by it.
    pub fn follow(&self, bundle: Arc<Bundle>, serial: i64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if serial > state.serial {
            *state = State { bundle, serial, unreadable: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::evaluate::fixtures::{bundle, token_grant};

    #[test]
    fn what_is_in_force_and_cannot_be_read_decides_nothing_until_a_later_one_is_followed() {
        let bundle = Arc::new(bundle(&[token_grant("a", "1")]));
        let policy = PolicyInForce::new(Arc::clone(&bundle));
        policy.follow(Arc::clone(&bundle), 1);
        assert!(policy.must_be_readable().is_ok());
        policy.close(B256::repeat_byte(7), "no such action".to_owned());
        let refused = policy.must_be_readable().unwrap_err();
        assert!(matches!(refused, AppError::Store(StoreError::Unavailable(_))), "{refused}");
        assert_eq!(policy.numbered().1, 1, "who may read stays");
        policy.follow(Arc::clone(&bundle), 1);
        assert!(policy.must_be_readable().is_err(), "the same is not later");
        policy.follow(bundle, 2);
        assert!(policy.must_be_readable().is_ok());
    }
}
