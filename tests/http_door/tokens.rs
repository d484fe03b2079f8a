//! Tokens: the good ones of every algorithm, and every bad one that was thought of.

use crate::client::Ask;
use crate::stage::{AUD, ISS, Pair, SUB, Stage, pairs, publish, rsa_key};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// Base64url without padding (RFC 7515 section 2).
fn b64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..=group.len() {
            let letter = bits >> (18 - 6 * at) & 63;
            text.push(char::from(LETTERS[letter as usize]));
        }
    }
    text
}

fn forge(header: &Value, claims: &str, key: Option<(&EncodingKey, Algorithm)>) -> String {
    let message = format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.as_bytes()));
    let signature = key.map_or_else(String::new, |(key, algorithm)| {
        jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap()
    });
    format!("{message}.{signature}")
}

pub fn claims(stage: &Stage) -> Value {
    let now = stage.clock.now_s();
    json!({
        "iss": ISS, "sub": SUB, "aud": AUD, "exp": now + 600, "iat": now, "jti": "token-1",
        "roles": ["client"],
    })
}

/// The claims with one more or other; `null` takes it away.
fn but(stage: &Stage, name: &str, value: Value) -> String {
    let mut claims = claims(stage);
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims.to_string()
}

fn signed(pair: &Pair, claims: &str) -> String {
    let header = json!({ "alg": pair.algorithm, "kid": pair.kid, "typ": "JWT" });
    forge(&header, claims, Some((&pair.key, pair.algorithm)))
}

pub fn good(stage: &Stage) -> String {
    signed(&pairs()[3], &claims(stage).to_string())
}

#[tokio::test]
async fn every_algorithm_is_accepted_and_again_from_the_cache() {
    let stage = Stage::new().await;
    for pair in pairs() {
        let token = signed(pair, &claims(&stage).to_string());
        for _ in 0..2 {
            let answer = Ask::get("/v1/orders").bearer(&token).send(stage.addr).await;
            assert_eq!(answer.status, 200, "{:?}: {answer:?}", pair.algorithm);
        }
    }
    let token = signed(&pairs()[2], &but(&stage, "aud", json!(["other", AUD])));
    let ask = Ask::get("/v1/orders").header("Authorization", format!("bEARER  {token}"));
    assert_eq!(ask.send(stage.addr).await.status, 200);
}

#[tokio::test]
async fn a_token_of_the_development_issuer_is_accepted() {
    use claviger::core::access::Role;
    use claviger::issuer::{Grant, create, issue};

    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let files = create(dir.path()).unwrap();
    std::fs::copy(&files.jwks, &stage.jwks).unwrap();
    stage.clock.advance_s(1);
    let roles = [Role::Client, Role::Auditor];
    let grant = Grant { iss: ISS, aud: AUD, sub: SUB, roles: &roles, ttl_s: 3_600, jti: "1" };
    let now = claviger::ports::clock::Clock::now(stage.clock.as_ref());
    let token = issue(&files.key, &grant, now).unwrap();
    assert_eq!(Ask::get("/v1/audit").bearer(&token).send(stage.addr).await.status, 200);
}

#[tokio::test]
async fn a_header_cannot_choose_how_it_is_verified() {
    let stage = Stage::new().await;
    let [rsa, pss, ec, ed] = pairs();
    let claims = claims(&stage).to_string();
    let stranger = rsa_key();
    let jwk = rsa.jwk();
    let public = [jwk.to_string(), jwk["n"].as_str().unwrap().to_owned()];
    let hmac = public.map(|secret| EncodingKey::from_secret(secret.as_bytes()));
    let own = Pair { kid: "own", algorithm: Algorithm::RS256, key: stranger.clone() }.jwk();
    let hs = Some((&hmac[0], Algorithm::HS256));
    let strange = Some((&stranger, Algorithm::RS256));
    let ed_sig = Some((&ed.key, Algorithm::EdDSA));
    let cases = [
        ("none", forge(&json!({"alg": "none", "kid": "rsa"}), &claims, None)),
        ("None", forge(&json!({"alg": "None", "kid": "rsa"}), &claims, None)),
        ("no alg", forge(&json!({"kid": "rsa"}), &claims, None)),
        ("no signature", forge(&json!({"alg": "RS256", "kid": "rsa"}), &claims, None)),
        ("HS256, key set", forge(&json!({"alg": "HS256", "kid": "rsa"}), &claims, hs)),
        (
            "HS256, modulus",
            forge(
                &json!({"alg": "HS256", "kid": "rsa"}),
                &claims,
                Some((&hmac[1], Algorithm::HS256)),
            ),
        ),
        ("HS256, no kid", forge(&json!({"alg": "HS256"}), &claims, hs)),
        (
            "RS256 with the key of PS256",
            forge(
                &json!({"alg": "RS256", "kid": "pss"}),
                &claims,
                Some((&pss.key, Algorithm::RS256)),
            ),
        ),
        (
            "RS384 with the key of RS256",
            forge(
                &json!({"alg": "RS384", "kid": "rsa"}),
                &claims,
                Some((&rsa.key, Algorithm::RS384)),
            ),
        ),
        (
            "EdDSA under an RSA key's id",
            forge(&json!({"alg": "EdDSA", "kid": "rsa"}), &claims, ed_sig),
        ),
        (
            "RS256 under an EC key's id",
            forge(&json!({"alg": "RS256", "kid": "ec"}), &claims, strange),
        ),
        ("a stranger's key", forge(&json!({"alg": "RS256", "kid": "rsa"}), &claims, strange)),
        (
            "a key in the header",
            forge(&json!({"alg": "RS256", "kid": "rsa", "jwk": own}), &claims, strange),
        ),
        (
            "a key in the header, no kid",
            forge(&json!({"alg": "RS256", "jwk": own}), &claims, strange),
        ),
        (
            "a URL in the header",
            forge(
                &json!({"alg": "RS256", "kid": "own", "jku": "https://evil.test/"}),
                &claims,
                strange,
            ),
        ),
        ("no kid, several keys", forge(&json!({"alg": "EdDSA"}), &claims, ed_sig)),
        ("an unknown kid", forge(&json!({"alg": "EdDSA", "kid": "gone"}), &claims, ed_sig)),
        (
            "critical headers",
            forge(
                &json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": true}),
                &claims,
                ed_sig,
            ),
        ),
        ("a changed signature", signed(ec, &claims) + "A"),
        ("not a JWT", "abc".to_owned()),
        ("two parts", "e30.e30".to_owned()),
        ("five parts", "e30.e30.e30.e30.e30".to_owned()),
        ("empty parts", "..".to_owned()),
    ];
    for (case, token) in cases {
        let answer = Ask::get("/v1/orders").bearer(&token).send(stage.addr).await;
        answer.problem(case, 401, "unauthenticated");
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(challenge.contains("invalid_token"), "{case}: {challenge}");
    }
}

#[tokio::test]
async fn every_claim_is_checked() {
    let stage = Stage::new().await;
    let pair = &pairs()[2];
    let now = stage.clock.now_s();
    let cases = [
        ("iss", json!("https://evil.test"), "issuer"),
        ("iss", Value::Null, "JWT"),
        ("sub", Value::Null, "`sub`"),
        ("sub", json!(""), "`sub`"),
        ("sub", json!("a\nb"), "`sub`"),
        ("sub", json!("x".repeat(256)), "`sub`"),
        ("sub", json!(7), "invalid type"),
        ("aud", json!("other"), "audience"),
        ("aud", json!(["other"]), "audience"),
        ("aud", json!([]), "audience"),
        ("aud", Value::Null, "`aud`"),
        ("exp", json!(now), "expired"),
        ("exp", json!(now - 1), "expired"),
        ("exp", json!(now + 3_601), "too long"),
        ("exp", json!(i64::MAX), "too long"),
        ("exp", json!("soon"), "invalid type"),
        ("exp", Value::Null, "`exp`"),
        ("iat", json!(now + 31), "not valid yet"),
        ("iat", Value::Null, "`iat`"),
        ("nbf", json!(now + 31), "not valid yet"),
        ("jti", Value::Null, "`jti`"),
        ("jti", json!(""), "`jti`"),
        ("roles", Value::Null, "`roles`"),
        ("roles", json!([]), "`roles`"),
        ("roles", json!("client"), "invalid type"),
        ("roles", json!(["root"]), "unknown role"),
        ("roles", json!(["client", "Client"]), "unknown role"),
        ("cnf", json!({"x5t#S256": "abc"}), "`cnf`"),
        ("bdh", json!("abc"), "`bdh`"),
        ("htm", json!("POST"), "`htm`"),
        ("htu", json!("https://claviger.test/v1/orders"), "`htu`"),
    ];
    for (claim, value, detail) in cases {
        let case = format!("{claim} = {value}");
        let token = signed(pair, &but(&stage, claim, value));
        let answer = Ask::get("/v1/orders").bearer(&token).send(stage.addr).await;
        let document = answer.problem(&case, 401, "unauthenticated");
        assert!(document["detail"].as_str().unwrap().contains(detail), "{case}: {document}");
    }
    let text = claims(&stage).to_string();
    for more in [r#""roles":["auditor"]"#, r#""cnf":null"#] {
        let token = signed(pair, &text.replacen('{', &format!("{{{more},"), 1));
        let answer = Ask::get("/v1/orders").bearer(&token).send(stage.addr).await;
        answer.problem(more, 401, "unauthenticated");
    }
}

#[tokio::test]
async fn a_role_or_subject_that_is_not_vouched_for_refuses_the_whole_token() {
    let stage = Stage::new().await;
    for (claim, value) in [
        ("roles", json!(["policy_admin"])),
        ("roles", json!(["client", "policy_admin"])),
        ("sub", json!("mallory")),
    ] {
        let case = format!("{claim} = {value}");
        let token = signed(&pairs()[3], &but(&stage, claim, value));
        let answer = Ask::get("/v1/orders").bearer(&token).send(stage.addr).await;
        answer.problem(&case, 403, "forbidden");
    }
    let answer = Ask::get("/v1/audit").bearer(&good(&stage)).send(stage.addr).await;
    answer.problem("a client reads the audit log", 403, "forbidden");
}

#[tokio::test]
async fn only_one_authorization_header_with_one_token_counts() {
    let stage = Stage::new().await;
    let token = good(&stage);
    let huge = signed(&pairs()[3], &but(&stage, "more", json!("x".repeat(8_192))));
    let bearer = format!("Bearer {token}");
    let get = || Ask::get("/v1/orders");
    let cases = [
        ("twice the same", get().bearer(&token).bearer(&token)),
        ("two kinds", get().bearer(&token).header("authorization", "Basic YTpi")),
        ("in a list", get().header("authorization", format!("{bearer}, {bearer}"))),
        ("two tokens", get().header("authorization", format!("{bearer} {token}"))),
        ("another scheme", get().header("authorization", format!("Basic {token}"))),
        ("no scheme", get().header("authorization", &token)),
        ("no token", get().header("authorization", "Bearer ")),
        ("not ASCII", get().header("authorization", "Bearer \u{e9}")),
        ("oversized", get().bearer(&huge)),
        ("in the query", Ask::get(&format!("/v1/orders?access_token={token}"))),
        ("also in the query", Ask::get("/v1/orders?access_token=x").bearer(&token)),
    ];
    for (case, ask) in cases {
        let answer = ask.send(stage.addr).await;
        answer.problem(case, 401, "unauthenticated");
        assert!(!answer.body.contains(&token), "{case} shows the token");
    }
    let answer = get().send(stage.addr).await;
    answer.problem("none", 401, "unauthenticated");
    assert_eq!(answer.header("www-authenticate"), Some(r#"Bearer realm="claviger""#));
}

#[tokio::test]
async fn a_cached_token_dies_with_its_time_and_with_its_key() {
    let stage = Stage::new().await;
    let long = signed(&pairs()[0], &claims(&stage).to_string());
    let get = |token: &str| Ask::get("/v1/orders").bearer(token).send(stage.addr);
    assert_eq!(get(&long).await.status, 200);
    stage.clock.advance_s(599);
    assert_eq!(get(&long).await.status, 200);
    stage.clock.advance_s(1);
    get(&long).await.problem("expired", 401, "unauthenticated");

    let token = good(&stage);
    assert_eq!(get(&token).await.status, 200);
    publish(&stage.jwks, &pairs()[..3]);
    stage.clock.advance_s(1);
    get(&token).await.problem("its key was withdrawn", 401, "unauthenticated");
}
