//! Keys that the HSM had already: looked at, proved, pinned; or refused, with all that is wrong.

use crate::stage::{Ran, anvil, at_token, claviger, leaves_of, set_up, world};
use crate::support::server::{ETHER, Server, SetUp, payout};
use claviger::core::audit::LeafKind;
use serde_json::json;
use std::fs;

/// `claviger key import --json` at a running server.
fn import(setup: &SetUp, server: &Server, id: &str, more: &[&str]) -> Ran {
    let config = setup.config().display().to_string();
    let listen = server.admin_url().trim_start_matches("http://").to_owned();
    let mut args = vec!["key", "import", "--config", &config, "--json", "--cka-id", id];
    args.extend(more);
    claviger(&args, &[("CLAVIGER__SERVER__ADMIN_LISTEN", &listen)], "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_the_hsm_is_imported_once_and_pays() {
    let anvil = anvil().await;
    let setup = set_up(&anvil.url());
    at_token(&setup, &json!({ "do": "generate", "id": "0a0b" }));
    let server = setup.start(&[]).await;
    let args = ["--label", "old", "--group", "payments"];
    let key = &import(&setup, &server, "0a0b", &args).ok()["keys"][0];
    let address = key["address"].as_str().unwrap().to_owned();
    import(&setup, &server, "0a0b", &["--label", "again"]).refused("known already");
    import(&setup, &server, "0c", &["--label", "none"]).refused("no object with this id");
    import(&setup, &server, "xyz", &["--label", "none"]).refused("in hex");
    import(&setup, &server, "0a0b", &["--label", "a b"]).refused("must be 1 to 64");

    // It pays from where its account stands on the chain.
    anvil.set_balance(&address, 100 * ETHER).await;
    let paid = server.ask("svc:payouts", "one", &payout(ETHER / 1000)).await;
    let mined = server.wait_for(&paid.id(), &["mined", "finalized"]).await;
    assert_eq!(mined["address"], address);
    server.checkpoint().await;
    server.stop().await;

    let leaves = leaves_of(&world(&setup).await, LeafKind::KeyImported);
    assert_eq!(leaves.len(), 1);
    assert_eq!(leaves[0].text("address"), Some(address.as_str()));
    assert_eq!((leaves[0].text("cka_id"), leaves[0].text("label")), (Some("0x0a0b"), Some("old")));
    // It is there after a restart.
    let server = setup.start(&[]).await;
    let paid = server.ask("svc:payouts", "two", &payout(ETHER / 1000)).await;
    server.wait_for(&paid.id(), &["mined", "finalized"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_wrong_attributes_is_imported_by_exception_only() {
    let anvil = anvil().await;
    let setup = set_up(&anvil.url());
    let careless = json!({
        "do": "generate", "id": "0e", "extractable": true, "sensitive": false, "derive": true,
    });
    at_token(&setup, &careless);
    at_token(&setup, &json!({ "do": "generate", "id": "0f", "curve": "p256" }));
    at_token(&setup, &json!({ "do": "generate", "id": "10" }));
    at_token(&setup, &json!({ "do": "generate", "id": "10" }));
    at_token(&setup, &json!({ "do": "generate", "id": "11" }));
    at_token(&setup, &json!({ "do": "destroy", "id": "11", "class": "private" }));
    let server = setup.start(&[]).await;
    let told = import(&setup, &server, "0e", &["--label", "careless"]);
    for says in ["CKA_SENSITIVE is false", "CKA_EXTRACTABLE is true", "CKA_DERIVE is true"] {
        told.refused(says);
    }
    import(&setup, &server, "0f", &["--label", "p256"]).refused("not on the curve secp256k1");
    import(&setup, &server, "10", &["--label", "twins"]).refused("several private keys");
    import(&setup, &server, "11", &["--label", "half"]).refused("no private key");
    server.stop().await;
    assert!(world(&setup).await.names.is_empty());

    // Too little is excepted, then all of it.
    let config = fs::read_to_string(setup.config()).unwrap();
    let excepted = |allows: &str| {
        let exception = format!(
            "[[hsm.exception]]\ncka_id = \"0e\"\nallows = [{allows}]\nreason = \"moved from the old HSM\"\n\n"
        );
        let at = config.find("[[auth.issuer]]").unwrap();
        fs::write(setup.config(), format!("{}{exception}{}", &config[..at], &config[at..]))
            .unwrap();
    };
    excepted("\"extractable\", \"not-sensitive\"");
    let server = setup.start(&[]).await;
    let told = import(&setup, &server, "0e", &["--label", "careless"]);
    told.refused("CKA_DERIVE is true");
    assert!(!told.err.contains("CKA_EXTRACTABLE"), "{told:#?}");
    server.stop().await;
    let all = "\"extractable\", \"not-sensitive\", \"not-always-sensitive\", \
               \"not-never-extractable\", \"derive\"";
    excepted(all);
    let server = setup.start(&[]).await;
    import(&setup, &server, "0e", &["--label", "careless"]).ok();
    server.checkpoint().await;
    server.stop().await;
    let leaf = leaves_of(&world(&setup).await, LeafKind::KeyImported).remove(0);
    assert_eq!(leaf.text("reason"), Some("moved from the old HSM"));

    // Each start says it again.
    let server = setup.start(&[]).await;
    let log = server.program.stderr();
    assert!(log.contains("a key is used by exception") && log.contains("moved from"), "{log}");
    server.stop().await;
    // Without the exception it may not sign any more.
    fs::write(setup.config(), &config).unwrap();
    let server = setup.start(&[]).await;
    let log = server.program.stderr();
    assert!(log.contains("its attributes are wrong: CKA_SENSITIVE is false"), "{log}");
    server.stop().await;
}
