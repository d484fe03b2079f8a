//! The signing server, as the trigger consumer calls it.

use super::config::ServerSection;
use alloy::primitives::B256;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use std::fmt;
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

/// Of a transaction that ended, or is about to, and does not do what was asked. One that was executed and
/// reverted is another matter: it was sent.
const UNPAID: [&str; 5] = ["failed", "cancelled", "cancelling", "expired", "rejected"];

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
    base: Url,
    token_file: PathBuf,
}

impl Server {
    /// Builds the client; connects to nothing yet.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn new(section: &ServerSection) -> Result<Self, ServerError> {
        let base = section.url.clone();
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(ServerError::Url);
        }
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
        Ok(Self { http: http.build()?, base, token_file: section.token_file.clone() })
    }

    /// Asks for a transaction.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn request(&self, key: &str, body: &Value) -> Result<Answer, String> {
        let request = self.http.post(self.url(&["transactions"])).header("Idempotency-Key", key);
        self.send(with_json(request, body)).await
    }

    /// Reads a transaction.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn transaction(&self, id: &str) -> Result<Answer, String> {
        self.send(self.http.get(self.url(&["transactions", id]))).await
    }

    /// The transaction that an idempotency key of ours is bound to: a list of one, or of none.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn by_key(&self, key: &str) -> Result<Answer, String> {
        let mut url = self.url(&["transactions"]);
        url.query_pairs_mut().append_pair("idempotency_key", key);
        self.send(self.http.get(url)).await
    }

    /// The transaction of ours of which a version has this hash: a list of one, or of none.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn by_hash(&self, hash: B256) -> Result<Answer, String> {
        let mut url = self.url(&["transactions"]);
        url.query_pairs_mut().append_pair("transaction_hash", &hash.to_string());
        self.send(self.http.get(url)).await
    }

    /// Tells that the source event of a transaction of ours is gone.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn retract(&self, id: &str, body: &Value) -> Result<Answer, String> {
        let request = self.http.post(self.url(&["transactions", id, "retraction"]));
        self.send(with_json(request, body)).await
    }

    /// Asks what would be decided about a request; it leaves no trace.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn evaluate(&self, body: &Value) -> Result<Answer, String> {
        let request = self.http.post(self.url(&["policy", "evaluate"]));
        self.send(with_json(request, body)).await
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // It was looked at when this was built.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        url
    }

    async fn send(&self, request: RequestBuilder) -> Result<Answer, String> {
        let token = self.token().await?;
        let response = request.header(AUTHORIZATION, token).send().await;
        let response = response.map_err(|error| format!("no answer: {}", error.without_url()))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await;
        let text = text.map_err(|e| format!("the answer broke off: {}", e.without_url()))?;
        Ok(Answer::new(status, &headers, &text))
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

fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_string())
}

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// When to come back, in milliseconds, if it says so.
    pub retry_after_ms: Option<i64>,
    /// The body, if it is JSON.
    pub document: Option<Value>,
    text: String,
}

impl Answer {
    /// An answer of this status, with these headers and this body.
    #[must_use]
    pub fn new(status: StatusCode, headers: &HeaderMap, text: &str) -> Self {
        Self {
            status: status.as_u16(),
            retry_after_ms: retry_after_ms(headers),
            document: serde_json::from_str(text).ok(),
            text: text.chars().take(ANSWER_CHARS_MAX).collect(),
        }
    }

    /// A text member of the body.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.document.as_ref()?.get(name)?.as_str()
    }

    /// Whether it is a transaction that ended unsigned because its source event went away.
    #[must_use]
    pub fn ended_as_gone(&self) -> bool {
        let is_end = matches!(self.text("status"), Some("cancelled" | "failed"));
        let failure = self.document.as_ref().and_then(|document| document.get("failure"));
        let code = failure.and_then(|failure| failure.get("code")?.as_str());
        is_end && code == Some("event-gone")
    }

    /// The status of a transaction that ended, or is about to end, without doing what was asked.
    #[must_use]
    pub fn ended_unpaid(&self) -> Option<&str> {
        self.text("status").filter(|status| UNPAID.contains(status))
    }

    /// Why it ended so, as far as it says.
    #[must_use]
    pub fn failure(&self) -> String {
        let failure = self.document.as_ref().and_then(|document| document.get("failure"));
        failure.map_or_else(|| "it says no reason".to_owned(), Value::to_string)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}: {}", self.status, self.text)
    }
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3), as milliseconds. Dates are not read.
fn retry_after_ms(headers: &HeaderMap) -> Option<i64> {
    let seconds: i64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    seconds.clamp(0, RETRY_AFTER_MAX_S).checked_mul(1000)
}
