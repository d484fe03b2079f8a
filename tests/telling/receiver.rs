//! One who receives webhooks, and keeps all that came.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Router, body::Body};
use claviger::http::limits::Limits;
use claviger::http::listener::{ListenerConfig, Listening, serve};
use claviger::http::tls::TlsFiles;
use claviger::system::SystemEntropy;
use serde_json::Value;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

pub const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub const OTHER: &str = "whsec_HxAeHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgE=";

/// One attempt, as it came.
#[derive(Clone)]
pub struct Got {
    pub id: String,
    pub timestamp: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn kind(&self) -> String {
        self.event()["type"].as_str().unwrap().to_owned()
    }

    pub fn subject(&self) -> String {
        self.event()["subject"].as_str().unwrap().to_owned()
    }

    /// As a receiver does it, with another implementation than ours.
    pub fn verify(&self, secret: &str) -> bool {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

/// An answer: status, a header, body.
pub type Answer = (u16, Option<(&'static str, String)>, &'static str);

#[derive(Default)]
struct Kept {
    got: Vec<Got>,
    script: VecDeque<Answer>,
    always: Option<Answer>,
}

pub struct Receiver {
    pub addr: SocketAddr,
    pub ca: Option<PathBuf>,
    kept: Arc<Mutex<Kept>>,
    stop: CancellationToken,
    _listening: Listening,
    _dir: tempfile::TempDir,
}

impl Receiver {
    pub async fn plain() -> Self {
        Self::start(false).await
    }

    /// Over TLS, as `localhost`, by a certificate that signs itself.
    pub async fn secure() -> Self {
        Self::start(true).await
    }

    async fn start(is_secure: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tls = is_secure.then(|| certificate(dir.path()));
        let ca = tls.as_ref().map(|files| files.cert.clone());
        let kept = Arc::new(Mutex::new(Kept::default()));
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ListenerConfig { name: "receiver", addr, tls, limits: Limits::default() };
        let stop = CancellationToken::new();
        let router = Router::new()
            .route("/", any(take))
            .route("/{*rest}", any(take))
            .with_state(Arc::clone(&kept));
        let listening = serve(config, router, Arc::new(SystemEntropy), stop.clone()).await.unwrap();
        Self { addr: listening.addr, ca, kept, stop, _listening: listening, _dir: dir }
    }

    pub fn url(&self) -> String {
        let (scheme, host) =
            if self.ca.is_some() { ("https", "localhost") } else { ("http", "127.0.0.1") };
        format!("{scheme}://{host}:{}/hook", self.addr.port())
    }

    /// Answers the next ones so, one each.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.kept.lock().unwrap().script.extend(answers);
    }

    /// Answers every one so until told otherwise.
    pub fn always(&self, answer: Option<Answer>) {
        self.kept.lock().unwrap().always = answer;
    }

    pub fn got(&self) -> Vec<Got> {
        self.kept.lock().unwrap().got.clone()
    }

    /// The kinds of events that came about a subject, without `claviger.transaction.`, each once.
    pub fn story(&self, subject: &str) -> Vec<String> {
        let (mut seen, mut story) = (std::collections::BTreeSet::new(), Vec::new());
        for got in self.got().iter().filter(|got| got.subject() == subject) {
            if seen.insert(got.id.clone()) {
                story.push(got.kind().replace("claviger.transaction.", ""));
            }
        }
        story
    }

    /// A section of the server's configuration, with its secret in this folder.
    pub fn section(&self, dir: &Path, name: &str, events: &str) -> String {
        let secret = dir.join(format!("{name}.secret"));
        std::fs::write(&secret, SECRET).unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let ca = self
            .ca
            .as_ref()
            .map_or_else(String::new, |path| format!("ca_file = \"{}\"\n", path.display()));
        format!(
            "\n[[webhook]]\nname = \"{name}\"\nurl = \"{}\"\nsecret_file = \"{name}.secret\"\n\
             events = [\"{events}\"]\nallow_private = true\n{ca}",
            self.url()
        )
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn certificate(dir: &Path) -> TlsFiles {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600)).unwrap();
    files
}

async fn take(State(kept): State<Arc<Mutex<Kept>>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).map_or("", |it| it.to_str().unwrap()).to_owned();
    let got = Got {
        id: text("webhook-id"),
        timestamp: text("webhook-timestamp"),
        headers: headers.clone(),
        body,
    };
    let mut kept = kept.lock().unwrap();
    kept.got.push(got);
    let answer = kept.script.pop_front().or_else(|| kept.always.clone());
    let (status, header, body) = answer.unwrap_or((204, None, ""));
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    if let Some((name, value)) = header {
        response = response.header(name, value);
    }
    // Not a problem document: sent as it is.
    let mut response = response.body(Body::from(body)).unwrap().into_response();
    response.extensions_mut().insert(claviger::http::observe::AsIs);
    response
}
