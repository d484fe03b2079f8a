//! The client listener: `/v1`.

pub mod events;
pub mod health;
pub mod interventions;
pub mod limits;
pub mod parse;
pub mod policy;
pub mod retractions;
pub mod show;
pub mod signatures;
pub mod transactions;

use crate::http::key_list;
use crate::http::state::HttpState;
use axum::Router;
use axum::routing::{get, post};

/// All routes of the client listener.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/v1/transactions", post(transactions::create).get(transactions::list))
        .route("/v1/transactions/{id}", get(transactions::read))
        .route("/v1/transactions/{id}/cancel", post(interventions::cancel))
        .route("/v1/transactions/{id}/speed-up", post(interventions::speed_up))
        .route("/v1/transactions/{id}/retraction", post(retractions::create))
        .route("/v1/signatures", post(signatures::create))
        .route("/v1/signatures/{id}", get(signatures::read))
        .route("/v1/policy/evaluate", post(policy::create))
        .route("/v1/limits", get(limits::list))
        .route("/v1/keys", get(key_list::list))
        .route("/v1/events", get(events::stream))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .with_state(state)
}
