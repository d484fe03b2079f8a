//! Those who ask: callers over REST, who repeat what was not answered with the same idempotency key, and
//! users on the chain, whose requests the watcher answers.

use crate::blocks::Chain;
use crate::random::Random;
use crate::run::{Run, pace};
use crate::support::server::PAYEE;
use crate::support::services::word;
use claviger::core::access::Role;
use claviger::core::time::Timestamp;
use claviger::ports::clock::Clock as _;
use claviger::system::SystemClock;
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;

/// The development account that users send from.
pub const USER: usize = 3;
/// So many orders of users may be open at once.
const OPEN_MAX: usize = 24;
const CALLER: (&str, Role) = ("svc:payouts", Role::Client);
const OPERATOR: (&str, Role) = ("dev:op", Role::Operator);
const GWEI: u64 = 1_000_000_000;
/// A caller waits for one of these before it asks for more.
const SETTLED: &[&str] = &["mined", "finalized", "reverted", "cancelled", "expired", "failed"];

/// What a caller does with one request.
enum Wish {
    Plain,
    /// With a fee cap that the market is at times above.
    Thrifty,
    /// With `not_after` soon.
    Hurried,
    Cancelled,
    SpedUp,
}

/// Asks for one payout after another, one in hand at a time.
pub async fn caller(run: Arc<Run>, number: u64) {
    let mut random = run.random(1_000 + number);
    while let Some(payout) = run.next_payout() {
        let wish = match random.below(100) {
            0..=2 => Wish::Cancelled,
            3 => Wish::Hurried,
            4..=9 => Wish::Thrifty,
            10..=14 => Wish::SpedUp,
            _ => Wish::Plain,
        };
        one(&run, &mut random, payout, &wish).await;
        run.count("payouts that ended");
    }
}

async fn one(run: &Run, random: &mut Random, payout: u64, wish: &Wish) {
    let mut body = json!({ "chain": "local", "signer": "payments", "to": PAYEE });
    body["value"] = json!((payout + 1).to_string());
    match wish {
        Wish::Thrifty => body["max_fee_per_gas"] = json!((20 * GWEI).to_string()),
        Wish::Hurried => {
            let soon: Timestamp = SystemClock.now().plus_millis(6_000);
            body["not_after"] = json!(soon.to_string());
        }
        Wish::Plain | Wish::Cancelled | Wish::SpedUp => {}
    }
    let key = format!("soak-{}-{payout}", run.plan.seed);
    run.was_asked();
    let Some(id) = ask(run, random, &key, &body).await else {
        run.count("payouts that came after their not_after");
        return;
    };
    if matches!(wish, Wish::Cancelled | Wish::SpedUp) {
        pace(random.below(1_500)).await;
        let verb = if matches!(wish, Wish::Cancelled) { "cancel" } else { "speed-up" };
        let path = format!("/v1/transactions/{id}/{verb}");
        let said = run.call(Method::POST, &path, OPERATOR, None, None).await;
        // Mined already, or the server is down: an operator's word may come too late.
        match (wish, said.map(|(status, _)| status)) {
            (Wish::Cancelled, Some(200..=202)) => run.count("operators' words: cancel"),
            (_, Some(200..=202)) => run.count("operators' words: speed-up"),
            (_, Some(409)) => run.count("operators' words: too late"),
            (_, Some(500..) | None) => run.count("operators' words: not answered"),
            (_, Some(status)) => panic!("{verb} {id}: {status}"),
        }
    }
    if random.one_in(10) {
        // A caller that forgot that it was answered.
        assert_eq!(ask(run, random, &key, &body).await, Some(id.clone()));
        run.count("keys that were used again");
    }
    settled(run, random, &id).await;
}

/// Asks until it is answered; `None` if `not_after` had passed before the server ever had it.
async fn ask(run: &Run, random: &mut Random, key: &str, body: &Value) -> Option<String> {
    loop {
        let said = run.call(Method::POST, "/v1/transactions", CALLER, Some(key), Some(body)).await;
        match said {
            Some((200..=202, answer)) => {
                let id = answer["id"].as_str().unwrap().to_owned();
                run.was_answered(key, &id);
                run.count("answered 2xx");
                return Some(id);
            }
            Some((400, answer)) if answer["field"] == "max_fee_per_gas" => {
                run.count("answers: the market is above the cap");
            }
            Some((400, answer)) if answer["field"] == "not_after" => return None,
            Some((429 | 503, _)) => run.count("answers: 503 or 429"),
            Some((500.., _)) => run.count("answers: other 5xx"),
            Some((status, answer)) => panic!("{key}: {status} {answer:#}"),
            None => run.count("answers that were lost"),
        }
        pace(50 + random.below(250)).await;
    }
}

/// Waits until it is in a block, or over.
async fn settled(run: &Run, random: &mut Random, id: &str) {
    let path = format!("/v1/transactions/{id}?wait=5s&for=mined");
    loop {
        match run.call(Method::GET, &path, CALLER, None, None).await {
            Some((200, found)) => {
                if SETTLED.contains(&found["status"].as_str().unwrap()) {
                    return;
                }
            }
            Some((429 | 500.., _)) | None => {}
            // What was answered 2xx is never lost.
            Some((status, answer)) => panic!("{id}: {status} {answer:#}"),
        }
        pace(100 + random.below(400)).await;
    }
}

/// Users ask the contract for charges, a bounded number at a time, until all are executed. Who finds that
/// the chain has forgotten a request makes it again, as a user does.
pub async fn users(chain: Arc<Chain>) {
    let run = chain.run.clone();
    let mut random = run.random(2);
    let mut open: Vec<(u64, String)> = Vec::new();
    let mut next = 1;
    while next <= run.plan.orders() || !open.is_empty() {
        if next <= run.plan.orders() && open.len() < OPEN_MAX {
            open.push((next, request(&chain, next).await));
            run.was_asked();
            next += 1;
        }
        let mut left = Vec::new();
        for (order, mut hash) in open {
            if chain.executions(order).await == 1 {
                run.count("orders executed");
                continue;
            }
            if !chain.knows(&hash).await {
                hash = request(&chain, order).await;
                run.count("users' requests that the chain forgot");
            }
            left.push((order, hash));
        }
        open = left;
        run.note("open orders", format!("{open:?}"));
        pace(50 + random.below(150)).await;
    }
}

async fn request(chain: &Chain, order: u64) -> String {
    // No reorg meanwhile: it would leave two transactions of the user with one nonce.
    let _turn = chain.turn.lock().await;
    let words = [word(order.into()), word(u128::from(order) * 1000)];
    let data = chain.anvil.calldata("requestCharge(uint256,uint256)", &words).await;
    let asked = json!({
        "from": chain.anvil.accounts()[USER], "to": chain.processor, "data": data,
        "gas": "0x30d40", "maxFeePerGas": "0x746a528800", "maxPriorityFeePerGas": "0x3b9aca00",
    });
    chain.anvil.send_transaction(asked).await
}
