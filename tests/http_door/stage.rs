//! The server under test: keys, a clock, a router with every extractor.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use claviger::core::access::{Action, Role};
use claviger::core::time::Timestamp;
use claviger::http::auth::{Authenticator, IssuerConfig, TTL_S_MAX};
use claviger::http::body::JsonBody;
use claviger::http::caller::Caller;
use claviger::http::idempotency::IdempotencyKey;
use claviger::http::key_source::JwksSource;
use claviger::http::limits::Limits;
use claviger::http::listener::{ListenerConfig, Listening, serve};
use claviger::http::problem::Problem;
use claviger::http::query::{PathId, QueryParams};
use claviger::ports::clock::{Clock, Entropy};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const ISS: &str = "https://id.test";
pub const AUD: &str = "claviger";
pub const SUB: &str = "alice";

pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn new() -> Self {
        Self(AtomicI64::new(1_800_000_000_000))
    }

    pub fn advance_s(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000, Ordering::Relaxed);
    }

    pub fn now_s(&self) -> i64 {
        self.0.load(Ordering::Relaxed) / 1_000
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

pub struct TestEntropy;

impl Entropy for TestEntropy {
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn bytes16(&self) -> [u8; 16] {
        *Uuid::now_v7().as_bytes()
    }
}

/// A key pair of an issuer.
pub struct Pair {
    pub kid: &'static str,
    pub algorithm: Algorithm,
    pub key: EncodingKey,
}

impl Pair {
    pub fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }
}

/// One pair of each algorithm, made once: RSA keys take their time.
pub fn pairs() -> &'static [Pair; 4] {
    static PAIRS: OnceLock<[Pair; 4]> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
        [
            Pair { kid: "rsa", algorithm: Algorithm::RS256, key: rsa_key() },
            Pair { kid: "pss", algorithm: Algorithm::PS256, key: rsa_key() },
            Pair {
                kid: "ec",
                algorithm: Algorithm::ES256,
                key: EncodingKey::from_ec_der(ec.as_ref()),
            },
            Pair {
                kid: "ed",
                algorithm: Algorithm::EdDSA,
                key: EncodingKey::from_ed_der(ed.as_ref()),
            },
        ]
    })
}

pub fn rsa_key() -> EncodingKey {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8 = AsDer::<Pkcs8V1Der>::as_der(&pair).unwrap();
    // The RSAPrivateKey (RFC 8017) begins after 26 bytes of PKCS#8 around it.
    EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..])
}

#[derive(Clone)]
struct App {
    authenticator: Arc<Authenticator>,
    entered: Arc<Notify>,
    release: Arc<Notify>,
}

impl FromRef<App> for Arc<Authenticator> {
    fn from_ref(app: &App) -> Self {
        Self::clone(&app.authenticator)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    value: String,
    list: Option<Vec<Item>>,
    metadata: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    limit: Option<u32>,
    cursor: Option<String>,
}

pub struct Stage {
    pub addr: SocketAddr,
    pub clock: Arc<TestClock>,
    pub jwks: PathBuf,
    /// Told when a request is in `/stuck`; that request ends on `release`.
    pub entered: Arc<Notify>,
    pub release: Arc<Notify>,
    pub stop: CancellationToken,
    pub listening: Listening,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        crate::watching::watch();
        let dir = tempfile::tempdir().unwrap();
        let jwks = dir.path().join("jwks.json");
        publish(&jwks, pairs());
        let clock = Arc::new(TestClock::new());
        let issuer = IssuerConfig {
            iss: ISS.into(),
            audience: AUD.into(),
            jwks: JwksSource::File(jwks.clone()),
            algorithms: ["RS256", "PS256", "ES256", "EdDSA"].map(str::to_owned).to_vec(),
            max_ttl_s: TTL_S_MAX,
        };
        let vouch =
            |iss: &str, role, sub: &str| iss == ISS && sub == SUB && role != Role::PolicyAdmin;
        let at = Arc::<TestClock>::clone(&clock);
        let authenticator = Authenticator::new(vec![issuer], Arc::new(vouch), at).unwrap();
        authenticator.load().await.unwrap();
        let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let app = App {
            authenticator: Arc::new(authenticator),
            entered: Arc::clone(&entered),
            release: Arc::clone(&release),
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ListenerConfig { name: "test", addr, tls: None, limits };
        let stop = CancellationToken::new();
        let listening =
            serve(config, router(app), Arc::new(TestEntropy), stop.clone()).await.unwrap();
        let addr = listening.addr;
        Self { addr, clock, jwks, entered, release, stop, listening, _dir: dir }
    }
}

pub fn publish(path: &PathBuf, pairs: &[Pair]) {
    let keys: Vec<Value> = pairs.iter().map(Pair::jwk).collect();
    std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
}

fn router(app: App) -> Router {
    Router::new()
        .route("/v1/orders", post(create).get(list))
        .route("/v1/orders/{id}", get(read))
        .route("/v1/orders/{id}/cancel", post(cancel))
        .route("/v1/audit", get(audit))
        .route("/healthz", get(|| async { "OK" }))
        .route("/panic", get(panics))
        .route("/broken", get(broken))
        .route("/wordy", get(|| async { (StatusCode::BAD_GATEWAY, "secret words of hyper") }))
        .route("/stuck", get(stuck))
        .with_state(app)
}

async fn create(
    caller: Caller,
    key: IdempotencyKey,
    body: JsonBody<Order>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.require(Action::Request)?;
    let Order { value, list, metadata } = body.value;
    let list: Option<Vec<String>> = list.map(|all| all.into_iter().map(|i| i.address).collect());
    let sha256 = hex::encode(body.sha256);
    let sub = caller.principal.sub;
    let key = key.as_str();
    let answer = json!({
        "sub": sub, "key": key, "value": value, "list": list, "metadata": metadata,
        "sha256": sha256,
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn list(_: Caller, QueryParams(page): QueryParams<Page>) -> Json<Value> {
    Json(json!({ "limit": page.limit, "cursor": page.cursor }))
}

async fn read(_: Caller, PathId(id): PathId<Uuid>) -> Json<Value> {
    Json(json!({ "id": id }))
}

async fn cancel(
    _: Caller,
    PathId(id): PathId<Uuid>,
    key: Option<IdempotencyKey>,
    body: Option<JsonBody<Order>>,
) -> Json<Value> {
    let value = body.map(|body| body.value.value);
    Json(json!({ "id": id, "key": key.map(|key| key.to_string()), "value": value }))
}

async fn audit(caller: Caller) -> Result<&'static str, Problem> {
    caller.require(Action::ReadAudit)?;
    Ok("leaves")
}

async fn panics() -> &'static str {
    panic!("secret of a panic")
}

async fn broken() -> Problem {
    Problem::internal("secret: the password of the database")
}

async fn stuck(State(app): State<App>) -> &'static str {
    app.entered.notify_one();
    app.release.notified().await;
    "at last"
}
