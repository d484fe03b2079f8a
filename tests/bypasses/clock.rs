//! A clock that jumps would free windows. (`tests/windows/clock.rs` has who confirms it, and how.)

use crate::stage::*;
use crate::support::server::ETHER;
use claviger::core::access::Role;
use claviger::ports::clock::Clock;
use claviger::ports::store::{End, unit};
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};

#[test]
fn bypass_26_no_door_counts_by_a_clock_that_jumped() {
    row("b26", async |it: Actor| {
        // A server of its own, on the same chain: its clock is its database's.
        let setup = set_up(it.anvil());
        let server = setup.start(&[]).await;
        let managed = server.funded_key(it.anvil(), "op").await;
        let poor = server.key("poor", Some("payments"), "managed").await;
        let external = server.key("ext", Some("payments"), "external").await;
        it.anvil().set_balance(&external, ETHER).await;
        let pays = |signer: &str, wei: u128| {
            let mut body = it.managed_body(&call(PAYEE, wei, "0x"));
            body["signer"] = json!(signer);
            body
        };
        let queued = server.ask(SUB, "queued", &pays(&poor, 1)).await.id();
        let waits = server.ask("svc:asks", "waits", &pays(&managed, ETHER)).await;
        assert_eq!(waits.status, 202, "{:#}", waits.body);
        server.stop().await;
        // It was last seen an hour after now.
        let seen = SystemClock.now().plus_millis(3_600_000).millis().to_string();
        let store = setup.store().await;
        let done = unit(&*store, "test", move |unit| {
            let seen = seen.clone();
            Box::pin(async move { Ok(End::Commit(unit.set_meta("clock_seen", &seen).await?)) })
        });
        done.await.unwrap();
        drop(store);
        let server = setup.start(&[]).await;

        let unconfirmed = (503, "clock-unconfirmed");
        for (what, signer) in [("its own", &managed), ("without money", &poor)] {
            let answer = server.ask(SUB, "new", &pays(signer, 1)).await;
            assert_eq!((answer.status, answer.code()), unconfirmed, "{what}: {:#}", answer.body);
        }
        let mut signature = it.external_body(0, &call(PAYEE, 1, "0x"));
        signature["signer"] = json!(external);
        let answer = server.sign(SUB, None, &signature).await;
        assert_eq!((answer.status, answer.code()), unconfirmed, "{:#}", answer.body);
        // People's word does not help, and nothing that they do needs a clock but to let it go.
        let approvals = format!("{}/admin/v1/approvals/{}", server.admin_url(), waits.id());
        let token = server.token("dev:alice", Role::Approver);
        let shown = server.try_call(Method::GET, approvals.clone(), &token, None, None).await;
        let said = json!({ "hash": shown.unwrap().ok()["hash"], "reason": "a test" });
        for sub in ["dev:alice", "dev:bob"] {
            let token = server.token(sub, Role::Approver);
            let url = format!("{approvals}/approve");
            server.try_call(Method::POST, url, &token, None, Some(&said)).await.unwrap().ok();
        }
        assert_eq!(server.read(&waits.id()).await["status"], "awaiting_approval");
        assert_eq!(server.intervene(&waits.id(), "speed-up").await.code(), "conflict");
        assert_eq!(server.intervene(&queued, "speed-up").await.code(), "conflict");
        assert_eq!(server.intervene(&queued, "cancel").await.ok()["status"], "cancelled");
        // What no window counts is decided as ever.
        let hello = json!({ "signer": external, "message": { "text": "hello you" } });
        assert_eq!(server.sign(SUB, None, &hello).await.status, 201);
        // Nobody who asks or approves says that the clock is right.
        let confirm = async |sub: &str, role: Role, body: Value| {
            let token = server.token(sub, role);
            let url = format!("{}/admin/v1/clock/confirm", server.admin_url());
            server.try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap().status
        };
        let reason = json!({ "reason": "a test" });
        for (sub, role) in [
            (SUB, Role::Client),
            ("dev:alice", Role::Approver),
            ("dev:policy", Role::PolicyAdmin),
            ("dev:audit", Role::Auditor),
        ] {
            assert_eq!(confirm(sub, role, reason.clone()).await, 403, "{role}");
        }
        assert_eq!(server.ask(SUB, "new", &pays(&managed, 1)).await.status, 503);
        assert_eq!(confirm("dev:op", Role::Operator, reason).await, 200);
        assert_eq!(server.ask(SUB, "new", &pays(&managed, 1)).await.status, 201);
        server.wait_for(&waits.id(), &["mined", "finalized"]).await;
        server.stop().await;
    });
}
