//! The admin listener: `/admin/v1`.

pub mod approvals;
pub mod audit;
pub mod clock;
pub mod deliveries;
pub mod keys;
pub mod policies;

use crate::http::key_list;
use crate::http::state::HttpState;
use crate::http::v1::health;
use axum::Router;
use axum::routing::{get, post};

/// All routes of the admin listener.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/admin/v1/keys", get(key_list::list).post(keys::create))
        .route("/admin/v1/keys/import", post(keys::import))
        .route("/admin/v1/audit/checkpoint", get(audit::checkpoint))
        .route("/admin/v1/policies", get(policies::list).post(policies::propose))
        .route("/admin/v1/policies/{hash}", get(policies::read))
        .route("/admin/v1/policies/{hash}/diff", get(policies::diff))
        .route("/admin/v1/policies/{hash}/activate", post(policies::activate))
        .route("/admin/v1/policies/{hash}/reject", post(policies::reject))
        .route("/admin/v1/policies/{hash}/replay", post(policies::replayed))
        .route("/admin/v1/clock/confirm", post(clock::confirm))
        .route("/admin/v1/deliveries", get(deliveries::list))
        .route("/admin/v1/deliveries/replay", post(deliveries::replay_all))
        .route("/admin/v1/deliveries/forget", post(deliveries::forget))
        .route("/admin/v1/deliveries/{id}/replay", post(deliveries::replay))
        .route("/admin/v1/approvals", get(approvals::list))
        .route("/admin/v1/approvals/{id}", get(approvals::read))
        .route("/admin/v1/approvals/{id}/approve", post(approvals::approve))
        .route("/admin/v1/approvals/{id}/reject", post(approvals::reject))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .with_state(state)
}
