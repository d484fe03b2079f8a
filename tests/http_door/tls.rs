//! TLS, and key sets over https.

use crate::stage::{AUD, ISS, SUB, TestClock, TestEntropy, pairs};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::routing::get;
use axum::{Json, Router};
use claviger::http::auth::{AuthConfigError, Authenticator, IssuerConfig, TTL_S_MAX};
use claviger::http::key_source::JwksSource;
use claviger::http::limits::Limits;
use claviger::http::listener::{ListenerConfig, ListenerError, Listening, serve};
use claviger::http::problem::Problem;
use claviger::http::tls::{TlsError, TlsFiles};
use claviger::ports::clock::Clock;
use jsonwebtoken::Header;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

struct Secure {
    files: TlsFiles,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

fn secure() -> Secure {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600)).unwrap();
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([root]).no_proxy().build().unwrap();
    Secure { files, client, _dir: dir }
}

async fn listen(files: TlsFiles, router: Router) -> Result<Listening, ListenerError> {
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ListenerConfig { name: "tls", addr, tls: Some(files), limits: Limits::default() };
    serve(config, router, Arc::new(TestEntropy), CancellationToken::new()).await
}

#[tokio::test]
async fn tls_answers_and_plain_text_does_not() {
    let Secure { files, client, _dir } = secure();
    let router = Router::new().route("/healthz", get(|| async { "OK" }));
    let listening = listen(files, router).await.unwrap();
    let port = listening.addr.port();
    let answer = client.get(format!("https://localhost:{port}/healthz")).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    assert_eq!(answer.text().await.unwrap(), "OK");
    let answer = client.get(format!("https://localhost:{port}/none")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert!(client.get(format!("http://localhost:{port}/healthz")).send().await.is_err());
}

#[tokio::test]
async fn a_key_file_that_others_can_read_is_refused() {
    let Secure { files, _dir, .. } = secure();
    std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = listen(files.clone(), Router::new()).await.unwrap_err();
    assert!(matches!(refused, ListenerError::Tls(TlsError::Mode { mode: 0o644, .. })));
    std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&files.cert, "").unwrap();
    let refused = listen(files, Router::new()).await.unwrap_err();
    assert!(matches!(refused, ListenerError::Tls(TlsError::NoCertificate(_))), "{refused:?}");
}

fn issuer(jwks: JwksSource) -> IssuerConfig {
    IssuerConfig {
        iss: ISS.into(),
        audience: AUD.into(),
        jwks,
        algorithms: vec!["EdDSA".into()],
        max_ttl_s: TTL_S_MAX,
    }
}

#[tokio::test]
async fn keys_come_over_https_and_a_failing_refresh_holds_up_nobody() {
    let Secure { files, client, _dir } = secure();
    let pair = &pairs()[3];
    let served = Arc::new(Mutex::new(json!({ "keys": [pair.jwk()] })));
    let keys = |State(served): State<Arc<Mutex<Value>>>| async move {
        Json(served.lock().unwrap().clone())
    };
    let router = Router::new().route("/keys", get(keys)).with_state(Arc::clone(&served));
    let listening = listen(files, router).await.unwrap();
    let url = format!("https://localhost:{}/keys", listening.addr.port()).parse().unwrap();

    let clock = Arc::new(TestClock::new());
    let at: Arc<dyn Clock> = Arc::<TestClock>::clone(&clock);
    let issuers = vec![issuer(JwksSource::Https(url))];
    let authenticator =
        Authenticator::with_client(issuers, Arc::new(|_, _, _| true), at, &client).unwrap();
    let check = async || {
        let now = clock.now_s();
        let claims = json!({
            "iss": ISS, "sub": SUB, "aud": AUD, "exp": now + 60, "iat": now, "jti": now.to_string(),
            "roles": ["client"],
        });
        let header = Header { kid: Some(pair.kid.into()), ..Header::new(pair.algorithm) };
        let token = jsonwebtoken::encode(&header, &claims, &pair.key).unwrap();
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        headers.insert("authorization", value);
        authenticator.authenticate(&headers, &Uri::from_static("/")).await
    };
    assert_eq!(check().await.unwrap().principal.sub, SUB);
    *served.lock().unwrap() = json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]});
    clock.advance_s(3_000);
    assert!(check().await.is_ok(), "the old keys serve while a refresh fails");
    clock.advance_s(601);
    assert!(matches!(check().await, Err(Problem::IssuerUnavailable(_))), "not for ever");
}

#[test]
fn a_configuration_that_would_let_nobody_or_anybody_in_is_refused() {
    let make = |issuers| {
        let clock = Arc::new(TestClock::new());
        Authenticator::new(issuers, Arc::new(|_, _, _| true), clock).map(drop)
    };
    let file = || issuer(JwksSource::File("jwks.json".into()));
    assert!(make(vec![file()]).is_ok());
    assert!(matches!(make(vec![]), Err(AuthConfigError::NoIssuer)));
    assert!(matches!(make(vec![file(), file()]), Err(AuthConfigError::Twice(_))));
    for name in ["none", "HS256", "RS512", "rs256", ""] {
        let bad = IssuerConfig { algorithms: vec![name.into()], ..file() };
        assert!(matches!(make(vec![bad]), Err(AuthConfigError::Algorithm(..))), "{name}");
    }
    let bad = IssuerConfig { algorithms: vec![], ..file() };
    assert!(matches!(make(vec![bad]), Err(AuthConfigError::Algorithm(..))));
    let bad = IssuerConfig { max_ttl_s: 0, ..file() };
    assert!(matches!(make(vec![bad]), Err(AuthConfigError::Ttl(_))));
    let bad = IssuerConfig { audience: String::new(), ..file() };
    assert!(matches!(make(vec![bad]), Err(AuthConfigError::Empty(_))));
    let plain = JwksSource::Https("http://id.test/keys".parse().unwrap());
    assert!(matches!(make(vec![issuer(plain)]), Err(AuthConfigError::NotHttps(_))));
}
