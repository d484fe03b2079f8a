//! The policy in force, which can change while requests are judged.

use crate::core::policy::Bundle;
use std::sync::{Arc, PoisonError, RwLock};

/// Holds the bundle in force. Whoever judges takes it once and goes on with it, so a change drops nothing:
/// what was judged under the old one is judged again before it is given a nonce.
#[derive(Debug)]
pub struct PolicyInForce {
    bundle: RwLock<Arc<Bundle>>,
}

impl PolicyInForce {
    /// Begins with this bundle.
    #[must_use]
    pub fn new(bundle: Arc<Bundle>) -> Self {
        Self { bundle: RwLock::new(bundle) }
    }

    /// The bundle in force.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        // Nothing panics while it is held, and a pointer is never half written.
        Arc::clone(&self.bundle.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another bundle in force.
    pub fn replace(&self, bundle: Arc<Bundle>) {
        *self.bundle.write().unwrap_or_else(PoisonError::into_inner) = bundle;
    }
}
