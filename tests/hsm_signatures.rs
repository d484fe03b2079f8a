//! Ten thousand signatures on each of several keys, as they leave the HSM room: two other implementations
//! recover the key's address from each, and the rare shapes are known to have been met.

#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a test crate: a panic is how a test fails; it uses a part of the helpers"
)]

#[path = "hsm/softhsm.rs"]
mod softhsm;

#[path = "support/report.rs"]
mod report;

use alloy::primitives::{B256, Signature, U256, keccak256};
use claviger::core::evm::message::message_bytes;
use claviger::core::key::OperatorKey;
use claviger::core::permit::RawSignature;
use claviger::hsm::Hsm;
use claviger::ports::signer::Signer;
use ethers_core::types::{H256, RecoveryMessage, Signature as EthersSignature, U256 as EthersU256};
use futures::StreamExt;
use report::report;
use softhsm::{Token, in_own_process, new_key, permit};
use std::time::Instant;

const KEYS: u8 = 3;
/// How many signatures of each key; `CLAVIGER_SIGNATURES_PER_KEY` says another number.
const PER_KEY: usize = 10_000;
const HALF_ORDER: &str = "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0";

type Made = (B256, RawSignature);

async fn signatures(hsm: &Hsm, key: &OperatorKey, count: usize) -> Vec<Made> {
    let numbers = futures::stream::iter(0..count);
    let signing = numbers.map(|number| async move {
        let text = format!("{} {number}", key.label);
        let signature = hsm.sign(permit(key, &text)).await.unwrap();
        (keccak256(message_bytes(&text)), signature)
    });
    signing.buffer_unordered(32).collect().await
}

/// Recovered with this very parity by alloy and by ethers-core.
fn assert_signed_by(key: &OperatorKey, (digest, made): &Made, half_order: &[u8]) {
    assert!(made.s.as_slice() <= half_order, "high s");
    let (r, s) = (U256::from_be_bytes(made.r), U256::from_be_bytes(made.s));
    let alloy = Signature::new(r, s, made.y_parity).recover_address_from_prehash(digest);
    assert_eq!(alloy.unwrap(), key.address);
    let ethers = EthersSignature {
        r: EthersU256::from_big_endian(&made.r),
        s: EthersU256::from_big_endian(&made.s),
        v: 27 + u64::from(made.y_parity),
    };
    let hash = RecoveryMessage::Hash(H256::from_slice(digest.as_slice()));
    assert_eq!(ethers.recover(hash).unwrap().as_bytes(), key.address.as_slice());
}

/// On all processors.
fn assert_all_signed_by(key: &OperatorKey, made: &[Made]) {
    let half_order = hex::decode(HALF_ORDER).unwrap();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for part in made.chunks(made.len().div_ceil(threads)) {
            let half_order = half_order.as_slice();
            scope.spawn(move || part.iter().for_each(|one| assert_signed_by(key, one, half_order)));
        }
    });
}

/// Seven standard deviations around what is to be expected: chance does not leave them.
fn assert_usual(what: &str, seen: usize, of: usize, chance: f64) {
    let mean = of as f64 * chance;
    let far = 7.0 * (mean * (1.0 - chance)).sqrt();
    let seen = seen as f64;
    assert!((seen - mean).abs() <= far, "{what}: {seen} of {of}, expected {mean:.0}");
    // Below this number none at all would be usual.
    assert!(of < PER_KEY || seen >= 1.0, "{what} was not met");
}

/// A counter's sum over all its labels but these.
fn counted(token: &Token, raw: &str) -> usize {
    let (text, label) = (token.metrics(), format!("raw=\"{raw}\""));
    let ours = |line: &&str| {
        line.starts_with("claviger_hsm_signatures_total{") && line.contains(label.as_str())
    };
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    text.lines().filter(ours).map(value).sum()
}

#[test]
fn ten_thousand_signatures_of_each_of_several_keys_are_recovered_by_two_other_implementations() {
    in_own_process(
        "ten_thousand_signatures_of_each_of_several_keys_are_recovered_by_two_other_implementations",
        async |token: Token| {
            let count = std::env::var("CLAVIGER_SIGNATURES_PER_KEY");
            let count = count.ok().filter(|count| !count.is_empty());
            let count = count.map_or(PER_KEY, |count| count.parse().unwrap());
            let hsm = token.open(2, 64);
            for number in 1..=KEYS {
                let key = new_key(&hsm, number).await;
                let (high_before, low_before) =
                    (counted(&token, "high_s"), counted(&token, "low_s"));
                let begun = Instant::now();
                let made = signatures(&hsm, &key, count).await;
                let signed_in = begun.elapsed();
                let high = counted(&token, "high_s") - high_before;
                assert_eq!(high + counted(&token, "low_s") - low_before, count);
                assert_all_signed_by(&key, &made);
                let seen =
                    |is: fn(&RawSignature) -> bool| made.iter().filter(|it| is(&it.1)).count();
                let (zero_r, zero_s) = (seen(|it| it.r[0] == 0), seen(|it| it.s[0] == 0));
                let odd = seen(|it| it.y_parity);
                report(&format!(
                    "hsm_signatures: key {number}: {count} signatures, {:.0} a second, all recovered in {:.1} s more; \
                     high s before finishing: {high}; leading zero in r: {zero_r}, in s: {zero_s}; \
                     odd y: {odd}",
                    count as f64 / signed_in.as_secs_f64(),
                    (begun.elapsed() - signed_in).as_secs_f64(),
                ));
                assert_usual("high s", high, count, 0.5);
                assert_usual("odd y", odd, count, 0.5);
                assert_usual("a leading zero in r", zero_r, count, 1.0 / 256.0);
                // Of both halves: what began with 0xff has become small.
                assert_usual("a leading zero in s", zero_s, count, 1.0 / 128.0);
            }
            assert_eq!(counted(&token, "wrong"), 0);
        },
    );
}
