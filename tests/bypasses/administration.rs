//! The policy's own administration: there is no way to another rule but the rule for it.

use crate::stage::*;
use claviger::core::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

async fn admin(
    it: &Actor,
    who: (&str, Role),
    verb: Method,
    path: &str,
    body: Option<&Value>,
) -> u16 {
    let url = format!("{}{path}", it.server().admin_url());
    let token = it.server().token(who.0, who.1);
    it.server().try_call(verb, url, &token, None, body).await.unwrap().status
}

#[test]
fn bypass_21_nobody_changes_the_policy_alone_or_by_its_files() {
    row("b21", async |it: Actor| {
        let pay = call(STRANGER, 1, "0x");
        it.refuses("a stranger", &pay).await;
        // The folder is edited while the server runs: nothing comes of it.
        let file = it.stage.setup.dir().join("policies/book.toml");
        let book = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, book.replacen(&PAYEE.to_lowercase(), STRANGER, 1)).unwrap();
        it.refuses("after an edit of the folder", &pay).await;
        std::fs::write(&file, book).unwrap();
        // Whoever is no policy administrator proposes, compares and activates nothing.
        let bundle = json!({ "files": { "grants.toml": "" } });
        for who in [
            ("svc:rows", Role::Client),
            ("dev:op", Role::Operator),
            ("dev:app", Role::Approver),
            ("dev:audit", Role::Auditor),
        ] {
            let status = admin(&it, who, Method::POST, "/admin/v1/policies", Some(&bundle)).await;
            assert_eq!(status, 403, "{who:?} proposes");
            let hash = "0".repeat(64);
            for (verb, body) in [("activate", json!({ "reason": "a test" })), ("replay", json!({}))]
            {
                // To look is an auditor's work.
                if (verb, who.1) == ("replay", Role::Auditor) {
                    continue;
                }
                let path = format!("/admin/v1/policies/{hash}/{verb}");
                let status = admin(&it, who, Method::POST, &path, Some(&body)).await;
                assert_eq!(status, 403, "{who:?} may not {verb}");
            }
        }
        // What does not load is not kept, whoever proposes it.
        let owner = ("dev:policy", Role::PolicyAdmin);
        for (what, body) in [
            ("nothing", json!({})),
            ("not a bundle", bundle.clone()),
            ("a hash of one's own", json!({ "hash": "0".repeat(64), "files": {} })),
        ] {
            let status = admin(&it, owner, Method::POST, "/admin/v1/policies", Some(&body)).await;
            assert!(matches!(status, 400 | 422), "{what}: {status}");
        }
        it.refuses("and the rule is as before", &pay).await;
    });
}
