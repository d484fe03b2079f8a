//! At start: would the server know what the triggers ask for? It is asked for its verdict over a call that some
//! event might cause, and what no event can heal is told. It may be down, and others may change its policy any
//! time: so these are warnings, and nothing is refused.

use crate::watch::plan::TriggerPlan;
use crate::watch::server::{Answer, Server};
use serde_json::{Value, json};

/// The fields of a denial that say that no grant of this caller names this call: the nearest grant fails there.
const SELECTORS: [&str; 9] = [
    "issuer",
    "effects",
    "principals",
    "signers",
    "chains",
    "action",
    "contract",
    "function",
    "expires",
];
/// The fields of a request that are a trigger's own.
const OWN: [&str; 4] = ["chain", "signer", "to", "data"];

/// What is wrong with each trigger by the word of the server, a line each.
pub async fn check(triggers: &[TriggerPlan], server: &Server) -> Vec<String> {
    let mut found = Vec::new();
    for trigger in triggers {
        let Ok(data) = trigger.call.example() else { continue };
        let body = json!({
            "chain": trigger.chain,
            "signer": trigger.signer,
            "to": format!("{:#x}", trigger.to),
            "value": "0",
            "data": data,
        });
        let wrong = match server.evaluate(&body).await {
            Ok(said) => wrong(&said),
            Err(error) => Some(format!("the server could not be asked about it: {error}")),
        };
        found.extend(wrong.map(|wrong| format!("[[trigger]] {}: {wrong}", trigger.name)));
    }
    found
}

fn wrong(said: &Answer) -> Option<String> {
    match said.status {
        200 if said.text("outcome") == Some("deny") => {
            // The nearest miss is the first: what lies behind it was not looked at.
            let reasons = said.document.as_ref()?.get("reasons")?.as_array()?;
            let field = reasons.first()?.get("field").and_then(Value::as_str)?;
            let is_own = SELECTORS.contains(&field);
            is_own.then(|| {
                format!("no grant of the server's policy names its call: it fails at `{field}`")
            })
        }
        400 => {
            let field = said.text("field").filter(|field| OWN.contains(field))?;
            let detail = said.text("detail").unwrap_or_default();
            Some(format!("the server does not know its `{field}`: {detail}"))
        }
        401 | 403 | 404 => Some(format!("the server does not let it ask: {said}")),
        500.. => Some(format!("the server could not be asked about it: {said}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

    fn told(status: u16, text: &str) -> Option<String> {
        wrong(&Answer::new(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), text))
    }

    #[test]
    fn only_what_no_event_heals_is_told() {
        for field in ["source", "event", "args", "windows", "fee", "per_tx", "hours", "value"] {
            let text = format!(r#"{{"outcome":"deny","reasons":[{{"field":"{field}"}}]}}"#);
            assert_eq!(told(200, &text), None, "{field}");
        }
        for field in SELECTORS {
            let text = format!(r#"{{"outcome":"deny","reasons":[{{"field":"{field}"}}]}}"#);
            assert!(told(200, &text).unwrap().contains(field), "{field}");
        }
        let far = r#"{"outcome":"deny","reasons":[{"field":"args"},{"field":"principals"}]}"#;
        assert_eq!(told(200, far), None, "another grant is nearer");
        assert_eq!(told(200, r#"{"outcome":"allow","reasons":[]}"#), None);
        assert!(told(400, r#"{"field":"signer","detail":"no such key"}"#).is_some());
        assert_eq!(told(400, r#"{"field":"gas"}"#), None);
        assert_eq!(told(422, r#"{"code":"would-revert"}"#), None);
        assert!(told(401, "{}").is_some() && told(503, "{}").is_some());
    }
}
