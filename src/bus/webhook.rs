//! Webhooks: the server's own events, one signed POST each, by Standard Webhooks 1.0.0.
//!
//! A name is resolved once for each connection, every address that comes back must be one that may be reached,
//! and the connection is made to those very addresses: what a name says a moment later makes no difference.
//! Redirects are failures, and no proxy of the environment is used.

mod address;
mod signature;

pub use address::{Network, Reach};
pub use signature::Secrets;

use crate::core::time::Timestamp;
use crate::ports::bus::{Notice, Outcome, Patience, Sink};
use crate::ports::clock::{Clock, Entropy};
use async_trait::async_trait;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use url::{Host, Url};

/// For all of one attempt.
const TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of an answer, in bytes, and what is kept of it, in characters.
const ANSWER_BYTES_MAX: usize = 4 * 1024;
const ANSWER_CHARS_MAX: usize = 80;
/// How many events are told at once, each of another subject.
const WIDTH: usize = 4;
/// Pauses after failures, in seconds: those that Standard Webhooks gives as its example.
const SCHEDULE_S: [i64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// The longest `Retry-After` that is honoured, in milliseconds. One answer must not put a subject off for a day.
const RETRY_AFTER_MS_MAX: i64 = 3_600_000;

/// A `[[webhook]]`.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Its name.
    pub name: String,
    /// Where events go.
    pub url: Url,
    /// The file with its secrets; read again for each attempt.
    pub secret_file: PathBuf,
    /// What may be reached besides public addresses.
    pub reach: Reach,
    /// Certificates that are trusted besides the usual ones, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Why a webhook cannot be.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The URL.
    #[error("[[webhook]] `{0}`: url {1}")]
    Url(String, &'static str),
    /// The file with the secrets.
    #[error("[[webhook]] `{name}`: secret_file {}: {reason}", path.display())]
    Secret {
        /// Which webhook.
        name: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with certificates.
    #[error("[[webhook]] `{name}`: ca_file {}: {reason}", path.display())]
    Certificates {
        /// Which webhook.
        name: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client.
    #[error("the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Turns a name into addresses.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The resolver of this machine.
#[must_use]
pub fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

/// Resolves, and lets nothing through that may not be reached.
struct Guard {
    lookup: Lookup,
    reach: Reach,
    only_loopback: bool,
}

/// An address that may not be reached.
#[derive(Debug)]
struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, which may not be reached ([[webhook]] allow)", self.0)
    }
}

impl std::error::Error for Unreachable {}

fn check(reach: &Reach, only_loopback: bool, address: IpAddr) -> Result<(), Unreachable> {
    if let Some(why) = reach.refusal(address) {
        return Err(Unreachable(why));
    }
    if only_loopback && !address::is_loopback(address) {
        return Err(Unreachable(format!("{address} is not this machine, and the url is http")));
    }
    Ok(())
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let found = (self.lookup)(name.as_str().to_owned());
        let (reach, only_loopback) = (self.reach.clone(), self.only_loopback);
        Box::pin(async move {
            let found = found.await?;
            for address in &found {
                check(&reach, only_loopback, *address)?;
            }
            let addresses: Vec<_> = found.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// One webhook.
pub struct Webhook {
    sink: String,
    config: WebhookConfig,
    http: Client,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Webhook {
    /// Builds the client and reads the secrets; connects to nothing.
    ///
    /// # Errors
    /// See [`WebhookError`].
    pub fn new(
        config: WebhookConfig,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        lookup: Lookup,
    ) -> Result<Self, WebhookError> {
        let wrong = |what| WebhookError::Url(config.name.clone(), what);
        let only_loopback = match config.url.scheme() {
            "https" => false,
            "http" if config.reach.private => true,
            "http" => return Err(wrong("must be https")),
            _ => return Err(wrong("must be https")),
        };
        if !config.url.username().is_empty() || config.url.password().is_some() {
            return Err(wrong("must not have a user or a password"));
        }
        let guard = Guard { lookup, reach: config.reach.clone(), only_loopback };
        let mut http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .https_only(!only_loopback)
            .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(guard));
        if let Some(path) = &config.ca_file {
            let wrong = |reason: String| WebhookError::Certificates {
                name: config.name.clone(),
                path: path.clone(),
                reason,
            };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| wrong(error.to_string()))?;
            if roots.is_empty() {
                return Err(wrong("no certificate in it".to_owned()));
            }
            http = http.tls_certs_merge(roots);
        }
        let sink = format!("webhook:{}", config.name);
        let webhook = Self { sink, http: http.build()?, config, clock, entropy };
        webhook.secrets()?;
        Ok(webhook)
    }

    fn secrets(&self) -> Result<Secrets, WebhookError> {
        let path = &self.config.secret_file;
        let wrong = |reason: String| WebhookError::Secret {
            name: self.config.name.clone(),
            path: path.clone(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Secrets::parse(&text).map_err(wrong)
    }

    /// An address in the URL itself is resolved by nobody.
    fn check_host(&self) -> Result<(), Unreachable> {
        let address = match self.config.url.host() {
            Some(Host::Ipv4(four)) => IpAddr::V4(four),
            Some(Host::Ipv6(six)) => IpAddr::V6(six),
            Some(Host::Domain(_)) => return Ok(()),
            None => return Err(Unreachable("the url has no host".to_owned())),
        };
        check(&self.config.reach, self.config.url.scheme() == "http", address)
    }

    async fn post(&self, notice: &Notice) -> Result<Response, String> {
        self.check_host().map_err(|error| error.to_string())?;
        let secrets = self.secrets().map_err(|error| error.to_string())?;
        let id = message_id(&notice.id);
        let now_s = self.clock.now().millis().div_euclid(1_000);
        let request = self
            .http
            .post(self.config.url.clone())
            .header(CONTENT_TYPE, "application/cloudevents+json; charset=utf-8")
            .header("webhook-id", &id)
            .header("webhook-timestamp", now_s.to_string())
            .header("webhook-signature", secrets.sign(&id, now_s, &notice.body))
            .body(notice.body.clone());
        request.send().await.map_err(|error| no_answer(&error))
    }
}

#[async_trait]
impl Sink for Webhook {
    fn name(&self) -> &str {
        &self.sink
    }

    fn patience(&self) -> Patience {
        // Up to a tenth longer: what failed together does not come again together.
        let [byte, ..] = self.entropy.bytes16();
        let jittered = |seconds: i64| {
            let ms = seconds.saturating_mul(1_000);
            let more = ms.saturating_mul(i64::from(byte)).div_euclid(2_560);
            ms.saturating_add(more)
        };
        Patience::Schedule(SCHEDULE_S.into_iter().map(jittered).collect())
    }

    fn width(&self) -> usize {
        WIDTH
    }

    async fn tell(&self, notice: &Notice) -> Outcome {
        let answer = match self.post(notice).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Retry { after_ms: None, error },
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        if status.is_success() {
            return Outcome::Done(status.as_u16().to_string());
        }
        let said = beginning(answer).await;
        let error = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
        if status == StatusCode::GONE {
            return Outcome::Park(error);
        }
        Outcome::Retry { after_ms: retry_after_ms(&headers, self.clock.now()), error }
    }
}

/// What does not change over the attempts of an event, and has no dot.
fn message_id(event_id: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if event_id.chars().all(fits) && (1..=64).contains(&event_id.len()) {
        return event_id.to_owned();
    }
    hex::encode(Sha256::digest(event_id.as_bytes()))
}

/// Why there was no answer, in one line and without the URL, which may hold a secret of the receiver.
fn no_answer(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let separator = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{separator}{inner}");
        source = inner.source();
    }
    if text.is_empty() { "no answer".to_owned() } else { text }
}

/// The beginning of an answer's body, for people.
async fn beginning(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(ANSWER_CHARS_MAX).collect::<String>().trim().to_owned()
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
fn retry_after_ms(headers: &HeaderMap, now: Timestamp) -> Option<i64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let ms = match text.parse::<i64>() {
        Ok(seconds) => seconds.saturating_mul(1_000),
        Err(_) => {
            let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
            at.unix_timestamp().saturating_mul(1_000).saturating_sub(now.millis())
        }
    };
    (ms > 0).then(|| ms.min(RETRY_AFTER_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn after(text: &'static str, now_s: i64) -> Option<i64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
        retry_after_ms(&headers, Timestamp::from_millis(now_s.saturating_mul(1_000)))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_within_an_hour() {
        assert_eq!(after("120", 0), Some(120_000));
        assert_eq!(after("999999", 0), Some(RETRY_AFTER_MS_MAX));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT", 1_445_412_420), Some(60_000));
        for text in ["0", "-5", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(after(text, 1_500_000_000), None, "{text}");
        }
    }

    #[test]
    fn the_id_of_a_message_has_no_dot_and_is_always_the_same() {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        assert_eq!(message_id(id), id);
        let hashed = message_id("a.b");
        assert!(!hashed.contains('.') && hashed == message_id("a.b"));
        assert_ne!(hashed, message_id("a.c"));
    }
}
