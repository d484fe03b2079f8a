//! `/admin/v1/audit`

use crate::app::read as reading;
use crate::core::access::Action;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::http::state::HttpState;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// `GET /admin/v1/audit/checkpoint`: size and RFC 6962 root of the log, how many leaves are committed and
/// wait for their index, and the newest signed checkpoint as a note (C2SP tlog-checkpoint), which may be
/// of a smaller size. With `Accept: text/plain`, that note alone.
///
/// # Errors
/// As `docs/problems.md` lists. The note alone is not found before the log is first signed.
pub async fn checkpoint(
    caller: Caller,
    State(state): State<HttpState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require(Action::ReadAudit)?;
    let note = reading::signed_checkpoint(&state.app).await?;
    if wants_text(&headers) {
        return Ok(note.ok_or(Problem::NotFound)?.into_response());
    }
    let (head, waiting) = reading::log_head(&state.app).await?;
    let shown = json!({
        "size": head.size.to_string(),
        "root_hash": format!("0x{}", hex::encode(head.root)),
        "waiting": waiting.to_string(),
        "note": note,
    });
    Ok(Json(shown).into_response())
}

/// Whether plain text is asked for by name, and JSON is not.
fn wants_text(headers: &HeaderMap) -> bool {
    let asked = |name: &str| {
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            let mut ranges = value.split(',').filter_map(|range| range.split(';').next());
            ranges.any(|range| range.trim().eq_ignore_ascii_case(name))
        })
    };
    asked("text/plain") && !asked("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_given_to_those_who_ask_for_it_by_name() {
        for (accept, text) in [
            ("text/plain", true),
            ("text/html, Text/Plain;q=0.9", true),
            ("text/plain, application/json", false),
            ("text/*", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(wants_text(&headers), text, "{accept}");
        }
        assert!(!wants_text(&HeaderMap::new()));
    }
}
