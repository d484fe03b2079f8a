//! What operators see: the log, the metrics, and what is in neither.

use crate::client::Ask;
use crate::stage::{Stage, TestEntropy};
use crate::tokens::good;
use claviger::http::limits::Limits;
use claviger::http::listener::{ListenerConfig, serve};
use claviger::http::metrics;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// The events of one request.
    fn of(&self, request_id: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|event| event["fields"]["request_id"] == request_id)
            .collect()
    }
}

/// The log and the metrics of this process, from its first server on.
pub fn watch() -> &'static (impl Sized, PrometheusHandle) {
    watched()
}

fn watched() -> &'static (Log, PrometheusHandle) {
    static WATCH: OnceLock<(Log, PrometheusHandle)> = OnceLock::new();
    WATCH.get_or_init(|| {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE);
        subscriber.with_writer(log.clone()).init();
        (log, metrics::install().unwrap())
    })
}

#[tokio::test]
async fn a_failure_inside_is_logged_once_and_not_shown() {
    let stage = Stage::new().await;
    for (path, cause) in [
        ("/panic", "a handler panicked: secret of a panic"),
        ("/broken", "secret: the password of the database"),
        ("/wordy", "an answer 502 Bad Gateway without a problem"),
    ] {
        let answer = Ask::get(path).send(stage.addr).await;
        answer.problem(path, 500, "internal");
        let events = watched().0.of(answer.header("x-request-id").unwrap());
        let causes: Vec<_> = events.iter().filter_map(|e| e["fields"]["cause"].as_str()).collect();
        assert_eq!(causes, [cause], "{path}");
    }
}

#[tokio::test]
async fn a_request_is_one_event_with_its_caller_and_without_its_secrets() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let id = "01957a3c-7e0a-7c55-9a3e-0f5d7b9c2d11";
    let path = format!("/v1/orders/{id}");
    let ask = Ask::get(&path).bearer(&token).header("x-request-id", "one-event");
    assert_eq!(ask.send(stage.addr).await.status, 200);
    let refused = Ask::post("/v1/orders?note=hush").bearer(&token).json("{\"hush\":1}");
    let refused = refused.header("x-request-id", "refused").send(stage.addr).await;
    refused.problem("no key", 400, "invalid-request");

    let events = watched().0.of("one-event");
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let fields = &event["fields"];
    assert_eq!(fields["route"], "/v1/orders/{id}");
    assert_eq!((&fields["method"], &fields["sub"]), (&"GET".into(), &"alice".into()));
    assert_eq!((fields["status"].as_u64(), fields["ms"].is_number()), (Some(200), true));
    let events = watched().0.of("refused");
    assert_eq!(events[0]["fields"]["code"], "invalid-request");

    let everything = String::from_utf8(watched().0.0.lock().unwrap().clone()).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    for secret in [signature, "hush", path.as_str()] {
        assert!(!everything.contains(secret), "the log has {secret}");
    }
}

#[tokio::test]
async fn an_id_that_is_not_well_formed_is_replaced() {
    let stage = Stage::new().await;
    for bad in ["", "a b", "caf\u{e9}", &"x".repeat(65)] {
        let answer = Ask::get("/healthz").header("x-request-id", bad).send(stage.addr).await;
        let id = answer.header("x-request-id").unwrap();
        assert!(uuid::Uuid::parse_str(id).is_ok_and(|id| id.get_version_num() == 7), "{bad}");
    }
    let twice = Ask::get("/healthz").header("x-request-id", "a").header("x-request-id", "b");
    let answer = twice.send(stage.addr).await;
    assert!(uuid::Uuid::parse_str(answer.header("x-request-id").unwrap()).is_ok());
}

#[tokio::test]
async fn durations_are_counted_by_route_and_never_by_path() {
    let stage = Stage::new().await;
    for path in ["/v1/orders/abc", "/no/such/path", "/healthz"] {
        Ask::get(path).send(stage.addr).await;
    }
    Ask::new("BREW", "/healthz").send(stage.addr).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ListenerConfig { name: "metrics", addr, tls: None, limits: Limits::default() };
    let router = metrics::router(watched().1.clone());
    let listening =
        serve(config, router, Arc::new(TestEntropy), CancellationToken::new()).await.unwrap();
    let answer = Ask::get("/metrics").send(listening.addr).await;
    assert_eq!(answer.status, 200);
    let text = answer.body;
    for line in [
        r#"claviger_http_request_duration_seconds_bucket{route="/v1/orders/{id}",method="GET",status="401",le="0.001"}"#,
        r#"{route="none",method="GET",status="404",le="+Inf"}"#,
        r#"{route="/healthz",method="other",status="405",le="+Inf"}"#,
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("/no/such/path") && !text.contains("abc"));
}
