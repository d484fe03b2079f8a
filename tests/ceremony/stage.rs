//! A set-up, its token, its database and its log, as the tests of ceremonies look at them.

use crate::support::outsider::{outsider, play};
use crate::support::server::{BIN, SetUp, payout_grants};
use crate::support::services::{Anvil, AnvilOptions};
use claviger::core::audit::LeafKind;
use claviger::core::audit::read::ReadLeaf;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock;
use claviger::ports::store::look;
use claviger::system::SystemClock;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a command printed, and its exit code; none if a fail point stopped it.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The JSON of a command that was content.
    pub fn ok(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"))
    }

    /// It failed, and said this.
    pub fn refused(&self, says: &str) {
        assert!(self.code == Some(1) && self.err.contains(says), "{says}: {self:#?}");
    }
}

pub fn claviger(args: &[&str], envs: &[(&str, &str)], input: &str) -> Ran {
    let mut child = Command::new(BIN)
        .args(args)
        .envs(envs.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who has refused already reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Somebody else at the token.
pub fn at_token(setup: &SetUp, task: &Value) -> Value {
    outsider(setup, "stage::the_token_of_a_new_set_up_has_a_wrapping_key_only", task)
}

#[test]
fn the_token_of_a_new_set_up_has_a_wrapping_key_only() {
    if play() {
        return;
    }
    let setup = set_up("http://127.0.0.1:1");
    let count = || at_token(&setup, &json!({ "do": "list" })).as_array().unwrap().len();
    assert_eq!(count(), 1);
    at_token(&setup, &json!({ "do": "generate", "id": "01" }));
    assert_eq!(count(), 3);
}

pub fn set_up(chain: &str) -> SetUp {
    SetUp::new(chain, None, &payout_grants("100.0"))
}

pub async fn anvil() -> Anvil {
    Anvil::start(AnvilOptions::default()).await
}

pub fn today() -> String {
    SystemClock.now().to_string()[..10].to_owned()
}

/// A plan with these keys, for today.
pub fn plan_of(setup: &SetUp, keys: &str) -> PathBuf {
    let today = today();
    let text = format!(
        "# A test's plan.\n[ceremony]\nplan_version = 1\ntitle = \"First keys\"\npurpose = \"tests\"\n\
         date = \"{today}\"\npresent = [\n  {{ name = \"A\", role = \"first officer\" }},\n  \
         {{ name = \"B\", role = \"witness\" }},\n]\n\n{keys}"
    );
    let path = setup.dir().join("plan.toml");
    std::fs::write(&path, text).unwrap();
    path
}

pub const TWO_KEYS: &str =
    "[[key]]\nlabel = \"op\"\ngroup = \"payments\"\nmode = \"managed\"\ncount = 2\n";

/// `claviger key ceremony --json`, with more arguments, and something typed.
pub fn ceremony(setup: &SetUp, more: &[&str], envs: &[(&str, &str)], typed: &str) -> Ran {
    let config = setup.config().display().to_string();
    let mut args = vec!["key", "ceremony", "--config", &config, "--json"];
    args.extend(more);
    claviger(&args, envs, typed)
}

/// Of this plan, with its hash typed.
pub fn carried_out(setup: &SetUp, plan: &PathBuf, more: &[&str], envs: &[(&str, &str)]) -> Ran {
    let path = plan.display().to_string();
    let mut args = vec!["--plan", &path];
    args.extend(more);
    ceremony(setup, &args, envs, &format!("{}\n", hash(plan)))
}

pub fn hash(plan: &PathBuf) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(std::fs::read(plan).unwrap()))
}

/// Everything that a ceremony could change: the token's objects, the keys, the leaves.
#[derive(Debug, PartialEq)]
pub struct World {
    pub objects: Value,
    pub names: Vec<String>,
    pub leaves: Vec<Vec<u8>>,
    pub waiting: usize,
    pub open: bool,
}

/// The world of a set-up without a server.
pub async fn world(setup: &SetUp) -> World {
    let store = setup.store().await;
    let (names, leaves, waiting, open) = look(&*store, "world", |unit| {
        Box::pin(async move {
            let leaves = unit.log_leaves(0, 10_000).await?;
            Ok((
                unit.key_names().await?,
                leaves.into_iter().map(|leaf| leaf.bytes).collect(),
                unit.waiting_leaves(1_000).await?.len(),
                unit.open_ceremony().await?.is_some(),
            ))
        })
    })
    .await
    .unwrap();
    World { objects: at_token(setup, &json!({ "do": "list" })), names, leaves, waiting, open }
}

/// The leaves of a kind, in their order.
pub fn leaves_of(world: &World, kind: LeafKind) -> Vec<ReadLeaf> {
    let read = world.leaves.iter().map(|bytes| ReadLeaf::parse(bytes).unwrap());
    read.filter(|leaf| leaf.kind == kind).collect()
}

/// Labels of the private keys in the token, sorted: the token lists them in no order.
pub fn private_labels(world: &World) -> Vec<String> {
    let all = world.objects.as_array().unwrap().iter();
    let private = all.filter(|one| one["class"].as_str().unwrap().contains("PRIVATE"));
    let mut labels: Vec<_> = private.map(|one| one["label"].as_str().unwrap().to_owned()).collect();
    labels.sort();
    labels
}

pub fn later_than(text: &Value, than: &Value) -> bool {
    let read = |text: &Value| Timestamp::parse_rfc3339(text.as_str().unwrap()).unwrap();
    read(text) >= read(than)
}
