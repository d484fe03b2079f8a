//! The checker itself: a real run has no violation, and each kind of damage to what the run left is found, under
//! the right name.

use crate::stage::{RESEND_SOON, Stage, attempts, id, of_attempt};
use crate::support::invariants::{Violation, Watched};
use crate::support::server::{ETHER, LIMIT, Server, payout};
use crate::support::services::{artefact, poll_until, word};
use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::path::Path;
use std::str::FromStr;

/// A run with two plain payments, one of them answering an event, a replaced one, and one that is still out.
struct Run {
    stage: Stage,
    watched: Watched,
    first: String,
    second: String,
    replaced: String,
    open: String,
}

/// Mines an event and a payment that names it as its source.
async fn answering(stage: &Stage, server: &Server) -> (Watched, String) {
    let counter = stage.anvil.deploy(&artefact("NaiveCounter"), "").await.to_lowercase();
    let hit = stage.anvil.calldata("hit(uint256)", &[word(7)]).await;
    let hash = stage.anvil.send(&stage.anvil.accounts()[1], &counter, &hit, 0).await;
    stage.anvil.mine(1).await;
    let receipt = stage.anvil.wait_for_receipt(&hash, LIMIT).await;
    let log = &receipt["logs"][0];
    let topic = log["topics"][0].as_str().unwrap().to_owned();
    let mut body = payout(ETHER);
    body["source"] = json!({
        "block_hash": log["blockHash"], "transaction_hash": log["transactionHash"], "log_index": 0,
    });
    stage.make_final().await;
    let asked = stage.pay_as(server, "first", &body).await;
    stage.mine_until_mined(server, &id(&asked)).await;
    stage.finish(server, &id(&asked)).await;
    (Watched { address: counter, topic, watcher_url: None }, id(&asked))
}

async fn replaced(stage: &Stage, server: &Server) -> String {
    let asked = stage.pay(server, "replaced").await;
    let base = of_attempt(&asked, 0, "max_fee_per_gas").parse::<u128>().unwrap() + 1;
    poll_until(LIMIT, "a second attempt", async || {
        let next = json!([format!("{base:#x}")]);
        stage.anvil.rpc("anvil_setNextBlockBaseFeePerGas", next).await;
        stage.anvil.mine(1).await;
        (attempts(&server.read(&id(&asked)).await).len() >= 2).then_some(())
    })
    .await;
    stage.mine_until_mined(server, &id(&asked)).await;
    stage.finish(server, &id(&asked)).await;
    id(&asked)
}

impl Run {
    async fn new() -> Self {
        let stage = Stage::new().await;
        let (server, _) = stage.open(&[RESEND_SOON]).await;
        let (watched, first) = answering(&stage, &server).await;
        let second = stage.pay(&server, "second").await;
        stage.mine_until_mined(&server, &id(&second)).await;
        stage.finish(&server, &id(&second)).await;
        let replaced = replaced(&stage, &server).await;
        let open = id(&stage.pay(&server, "open").await);
        server.stop().await;
        Self { stage, watched, first, second: id(&second), replaced, open }
    }

    /// What is found in a copy of the database that was damaged so.
    async fn after(&self, damage: &str) -> Vec<Violation> {
        let folder = tempfile::tempdir().unwrap();
        let url = copy(self.stage.setup.store_url(), folder.path(), damage).await;
        self.stage.invariants().watched(self.watched.clone()).of(&url).violations().await
    }
}

async fn copy(url: &str, folder: &Path, damage: &str) -> String {
    let path = folder.join("copy.db");
    let whole = SqlitePool::connect(url).await.unwrap();
    let copy = format!("VACUUM INTO '{}'", path.display());
    sqlx::raw_sql(AssertSqlSafe(copy)).execute(&whole).await.unwrap();
    let url = format!("sqlite:{}", path.display());
    let options = SqliteConnectOptions::from_str(&url).unwrap().foreign_keys(false);
    let damaged = SqlitePool::connect_with(options).await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(damage.to_owned())).execute(&damaged).await;
    let done = done.unwrap_or_else(|error| panic!("{damage}: {error}"));
    assert!(damage.is_empty() || done.rows_affected() > 0, "nothing was damaged by: {damage}");
    damaged.close().await;
    url
}

/// Damage, the invariant that it breaks, and a word of the violation.
fn damages(run: &Run) -> Vec<(String, &'static str, &'static str)> {
    let Run { first, second, replaced, open, .. } = run;
    let zero = "00".repeat(32);
    vec![
        (
            format!(
                "UPDATE attempts SET request_id = '{first}', number = 9 WHERE request_id = '{second}'"
            ),
            "I1",
            "2 of its transactions are mined",
        ),
        (
            format!(
                "UPDATE attempts SET request_id = '{open}', number = 9 WHERE request_id = '{second}'"
            ),
            "I2",
            "belongs to",
        ),
        (format!("UPDATE transactions SET nonce = 77 WHERE id = '{second}'"), "I2", "the row 77"),
        ("UPDATE lanes SET next_nonce = next_nonce + 1".to_owned(), "I3", "the next is 5"),
        (
            format!(
                "DELETE FROM transactions WHERE id = '{open}'; UPDATE lanes SET next_nonce = 2"
            ),
            "I3",
            "all is quiet, 3 nonces are used of 2",
        ),
        (
            format!("UPDATE transactions SET value = x'{zero}' WHERE id = '{first}'"),
            "I4",
            "approved by the row",
        ),
        (
            format!(
                "UPDATE transactions SET recipient = x'{}' WHERE id = '{first}'",
                "11".repeat(20)
            ),
            "I4",
            "approved by the row",
        ),
        (
            format!(
                "UPDATE audit_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), \
                 '\\\"value\\\":\\\"1000000000000000000\\\"', '\\\"value\\\":\\\"1\\\"') AS BLOB) \
                 WHERE kind = 'DECIDED' AND subject = '{first}'"
            ),
            "I4",
            "approved by the leaf",
        ),
        (
            format!("UPDATE attempts SET hash = x'{zero}' WHERE request_id = '{first}'"),
            "I4",
            "no attempt of ours",
        ),
        (
            format!("UPDATE attempts SET reason = 'no_op' WHERE request_id = '{first}'"),
            "I4",
            "its no-op does something",
        ),
        (
            format!("UPDATE transactions SET status = 'reverted' WHERE id = '{first}'"),
            "I5",
            "success true",
        ),
        (
            format!("UPDATE transactions SET status = 'finalized' WHERE id = '{open}'"),
            "I5",
            "is final; mined: 0",
        ),
        (
            format!("UPDATE transactions SET status = 'cancelled' WHERE id = '{second}'"),
            "I5",
            "final is",
        ),
        (
            format!("UPDATE transactions SET mined_block = x'{zero}' WHERE id = '{second}'"),
            "I5",
            "told is",
        ),
        ("UPDATE transactions SET source_log = 5 WHERE source_log = 0".to_owned(), "I6", "[]"),
        (
            format!("UPDATE transactions SET cap_fee = x'{zero}' WHERE id = '{second}'"),
            "I7",
            "the caps are 0",
        ),
        (
            format!("UPDATE attempts SET number = 90 - number WHERE request_id = '{replaced}'"),
            "I7",
            "the one before",
        ),
        ("UPDATE limits SET held = spent, spent = held".to_owned(), "I8", "the entries make"),
        (
            "UPDATE limit_entries SET fee = value WHERE settled_at IS NOT NULL".to_owned(),
            "I8",
            "settled is",
        ),
        (
            format!("DELETE FROM limit_entries WHERE owner = '{open}'"),
            "I8",
            "holds None, charged was",
        ),
        (
            format!(
                "UPDATE transactions SET decision = replace(decision, \
                 '\"max\":\"100000000000000000000\"', '\"max\":\"2000000000000000000\"') \
                 WHERE id = '{open}'"
            ),
            "I8",
            "the limit is 2000000000000000000",
        ),
        (
            format!("DELETE FROM audit_leaves WHERE kind = 'SIGNED' AND subject = '{first}'"),
            "I9",
            "without a SIGNED leaf",
        ),
        (
            format!("DELETE FROM audit_leaves WHERE kind = 'DECIDED' AND subject = '{first}'"),
            "I9",
            "without a DECIDED leaf before",
        ),
        (
            format!(
                "UPDATE audit_leaves SET idx = 1000 + idx WHERE kind = 'DECIDED' AND subject = '{second}'"
            ),
            "I9",
            "without a DECIDED leaf before",
        ),
        (
            format!("UPDATE attempts SET bytes = x'00' WHERE request_id = '{second}'"),
            "I9",
            "decided was",
        ),
        (
            format!("DELETE FROM transactions WHERE id = '{second}'"),
            "I11",
            "is not in the database",
        ),
        (
            format!("DELETE FROM idempotency_keys WHERE request_id = '{second}'"),
            "I11",
            "no idempotency key leads to it",
        ),
    ]
}

#[tokio::test]
async fn every_kind_of_damage_is_found_under_its_name() {
    let run = Run::new().await;
    assert_eq!(run.after("").await, [], "an undamaged run");
    for (damage, invariant, words) in damages(&run) {
        let found = run.after(&damage).await;
        let seen = found.iter().any(|it| it.invariant == invariant && it.found.contains(words));
        assert!(seen, "{invariant} with `{words}` is not found after: {damage}\n{found:#?}");
    }

    // Sent, and never recorded as signed.
    let stray = run.stage.invariants().sent(["0x01".to_owned()]).violations().await;
    assert!(stray.iter().any(|it| it.invariant == "I9"), "{stray:#?}");
    let lost = run.stage.invariants().answered(["no such id"]).violations().await;
    assert!(lost.iter().any(|it| it.invariant == "I11"), "{lost:#?}");

    // Excepted, and as it was told, or not told at all.
    for needless in [&run.first, &run.open] {
        let found = run.stage.invariants().except([needless]).violations().await;
        assert!(found.len() == 1 && found[0].found.contains("for nothing"), "{found:#?}");
    }

    // The chain itself goes back behind what was told as final.
    let depth = run.stage.anvil.block_number().await - 1;
    run.stage.anvil.rpc("anvil_rollback", json!([depth])).await;
    let found: Vec<Violation> = run.after("").await;
    let of = |subject: &str| found.iter().any(|it| it.invariant == "I5" && it.subject == subject);
    assert!(of(&run.first) && of(&run.second) && of(&run.replaced), "{found:#?}");
    // To except it does not help: nothing says that the chain's anchor is broken.
    let same = run.stage.invariants().watched(run.watched.clone()).except([&run.first]);
    assert_eq!(same.violations().await, found);
}
