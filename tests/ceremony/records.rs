//! A ceremony from its plan to its record.

use crate::stage::{
    TWO_KEYS, anvil, at_token, carried_out, ceremony, claviger, hash, later_than, leaves_of,
    plan_of, private_labels, set_up, world,
};
use crate::support::server::SetUp;
use crate::support::services::repository;
use claviger::core::audit::LeafKind;
use serde_json::{Value, json};
use std::fs;

const NO_CHAIN: &str = "http://127.0.0.1:1";

/// What `audit verify` says of an export.
fn exported(setup: &SetUp, vkey: &str) -> Value {
    let config = setup.config().display().to_string();
    let export = setup.dir().join("export").display().to_string();
    let args = ["audit", "export", "--config", &config, "--out", &export, "--json"];
    claviger(&args, &[], "").ok();
    claviger(&["audit", "verify", "--export", &export, "--key", vkey, "--json"], &[], "").ok()
}

#[tokio::test]
async fn a_plan_becomes_keys_and_a_signed_record_in_the_log() {
    let setup = set_up(NO_CHAIN);
    let plan = plan_of(&setup, TWO_KEYS);
    let before = world(&setup).await;

    // A dry run says the same and changes nothing.
    let dry = carried_out(&setup, &plan, &["--dry-run"], &[]).ok();
    assert_eq!(
        (&dry["plan_sha256"], &dry["keys"]),
        (&json!(hash(&plan)), &json!(["op-1", "op-2"]))
    );
    assert_eq!(world(&setup).await, before);

    let record_file = setup.dir().join("record");
    let out = record_file.display().to_string();
    let ran = carried_out(&setup, &plan, &["--record", &out], &[]);
    let told = ran.ok();
    for says in ["first officer", "token: default is claviger (SoftHSM", "makes managed key op-1"] {
        assert!(ran.err.contains(says), "{says}: {}", ran.err);
    }
    let record = &told["record"];
    assert_eq!(record["ceremony"]["outcome"], "complete");
    assert_eq!(record["present"][1], json!({ "name": "B", "role": "witness" }));
    assert_eq!(record["plan"]["text"], fs::read_to_string(&plan).unwrap());
    assert_eq!(record["token"][0]["label"], "claviger");
    assert!(!record["token"][0]["serial"].as_str().unwrap().is_empty());
    assert!(later_than(&record["ceremony"]["ended_at"], &record["ceremony"]["begun_at"]));
    let keys = record["key"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert_eq!(key["attributes"]["CKA_EXTRACTABLE"], "false");
        assert_eq!(key["attributes"]["proof_of_possession"], "signed and verified");
        assert_eq!(key["attributes"]["CKA_ALWAYS_SENSITIVE"], "true");
        assert_eq!(key["group"], "payments");
    }

    // The token, the database and the log say the same.
    let after = world(&setup).await;
    assert_eq!(private_labels(&after), ["claviger operator op-1", "claviger operator op-2"]);
    assert_eq!((after.names.len(), after.waiting, after.open), (2, 0, false));
    let created = leaves_of(&after, LeafKind::KeyCreated);
    let addresses: Vec<_> = created.iter().map(|leaf| json!(leaf.text("address"))).collect();
    assert_eq!(addresses, keys.iter().map(|key| key["address"].clone()).collect::<Vec<_>>());
    let leaves = leaves_of(&after, LeafKind::KeyCeremony);
    let actions: Vec<_> = leaves.iter().map(|leaf| leaf.text("action").unwrap()).collect();
    assert_eq!(actions, ["begun", "ended"]);
    assert!(leaves.iter().all(|leaf| json!(leaf.id) == record["ceremony"]["id"]));
    assert_eq!(json!(created[0].text("sub")), record["ceremony"]["id"]);

    // The log is signed up to its end, verifies, and has the very record.
    let config = setup.config().display().to_string();
    let vkey = setup.dir().join("audit.vkey").display().to_string();
    let verified = exported(&setup, &vkey);
    assert_eq!(verified["kinds"], json!({ "KEY_CEREMONY": 2, "KEY_CREATED": 2 }));
    assert_eq!(leaves[1].text("record").unwrap(), fs::read_to_string(&record_file).unwrap());

    // Doctor finds nothing wrong with keys and ceremonies.
    let doctor = claviger(&["doctor", "--config", &config, "--json"], &[], "");
    let told: Value = serde_json::from_str(&doctor.out).unwrap();
    let checks = told["checks"].as_array().unwrap().iter();
    let failed = checks.filter(|it| it["ok"] == false).map(|it| it["check"].as_str().unwrap());
    let failed: Vec<_> = failed.collect();
    assert_eq!(failed, ["chain local"], "{doctor:#?}");
}

#[tokio::test]
async fn a_record_is_verified_offline_and_one_changed_byte_is_seen() {
    let setup = set_up(NO_CHAIN);
    let plan = plan_of(&setup, &TWO_KEYS.replace("count = 2", "count = 12"));
    let file = setup.dir().join("record");
    let out = file.display().to_string();
    carried_out(&setup, &plan, &["--record", &out, "--yes-sha256", &hash(&plan)], &[]).ok();
    let vkey = setup.dir().join("audit.vkey").display().to_string();
    let verify = ["key", "ceremony-verify", "--record", &out, "--key", &vkey, "--json"];
    let told = claviger(&verify, &[], "").ok();
    assert_eq!(told["record"]["plan"]["sha256"], hash(&plan));

    // So long a record stands beside the log, named by its hash, and comes with an export.
    let leaves = leaves_of(&world(&setup).await, LeafKind::KeyCeremony);
    let named = leaves[1].long_texts();
    let good = fs::read(&file).unwrap();
    let export = exported(&setup, &vkey);
    let kept = setup.dir().join("export/blobs").join(hex::encode(named[0].hash));
    assert_eq!((fs::read(kept).unwrap(), export["texts"].as_u64()), (good.clone(), Some(1)));
    for at in (0..good.len()).step_by(good.len() / 20) {
        let mut bent = good.clone();
        bent[at] = if bent[at] == b'x' { b'y' } else { b'x' };
        fs::write(&file, bent).unwrap();
        claviger(&verify, &[], "").refused(&out);
    }
    // A checkpoint by the same key is no record.
    fs::copy(setup.dir().join("audit.record"), &file).unwrap();
    claviger(&verify, &[], "").refused("not a signed record of a key ceremony");
}

#[tokio::test]
async fn nothing_is_made_where_a_name_exists_or_the_word_is_wrong() {
    let setup = set_up(NO_CHAIN);
    let plan = plan_of(&setup, TWO_KEYS);
    let path = plan.display().to_string();
    let before = world(&setup).await;
    let wrong = "0".repeat(64);
    ceremony(&setup, &["--plan", &path], &[], "00000000\n").refused("not the beginning");
    ceremony(&setup, &["--plan", &path], &[], "").refused("not the beginning");
    let eight = format!("{}\n", &hash(&plan)[..8]);
    ceremony(&setup, &["--plan", &path], &[], &eight).refused("32 characters or more");
    ceremony(&setup, &["--plan", &path, "--yes-sha256", &wrong], &[], "").refused("reviewed");
    let half = hash(&plan)[..32].to_owned();
    ceremony(&setup, &["--plan", &path, "--yes-sha256", &half], &[], "").refused("reviewed");
    carried_out(&setup, &plan, &["--record", &path], &[]).refused("exists already");
    let unsigned = fs::read_to_string(setup.config()).unwrap();
    let without = unsigned.replace("key_file = \"audit.key\"", "");
    fs::write(setup.config(), without).unwrap();
    carried_out(&setup, &plan, &[], &[]).refused("`[audit] key_file` is not set");
    fs::write(setup.config(), unsigned).unwrap();
    assert_eq!(world(&setup).await, before);

    for (from, to, says) in [
        ("title =", "titel =", "titel"),
        ("label = \"op\"", "label = \"op\"\ncolour = \"red\"", "line 14"),
        ("group = \"payments\"", "group = \"others\"", "the group of `op-1` is not configured"),
        ("mode =", "hsm = \"other\"\nmode =", "`other` is not configured"),
        ("date = \"20", "date = \"19", "neither today nor a day from it"),
    ] {
        let text = fs::read_to_string(plan_of(&setup, TWO_KEYS)).unwrap().replacen(from, to, 1);
        fs::write(&plan, text).unwrap();
        carried_out(&setup, &plan, &[], &[]).refused(says);
        carried_out(&setup, &plan, &["--dry-run"], &[]).refused(says);
    }
    let old = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, old).unwrap();
    carried_out(&setup, &plan, &["--dry-run", "--even-if-date-differs"], &[]).ok();
    assert_eq!(world(&setup).await, before);

    // A name in the token stands in the way, under either form of it.
    for label in ["op-2", "claviger operator op-2"] {
        at_token(&setup, &json!({ "do": "generate", "id": "0a", "label": label }));
        let before = world(&setup).await;
        let plan = plan_of(&setup, TWO_KEYS);
        let ran = carried_out(&setup, &plan, &[], &[]);
        ran.refused(&format!("token `default` has an object labelled `{label}`"));
        assert_eq!(world(&setup).await, before);
        at_token(&setup, &json!({ "do": "destroy", "id": "0a" }));
    }

    // So does one in the database, of which all are named.
    let plan = plan_of(&setup, TWO_KEYS);
    carried_out(&setup, &plan, &[], &[]).ok();
    let before = world(&setup).await;
    let again = carried_out(&setup, &plan, &[], &[]);
    again.refused("the database has a key `op-1`");
    again.refused("the database has a key `op-2`");
    assert_eq!(world(&setup).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_running_server_nothing_is_made_on_sqlite() {
    let anvil = anvil().await;
    let setup = set_up(&anvil.url());
    let server = setup.start(&[]).await;
    let plan = plan_of(&setup, TWO_KEYS);
    carried_out(&setup, &plan, &[], &[]).refused("stop it first");
    // To look is allowed.
    carried_out(&setup, &plan, &["--dry-run"], &[]).ok();
    server.stop().await;
    assert!(world(&setup).await.names.is_empty());
    carried_out(&setup, &plan, &[], &[]).ok();
    // The keys serve.
    let server = setup.start(&[]).await;
    let ready = server.program.stderr();
    assert!(!ready.contains("cannot be used"), "{ready}");
    server.stop().await;
}

#[tokio::test]
async fn a_wrapping_key_is_made_first_and_recorded_with_its_attributes() {
    let setup = set_up(NO_CHAIN);
    let config = fs::read_to_string(setup.config()).unwrap();
    let configured = |id: &str| {
        let text = config.replace("\"77726170\"", &format!("\"{id}\""));
        fs::write(setup.config(), text).unwrap();
    };
    configured("aa55");
    let keys = format!(
        "[[wrapping_key]]\nlabel = \"wrapping-2027\"\ncka_id = \"aa55\"\n\n{TWO_KEYS}\n[[key]]\n\
         label = \"deposit\"\nmode = \"external\"\ncustody = \"wrapped\"\ncount = 2\n"
    );
    let plan = plan_of(&setup, &keys);
    let told = carried_out(&setup, &plan, &[], &[]).ok();
    let keys_made = told["record"]["key"].as_array().unwrap();
    let custody: Vec<_> = keys_made.iter().map(|key| key["custody"].as_str().unwrap()).collect();
    assert_eq!(custody, ["token", "token", "wrapped", "wrapped"]);
    assert_eq!(
        private_labels(&world(&setup).await).len(),
        2,
        "the wrapped ones are not in the token"
    );
    let doctor = claviger(&["doctor", "--config", &setup.config().display().to_string()], &[], "");
    assert!(doctor.out.contains("2 keys wrapped by default"), "{doctor:#?}");
    assert_eq!(
        doctor.out.lines().filter(|line| line.starts_with("FAIL")).count(),
        1,
        "{doctor:#?}"
    );
    let made = &told["record"]["wrapping_key"][0];
    assert_eq!((&made["cka_id"], &made["label"]), (&json!("aa55"), &json!("wrapping-2027")));
    for (name, value) in [
        ("CKA_WRAP", "true"),
        ("CKA_UNWRAP", "true"),
        ("CKA_DECRYPT", "false"),
        ("CKA_EXTRACTABLE", "false"),
    ] {
        assert_eq!(made["attributes"][name], value, "{made:#}");
    }
    let before = world(&setup).await;
    let other = keys.replace("\"op\"", "\"other\"").replace("\"deposit\"", "\"third\"");
    let other = plan_of(&setup, &other);
    let again = carried_out(&setup, &other, &[], &[]);
    again.refused("has an object labelled `wrapping-2027`");
    again.refused("has an object with the id of `wrapping-2027`");
    let wrapped = "[[key]]\nlabel = \"w\"\nmode = \"managed\"\ncustody = \"wrapped\"\n";
    configured("77");
    let refused = carried_out(&setup, &plan_of(&setup, wrapped), &[], &[]);
    refused.refused("the wrapping key 77 of token `default` is not there, and not in the plan");
    assert_eq!(world(&setup).await, before);
}

#[tokio::test]
async fn the_example_plan_can_be_carried_out_in_a_new_set_up() {
    let setup = set_up(NO_CHAIN);
    let example = repository().join("softhsm/ceremony.example.toml").display().to_string();
    let args = ["--plan", &example, "--dry-run", "--even-if-date-differs"];
    let told = ceremony(&setup, &args, &[], "").ok();
    assert_eq!((told["ok"].clone(), told["keys"].as_array().unwrap().len()), (json!(true), 3));
}
