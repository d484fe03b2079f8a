//! Bodies, parameters, idempotency keys and paths.

use crate::client::Ask;
use crate::stage::Stage;
use crate::tokens::good;

const ID: &str = "01957a3c-7e0a-7c55-9a3e-0f5d7b9c2d11";
const BODY: &str = r#"{"value":"1"}"#;

#[tokio::test]
async fn a_good_request_gets_in() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let body = r#"{"value":"1","list":[{"address":"a"}],"metadata":{"n":1.50}}"#;
    let answer = Ask::post("/v1/orders")
        .bearer(&token)
        .header("idempotency-key", "order:1/~")
        .header("x-request-id", "caller-chose-this")
        .header("content-type", "application/json; charset=UTF-8")
        .body(body)
        .send(stage.addr)
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("x-request-id"), Some("caller-chose-this"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let made = answer.json();
    assert_eq!((made["key"].as_str(), made["sub"].as_str()), (Some("order:1/~"), Some("alice")));
    let digest: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        body,
    ))
    .into();
    assert_eq!(made["sha256"], hex::encode(digest));

    let answer = Ask::post(&format!("/v1/orders/{ID}/cancel")).bearer(&token).send(stage.addr);
    assert_eq!(answer.await.json()["key"], serde_json::Value::Null);
    let chunked = Ask::post(&format!("/v1/orders/{ID}/cancel"))
        .bearer(&token)
        .header("content-type", "application/json")
        .chunked(BODY.as_bytes());
    assert_eq!(chunked.send(stage.addr).await.json()["value"], "1");
}

#[tokio::test]
async fn bodies_are_json_and_strictly_so() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let deep = "[".repeat(100_000);
    let cases: [(&[u8], &str); 18] = [
        (b"", "body"),
        (b"{", "body"),
        (b"nonsense", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"\xef\xbb\xbf{\"value\":\"1\"}", "body"),
        (b"{\"value\":\"\xff\"}", "body"),
        (b"{\"value\":\"1\"}{}", "body"),
        (br#"{"value":"1","valeu":"1"}"#, "valeu"),
        (br#"{"value":1}"#, "value"),
        (br#"{"value":null}"#, "value"),
        (br#"{"value":"1","value":"1"}"#, "body"),
        (br#"{"value":"1","metadata":{"a":1,"a":1}}"#, "metadata"),
        (br#"{"value":"1","metadata":{"$serde_json::private::Number":"1"}}"#, "body"),
        (br#"{"value":"1","list":[{"address":"a"},{"address":5}]}"#, "list[1].address"),
        (br#"{"value":"1","list":[{"address":"a","x":1}]}"#, "list[0].x"),
        (br#"{}"#, "body"),
        (deep.as_bytes(), "[0][0]"),
    ];
    for (body, field) in cases {
        let case = String::from_utf8_lossy(body.get(..70).unwrap_or(body)).into_owned();
        let answer = Ask::post("/v1/orders")
            .bearer(&token)
            .header("idempotency-key", "k")
            .json(body)
            .send(stage.addr)
            .await;
        let document = answer.problem(&case, 400, "invalid-request");
        let found = document["field"].as_str().unwrap();
        assert!(found.starts_with(field), "{case}: {document}");
    }
}

#[tokio::test]
async fn only_a_body_that_says_it_is_json_is_read() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let post = || Ask::post("/v1/orders").bearer(&token).header("idempotency-key", "k");
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/json+x",
        "multipart/form-data; boundary=x",
    ] {
        let answer = post().header("content-type", kind).body(BODY).send(stage.addr).await;
        answer.problem(kind, 415, "unsupported-media-type");
    }
    post().body(BODY).send(stage.addr).await.problem("none", 415, "unsupported-media-type");
    let twice = post().header("content-type", "application/json").json(BODY);
    twice.send(stage.addr).await.problem("twice", 415, "unsupported-media-type");
}

#[tokio::test]
async fn ten_megabytes_are_refused_announced_or_not() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let big = vec![b' '; 10_000_000];
    let post = || {
        let post = Ask::post("/v1/orders").bearer(&token).header("idempotency-key", "k");
        post.header("content-type", "application/json")
    };
    post().body(&big).send(stage.addr).await.problem("announced", 413, "too-large");
    post().chunked(&big).send(stage.addr).await.problem("streamed", 413, "too-large");
    let limit = vec![b' '; 256 * 1024];
    post().body(&limit).send(stage.addr).await.problem("at the limit", 400, "invalid-request");
    let over = vec![b' '; 256 * 1024 + 1];
    post().body(&over).send(stage.addr).await.problem("over by one", 413, "too-large");
    post().chunked(&over).send(stage.addr).await.problem("streamed over", 413, "too-large");
}

#[tokio::test]
async fn an_idempotency_key_is_visible_ascii_and_comes_once() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let post = || Ask::post("/v1/orders").bearer(&token);
    let long = "x".repeat(256);
    let cases: [(&str, &[&[u8]]); 8] = [
        ("missing", &[]),
        ("empty", &[b""]),
        ("256 characters", &[long.as_bytes()]),
        ("a space", &[b"a b"]),
        ("a tab", &[b"a\tb"]),
        ("UTF-8", &["cl\u{e9}".as_bytes()]),
        ("twice", &[b"a", b"a"]),
        ("a byte above ASCII", &[b"a\xffb"]),
    ];
    for (case, keys) in cases {
        let ask = keys.iter().fold(post(), |ask, key| ask.header("Idempotency-Key", key));
        let document = ask.json(BODY).send(stage.addr).await.problem(case, 400, "invalid-request");
        assert_eq!(document["field"], "Idempotency-Key", "{case}");
    }
    // A control character does not even make a header: nothing is known about such a request.
    let answer = post().header("idempotency-key", b"a\x01b").json(BODY).send(stage.addr).await;
    assert_eq!((answer.status, answer.body.as_str()), (400, ""));
    let longest = post().header("idempotency-key", "x".repeat(255)).json(BODY);
    assert_eq!(longest.send(stage.addr).await.status, 201);
    let optional = Ask::post(&format!("/v1/orders/{ID}/cancel")).bearer(&token);
    let answer = optional.header("idempotency-key", "").send(stage.addr).await;
    answer.problem("optional but malformed", 400, "invalid-request");
}

#[tokio::test]
async fn an_auth_failure_is_told_before_anything_else() {
    let stage = Stage::new().await;
    for (case, ask) in [
        ("body", Ask::post("/v1/orders").json("{")),
        ("content type", Ask::post("/v1/orders").body("x")),
        ("streamed body", Ask::post("/v1/orders").chunked(&vec![b' '; 10_000_000])),
        ("id", Ask::get("/v1/orders/not-an-id")),
        ("query", Ask::get("/v1/orders?limt=1")),
        ("audit", Ask::get("/v1/audit")),
    ] {
        ask.send(stage.addr).await.problem(case, 401, "unauthenticated");
    }
}

#[tokio::test]
async fn paths_methods_and_parameters() {
    let stage = Stage::new().await;
    let token = good(&stage);
    for path in ["/", "/v1", "/v1/orders/", "/v1/../healthz", "/V1/orders", "/%2e%2e/etc/passwd"] {
        let answer = Ask::get(path).bearer(&token).send(stage.addr).await;
        answer.problem(path, 404, "not-found");
    }
    for method in ["DELETE", "PUT", "PATCH", "TRACE", "BREW"] {
        let answer = Ask::new(method, "/v1/orders").bearer(&token).send(stage.addr).await;
        answer.problem(method, 405, "method-not-allowed");
        let allow = answer.header("allow").unwrap();
        assert!(allow.contains("GET") && allow.contains("POST"), "{method}: {allow}");
    }
    for (path, field) in [
        ("/v1/orders/not-an-id", "id"),
        ("/v1/orders/%ff", "path"),
        ("/v1/orders?limit=ten", "limit"),
        ("/v1/orders?limt=10", "limt"),
        ("/v1/orders?cursor=a&cursor=b", "cursor"),
        ("/v1/orders?cursor=%ff", "query"),
    ] {
        let answer = Ask::get(path).bearer(&token).send(stage.addr).await;
        let document = answer.problem(path, 400, "invalid-request");
        assert_eq!(document["field"], field, "{document}");
    }
    let answer = Ask::get("/v1/orders?limit=10").bearer(&token).send(stage.addr).await;
    assert_eq!(answer.json()["limit"], 10);
}
