//! A contract that emits what it is told to.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "helpers of tests: to panic is how a test fails"
)]
#![allow(dead_code, reason = "each test crate uses a part of these helpers")]

use super::services::{Anvil, word};
use serde_json::json;

pub const EMITTER: &str = "0x00000000000000000000000000000000000e0001";
pub const EVENT: &str = "Asked(uint256 indexed orderId, address indexed payer, uint256 amount)";

/// Places a contract that emits `Asked` with the two words it is called with and the caller; called with
/// nothing, it emits only the first topic, which does not decode.
pub async fn place_emitter(anvil: &Anvil) {
    let full = topic0(anvil).await.trim_start_matches("0x").to_owned();
    // CALLDATASIZE PUSH1 0x2b JUMPI; LOG1(topic); JUMPDEST mem[0] = word 1; LOG3(topic, word 0, CALLER)
    let bad = format!("36602b577f{full}60006000a100");
    let good = format!("5b60203560005233600035{}{full}60206000a300", "7f");
    anvil.rpc("anvil_setCode", json!([EMITTER, format!("0x{bad}{good}")])).await;
}

/// The event's first topic, as the node computes it.
pub async fn topic0(anvil: &Anvil) -> String {
    let full = anvil.rpc("web3_sha3", json!([hex("Asked(uint256,address,uint256)")])).await;
    full.as_str().unwrap().to_owned()
}

/// Calls the contract for this order; it is mined when somebody says so.
pub async fn ask(anvil: &Anvil, order: u128) -> String {
    let data = format!("0x{}{}", word(order), word(order * 10));
    anvil.send(&anvil.accounts()[1], EMITTER, &data, 0).await
}

fn hex(text: &str) -> String {
    format!("0x{}", text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
}
