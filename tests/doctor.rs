//! `claviger doctor` on a set-up that works, and on one that is broken in exactly one way: exactly that is told,
//! with what to do. The real program on a real SoftHSM.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "support"]
mod support {
    pub mod outsider;
    pub mod pkcs11_faults;
    pub mod server;
    pub mod services;
}

use claviger::ports::store::{End, KindFilter, Subscription, unit};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use support::outsider::{outsider, play};
use support::pkcs11_faults::Pkcs11Faults;
use support::server::{BIN, SetUp, payout_grants};
use support::services::{Anvil, AnvilOptions, tool};

/// A set-up with two keys, its chain, and what doctor is to find.
struct Broken {
    setup: SetUp,
    _anvil: Anvil,
}

impl Broken {
    async fn new() -> Self {
        let anvil = Anvil::start(AnvilOptions::default()).await;
        let setup = SetUp::new(&anvil.url(), None, &payout_grants("100.0"));
        let this = Self { setup, _anvil: anvil };
        this.make_keys("default", "op");
        this
    }

    /// Two keys, by a ceremony: it needs no server.
    fn make_keys(&self, hsm: &str, label: &str) {
        let plan = self.setup.dir().join("plan.toml");
        let text = format!(
            "[ceremony]\nplan_version = 1\ntitle = 't'\npurpose = 'tests'\ndate = '2000-01-01'\npresent = \
             [{{ name = 'A', role = 'first officer' }}, {{ name = 'B', role = 'witness' }}]\n[[key]]\n\
             label = '{label}'\nmode = 'managed'\nhsm = '{hsm}'\ncount = 2\n"
        );
        fs::write(&plan, &text).unwrap();
        let hash = {
            use sha2::Digest;
            hex::encode(sha2::Sha256::digest(&text))
        };
        let plan = plan.display().to_string();
        let args =
            ["key", "ceremony", "--plan", &plan, "--even-if-date-differs", "--yes-sha256", &hash];
        let made = self.run(&args, &[]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn run(&self, args: &[&str], envs: &[(&str, &str)]) -> Output {
        let mut command = Command::new(BIN);
        command.args(args).arg("--config").arg(self.setup.config());
        command.envs(envs.iter().copied()).output().unwrap()
    }

    /// A second token, `second`, with these lines in its section.
    fn add_token(&self, lines: &str) {
        let dir = self.setup.dir();
        let mut init = Command::new(BIN);
        init.env("SOFTHSM2_CONF", dir.join("softhsm2.conf")).arg("init-token");
        init.arg("--module").arg(tool("SOFTHSM_MODULE")).args(["--label", "second"]);
        init.arg("--so-pin-file").arg(dir.join("so-pin")).arg("--pin-file").arg(dir.join("pin"));
        assert!(init.status().unwrap().success());
        fs::copy(dir.join("pin"), dir.join("pin-2")).unwrap();
        let second = format!(
            "[[hsm]]\nname = \"second\"\nmodule = \"{}\"\ntoken_label = \"second\"\n\
             pin_file = \"pin-2\"\n{lines}\n[[auth.issuer]]",
            tool("SOFTHSM_MODULE").display()
        );
        self.edit("[hsm]", "[[hsm]]");
        self.edit("[[auth.issuer]]", &second);
    }

    fn at_token(&self, task: &Value) -> Value {
        outsider(&self.setup, "a_set_up_that_works_is_all_right", task)
    }

    /// The `CKA_ID`s of the private keys, by label.
    fn id_of(&self, label: &str) -> String {
        let all = self.at_token(&json!({ "do": "list" }));
        let all = all.as_array().unwrap().iter();
        let mut found = all.filter(|one| one["label"] == format!("claviger operator {label}"));
        found.next().unwrap()["id"].as_str().unwrap().to_owned()
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.setup.config()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.setup.config(), text.replacen(from, to, 1)).unwrap();
    }

    /// Doctor's lines. As text it says the same as in JSON, with the same exit code.
    fn doctor(&self, envs: &[(&str, &str)]) -> Vec<Value> {
        let told = self.run(&["doctor", "--json"], envs);
        let checks: Value = serde_json::from_slice(&told.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&told.stderr)));
        let failed = checks["checks"].as_array().unwrap().iter().filter(|it| it["ok"] == false);
        assert_eq!(told.status.code(), Some(i32::from(failed.count() > 0)), "{checks:#}");
        assert_eq!(checks["ok"], told.status.success());
        checks["checks"].as_array().unwrap().clone()
    }

    /// Exactly this line fails, and says this, with this advice; and these could not be checked.
    fn finds(&self, envs: &[(&str, &str)], line: &str, says: &str, advice: &str, skipped: &[&str]) {
        let lines = self.doctor(envs);
        let failed: Vec<_> = lines.iter().filter(|it| it["ok"] == false).collect();
        let named: Vec<_> = failed.iter().map(|it| it["check"].as_str().unwrap()).collect();
        assert_eq!(named, [line], "{lines:#?}");
        let told = |key: &str| failed[0][key].as_str().unwrap_or_default().to_owned();
        assert!(told("detail").contains(says), "{says}: {:#}", failed[0]);
        assert!(told("advice").contains(advice), "{advice}: {:#}", failed[0]);
        let open: Vec<_> = lines.iter().filter(|it| it["ok"].is_null()).collect();
        let named: Vec<_> = open.iter().map(|it| it["check"].as_str().unwrap()).collect();
        assert_eq!(named, skipped, "{lines:#?}");
        // One line each for people too.
        let text = self.run(&["doctor"], envs);
        assert_eq!(text.status.code(), Some(1));
        let text = String::from_utf8(text.stdout).unwrap();
        let failed: Vec<_> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
        assert!(failed.len() == 1 && failed[0].contains(line), "{text}");
        assert!(failed[0].contains(says) && failed[0].contains(advice), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("--")).count(), skipped.len());
    }
}

const KEYS: &[&str] = &["keys in default"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_up_that_works_is_all_right() {
    if play() {
        return;
    }
    let it = Broken::new().await;
    let lines = it.doctor(&[]);
    assert!(lines.iter().all(|line| line["ok"] == true), "{lines:#?}");
    let named: Vec<_> = lines.iter().map(|line| line["check"].as_str().unwrap()).collect();
    for name in ["PIN file of default", "HSM default", "key op-1", "key op-2", "key ceremonies"] {
        assert!(named.contains(&name), "{name}: {named:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_is_told_events_and_is_not_configured_here_is_named() {
    let it = Broken::new().await;
    let store = it.setup.store().await;
    let known = unit(&*store, "test", |unit| {
        let consumer = "webhook:old".to_owned();
        let kinds = vec![KindFilter::parse("*").unwrap()];
        Box::pin(async move {
            unit.set_consumer(&Subscription { consumer, kinds }).await?;
            Ok(End::Commit(()))
        })
    });
    known.await.unwrap();
    drop(store);
    let says = "`webhook:old` is told events (0 owed) and is not configured here";
    it.finds(&[], "events", says, "", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_is_missing_or_none_is_told() {
    let it = Broken::new().await;
    let module = [("CLAVIGER__HSM__MODULE", "/nowhere/module.so")];
    it.finds(&module, "HSM default", "no PKCS#11 module at /nowhere/module.so", "install", KEYS);
    // A file that is no library, and a library that is no module.
    let config = it.setup.config().display().to_string();
    for other in [config.as_str(), BIN] {
        let module = [("CLAVIGER__HSM__MODULE", other)];
        it.finds(&module, "HSM default", "is not a PKCS#11 module", "shared library", KEYS);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_absent_is_told_with_those_that_are_there() {
    let it = Broken::new().await;
    let label = [("CLAVIGER__HSM__TOKEN_LABEL", "another")];
    let says = "no token is labelled \"another\"; there are \"claviger\"";
    it.finds(&label, "HSM default", says, "put `token_label` right", KEYS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_told_and_tried_once() {
    let it = Broken::new().await;
    let pin = it.setup.dir().join("pin");
    let right = fs::read(&pin).unwrap();
    fs::write(&pin, "0000-not-it").unwrap();
    it.finds(&[], "HSM default", "CKR_PIN_INCORRECT); it was tried once", "lock the token", KEYS);
    fs::write(&pin, right).unwrap();

    let faults = Pkcs11Faults::new();
    for (value, says, advice) in [
        ("CKR_PIN_INCORRECT", "refuses the PIN", "write the right one"),
        ("CKR_PIN_LOCKED", "user PIN is locked", "security officer"),
        ("CKR_PIN_EXPIRED", "has expired", "set a new one"),
        ("CKR_USER_PIN_NOT_INITIALIZED", "no user PIN yet", "security officer"),
    ] {
        faults.set(&format!("C_Login {value}"));
        let before = faults.count_of("C_Login");
        it.finds(&faults.envs(), "HSM default", says, advice, KEYS);
        // Once by each of the two runs.
        assert_eq!(faults.count_of("C_Login") - before, 2, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_file_that_is_missing_or_open_to_others_is_told_before_the_token_is_asked() {
    let it = Broken::new().await;
    let pin = it.setup.dir().join("pin");
    let skipped = ["HSM default", "keys in default"];
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o640)).unwrap();
    it.finds(&[], "PIN file of default", "has mode 640", "change the PIN", &skipped);
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&pin, "\n").unwrap();
    it.finds(&[], "PIN file of default", "is empty", "must hold the PIN", &skipped);
    fs::remove_file(&pin).unwrap();
    it.finds(&[], "PIN file of default", "cannot be read", "write the user PIN", &skipped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_missing_or_another_is_told() {
    let it = Broken::new().await;
    let id = it.id_of("op-2");
    it.at_token(&json!({ "do": "destroy", "id": id }));
    it.finds(&[], "key op-2", &format!("no key with CKA_ID {id}"), "HSM's backup", &[]);
    it.at_token(&json!({ "do": "generate", "id": id }));
    it.finds(&[], "key op-2", "is not the pinned one", "another key is in its place", &[]);
    it.at_token(&json!({ "do": "generate", "id": id }));
    it.finds(&[], "key op-2", "several private keys", "find out who changed the token", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrapping_key_that_is_missing_or_may_do_too_little_is_told() {
    let it = Broken::new().await;
    let (line, advice) = ("wrapping key 77726170", "no wrapped key of this token can sign");
    let allows = "allows = [\"not-trusted\"]";
    it.edit(allows, "allows = [\"copyable\"]");
    it.finds(&[], line, "Trusted is not true", advice, &[]);
    it.edit("allows = [\"copyable\"]", "allows = [\"not-trusted\", \"copyable\"]");
    it.finds(&[], line, "it does not need copyable", "take that out", &[]);
    it.edit("allows = [\"not-trusted\", \"copyable\"]", allows);
    it.at_token(&json!({ "do": "destroy", "id": "77726170" }));
    it.finds(&[], line, "no wrapping key with the id", advice, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_can_be_read_or_taken_out_is_told_and_so_is_an_exception_without_need() {
    let it = Broken::new().await;
    let careless = json!({ "do": "generate", "id": "0e", "extractable": true, "sensitive": false });
    it.at_token(&careless);
    let exception = |allows: &str| {
        format!(
            "[[hsm.exception]]\ncka_id = \"0e\"\nallows = [{allows}]\nreason = \"why\"\n\n[[auth.issuer]]"
        )
    };
    let needed =
        "\"extractable\", \"not-sensitive\", \"not-always-sensitive\", \"not-never-extractable\"";
    it.edit("[[auth.issuer]]", &exception(needed));
    // Before it is imported, the exception is of no key.
    it.finds(&[], "exception 0e", "no key of the database", "claviger key import", &[]);
    let server = it.setup.start(&[]).await;
    let listen = server.admin_url().trim_start_matches("http://").to_owned();
    let args = ["key", "import", "--cka-id", "0e", "--label", "old"];
    let made = it.run(&args, &[("CLAVIGER__SERVER__ADMIN_LISTEN", &listen)]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Beside a running server the keys are checked too.
    let lines = it.doctor(&[]);
    assert!(lines.iter().all(|line| line["ok"] == true), "{lines:#?}");
    assert!(lines.iter().any(|line| line["check"] == "key old"), "{lines:#?}");
    server.stop().await;

    it.edit(&exception(needed), "[[auth.issuer]]");
    let says = "CKA_SENSITIVE is false, CKA_EXTRACTABLE is true";
    it.finds(&[], "key old", says, "make a new key", &[]);
    it.edit("[[auth.issuer]]", &exception(&format!("{needed}, \"derive\"")));
    it.finds(&[], "exception 0e", "key old does not need derive", "take that out", &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_tokens_has_a_line_and_one_fault_hides_nothing_of_the_others() {
    let it = Broken::new().await;
    it.add_token("");
    it.make_keys("second", "other");
    let lines = it.doctor(&[]);
    assert!(lines.iter().all(|line| line["ok"] == true), "{lines:#?}");
    for name in ["HSM default", "HSM second", "key op-1", "key other-2"] {
        assert!(lines.iter().any(|line| line["check"] == name), "{name}: {lines:#?}");
    }
    it.edit("token_label = \"second\"", "token_label = \"third\"");
    let lines = it.doctor(&[]);
    assert!(lines.iter().any(|line| line["check"] == "key op-2" && line["ok"] == true));
    it.finds(
        &[],
        "HSM second",
        "no token is labelled \"third\"",
        "token_label",
        &["keys in second"],
    );
    // A key whose token is configured no more.
    it.edit("token_label = \"third\"", "token_label = \"second\"");
    it.edit("name = \"second\"", "name = \"2nd\"");
    let lines = it.doctor(&[]);
    let failed = lines.iter().filter(|line| line["ok"] == false);
    let named: Vec<_> = failed.map(|line| line["check"].as_str().unwrap()).collect();
    assert_eq!(named, ["key other-1", "key other-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_the_keys_is_told_key_by_key() {
    let it = Broken::new().await;
    it.add_token("standby_for = \"default\"\n");
    let lines = it.doctor(&[]);
    let failed: Vec<_> = lines.iter().filter(|line| line["ok"] == false).collect();
    let named: Vec<_> = failed.iter().map(|line| line["check"].as_str().unwrap()).collect();
    assert_eq!(named, ["key op-1 in second", "key op-2 in second"], "{lines:#?}");
    for line in failed {
        assert!(line["detail"].as_str().unwrap().contains("the standby has no key"), "{line:#}");
        assert!(line["advice"].as_str().unwrap().contains("copy it from `default`"), "{line:#}");
    }
    for name in ["HSM default", "HSM second", "key op-1", "key op-2"] {
        assert!(lines.iter().any(|line| line["check"] == name && line["ok"] == true), "{name}");
    }
}
