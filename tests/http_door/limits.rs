//! Slow, stuck and too many: every one of them ends.

use crate::client::{Ask, read_to_close};
use crate::stage::Stage;
use crate::tokens::good;
use claviger::http::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Short, and long enough for a request that is not slow on purpose.
const SHORT_MS: u64 = 100;

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let stage = Stage::with(Limits { body_read_ms: SHORT_MS, ..Limits::default() }).await;
    let head = |name: &str, value: &str| {
        Ask::post("/v1/orders")
            .bearer(&good(&stage))
            .header("idempotency-key", "k")
            .header("content-type", "application/json")
            .header(name, value)
    };
    let answer = head("content-length", "10").send(stage.addr).await;
    answer.problem("announced", 408, "timeout");
    let answer = head("transfer-encoding", "chunked").send(stage.addr).await;
    answer.problem("chunked", 408, "timeout");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_is_given_up() {
    let stage = Stage::with(Limits { head_read_ms: SHORT_MS, ..Limits::default() }).await;
    for sent in ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nhost: x\r\nx-drip: "] {
        let mut stream = TcpStream::connect(stage.addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let answer = read_to_close(&mut stream).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:?}");
    }
}

#[tokio::test]
async fn a_request_that_does_not_end_is_given_up() {
    let stage = Stage::with(Limits { request_ms: SHORT_MS, ..Limits::default() }).await;
    Ask::get("/stuck").send(stage.addr).await.problem("stuck", 408, "timeout");
}

#[tokio::test]
async fn too_many_requests_are_shed_but_probes_answer() {
    let stage = Stage::with(Limits { requests_max: 1, ..Limits::default() }).await;
    let addr = stage.addr;
    let first = tokio::spawn(Ask::get("/stuck").send(addr));
    stage.entered.notified().await;
    Ask::get("/stuck").send(addr).await.problem("second", 503, "overloaded");
    assert_eq!(Ask::get("/healthz").send(addr).await.status, 200);
    stage.release.notify_one();
    assert_eq!(first.await.unwrap().body, "at last");
    let again = tokio::spawn(Ask::get("/stuck").send(addr));
    stage.entered.notified().await;
    stage.release.notify_one();
    assert_eq!(again.await.unwrap().status, 200);
}

#[tokio::test]
async fn too_many_connections_are_closed() {
    let stage = Stage::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let mut first = TcpStream::connect(stage.addr).await.unwrap();
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(stage.addr).await.unwrap();
    // The server may have closed already, so writing may fail.
    let _ = second.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(read_to_close(&mut second).await.is_empty());
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let stage = Stage::new().await;
    let answer = Ask::get("/healthz").header("x-long", "x".repeat(500_000)).send(stage.addr).await;
    assert_eq!((answer.status, answer.body.as_str()), (431, ""));
}

#[tokio::test]
async fn a_stop_lets_requests_in_hand_end() {
    let stage = Stage::new().await;
    let addr = stage.addr;
    let in_hand = tokio::spawn(Ask::get("/stuck").send(addr));
    stage.entered.notified().await;
    stage.stop.cancel();
    stage.release.notify_one();
    assert_eq!(in_hand.await.unwrap().body, "at last");
    stage.listening.stopped().await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_stop_cuts_off_what_does_not_end() {
    let stage = Stage::with(Limits { drain_ms: SHORT_MS, ..Limits::default() }).await;
    let mut stuck = TcpStream::connect(stage.addr).await.unwrap();
    stuck.write_all(&Ask::get("/stuck").bytes()).await.unwrap();
    stage.entered.notified().await;
    stage.stop.cancel();
    stage.listening.stopped().await.unwrap();
    assert!(read_to_close(&mut stuck).await.is_empty());
}
