//! Who calls, as an argument of a handler.

use crate::core::access::{Action, Role, may};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::http::auth::Authenticator;
use crate::http::claims::Claims;
use crate::http::observe::CallerSlot;
use crate::http::problem::Problem;
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use std::sync::Arc;

/// An authenticated caller. Make it the *first* argument of a handler: arguments are extracted
/// from left to right, and an auth failure is told before anything about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// As what; each role was vouched for.
    pub roles: Vec<Role>,
    /// When the token ends, and with it any stream that it opened.
    pub token_expires_at: Timestamp,
}

impl Caller {
    pub(super) fn new(claims: &Claims) -> Self {
        Self {
            principal: claims.principal.clone(),
            roles: claims.roles.clone(),
            token_expires_at: claims.expires_at(),
        }
    }

    /// Whether one of the caller's roles may do this.
    #[must_use]
    pub fn may(&self, action: Action) -> bool {
        self.roles.iter().any(|role| may(*role, action))
    }

    /// Demands that one of the caller's roles may do this.
    ///
    /// # Errors
    ///
    /// `forbidden`.
    pub fn require(&self, action: Action) -> Result<(), Problem> {
        if self.may(action) {
            return Ok(());
        }
        let roles: Vec<&str> = self.roles.iter().map(|role| role.name()).collect();
        Err(Problem::forbidden(format!("not allowed to a caller in the role {}", roles.join(", "))))
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<Authenticator>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let authenticator = Arc::<Authenticator>::from_ref(state);
        let caller = authenticator.authenticate(&parts.headers, &parts.uri).await?;
        if let Some(slot) = parts.extensions.get::<CallerSlot>() {
            slot.fill(&caller.principal);
        }
        Ok(caller)
    }
}
