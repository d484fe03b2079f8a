//! A ceremony that a crash ends: seen, finished, recorded.

use crate::stage::{
    TWO_KEYS, anvil, carried_out, ceremony, claviger, leaves_of, plan_of, private_labels, set_up,
    world,
};
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::server::SetUp;
use claviger::core::audit::LeafKind;
use claviger::ports::store::look;
use serde_json::Value;
use sqlx::Connection as _;

fn doctor_on_ceremonies(setup: &SetUp) -> Value {
    let config = setup.config().display().to_string();
    let ran = claviger(&["doctor", "--config", &config, "--json"], &[], "");
    let told: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran:#?}"));
    let mut checks = told["checks"].as_array().unwrap().iter();
    checks.find(|&it| it["check"] == "key ceremonies").cloned().unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ceremony_killed_between_two_keys_is_seen_finished_and_recorded() {
    let anvil = anvil().await;
    let setup = set_up(&anvil.url());
    let plan = plan_of(&setup, TWO_KEYS);
    // The second pair is in the token, and nobody has pinned it.
    let killed =
        carried_out(&setup, &plan, &[], &[("CLAVIGER_FAILPOINT", "create_key.after_hsm:2")]);
    assert_eq!(killed.code, None, "{killed:#?}");
    let left = world(&setup).await;
    assert_eq!((left.names.len(), left.open, private_labels(&left).len()), (2, true, 2));

    let told = doctor_on_ceremonies(&setup);
    assert_eq!(told["ok"], false);
    assert!(told["detail"].as_str().unwrap().contains("has not ended"), "{told}");

    // No other one begins, and its names are taken.
    let again = carried_out(&setup, &plan, &[], &[]);
    again.refused("has not ended");
    again.refused("the database has a key `op-2`");

    // The server finishes the keys, says so, and the log has a beginning without an end.
    let server = setup.start(&[]).await;
    assert!(server.program.stderr().contains("a key ceremony was begun and has not ended"));
    server.checkpoint().await;
    server.stop().await;
    let left = world(&setup).await;
    assert_eq!(leaves_of(&left, LeafKind::KeyCreated).len(), 2);
    let actions = |world: &_| {
        let leaves = leaves_of(world, LeafKind::KeyCeremony);
        leaves.iter().map(|leaf| leaf.text("action").unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(actions(&left), ["begun"]);

    let ended = ceremony(&setup, &["--end-interrupted", "the power failed"], &[], "").ok();
    let record = &ended["record"];
    assert_eq!(record["ceremony"]["outcome"], "interrupted");
    assert_eq!(record["ceremony"]["reason"], "the power failed");
    assert_eq!(record["key"].as_array().unwrap().len(), 2);
    let left = world(&setup).await;
    assert_eq!((actions(&left), left.open), (vec!["begun".to_owned(), "ended".to_owned()], false));
    assert_eq!(doctor_on_ceremonies(&setup)["ok"], true);
    ceremony(&setup, &["--end-interrupted", "again"], &[], "").refused("no ceremony is open");
}

#[tokio::test]
async fn what_an_interrupted_ceremony_did_not_make_is_named_and_can_be_made_later() {
    let setup = set_up("http://127.0.0.1:1");
    let plan = plan_of(&setup, TWO_KEYS);
    let killed = carried_out(&setup, &plan, &[], &[("CLAVIGER_FAILPOINT", "ceremony.after_key:1")]);
    assert_eq!(killed.code, None, "{killed:#?}");
    let ended = ceremony(&setup, &["--end-interrupted", "stopped"], &[], "").ok();
    assert_eq!(ended["record"]["ceremony"]["not_made"][0], "op-2");
    assert_eq!(ended["record"]["key"][0]["label"], "op-1");
    let rest = TWO_KEYS.replace("count = 2\n", "").replace("\"op\"", "\"op-2\"");
    let plan = plan_of(&setup, &rest);
    carried_out(&setup, &plan, &[], &[]).ok();
    assert_eq!(private_labels(&world(&setup).await).len(), 2);
}

#[tokio::test]
async fn a_crash_at_every_step_leaves_an_open_ceremony_or_a_whole_one() {
    for (point, is_open) in [
        ("ceremony.after_begin", true),
        ("create_key.after_begin", true),
        ("create_key.after_pinned:2", true),
        ("ceremony.after_end", false),
    ] {
        let setup = set_up("http://127.0.0.1:1");
        let plan = plan_of(&setup, TWO_KEYS);
        let killed = carried_out(&setup, &plan, &[], &[("CLAVIGER_FAILPOINT", point)]);
        assert_eq!(killed.code, None, "{point}: {killed:#?}");
        assert_eq!(world(&setup).await.open, is_open, "{point}");
        if is_open {
            let ended = ceremony(&setup, &["--end-interrupted", "killed"], &[], "").ok();
            let about = &ended["record"]["ceremony"];
            let not_made = about["not_made"].as_array().map_or(0, Vec::len);
            let made = ended["record"]["key"].as_array().map_or(0, Vec::len);
            assert_eq!(made + not_made, 2, "{point}: {ended:#}");
        }
    }
}

#[tokio::test]
async fn a_crash_after_a_wrapping_key_leaves_an_open_ceremony_whose_record_names_it() {
    let setup = set_up("http://127.0.0.1:1");
    let config = std::fs::read_to_string(setup.config()).unwrap();
    assert!(config.contains("wrapping_key = \"77726170\""));
    std::fs::write(setup.config(), config.replace("\"77726170\"", "\"aa55\"")).unwrap();
    let keys =
        format!("[[wrapping_key]]\nlabel = \"wrapping-2027\"\ncka_id = \"aa55\"\n\n{TWO_KEYS}");
    let plan = plan_of(&setup, &keys);
    let point = "ceremony.after_wrapping_key";
    let killed = carried_out(&setup, &plan, &[], &[("CLAVIGER_FAILPOINT", point)]);
    assert_eq!(killed.code, None, "{killed:#?}");
    let left = world(&setup).await;
    assert_eq!((left.open, private_labels(&left).len()), (true, 0));
    // It is in the token, and nowhere else; no second one is made with its id.
    carried_out(&setup, &plan, &[], &[]).refused("has an object labelled `wrapping-2027`");
    let ended = ceremony(&setup, &["--end-interrupted", "killed"], &[], "").ok();
    let record = &ended["record"];
    assert_eq!(record["wrapping_key"][0]["label"], "wrapping-2027", "{ended:#}");
    assert_eq!(record["wrapping_key"][0]["attributes"]["CKA_EXTRACTABLE"], "false");
    assert_eq!(record["ceremony"]["not_made"], serde_json::json!(["op-1", "op-2"]));
    assert!(!world(&setup).await.open);
}

#[tokio::test]
async fn a_key_that_does_not_prove_itself_is_not_pinned() {
    let setup = set_up("http://127.0.0.1:1");
    let plan = plan_of(&setup, TWO_KEYS);
    let faults = Pkcs11Faults::new();
    faults.set("C_Sign CKR_FUNCTION_FAILED");
    carried_out(&setup, &plan, &[], &faults.envs()).refused("the ceremony was interrupted");
    let left = world(&setup).await;
    assert_eq!((private_labels(&left).len(), left.names.len(), left.open), (1, 1, true));
    let store = setup.store().await;
    let keys = look(&*store, "keys", |unit| Box::pin(async move { unit.keys().await })).await;
    assert_eq!(keys.unwrap(), []);
    drop(store);
    // Once the HSM signs, it is.
    let ended = ceremony(&setup, &["--end-interrupted", "no signature"], &[], "").ok();
    let keys = ended["record"]["key"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0]["attributes"]["proof_of_possession"], "signed and verified");
}

#[tokio::test]
async fn a_plan_that_was_changed_in_the_database_ends_no_ceremony() {
    let setup = set_up("http://127.0.0.1:1");
    let plan = plan_of(&setup, TWO_KEYS);
    let killed = carried_out(&setup, &plan, &[], &[("CLAVIGER_FAILPOINT", "ceremony.after_key:1")]);
    assert_eq!(killed.code, None, "{killed:#?}");
    let url = format!("sqlite:{}", setup.dir().join("claviger.db").display());
    let change = async |from: &str, to: &str| {
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let sql = "UPDATE ceremonies SET plan = REPLACE(plan, $1, $2)";
        sqlx::query(sql).bind(from).bind(to).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    };
    change("witness", "auditor").await;
    let told = ceremony(&setup, &["--end-interrupted", "stopped"], &[], "");
    told.refused("not the one that the log says");
    assert!(world(&setup).await.open);
    change("auditor", "witness").await;
    ceremony(&setup, &["--end-interrupted", "stopped"], &[], "").ok();
}
