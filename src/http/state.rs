//! What handlers share.

use crate::app::App;
use crate::http::auth::Authenticator;
use axum::extract::FromRef;
use std::sync::Arc;

/// Shared by all handlers of a listener.
#[derive(Clone)]
pub struct HttpState {
    /// The use cases' world.
    pub app: Arc<App>,
    /// Who may come in.
    pub auth: Arc<Authenticator>,
}

impl FromRef<HttpState> for Arc<Authenticator> {
    fn from_ref(state: &HttpState) -> Self {
        Self::clone(&state.auth)
    }
}
