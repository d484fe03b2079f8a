//! What a decision costs: `evaluate()`, as the server calls it, over bundles of 1,000 grants, one line for each
//! shape of bundle. It fails if a median is above 20 µs, but for the last two.
//! docs/BENCH.md has the figures.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement fails by panicking, and prints its table"
)]

use alloy::primitives::{Address, B256, Bytes};
use claviger::core::amount::Amount;
use claviger::core::evm::decode::effects;
use claviger::core::id::{ChainId, ChainName, GroupName, KeyId};
use claviger::core::intent::{ChainRef, FeeAsk, Fees, Intent, TransactionIntent, TxType};
use claviger::core::policy::{Bundle, CodeFact, Facts, PolicyRequest, evaluate};
use claviger::core::principal::Principal;
use claviger::core::time::Timestamp;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;
use uuid::Uuid;

const GRANTS: usize = 1_000;
const ROUNDS: usize = 20_000;
const MEDIAN_US_MAX: f64 = 20.0;
const TOKEN: &str = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512";
const FEE: &str = r#"fee = { max_fee_gwei = "150", max_tip_gwei = "5", max_gas = 200000 }"#;
const WINDOWS: &str = r#"windows = [{ span = "24h", max = "10.0", scope = "group" },
    { span = "1h", count = 200, scope = "principal" }]"#;

fn main() {
    println!("{GRANTS} grants, {ROUNDS} decisions each; microseconds");
    let heads = ["median", "p99", "decoding", "outcome"].map(|head| format!("{head:>8}"));
    println!("{:50} {}", "bundle and request", heads.join(" "));
    let (payee, stranger) = (address(500), address(5_000));
    let mut slow = Vec::new();
    let shapes = [
        // One principal with a grant for each payee.
        ("a payee for each, native payment", each(native_to), native(payee), true),
        ("a payee for each, token payment", each(token_to), token(payee), true),
        // A hundred services, each with ten payees.
        ("a hundred principals, native payment", each(principals), native(payee), true),
        // Nothing matches: all of them miss, for one reason or another.
        ("a payee for each, a stranger is refused", each(native_to), native(stranger), true),
        ("a payee for each, a stranger's tokens", each(token_to), token(stranger), true),
        ("a hundred principals, a stranger is refused", each(principals), native(stranger), true),
        ("for others, refused", each(of_others), native(payee), true),
        ("native payments only, tokens refused", each(native_to), token(payee), true),
        // All of them match: each is tried to the end.
        ("all match", each(any), native(payee), true),
        ("all match, with other bounds each", each(any_bounds), native(payee), true),
        ("all match, and the amount is above each", each(any), above(payee), true),
        ("all match, and the fee is above each", each(low_fee), exact(payee), true),
        // Tried one by one, as what says more is.
        ("all match, each with hours", each(any_hours), native(payee), false),
        // What is charged has to be written as well: a thousand counters in one transaction.
        ("all match, each with a window", each(any_window), native(payee), false),
    ];
    // `cargo bench --bench policy -- "all match"` measures those of that name.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    for (name, grants, request, is_bound) in shapes.into_iter().filter(|it| it.0.contains(&only)) {
        let bundle = load(&grants);
        let now = Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap();
        let outcome = evaluate(&bundle, &request, now).outcome;
        let (median, p99) = measure(|| evaluate(black_box(&bundle), black_box(&request), now));
        let (decoding, _) = measure(|| effects(black_box(&bundle), black_box(&request)));
        let outcome = outcome.name();
        println!("{name:50} {median:>8.2} {p99:>8.2} {decoding:>8.2} {outcome:>8}");
        if is_bound && median > MEDIAN_US_MAX {
            slow.push(name);
        }
    }
    assert!(slow.is_empty(), "above {MEDIAN_US_MAX} microseconds: {slow:?}");
}

/// Median and 99th percentile, in microseconds.
fn measure<T>(question: impl Fn() -> T) -> (f64, f64) {
    let mut taken: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            drop(black_box(question()));
            started.elapsed().as_nanos()
        })
        .collect();
    taken.sort_unstable();
    let at = |part: usize| {
        u32::try_from(taken[taken.len() * part / 100]).map_or(f64::MAX, f64::from) / 1_000.0
    };
    (at(50), at(99))
}

fn address(number: usize) -> Address {
    let mut bytes = [0x11; 20];
    bytes[12..].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
    Address::from(bytes)
}

fn each(one: impl Fn(usize) -> String) -> String {
    (0..GRANTS).map(one).collect()
}

fn grant(number: usize, sub: &str, rest: &str) -> String {
    format!(
        "[[grant]]\nid = \"g{number}\"\nowner = \"o\"\nreason = \"r\"\nexpires = \"2027-12-31\"\n\
         principals = [\"{sub}\"]\nsigners = [\"payments\"]\nchains = [\"local\"]\n{rest}\n{FEE}\n"
    )
}

fn native_to(number: usize) -> String {
    let to = address(number);
    let rest = format!(
        "action = \"native.transfer\"\nto = {{ address = [\"{to}\"] }}\nper_tx = \"2.0\"\n{}",
        // Windows of native transfers count every fee of the principal, so one grant has them.
        if number == 500 { WINDOWS } else { "" }
    );
    grant(number, "svc:payouts", &rest)
}

fn token_to(number: usize) -> String {
    let to = address(number);
    let rest = format!(
        "action = \"erc20.transfer\"\nasset = \"tusd\"\nto = {{ address = [\"{to}\"] }}\n\
         per_tx = \"2.0\"\n{WINDOWS}"
    );
    grant(number, "svc:payouts", &rest)
}

fn principals(number: usize) -> String {
    let to = address(number);
    let sub = if number.is_multiple_of(100) {
        "svc:payouts".to_owned()
    } else {
        format!("svc:{}", number % 100)
    };
    let rest = format!(
        "action = \"native.transfer\"\nto = {{ address = [\"{to}\"] }}\nper_tx = \"2.0\"\n{WINDOWS}"
    );
    grant(number, &sub, &rest)
}

fn any(number: usize) -> String {
    let rest = "action = \"native.transfer\"\nto = { any = true }\nper_tx = \"2.0\"";
    grant(number, "svc:payouts", rest)
}

fn of_others(number: usize) -> String {
    native_to(number).replace("svc:payouts", &format!("svc:{number}"))
}

fn any_bounds(number: usize) -> String {
    // In no order.
    let other = 3 + number * 7_919 % GRANTS;
    any(number)
        .replace("per_tx = \"2.0\"", &format!("per_tx = \"2.{other:04}\""))
        .replace("max_fee_gwei = \"150\"", &format!("max_fee_gwei = \"100.{other:04}\""))
        .replace("max_gas = 200000", &format!("max_gas = {}", 200_000 + other))
}

fn low_fee(number: usize) -> String {
    any(number).replace("max_fee_gwei = \"150\"", "max_fee_gwei = \"100\"")
}

fn any_hours(number: usize) -> String {
    let hours = "per_tx = \"2.0\"\nhours = { days = \"mon-sun\", utc = \"07:00-19:00\" }";
    any(number).replace("per_tx = \"2.0\"", hours)
}

fn any_window(number: usize) -> String {
    any(number).replace("per_tx = \"2.0\"", &format!("per_tx = \"2.0\"\n{WINDOWS}"))
}

fn load(grants: &str) -> Bundle {
    let bundle = "schema = 1\nversion = \"bench\"\n[[issuer]]\niss = \"dev\"\nroles = [\"client\"]\n\
                  subjects = [\"svc:*\"]\n";
    let assets = format!(
        "[[asset]]\nname = \"tusd\"\nchain = \"local\"\naddress = \"{TOKEN}\"\ndecimals = 6\n"
    );
    let files = BTreeMap::from([
        ("bundle.toml".to_owned(), bundle.as_bytes().to_vec()),
        ("assets.toml".to_owned(), assets.into_bytes()),
        ("grants.toml".to_owned(), grants.as_bytes().to_vec()),
    ]);
    Bundle::load(&files).unwrap_or_else(|error| panic!("{error}"))
}

fn native(to: Address) -> PolicyRequest {
    request(to, 1_000, Bytes::new(), &[])
}

fn above(to: Address) -> PolicyRequest {
    request(to, 3_000_000_000_000_000_000, Bytes::new(), &[])
}

fn exact(to: Address) -> PolicyRequest {
    let mut request = native(to);
    let Intent::Transaction(tx) = &mut request.intent else { panic!("no transaction") };
    tx.fees = FeeAsk::Exact(Fees { max_fee: 150_000_000_000, max_priority_fee: 5_000_000_000 });
    request
}

fn token(to: Address) -> PolicyRequest {
    let mut data = vec![0xa9, 0x05, 0x9c, 0xbb];
    data.extend_from_slice(to.into_word().as_slice());
    data.extend_from_slice(&Amount::from(1_000_u64).to_be_bytes());
    request(TOKEN.parse().unwrap(), 0, data.into(), &[0x60, 0x80])
}

fn request(to: Address, value: u64, data: Bytes, code: &[u8]) -> PolicyRequest {
    let fees = Fees { max_fee: 150_000_000_000, max_priority_fee: 5_000_000_000 };
    let code = CodeFact { address: to, block: B256::ZERO, code: Bytes::copy_from_slice(code) };
    PolicyRequest {
        principal: Principal { iss: "dev".to_owned(), sub: "svc:payouts".to_owned() },
        group: Some(GroupName::new("payments")),
        key: KeyId::new(Uuid::from_u128(7)),
        address: address(9_000),
        intent: Intent::Transaction(Box::new(TransactionIntent {
            chain: ChainRef { name: ChainName::new("local"), id: ChainId::new(31_337) },
            tx_type: TxType::Eip1559,
            to: Some(to),
            value: Amount::from(value),
            data,
            gas: 60_000,
            fees: FeeAsk::UpTo(fees),
            access_list: vec![],
            nonce: None,
            not_after: None,
            source: None,
        })),
        facts: Facts { codes: vec![code], ..Facts::default() },
    }
}
