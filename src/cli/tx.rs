//! `claviger tx get|list|cancel|speed-up`

use crate::cli::args::{InterveneArgs, TxCommand};
use crate::cli::client::{Door, Remote};
use crate::cli::print::{list, text};
use crate::cli::{Failure, print};
use crate::core::access::Role;
use crate::core::id::RequestId;
use crate::core::tx::state::Status;
use crate::ports::clock::{Clock, Entropy};
use reqwest::Method;
use serde_json::{Value, json};

/// Runs a transaction command.
///
/// # Errors
/// When the server is not reached or refuses.
pub async fn run(
    command: &TxCommand,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    match command {
        TxCommand::Get { remote, id } => {
            let id: RequestId = id.parse().map_err(|e| Failure::of("id", e))?;
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let path = format!("/v1/transactions/{id}");
            let found = server.call(Door::Client, Method::GET, &path, None).await?;
            if remote.json { print::json(&found) } else { show_one(&found) }
        }
        TxCommand::Cancel(args) => intervene(args, "cancel", clock, entropy).await?,
        TxCommand::SpeedUp(args) => intervene(args, "speed-up", clock, entropy).await?,
        TxCommand::List { remote, status, limit } => {
            let mut path = format!("/v1/transactions?limit={limit}");
            if let Some(name) = status {
                let status = Status::from_name(name);
                let status = status.ok_or_else(|| Failure::new("--status is not a status"))?;
                path = format!("{path}&status={status}");
            }
            let server = Remote::new(remote, Role::Operator, clock, entropy)?;
            let found = server.call(Door::Client, Method::GET, &path, None).await?;
            if remote.json { print::json(&found) } else { show_many(&found) }
        }
    }
    Ok(())
}

async fn intervene(
    args: &InterveneArgs,
    action: &str,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), Failure> {
    let id: RequestId = args.id.parse().map_err(|e| Failure::of("id", e))?;
    let server = Remote::new(&args.remote, Role::Operator, clock, entropy)?;
    let path = format!("/v1/transactions/{id}/{action}");
    let body = json!({ "reason": args.reason });
    let found = server.call(Door::Client, Method::POST, &path, Some(&body)).await?;
    if args.remote.json {
        print::json(&found)
    } else {
        show_one(&found)
    }
    Ok(())
}

fn show_many(found: &Value) {
    const COLUMNS: [&str; 6] = ["id", "status", "chain", "address", "nonce", "created_at"];
    let mut rows = vec![COLUMNS.map(str::to_uppercase).to_vec()];
    let all = list(found, "transactions");
    rows.extend(all.iter().map(|tx| COLUMNS.map(|name| text(tx, name)).to_vec()));
    print::table(&rows);
}

fn show_one(tx: &Value) {
    for name in
        ["id", "status", "chain", "signer", "address", "nonce", "to", "value", "data", "created_at"]
    {
        print::line(&format!("{name:<12} {}", text(tx, name)));
    }
    let empty = Value::Null;
    let decision = tx.get("decision").unwrap_or(&empty);
    print::line(&format!("{:<12} {}", "decision", text(decision, "outcome")));
    print::line(&format!("{:<12} {}", "grants", text(decision, "grants")));
    for (name, field) in [("waits for", "waiting"), ("failure", "failure")] {
        if let Some(told) = tx.get(field) {
            let (code, detail) = (text(told, "code"), text(told, "detail"));
            print::line(&format!("{name:<12} {code}: {detail}"));
        }
    }
    for attempt in list(tx, "attempts") {
        print::line(&format!(
            "attempt {:<4} {:<11} {:<8} {} fee {} tip {} signed {} sent {}",
            text(&attempt, "number"),
            text(&attempt, "reason"),
            text(&attempt, "state"),
            text(&attempt, "hash"),
            text(&attempt, "max_fee_per_gas"),
            text(&attempt, "max_priority_fee_per_gas"),
            text(&attempt, "signed_at"),
            text(&attempt, "sent_at"),
        ));
        let (because, nodes) = (text(&attempt, "because"), text(&attempt, "answer_detail"));
        print::line(&format!(
            "{:<12} {because}; sent {} times; {nodes}",
            "",
            text(&attempt, "sends")
        ));
    }
    if let Some(receipt) = tx.get("receipt") {
        print::line(&format!(
            "mined        block {} as {}",
            text(receipt, "block_number"),
            text(receipt, "transaction_hash")
        ));
    }
}
