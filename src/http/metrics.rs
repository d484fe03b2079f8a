//! The recorder of metrics, and what its listener serves.

use crate::http::problem::Problem;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Buckets of every histogram of seconds: from a cached answer to the time limit of a request.
const SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How often samples are moved into buckets, so that they do not pile up unscraped.
const UPKEEP: Duration = Duration::from_secs(5);

/// The media type of the text format, version 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Installs the process's recorder. Once per process.
///
/// # Errors
///
/// If there is one already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()
}

/// `GET /metrics`. For a listener of its own: it takes no token.
pub fn router(handle: PrometheusHandle) -> Router {
    let render = move || async move {
        // Rendering grows with the number of series; it must not hold up a worker thread.
        tokio::task::spawn_blocking(move || handle.render())
            .await
            .map(|text| ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
            .map_err(Problem::internal)
    };
    Router::new().route("/metrics", get(render))
}

/// Keeps the recorder's memory flat until `stop` is cancelled.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
    }
}
