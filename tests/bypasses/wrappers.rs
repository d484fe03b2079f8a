//! Calls inside of calls, where the book says what carries them.

use crate::stage::*;

const MULTICALL3: &str = "0x6000000000000000000000000000000000000006";
const SAFE: &str = "0x8000000000000000000000000000000000000008";
const BATCHER: &str = "0x6600000000000000000000000000000000000066";
const SUB: &str = "svc:through";

/// `bytes` of the ABI: its length, then the bytes, padded.
fn bytes(data: &str) -> String {
    let words = data.len().div_ceil(64);
    format!("{}{data:0<width$}", uint((data.len() / 2) as u128), width = words * 64)
}

/// A list of dynamic elements: their number, their offsets, the elements.
fn list(elements: &[String]) -> String {
    let mut offset = elements.len() as u128 * 32;
    let mut heads = uint(elements.len() as u128);
    for element in elements {
        heads.push_str(&uint(offset));
        offset += element.len() as u128 / 2;
    }
    heads + &elements.concat()
}

fn transfer(to: &str, units: u128) -> String {
    format!("{}{}{}", selector("transfer(address,uint256)"), address(to), uint(units))
}

fn aggregate3(inner: &[(&str, String)]) -> String {
    let each = inner
        .iter()
        .map(|(to, data)| format!("{}{}{}{}", address(to), uint(0), uint(96), bytes(data)));
    let each: Vec<String> = each.collect();
    format!("{}{}{}", selector("aggregate3((address,bool,bytes)[])"), uint(32), list(&each))
}

fn multicall(inner: &[String]) -> String {
    let each: Vec<String> = inner.iter().map(|data| bytes(data)).collect();
    format!("{}{}{}", selector("multicall(bytes[])"), uint(32), list(&each))
}

/// `execTransaction` with these: recipient, value, data, operation, gas price.
fn exec(to: &str, value: u128, data: &str, operation: u128, gas_price: u128) -> String {
    let data = bytes(data);
    let signatures = 320 + data.len() as u128 / 2;
    let head = [
        address(to),
        uint(value),
        uint(320),
        uint(operation),
        uint(0),
        uint(0),
        uint(gas_price),
        uint(0),
        uint(0),
        uint(signatures),
    ];
    let signature = "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,\
                     address,bytes)";
    format!("{}{}{data}{}", selector(signature), head.concat(), bytes(""))
}

fn to(wrapper: &str, data: &str) -> Call {
    Call { gas: 900_000, ..call(wrapper, 0, &format!("0x{data}")) }
}

#[test]
fn bypass_02_a_batch_is_the_sum_of_its_calls_and_each_must_be_granted() {
    row("b02-through", async |it: Actor| {
        let it = it.stage.actor("b02-wrapped", SUB).await;
        for wrapper in [MULTICALL3, SAFE, BATCHER] {
            it.anvil().rpc("anvil_setCode", serde_json::json!([wrapper, "0x00"])).await;
        }
        const M: u128 = 1_000_000;
        let set = |on: u128| format!("{}{}", selector("set(bool)"), uint(on));
        let two = |a: u128, b: u128| {
            aggregate3(&[(USD, transfer(PAYEE, a * M)), (USD, transfer(PAYEE, b * M))])
        };
        it.allows("two transfers", &to(MULTICALL3, &two(400, 600))).await;
        it.allows("by the Safe", &to(SAFE, &exec(USD, 0, &transfer(PAYEE, 1000 * M), 0, 0))).await;
        it.allows("a batch of itself", &to(BATCHER, &multicall(&[set(1), set(1)]))).await;
        let mut deep = set(1);
        for _ in 0..40 {
            deep = multicall(&[deep]);
        }
        let many: Vec<_> = (0..70).map(|_| set(1)).collect();
        for (what, call) in [
            ("two that are too much together", to(MULTICALL3, &two(500, 501))),
            (
                "one to a stranger among good ones",
                to(
                    MULTICALL3,
                    &aggregate3(&[(USD, transfer(PAYEE, 1)), (USD, transfer(STRANGER, 1))]),
                ),
            ),
            (
                "one to an unnamed token",
                to(MULTICALL3, &aggregate3(&[(UNNAMED, transfer(PAYEE, 1))])),
            ),
            (
                "an approval among transfers",
                to(
                    MULTICALL3,
                    &aggregate3(&[
                        (USD, transfer(PAYEE, 1)),
                        (
                            USD,
                            format!(
                                "{}{}{}",
                                selector("approve(address,uint256)"),
                                address(PAYEE),
                                uint(1)
                            ),
                        ),
                    ]),
                ),
            ),
            (
                "an inner call that is not canonical",
                to(MULTICALL3, &aggregate3(&[(USD, format!("{}00", transfer(PAYEE, 1)))])),
            ),
            ("an outer call that is not canonical", to(MULTICALL3, &format!("{}00", two(1, 1)))),
            ("the wrapper's call at another contract", to(SAFE, &two(1, 1))),
            ("too much by the Safe", to(SAFE, &exec(USD, 0, &transfer(PAYEE, 1001 * M), 0, 0))),
            ("the Safe's own value", to(SAFE, &exec(PAYEE, 1, "", 0, 0))),
            ("a refund of gas", to(SAFE, &exec(USD, 0, &transfer(PAYEE, 1), 0, 1))),
            (
                "a call of the Safe by the Safe",
                to(SAFE, &exec(SAFE, 0, &exec(USD, 0, &transfer(PAYEE, 1001 * M), 0, 0), 0, 0)),
            ),
            ("an argument that is not granted", to(BATCHER, &multicall(&[set(1), set(0)]))),
            ("an empty element", to(BATCHER, &multicall(&[set(1), String::new()]))),
            ("deeper than anybody reads", to(BATCHER, &deep)),
        ] {
            it.refuses(what, &call).await;
        }
        // The log keeps only the hash of so long a decision, so that its leaf names no account.
        let answer = it.ask(&it.managed_body(&to(BATCHER, &multicall(&many)))).await;
        assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{:#}", answer.body);
        it.allows("and still a good one", &to(BATCHER, &multicall(&[set(1)]))).await;
    });
}

#[test]
fn bypass_03_a_delegatecall_of_a_bound_safe_is_refused_too() {
    row("b03-through", async |it: Actor| {
        let it = it.stage.actor("b03-wrapped", SUB).await;
        it.anvil().rpc("anvil_setCode", serde_json::json!([SAFE, "0x00"])).await;
        let data = transfer(PAYEE, 1);
        it.allows("a call", &to(SAFE, &exec(USD, 0, &data, 0, 0))).await;
        for (what, target, operation) in [
            ("a delegatecall of the asset", USD, 1),
            ("a delegatecall of the gate", GATE, 1),
            ("a delegatecall of nobody", STRANGER, 1),
            ("a delegatecall of multicall, which is no MultiSend", MULTICALL3, 1),
            ("an operation that there is not", USD, 2),
            ("an operation of 256 and none", USD, 256),
        ] {
            it.refuses(what, &to(SAFE, &exec(target, 0, &data, operation, 0))).await;
        }
    });
}
