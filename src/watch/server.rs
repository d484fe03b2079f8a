//! The signing server, as the trigger consumer calls it.

use super::config::ServerSection;
use crate::ports::bus::Outcome;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The server answers within about a second; longer means that it is in trouble.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// What is kept of an answer, in characters.
const ANSWER_CHARS_MAX: usize = 4000;
/// Longest `Retry-After` that is believed, in seconds.
const RETRY_AFTER_MAX_S: i64 = 3600;

/// Why the client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL cannot have a path appended, or is neither http nor https.
    #[error("[server] url must be http:// or https:// with a host")]
    Url,
    /// The file with certificates.
    #[error("[server] ca_file {}: {reason}", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client.
    #[error("the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// The client listener of the server.
#[derive(Debug)]
pub struct Server {
    http: reqwest::Client,
    transactions: Url,
    token_file: PathBuf,
}

impl Server {
    /// Builds the client; connects to nothing yet.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn new(section: &ServerSection) -> Result<Self, ServerError> {
        let mut transactions = section.url.clone();
        if !matches!(transactions.scheme(), "http" | "https") {
            return Err(ServerError::Url);
        }
        transactions
            .path_segments_mut()
            .map_err(|()| ServerError::Url)?
            .pop_if_empty()
            .extend(["v1", "transactions"]);
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(path) = &section.ca_file {
            let wrong = |reason: String| ServerError::Certificates { path: path.clone(), reason };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| wrong(error.to_string()))?;
            if roots.is_empty() {
                return Err(wrong("no certificate in it".to_owned()));
            }
            http = http.tls_certs_merge(roots);
        }
        Ok(Self { http: http.build()?, transactions, token_file: section.token_file.clone() })
    }

    /// Asks for a transaction. What is certain to be refused again is parked; everything else is
    /// asked again, with the same key, so that nothing is lost and nothing is done twice.
    pub async fn request(&self, key: &str, body: String) -> Outcome {
        let retry = |error: String| Outcome::Retry { after_ms: None, error };
        let token = match self.token().await {
            Ok(token) => token,
            Err(error) => return retry(error),
        };
        let request = self
            .http
            .post(self.transactions.clone())
            .header(AUTHORIZATION, token)
            .header(CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", key)
            .body(body);
        match request.send().await {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers().clone());
                match response.text().await {
                    Ok(text) => outcome(status, &headers, &text),
                    Err(error) => retry(format!("the answer broke off: {}", error.without_url())),
                }
            }
            Err(error) => retry(format!("no answer: {}", error.without_url())),
        }
    }

    /// The token, from its file as it is now.
    async fn token(&self) -> Result<HeaderValue, String> {
        let named = |what: String| format!("token_file {}: {what}", self.token_file.display());
        let text = tokio::fs::read_to_string(&self.token_file).await;
        let text: SecretString = text.map_err(|error| named(error.to_string()))?.into();
        let bearer: SecretString = format!("Bearer {}", text.expose_secret().trim()).into();
        let mut value = HeaderValue::from_str(bearer.expose_secret())
            .map_err(|_| named("not a token".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// What an answer means. Problems are told apart by their stable `code` (RFC 9457).
fn outcome(status: StatusCode, headers: &HeaderMap, text: &str) -> Outcome {
    let document: Option<Value> = serde_json::from_str(text).ok();
    let member = |name: &str| document.as_ref()?.get(name)?.as_str().map(str::to_owned);
    let told: String = text.chars().take(ANSWER_CHARS_MAX).collect();
    let answer = format!("HTTP {}: {told}", status.as_u16());
    match status.as_u16() {
        200..=202 => match member("id") {
            Some(id) => Outcome::Done(id),
            None => Outcome::Retry { after_ms: None, error: format!("no id in {answer}") },
        },
        // A role that is missing can be granted; a denial stands.
        403 if member("code").as_deref() != Some("policy-denied") => {
            Outcome::Retry { after_ms: retry_after_ms(headers), error: answer }
        }
        // Not yet: the server's node has fewer blocks than ours, or the market is above every cap.
        403 if is_early(document.as_ref()) => Outcome::Retry { after_ms: None, error: answer },
        400 if member("field").as_deref() == Some("max_fee_per_gas") => {
            Outcome::Retry { after_ms: None, error: answer }
        }
        400 | 402 | 403 | 405..=407 | 409..=422 => Outcome::Park(answer),
        _ => Outcome::Retry { after_ms: retry_after_ms(headers), error: answer },
    }
}

/// Whether a denial says that the event is on the server's chain and not final there. It will be, or it will
/// not be there any more, and then the denial says so.
fn is_early(document: Option<&Value>) -> bool {
    let reasons = document.and_then(|document| document.get("reasons")?.as_array());
    let field = |reason: &Value| reason.get("field")?.as_str().map(str::to_owned);
    let mut fields = reasons.into_iter().flatten().filter_map(field);
    fields.any(|field| field == "event.finalized")
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3), as milliseconds. Dates are not read.
fn retry_after_ms(headers: &HeaderMap) -> Option<i64> {
    let seconds: i64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    seconds.clamp(0, RETRY_AFTER_MAX_S).checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, text: &str) -> Outcome {
        outcome(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), text)
    }

    #[test]
    fn what_was_taken_is_done() {
        for status in [200, 201, 202] {
            assert_eq!(answer(status, r#"{"id":"7"}"#), Outcome::Done("7".to_owned()));
        }
        assert!(matches!(answer(201, "{}"), Outcome::Retry { .. }));
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
            assert!(matches!(answer(status, &text), Outcome::Park(_)), "{status} {code}");
        }
    }

    #[test]
    fn what_time_heals_is_asked_again() {
        let early = r#"{"code":"policy-denied","reasons":[
            {"grant":"payouts","field":"principals"},{"grant":"charge","field":"event.finalized"}]}"#;
        assert!(matches!(answer(403, early), Outcome::Retry { .. }), "its node is behind ours");
        let invented = r#"{"code":"policy-denied","reasons":[{"grant":"charge","field":"event"}]}"#;
        assert!(matches!(answer(403, invented), Outcome::Park(_)));
        let dear = r#"{"code":"invalid-request","field":"max_fee_per_gas"}"#;
        assert!(matches!(answer(400, dear), Outcome::Retry { .. }), "the market falls again");
        assert!(matches!(answer(400, r#"{"field":"data"}"#), Outcome::Park(_)));
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
            assert!(matches!(answer(status, &text), Outcome::Retry { .. }), "{status} {code}");
        }
    }

    #[test]
    fn the_server_says_when_to_come_back() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let told = outcome(StatusCode::SERVICE_UNAVAILABLE, &headers, "");
        assert!(matches!(told, Outcome::Retry { after_ms: Some(7000), .. }), "{told:?}");
    }
}
