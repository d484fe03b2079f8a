//! Who calls.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A caller: who says so (`iss`) and who it is (`sub`). Two issuers never share a principal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// The token's issuer.
    pub iss: String,
    /// The token's subject.
    pub sub: String,
}

impl Principal {
    /// The text under which idempotency keys of this principal are kept. Length-prefixed, so that
    /// no choice of names makes two principals share a scope.
    #[must_use]
    pub fn scope(&self) -> String {
        format!("{}:{}|{}", self.iss.len(), self.iss, self.sub)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.sub, self.iss)
    }
}
