//! When all is over, and what has become of it: from the database, the chain and the exported audit log.

use crate::blocks::quantity;
use crate::broker;
use crate::run::{Run, pace};
use crate::stage::{FINAL_DEPTH, Stage};
use crate::support::invariants::{Invariants, Watched};
use crate::support::server::{BIN, PAYEE};
use crate::support::services::word;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::process::Command;

const GWEI: u128 = 1_000_000_000;

/// What is printed at the end.
pub struct Table(String);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Table {
    fn row(&mut self, name: &str, value: impl fmt::Display) {
        let _ = writeln!(self.0, "  {name:<48} {value:>12}");
    }
}

pub async fn connect(stage: &Stage) -> PgConnection {
    PgConnection::connect(&stage.store_url).await.unwrap()
}

/// Waits until no transaction is open. The deadline of the run ends the wait.
pub async fn all_over(run: &Run, stage: &Stage) {
    let open = "SELECT id, status FROM transactions WHERE status NOT IN \
        ('finalized', 'reverted', 'cancelled', 'expired', 'failed', 'rejected')";
    let mut database = connect(stage).await;
    loop {
        let left: Vec<(String, String)> =
            sqlx::query_as(open).fetch_all(&mut database).await.unwrap();
        if left.is_empty() {
            return;
        }
        run.note("open transactions", format!("{left:?}"));
        pace(200).await;
    }
}

/// Waits until every leaf is in the log, and the log is signed.
pub async fn no_leaf_waits(stage: &Stage) {
    let waiting = "SELECT COUNT(*) FROM audit_outbox";
    let mut database = connect(stage).await;
    loop {
        let (count,): (i64,) = sqlx::query_as(waiting).fetch_one(&mut database).await.unwrap();
        if count == 0 {
            break;
        }
        pace(100).await;
    }
    // A checkpoint is signed once a second.
    pace(2_500).await;
}

/// Asks everything that must hold, and tells the rest.
pub async fn judge(run: &Run, stage: &Stage) -> Table {
    let mut database = connect(stage).await;
    let statuses =
        counts(&mut database, "SELECT status, COUNT(*) FROM transactions GROUP BY 1").await;
    let reasons = counts(&mut database, "SELECT reason, COUNT(*) FROM attempts GROUP BY 1").await;
    let of = |found: &BTreeMap<String, i64>, name: &str| found.get(name).copied().unwrap_or(0);
    paid_exactly(run, stage, &mut database).await;

    let event = "ChargeRequested(uint256,address,uint256)";
    let watched = Watched {
        address: stage.processor.to_lowercase(),
        topic: topic(stage, event).await,
        watcher_url: Some(stage.watcher_url.clone()),
    };
    Invariants::new(&stage.anvil.url(), &stage.store_url)
        .final_at_depth(FINAL_DEPTH)
        .answered(run.answered())
        .sent(stage.server_proxy.sent())
        .chain_cap(150 * GWEI)
        .watched(watched)
        .check()
        .await;
    let verified = exported_and_verified(stage);

    let heard = match &stage.rabbit {
        Some(rabbit) => {
            let logs: Vec<String> = logs(stage, event).await.iter().map(end_of_id).collect();
            Some((
                broker::heard_all(rabbit, stage).await,
                broker::heard_of_logs(rabbit, &logs).await,
            ))
        }
        None => None,
    };
    let mut table = Table(String::new());
    let mined: i64 = ["finalized", "reverted"].iter().map(|name| of(&statuses, name)).sum();
    table.row("requests asked", run.asked());
    table.row("accepted", statuses.values().sum::<i64>());
    table.row("executed exactly once", of(&statuses, "finalized"));
    for (status, count) in statuses.iter().filter(|(status, _)| *status != "finalized") {
        table.row(&format!("ended without: {status}"), count);
    }
    assert!(mined > 0 && of(&statuses, "reverted") == 0, "{statuses:?}");
    for (reason, count) in &reasons {
        table.row(&format!("attempts: {reason}"), count);
    }
    for (what, count) in run.counts() {
        table.row(what, count);
    }
    table.row("longest time a lane stood still, ms", run.longest_stand().as_millis());
    table.row("leaves in the audit log", verified["size"].to_string());
    table.row("audit verify", if verified["ok"] == true { "ok" } else { "BAD" });
    if let Some((heard, heard_of_logs)) = heard {
        table.row("events that a backend heard over RabbitMQ", heard);
        table.row("of the contract's", heard_of_logs);
    }
    table.row("invariants I1 to I9, I11", "ok");
    table.row("seconds", run.started.elapsed().as_secs());
    table.row("seed", run.plan.seed);
    assert_eq!(verified["ok"], true);
    table
}

async fn counts(database: &mut PgConnection, sql: &'static str) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(database).await.unwrap();
    rows.into_iter().collect()
}

async fn topic(stage: &Stage, event: &str) -> String {
    let hex = format!("0x{}", hex::encode(event));
    stage.anvil.rpc("web3_sha3", json!([hex])).await.as_str().unwrap().to_owned()
}

/// The contract's logs of an event, as the chain has them now.
async fn logs(stage: &Stage, event: &str) -> Vec<Value> {
    let filter = json!([{
        "fromBlock": "0x0", "toBlock": "latest",
        "address": stage.processor, "topics": [topic(stage, event).await],
    }]);
    stage.anvil.rpc("eth_getLogs", filter).await.as_array().unwrap().clone()
}

/// What the id of a log's event ends with: block, transaction, index.
fn end_of_id(log: &Value) -> String {
    let hash = |of: &str| log[of].as_str().unwrap().to_owned();
    format!("{}:{}:{}", hash("blockHash"), hash("transactionHash"), quantity(&log["logIndex"]))
}

/// The money: each payout that ended as done has reached the payee once, and nothing else has; and each
/// order was executed.
async fn paid_exactly(run: &Run, stage: &Stage, database: &mut PgConnection) {
    let payee = hex::decode(PAYEE.trim_start_matches("0x")).unwrap();
    let sql = "SELECT value FROM transactions WHERE status = 'finalized' AND recipient = $1";
    let values: Vec<(Vec<u8>,)> =
        sqlx::query_as(sql).bind(payee).fetch_all(database).await.unwrap();
    let due: u128 =
        values.iter().map(|(value,)| u128::from_be_bytes(value[16..].try_into().unwrap())).sum();
    let paid = stage.anvil.balance(PAYEE).await - stage.payee_before;
    assert_eq!(paid, due, "{} payouts are done", values.len());

    let logs = logs(stage, "ChargeExecuted(uint256,address,uint256)").await;
    let mut executed: BTreeMap<String, u64> = BTreeMap::new();
    for log in &logs {
        *executed.entry(log["topics"][1].as_str().unwrap().to_owned()).or_default() += 1;
        assert!(quantity(&log["blockNumber"]) > 0);
    }
    let due: BTreeMap<String, u64> =
        (1..=run.plan.orders()).map(|order| (format!("0x{}", word(order.into())), 1)).collect();
    assert_eq!(executed, due, "each order is executed once");
}

/// `audit export`, then `audit verify` of what it wrote.
fn exported_and_verified(stage: &Stage) -> Value {
    let (dir, config) = (stage.setup.dir(), stage.setup.config());
    let out = dir.join("export");
    let told = |args: &[&std::ffi::OsStr]| -> Value {
        let ran = Command::new(BIN).args(args).output().unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    };
    let key = dir.join("audit.vkey");
    let (audit, json) = ("audit".as_ref(), "--json".as_ref());
    told(&[
        audit,
        "export".as_ref(),
        "--config".as_ref(),
        config.as_ref(),
        "--out".as_ref(),
        out.as_ref(),
        json,
    ]);
    told(&[
        audit,
        "verify".as_ref(),
        "--export".as_ref(),
        out.as_ref(),
        "--key".as_ref(),
        key.as_ref(),
        json,
    ])
}
