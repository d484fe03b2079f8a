//! A long run of signatures through the HTTP door while the HSM does everything that it may do: loses sessions
//! and logins, is gone, must be initialised again, hangs, refuses, gives wrong signatures, and right ones that
//! are rare. Callers ask again under the same idempotency key, and recover every signature that they are
//! given. Payouts run beside them, and the invariants hold at the end.
//!
//! `CLAVIGER_HSM_SIGNATURES` says how many signatures of messages, `CLAVIGER_SEED` chooses the weather. Threads
//! never run the same twice: what the seed replays is which faults come in which order, and how many calls each meets at least.

#![cfg(feature = "server")]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test fails by panicking"
)]

#[path = "../support"]
mod support {
    pub mod invariants;
    pub mod pkcs11_faults;
    pub mod report;
    pub mod server;
    pub mod services;
    pub mod signing_load;
}

#[allow(dead_code, reason = "the simulation uses all of it")]
#[path = "../simulation/random.rs"]
mod random;
mod weather;

use random::Random;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::invariants::Invariants;
use support::pkcs11_faults::Pkcs11Faults;
use support::report::report;
use support::server::{ETHER, PAYEE, Server, SetUp, payout_grants};
use support::services::{Anvil, AnvilOptions, Mining, poll_until};
use support::signing_load::{Load, MESSAGE_GRANT, SMALL, Tally, sender_of};
use weather::Weather;

const KEYS: usize = 4;
const CALLERS: usize = 32;
const GWEI: u128 = 1_000_000_000;
/// How long the last payout may take to be final once the weather is fine.
const SETTLED: Duration = Duration::from_secs(120);

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty());
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The metric of signatures by their shape, as whole numbers.
async fn raw(server: &Server, shape: &str) -> u64 {
    let value = server.metric("claviger_hsm_signatures_total", &[("raw", shape)]).await;
    // A counter far below 2^53.
    format!("{value:.0}").parse().unwrap()
}

/// The payouts are final and were executed once each, signed by the key of their address.
async fn settle(anvil: &Anvil, server: &Server, ids: &[String], paid_before: u128) {
    for id in ids {
        let found = poll_until(SETTLED, &format!("{id} is final"), async || {
            anvil.mine(4).await;
            let found = server.read(id).await;
            (found["status"] == "finalized").then_some(found)
        })
        .await;
        for attempt in found["attempts"].as_array().unwrap() {
            if let Some(raw) = attempt["raw"].as_str() {
                assert_eq!(found["address"], sender_of(raw));
            }
        }
    }
    let paid = anvil.balance(PAYEE).await - paid_before;
    assert_eq!(paid, ids.len() as u128 * SMALL, "each payout once");
}

fn table(rows: &BTreeMap<String, u64>) {
    for (what, count) in rows {
        report(&format!("hsm: {what:<52} {count:>10}"));
    }
}

fn told(kind: &str, tally: &Tally, rows: &mut BTreeMap<String, u64>) {
    let counts = [
        ("asked", tally.asked),
        ("released", tally.released),
        ("retried (503)", tally.retried),
        ("pending, asked again (202)", tally.pending),
        ("failed", tally.failed),
        ("wrong", tally.wrong.len() as u64),
    ];
    rows.extend(counts.map(|(what, count)| (format!("{kind}: {what}"), count)));
    rows.extend(tally.answers.iter().map(|(it, count)| (format!("{kind}: answers {it}"), *count)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_one_wrong_signature_is_released_whatever_the_hsm_does() {
    let (most, seed) = (number("CLAVIGER_HSM_SIGNATURES", 3_000), number("CLAVIGER_SEED", 1));
    report(&format!("hsm: {most} signatures, CLAVIGER_SEED={seed}"));
    let anvil = Anvil::start(AnvilOptions {
        mining: Mining::Auto,
        slots_in_an_epoch: Some(1),
        ..AnvilOptions::default()
    })
    .await;
    let grants = format!("{}{MESSAGE_GRANT}", payout_grants("10000.0"));
    let setup = SetUp::new(&anvil.url(), None, &grants);
    let faults = Pkcs11Faults::new();
    let server = setup.start(&faults.envs()).await;
    let mut keys = Vec::new();
    for key in 0..KEYS {
        let address = server.funded_key(&anvil, &format!("op-{key}")).await;
        anvil.set_balance(&address, 10_000 * ETHER).await;
        keys.push(address);
    }
    let paid_before = anvil.balance(PAYEE).await;

    let begun = Instant::now();
    let addresses: Vec<&str> = keys.iter().map(String::as_str).collect();
    let messages = Load::messages(&server, &addresses, CALLERS, most);
    let payouts = Load::payouts(&server, 2, most / 100);
    let weather = Weather::new(&faults, Random::new(seed));
    let mut rows = weather.until(&messages, most).await;
    let (messages, _) = messages.end().await;
    let (payouts, ids) = payouts.end().await;
    let took = begun.elapsed();

    settle(&anvil, &server, &ids, paid_before).await;
    let invariants = Invariants::new(&anvil.url(), setup.store_url());
    invariants.answered(ids).chain_cap(150 * GWEI).check().await;
    told("messages", &messages, &mut rows);
    told("payouts", &payouts, &mut rows);
    for shape in ["high_s", "low_s", "wrong"] {
        rows.insert(format!("the module's signatures: {shape}"), raw(&server, shape).await);
    }
    rows.insert("seconds".to_owned(), took.as_secs());
    rows.insert("signatures a second".to_owned(), messages.released / took.as_secs().max(1));
    table(&rows);
    assert_eq!((messages.released, messages.failed), (most, 0));
    assert_eq!(payouts.failed, 0);
    // What did not come was not survived.
    for kind in weather::KINDS {
        let met = rows.get(&format!("{}{kind}", weather::MET)).copied().unwrap_or_default();
        assert!(met > 0, "not one call has met: {kind}");
    }
    for shape in ["high_s", "wrong"] {
        assert!(raw(&server, shape).await > 0, "not one signature was {shape}");
    }
    // Each one that was spoilt was seen, and nothing else was taken for one.
    assert_eq!(raw(&server, "wrong").await, faults.count_with(weather::SPOILT) as u64);
    assert!(!faults.was_finalized_during_a_call(), "C_Finalize while a call was in the module");
    server.stop().await;
}
