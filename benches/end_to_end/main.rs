//! How much of the HSM's own speed reaches a caller: `make bench`, explained in `docs/BENCH.md`.
//!
//! In one run, on one machine and one SoftHSM token: `C_Sign` alone; then a server over real HTTP, with
//! SQLite and a local chain, for messages, external transactions and managed transactions.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    missing_docs,
    reason = "a program that measures: to panic is how it says that it cannot"
)]

#[path = "../../tests/support"]
mod support {
    pub mod server;
    pub mod services;
}

mod cpu;
mod load;
mod raw;
mod report;

use cpu::Usage;
use load::{Load, Requests};
use report::{Phase, Report};
use serde_json::json;
use std::time::{Duration, Instant};
use support::server::{ETHER, LIMIT, PAYEE, Server, SetUp};
use support::services::{Anvil, AnvilOptions, Mining, poll_until};

const SUB: &str = "svc:payouts";
/// Lanes of managed transactions.
const LANES: usize = 8;
const CONCURRENCIES: [usize; 3] = [1, 16, 64];
/// The sessions of the server's configuration, and the threads that call `C_Sign` without it.
const SESSIONS: usize = 2;
/// How often the chain gets a block.
const BLOCK: Duration = Duration::from_millis(200);

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    if args.next().as_deref() == Some("raw") {
        return raw::child();
    }
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(run(Duration::from_secs(seconds.unwrap_or(5))));
}

async fn run(each: Duration) {
    let options = AnvilOptions {
        mining: Mining::Manual,
        slots_in_an_epoch: Some(1),
        ..AnvilOptions::default()
    };
    let mut anvil = Anvil::start(options).await;
    let setup = SetUp::new(&anvil.url(), None, &grants());
    let server = setup.start(&[]).await;
    for lane in 0..LANES {
        let address = server.key(&format!("op-{lane}"), Some("payments"), "managed").await;
        anvil.set_balance(&address, 1_000_000 * ETHER).await;
    }
    let external = server.key("ext", Some("payments"), "external").await;
    server.stop().await;

    let mut report = Report::new(SESSIONS);
    // The server is stopped: only one of the two calls the module.
    for threads in [1, SESSIONS] {
        report.raw.push(raw::measure(&setup, threads, each));
    }
    let lanes = [
        ("CLAVIGER__CHAIN__0__MAX_IN_FLIGHT", "64"),
        ("CLAVIGER__CHAIN__0__POLL_EVERY", "250ms"),
        ("CLAVIGER__CHAIN__0__RESEND_AFTER", "120s"),
        ("CLAVIGER__CHAIN__0__REBROADCAST_AFTER", "60s"),
        ("CLAVIGER__AUDIT__SEQUENCE_EVERY", "100ms"),
    ];
    let server = setup.start(&lanes).await;
    let (pid, chain_pid) = (server.program.pid(), anvil.program().pid());
    let token = server.token(SUB, claviger::core::access::Role::Client);
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    for kind in ["messages", "external", "transactions"] {
        if !only.is_empty() && only != kind {
            continue;
        }
        for concurrency in CONCURRENCIES {
            let requests = requests(kind, &server, &token, &external);
            let load = Load { requests, concurrency, warm: Duration::from_secs(1), each };
            let before = || Usage::now(pid, chain_pid);
            let measuring = load.run(before);
            let (done, used) = if kind == "transactions" {
                tokio::select! {
                    done = measuring => done,
                    () = mine(&anvil) => unreachable!("the chain goes on"),
                }
            } else {
                measuring.await
            };
            report.phases.push(Phase { kind, concurrency, done, used });
            report.show_last();
        }
    }
    if only.is_empty() || only == "transactions" {
        all_mined(&anvil, &server).await;
    }
    server.stop().await;
    if !report.finish() {
        std::process::exit(1);
    }
}

/// A block now and then, for as long as it is polled.
async fn mine(anvil: &Anvil) {
    loop {
        tokio::time::sleep(BLOCK).await;
        anvil.mine(1).await;
    }
}

/// What was answered must also happen: nothing is left on the way.
async fn all_mined(anvil: &Anvil, server: &Server) {
    let begun = Instant::now();
    poll_until(LIMIT, "no transaction is on its way", async || {
        anvil.mine(1).await;
        let token = server.token("dev:op", claviger::core::access::Role::Operator);
        let mut left = 0;
        for status in ["queued", "submitted"] {
            let url = format!("{}/v1/transactions?status={status}&limit=1", server.client_url());
            let found = server.try_call(reqwest::Method::GET, url, &token, None, None).await?.ok();
            left += found["transactions"].as_array().map_or(0, Vec::len);
        }
        (left == 0).then_some(())
    })
    .await;
    println!(
        "all transactions are mined, {} ms after the last answer",
        begun.elapsed().as_millis()
    );
}

fn requests(kind: &str, server: &Server, token: &str, external: &str) -> Requests {
    let address = server.client_url().trim_start_matches("http://").to_owned();
    match kind {
        "messages" => Requests::new(address, "/v1/signatures", token, false, |n| {
            json!({ "signer": "payments", "message": { "text": format!("hello {n}") } }).to_string()
        }),
        "external" => {
            let signer = external.to_owned();
            Requests::new(address, "/v1/signatures", token, false, move |n| {
                // Each is a transaction of its own; a nonce may be signed for in several versions.
                json!({ "chain": "local", "signer": signer, "transaction": {
                    "nonce": (n % 256).to_string(), "gas": "21000", "to": PAYEE,
                    "value": (n + 1).to_string(), "max_fee_per_gas": "4000000000",
                    "max_priority_fee_per_gas": "1000000000",
                }})
                .to_string()
            })
        }
        _ => Requests::new(address, "/v1/transactions?wait=20s", token, true, |n| {
            json!({
                "chain": "local", "signer": "payments", "to": PAYEE, "gas": "21000",
                "value": (n + 1).to_string(),
            })
            .to_string()
        }),
    }
}

/// As in production each grant has its windows, but so wide that nothing is denied.
fn grants() -> String {
    let head = |id: &str| {
        format!(
            "[[grant]]\nid = \"{id}\"\nowner = \"o\"\nreason = \"bench\"\nexpires = \"2099-12-31\"\n\
             principals = [\"{SUB}\"]\nsigners = [\"payments\"]\n"
        )
    };
    format!(
        r#"{payouts}chains = ["local"]
action = "native.transfer"
to = {{ book = "payees" }}
per_tx = "1.0"
windows = [{{ span = "24h", rolling = true, max = "100000000", scope = "group" }}]
fee = {{ max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 21000 }}

{messages}action = "message"
text = {{ prefix = "hello " }}
windows = [{{ span = "24h", rolling = true, count = 100000000, scope = "principal" }}]
"#,
        payouts = head("payouts"),
        messages = head("messages"),
    )
}
