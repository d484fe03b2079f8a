//! What the server's answers mean to a trigger. Problems are told apart by their stable `code` (RFC 9457).

use super::Not;
use crate::watch::server::Answer;

/// What the server said to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is this transaction.
    Is(String),
    /// The key is bound to another body: to this transaction's.
    Bound(String),
    /// No.
    Not(Not),
}

/// What is certain to be refused again is parked; everything else is asked again, with the same key, so that
/// nothing is lost and nothing is done twice.
pub(super) fn of_request(said: &Answer) -> Said {
    let yet = |not: String| Said::Not(Not::Yet(said.retry_after_ms, not));
    let code = said.text("code").unwrap_or_default();
    match said.status {
        200..=202 if said.ended_as_gone() => Said::Not(Not::Early(format!(
            "the server takes the event for gone, and is asked again: {said}"
        ))),
        200..=202 => match said.text("id") {
            // A repeat: what came of it is known, and its key is bound to it for ever.
            Some(id) if said.status == 200 && said.ended_unpaid().is_some() => {
                let (status, why) = (said.ended_unpaid().unwrap_or_default(), said.failure());
                let why =
                    format!("it was asked for before, but its request {id} is {status}: {why}");
                Said::Not(Not::Never(why))
            }
            Some(id) => Said::Is(id.to_owned()),
            None => yet(format!("no id in {said}")),
        },
        // A role that is missing can be granted; a denial stands.
        403 if code != "policy-denied" => yet(said.to_string()),
        403 => Said::Not(denied(said)),
        // The market is above every cap, and falls again.
        400 if said.text("field") == Some("max_fee_per_gas") => yet(said.to_string()),
        // The account is topped up; nothing was bound to the key.
        409 if code == "insufficient-balance" => yet(said.to_string()),
        // By the state of now: what it needs, such as a deposit or an allowance, may be under way.
        422 if code == "would-revert" => Said::Not(Not::Early(said.to_string())),
        409 if code == "idempotency-mismatch" => match said.text("resource") {
            Some(id) => Said::Bound(id.to_owned()),
            None => Said::Not(Not::Never(said.to_string())),
        },
        400 | 402 | 405..=407 | 409..=422 => Said::Not(Not::Never(said.to_string())),
        _ => yet(said.to_string()),
    }
}

/// A denial stands, unless it is about the event: the server's nodes may be behind ours. That its block is not final
/// there yet will be over; that they do not have it at all, or not on their chain, should be soon.
fn denied(said: &Answer) -> Not {
    let reasons = said.document.as_ref().and_then(|document| document.get("reasons")?.as_array());
    let fields = reasons.into_iter().flatten().filter_map(|reason| reason.get("field")?.as_str());
    let mut early = false;
    for field in fields {
        match field {
            "event.finalized" => return Not::Yet(None, said.to_string()),
            "event" | "event.canonical" => early = true,
            _ => {}
        }
    }
    if early { Not::Early(said.to_string()) } else { Not::Never(said.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::StatusCode;
    use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

    fn answer(status: u16, text: &str) -> Said {
        let status = StatusCode::from_u16(status).unwrap();
        of_request(&Answer::new(status, &HeaderMap::new(), text))
    }

    fn is_never(said: &Said) -> bool {
        matches!(said, Said::Not(Not::Never(_)))
    }

    fn is_yet(said: &Said) -> bool {
        matches!(said, Said::Not(Not::Yet(..)))
    }

    #[test]
    fn what_was_taken_is_done() {
        for status in [200, 201, 202] {
            assert_eq!(answer(status, r#"{"id":"7"}"#), Said::Is("7".to_owned()));
        }
        assert!(is_yet(&answer(201, "{}")));
    }

    #[test]
    fn what_will_be_refused_again_is_parked() {
        for (status, code) in [
            (403, "policy-denied"),
            (400, "invalid-request"),
            (409, "idempotency-mismatch"),
            (409, "conflict"),
            (422, "not-decodable"),
            (413, "too-large"),
        ] {
            let text = format!(r#"{{"code":"{code}"}}"#);
            assert!(is_never(&answer(status, &text)), "{status} {code}");
        }
    }

    #[test]
    fn a_key_that_is_bound_names_what_to() {
        let text = r#"{"code":"idempotency-mismatch","resource":"7"}"#;
        assert_eq!(answer(409, text), Said::Bound("7".to_owned()));
    }

    #[test]
    fn what_time_heals_is_asked_again() {
        let early = r#"{"code":"policy-denied","reasons":[
            {"grant":"payouts","field":"principals"},{"grant":"charge","field":"event.finalized"}]}"#;
        assert!(is_yet(&answer(403, early)), "its node is behind ours");
        let behind = r#"{"code":"policy-denied","reasons":[{"grant":"charge","field":"event"}]}"#;
        assert!(matches!(answer(403, behind), Said::Not(Not::Early(_))), "far behind");
        let gone = r#"{"id":"7","status":"cancelled","failure":{"code":"event-gone"}}"#;
        assert!(matches!(answer(200, gone), Said::Not(Not::Early(_))), "or on another fork");
        let dear = r#"{"code":"invalid-request","field":"max_fee_per_gas"}"#;
        assert!(is_yet(&answer(400, dear)), "the market falls again");
        assert!(is_never(&answer(400, r#"{"field":"data"}"#)));
        assert!(is_yet(&answer(409, r#"{"code":"insufficient-balance"}"#)), "it is topped up");
        let reverts = answer(422, r#"{"code":"would-revert"}"#);
        assert!(matches!(reverts, Said::Not(Not::Early(_))), "its state may be another soon");
    }

    #[test]
    fn a_repeat_of_what_ended_unpaid_is_parked_and_a_first_answer_is_not() {
        for status in ["failed", "cancelled", "cancelling", "expired", "rejected"] {
            let text =
                format!(r#"{{"id":"7","status":"{status}","failure":{{"code":"policy-denied"}}}}"#);
            let Said::Not(Not::Never(why)) = answer(200, &text) else {
                panic!("{status} is not parked")
            };
            assert!(why.contains(status) && why.contains("policy-denied"), "{why}");
            assert_eq!(answer(201, &text), Said::Is("7".to_owned()), "{status}");
        }
        for status in ["queued", "submitted", "mined", "finalized", "reverted"] {
            let text = format!(r#"{{"id":"7","status":"{status}"}}"#);
            assert_eq!(answer(200, &text), Said::Is("7".to_owned()), "{status}");
        }
    }

    #[test]
    fn everything_else_is_asked_again() {
        for (status, code) in [
            (401, "unauthenticated"),
            (403, "forbidden"),
            (404, "not-found"),
            (408, "timeout"),
            (423, "frozen"),
            (429, "rate-limited"),
            (500, ""),
            (503, "hsm-unavailable"),
            (302, ""),
        ] {
            let text = format!(r#"{{"code":"{code}"}}"#);
            assert!(is_yet(&answer(status, &text)), "{status} {code}");
        }
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let told = Answer::new(StatusCode::SERVICE_UNAVAILABLE, &headers, "");
        assert!(matches!(of_request(&told), Said::Not(Not::Yet(Some(7000), _))));
    }
}
