//! The policy in force, which can change while requests are judged.

use crate::core::policy::Bundle;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// What the configuration has against a bundle: issuers, groups, chains that one of them does not know.
pub type Against = Box<dyn Fn(&Bundle) -> Vec<String> + Send + Sync>;

/// Holds the bundle in force. Whoever judges takes it once and goes on with it, so a change drops nothing:
/// what was judged under the old one is judged again before it is given a nonce.
pub struct PolicyInForce {
    state: RwLock<State>,
    against: Against,
}

#[derive(Clone)]
struct State {
    bundle: Arc<Bundle>,
    /// The number of its activation; 0 before it is known to the database.
    serial: i64,
}

impl fmt::Debug for PolicyInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { bundle, serial } = self.state();
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
        Self { state: RwLock::new(State { bundle, serial: 0 }), against }
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
        let State { bundle, serial } = self.state();
        (bundle, serial)
    }

    /// Puts another bundle in force.
    pub fn replace(&self, bundle: Arc<Bundle>) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).bundle = bundle;
    }

    /// Puts the bundle of an activation in force, unless a later one is. From the return on, whoever begins to
    /// judge judges by it.
    pub fn follow(&self, bundle: Arc<Bundle>, serial: i64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if serial > state.serial {
            *state = State { bundle, serial };
        }
    }
}
