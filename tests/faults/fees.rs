//! Replacements: accepted by every client's rule, both fields together, and never above the cap.

use crate::stage::{GWEI, Options, RESEND_SOON, SUB, Stage, attempts, id, of_attempt, prices};
use crate::support::fault_proxy::{Fault, FaultProxy, PoolRules, Rounding, SEND, Times};
use crate::support::server::{ETHER, LIMIT, payout};
use crate::support::services::{Anvil, AnvilOptions, Mining, poll_until};
use claviger::core::intent::{Fees, TxType};
use claviger::core::tx::fee::{Bump, Market, minimum, next};
use ethers_core::k256::ecdsa::SigningKey;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{Eip1559TransactionRequest, Signature, U256};
use serde_json::{Value, json};
use std::sync::Arc;

/// The published key of anvil's first development account.
const FUNDED: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
/// Prices where ten percent do not come out even.
const ODD: &[u128] = &[1, 2, 9, 11, GWEI + 1];

fn same(price: u128) -> Fees {
    Fees { max_fee: price, max_priority_fee: price }
}

/// The smallest bump that we would sign: the market asks for nothing.
fn smallest_bump(previous: u128) -> u128 {
    let market = Market { base_fee: 0, tips: vec![] };
    match next(same(previous), &market, same(minimum(previous)), TxType::Eip1559) {
        Bump::To(fees) => {
            assert_eq!(fees, same(fees.max_fee), "both fields");
            fees.max_fee
        }
        Bump::AtCap => panic!("{previous} can be raised"),
    }
}

#[test]
fn t11_every_bump_is_taken_by_the_floor_and_by_the_ceil_rule() {
    let odd = ODD.iter().copied().chain(1..2_000).chain([19, 99, 10 * GWEI + 7, u128::MAX / 220]);
    for previous in odd {
        let bumped = smallest_bump(previous);
        for rule in [Rounding::Floor, Rounding::Ceil] {
            let takes = |new: u128| rule.takes(U256::from(previous), U256::from(new));
            assert!(takes(bumped), "{rule:?}: {previous} to {bumped}");
        }
        // No more than the stricter rule wants.
        assert!(!Rounding::Ceil.takes(U256::from(previous), U256::from(bumped - 1)), "{previous}");
    }
}

pub fn signed(nonce: u64, price: u128) -> String {
    let to: ethers_core::types::Address =
        "0x00000000000000000000000000000000000000aa".parse().unwrap();
    let request = Eip1559TransactionRequest::new()
        .chain_id(31337_u64)
        .to(to)
        .value(1_u64)
        .gas(21000_u64)
        .nonce(nonce)
        .max_priority_fee_per_gas(price)
        .max_fee_per_gas(price);
    let typed = TypedTransaction::Eip1559(request);
    let key = SigningKey::from_slice(&hex::decode(FUNDED).unwrap()).unwrap();
    let (signature, recovery) = key.sign_prehash_recoverable(typed.sighash().as_bytes()).unwrap();
    let bytes = signature.to_bytes();
    let signature = Signature {
        r: U256::from_big_endian(&bytes[..32]),
        s: U256::from_big_endian(&bytes[32..]),
        v: u64::from(recovery.to_byte()),
    };
    format!("0x{}", hex::encode(typed.rlp_signed(&signature)))
}

pub async fn send(url: &str, raw: &str) -> Value {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": SEND, "params": [raw] });
    http.post(url).json(&body).send().await.unwrap().json().await.unwrap()
}

/// No server here: the bumps that it would sign, on the wire, at prices that it starts at on no real chain.
#[tokio::test]
async fn t11_bumps_at_a_few_wei_pass_the_pools_of_both_clients() {
    let args = vec!["--block-base-fee-per-gas".to_owned(), "0".to_owned()];
    let options = AnvilOptions { mining: Mining::Manual, args, ..AnvilOptions::default() };
    let anvil = Anvil::start(options).await;
    let mut nonce = 0;
    for rounding in [Rounding::Floor, Rounding::Ceil] {
        let proxy = FaultProxy::start(&anvil.url()).await;
        proxy.pool_rules(Some(PoolRules { rounding, ..PoolRules::default() }));
        for previous in ODD.iter().copied() {
            let first = send(&proxy.url(), &signed(nonce, previous)).await;
            assert!(first["result"].is_string(), "{first}");
            let known = send(&proxy.url(), &signed(nonce, previous)).await;
            assert_eq!(known["error"]["message"], "already known");
            if rounding == Rounding::Ceil {
                let cheap = send(&proxy.url(), &signed(nonce, minimum(previous) - 1)).await;
                let said = &cheap["error"]["message"];
                // At a few wei, one less is the first one itself.
                let same = minimum(previous) - 1 == previous;
                let due =
                    if same { "already known" } else { "replacement transaction underpriced" };
                assert_eq!(*said, due, "{previous}");
            }
            let bump = send(&proxy.url(), &signed(nonce, smallest_bump(previous))).await;
            assert!(bump["result"].is_string(), "{rounding:?} {previous}: {bump}");
            assert_eq!(proxy.pooled().last().unwrap(), bump["result"].as_str().unwrap());
            nonce += 1;
        }
    }
}

/// The whole server behind a client's pool: three replacements at an odd price, each of them taken.
async fn t11_replacements_are_taken(rounding: Rounding) {
    let args = vec!["--block-base-fee-per-gas".to_owned(), "1".to_owned()];
    let stage = Stage::with(Options { anvil_args: args, ..Options::default() }).await;
    stage.proxy.pool_rules(Some(PoolRules { rounding, ..PoolRules::default() }));
    let tip = format!("{:#x}", GWEI + 1);
    let rewrite = Arc::new(move |_: &Value, mut answer: Value| {
        let blocks = answer["result"]["reward"].as_array().map_or(0, Vec::len);
        answer["result"]["reward"] = json!(vec![[&tip]; blocks]);
        answer
    });
    stage.proxy.inject("eth_feeHistory", Times::UntilLifted, Fault::Rewrite(rewrite));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let asked = stage.pay(&server, "t11").await;
    let found = poll_until(LIMIT, "four attempts", async || {
        let found = server.read(&id(&asked)).await;
        (attempts(&found).len() >= 4).then_some(found)
    })
    .await;
    assert_eq!(prices(&of_attempt(&found, 0, "raw")).1, GWEI + 1);
    for at in 1..4 {
        let old = prices(&of_attempt(&found, at - 1, "raw"));
        let new = prices(&of_attempt(&found, at, "raw"));
        for (old, new) in [(old.0, new.0), (old.1, new.1)] {
            assert!(rounding.takes(U256::from(old), U256::from(new)), "{old} to {new}");
        }
    }
    let last = attempts(&found).last().unwrap()["hash"].as_str().unwrap().to_owned();
    poll_until(LIMIT, "the last is in the pool", async || {
        stage.proxy.pooled().contains(&last).then_some(())
    })
    .await;
    let refused = "did not take the bytes";
    assert!(!server.program.stderr().contains(refused), "{}", server.program.tail());
    stage.mine_until_mined(&server, &id(&asked)).await;
    stage.finish(&server, &id(&asked)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t11_replacements_are_taken_by_a_pool_that_rounds_down() {
    t11_replacements_are_taken(Rounding::Floor).await;
}

#[tokio::test]
async fn t11_replacements_are_taken_by_a_pool_that_rounds_up() {
    t11_replacements_are_taken(Rounding::Ceil).await;
}

#[tokio::test]
async fn t12_when_only_the_base_fee_rose_both_fields_are_raised() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(Some(PoolRules::default()));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    let asked = stage.pay(&server, "t12").await;
    let first = prices(&of_attempt(&asked, 0, "raw"));
    // The base fee is just above what the first can pay; nothing else on the chain changes.
    let base = first.0 + 1;
    let found = poll_until(LIMIT, "a second attempt", async || {
        let next = json!([format!("{base:#x}")]);
        stage.anvil.rpc("anvil_setNextBlockBaseFeePerGas", next).await;
        stage.anvil.mine(1).await;
        let found = server.read(&id(&asked)).await;
        (attempts(&found).len() >= 2).then_some(found)
    })
    .await;
    let second = prices(&of_attempt(&found, 1, "raw"));
    let taken = of_attempt(&found, 1, "hash");
    poll_until(LIMIT, "the second is in the pool", async || {
        stage.proxy.pooled().contains(&taken).then_some(())
    })
    .await;
    assert!(second.0 >= minimum(first.0).max(base), "{first:?} then {second:?}");
    assert!(second.1 >= minimum(first.1), "{first:?} then {second:?}");
    let mined = stage.mine_until_mined(&server, &id(&asked)).await;
    assert_ne!(mined["receipt"]["transaction_hash"], of_attempt(&asked, 0, "hash"));
    stage.finish(&server, &id(&asked)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    stage.check().await;
}

#[tokio::test]
async fn t13_at_the_cap_the_same_bytes_go_out_again_and_an_alert_is_given() {
    let stage = Stage::new().await;
    stage.proxy.pool_rules(Some(PoolRules::default()));
    let (server, address) = stage.open(&[RESEND_SOON]).await;
    // Room for one replacement, not for two: the first offers twice the base fee, one gwei.
    let mut body = payout(ETHER);
    let cap = 2 * GWEI + 3 * GWEI / 10;
    body["max_fee_per_gas"] = json!(cap.to_string());
    let asked = stage.pay_as(&server, "t13", &body).await;
    let base = format!("{:#x}", 3 * GWEI);
    let alert = "its fees are at the cap";
    poll_until(LIMIT, "an alert", async || {
        stage.anvil.rpc("anvil_setNextBlockBaseFeePerGas", json!([base])).await;
        stage.anvil.mine(1).await;
        server.program.stderr().contains(alert).then_some(())
    })
    .await;
    let count = stage.proxy.sent().len();
    poll_until(LIMIT, "sent three times more", async || {
        (stage.proxy.sent().len() >= count + 3).then_some(())
    })
    .await;
    let found = server.read(&id(&asked)).await;
    assert_eq!(attempts(&found).len(), 2, "one replacement fits");
    let second = of_attempt(&found, 1, "raw");
    assert!(stage.proxy.sent()[count..].iter().all(|raw| *raw == second), "the same bytes");
    assert!(stage.proxy.sent().iter().all(|raw| prices(raw).0 <= cap), "nothing above the cap");
    let metrics = server.metrics().await;
    let told = metrics.lines().find(|line| line.contains("kind=\"at_cap\""));
    assert!(told.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");

    // The market falls: what is out is mined.
    stage.mine_until_mined(&server, &id(&asked)).await;
    stage.finish(&server, &id(&asked)).await;
    assert_eq!((stage.anvil.nonce(&address).await, stage.paid().await), (1, 1));
    let again = server.ask(SUB, "t13", &body).await;
    assert_eq!(again.id(), id(&asked));
    stage.check().await;
}
