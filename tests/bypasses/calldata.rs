//! Calldata that says one thing to a policy and another to a contract.

use crate::stage::*;

const ON: &str = "0000000000000000000000000000000000000000000000000000000000000001";
const FF: &str = "ffffffffffffffffffffffff";

#[test]
fn bypass_01_calldata_that_is_not_the_one_encoding_is_not_understood() {
    row("b01", async |it: Actor| {
        let payee = address(PAYEE);
        let dirty = payee.replacen("000000000000000000000000", FF, 1);
        it.allows("a bool", &function(GATE, "set(bool)", &[ON])).await;
        it.allows("an address", &function(GATE, "mark(address)", &[&payee])).await;
        it.allows("a transfer", &function(USD, "transfer(address,uint256)", &[&payee, &uint(1)]))
            .await;
        // `note(0xaabb)`: offset, length, padded bytes.
        let text = format!("aabb{}", "0".repeat(60));
        let note = |words: &[&str]| function(GATE, "note(bytes)", words);
        it.allows("bytes", &note(&[&uint(32), &uint(2), &text])).await;
        // `split([5], [6])`.
        let split = |words: &[&str]| function(GATE, "split(uint256[],uint256[])", words);
        let (one, five, six) = (&uint(1), &uint(5), &uint(6));
        it.allows("arrays", &split(&[&uint(64), &uint(128), one, five, one, six])).await;

        for (what, call) in [
            ("a bool of two", function(GATE, "set(bool)", &[&uint(2)])),
            ("a bool with a dirty top", function(GATE, "set(bool)", &[&format!("80{}", &ON[2..])])),
            ("a small number with a dirty byte", function(GATE, "file(uint8)", &[&uint(0x107)])),
            ("an address with dirty bytes", function(GATE, "mark(address)", &[&dirty])),
            (
                "a payee with dirty bytes",
                function(USD, "transfer(address,uint256)", &[&dirty, one]),
            ),
            ("one byte after the arguments", function(GATE, "set(bool)", &[ON, "00"])),
            ("a word after the arguments", function(GATE, "set(bool)", &[ON, &uint(0)])),
            ("a word after no arguments", function(GATE, "ping()", &[&uint(0)])),
            ("one byte too few", function(GATE, "set(bool)", &[&ON[..62]])),
            ("no arguments", function(USD, "transfer(address,uint256)", &[])),
            ("another tail than its length says", note(&[&uint(32), &uint(2), "aabb"])),
            (
                "padding with something in it",
                note(&[&uint(32), &uint(2), &format!("aabb{}1", "0".repeat(59))]),
            ),
            ("a tail after a gap", note(&[&uint(64), &uint(0), &uint(2), &text])),
            ("an offset into itself", note(&[&uint(0)])),
            ("an offset beyond the end", note(&[&uint(4096), &uint(2), &text])),
            ("an offset near 2^256", note(&[&"f".repeat(64), &uint(2), &text])),
            ("a length beyond the end", note(&[&uint(32), &uint(64), &text])),
            ("one tail for two arrays", split(&[&uint(64), &uint(64), one, five])),
            ("overlapping tails", split(&[&uint(64), &uint(96), one, one, six])),
            ("tails in the other order", split(&[&uint(128), &uint(64), one, six, one, five])),
        ] {
            let told = it.refuses(what, &call).await;
            assert!(told.effects.contains(&"opaque".to_owned()), "{what}: {:?}", told.effects);
        }
    });
}

#[test]
fn bypass_02_calls_inside_of_calls_are_refused_where_the_book_binds_no_wrapper() {
    row("b02", async |it: Actor| {
        let payee = address(PAYEE);
        let inner = format!("a9059cbb{payee}{}", uint(1));
        let padded = format!("{inner:0<192}");
        let length = &uint(68);
        let many = |to: &str| {
            let words = [&uint(32), &uint(1), &uint(32), length, &padded];
            function(to, "multicall(bytes[])", &words.map(String::as_str))
        };
        let aggregate = |to: &str| {
            let (target, allow) = (address(USD), uint(0));
            let words =
                [&uint(32), &uint(1), &uint(32), &target, &allow, &uint(96), length, &padded];
            function(to, "aggregate3((address,bool,bytes)[])", &words.map(String::as_str))
        };
        let execute = |to: &str| {
            let words = [&address(USD), &uint(0), &uint(96), length, &padded];
            function(to, "execute(address,uint256,bytes)", &words.map(String::as_str))
        };
        let and_call = |to: &str| {
            let words = [&payee, &uint(1), &uint(96), length, &padded];
            function(to, "transferAndCall(address,uint256,bytes)", &words.map(String::as_str))
        };
        // The inner call alone is allowed.
        it.allows("the transfer itself", &call(USD, 0, &format!("0x{inner}"))).await;
        for to in [GATE, USD, UNNAMED] {
            for (what, call) in [
                ("multicall", many(to)),
                ("aggregate3", aggregate(to)),
                ("execute", execute(to)),
                ("transferAndCall", and_call(to)),
            ] {
                it.refuses(&format!("{what} of {to}"), &call).await;
            }
        }
    });
}

#[test]
fn bypass_03_a_delegatecall_is_refused() {
    row("b03", async |it: Actor| {
        let safe = |to: &str, target: &str, operation: u128| {
            let (zero, data) = (uint(0), format!("{}{}", selector("set(bool)"), &uint(1)));
            let padded = format!("{data:0<128}");
            let words = [
                &address(target),
                &zero,
                &uint(320),
                &uint(operation),
                &zero,
                &zero,
                &zero,
                &zero,
                &zero,
                &uint(416),
                &uint(36),
                &padded,
                &zero,
            ];
            let signature = "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,\
                             address,address,bytes)";
            function(to, signature, &words.map(String::as_str))
        };
        it.allows("what would be inside", &function(GATE, "set(bool)", &[ON])).await;
        for (what, call) in [
            ("a delegatecall of a Safe", safe(UNNAMED, GATE, 1)),
            ("an operation that there is not", safe(UNNAMED, GATE, 2)),
            ("a delegatecall through the gate", safe(GATE, GATE, 1)),
            ("delegateCall by name", function(GATE, "delegateCall(address)", &[&address(GATE)])),
            ("an upgrade", function(GATE, "upgradeTo(address)", &[&address(UNNAMED)])),
        ] {
            it.refuses(what, &call).await;
        }
    });
}

#[test]
fn bypass_04_what_no_abi_of_the_book_knows_is_refused() {
    row("b04", async |it: Actor| {
        it.allows("value to a payee without code", &call(PAYEE, 5, "0x")).await;
        it.allows("a function of the gate", &function(GATE, "ping()", &[])).await;
        for (what, call) in [
            ("an unknown selector", call(GATE, 0, "0xdeadbeef")),
            ("an unknown selector with value", call(GATE, 1, "0xdeadbeef")),
            ("one byte", call(GATE, 0, "0x5c")),
            ("two bytes", call(GATE, 0, "0x5c36")),
            ("three bytes", call(GATE, 0, "0x5c36b1")),
            ("no data to a contract", call(GATE, 0, "0x")),
            ("value and no data to a contract", call(GATE, 1, "0x")),
            ("value to a payee with code", call(WITH_CODE, 1, "0x")),
            ("value to a payee that delegates its code", call(DELEGATED, 1, "0x")),
            ("a function of the gate at who delegates to it", function(DELEGATED, "ping()", &[])),
            ("data to a payee without code", function(PAYEE, "ping()", &[])),
            ("a known function at an unnamed contract", function(UNNAMED, "ping()", &[])),
            ("a function that no grant names", function(GATE, "buy(uint256)", &[&uint(11)])),
            (
                "value with a function that takes none",
                Call { value: "1".into(), ..function(GATE, "ping()", &[]) },
            ),
            (
                "an unknown function of an asset",
                function(USD, "mint(address,uint256)", &[&address(PAYEE), &uint(1)]),
            ),
            ("no recipient: a contract is created", Call { to: None, ..call(GATE, 0, "0x00") }),
            ("no recipient and no data", Call { to: None, ..call(GATE, 0, "0x") }),
        ] {
            it.refuses(what, &call).await;
        }
        // Code that appears where there was none: the decision looks at the chain, not at the book.
        it.anvil().rpc("anvil_setCode", serde_json::json!([STRANGER, "0x00"])).await;
        it.refuses("a stranger with code", &call(STRANGER, 1, "0x")).await;
        it.anvil().rpc("anvil_setCode", serde_json::json!([STRANGER, "0x"])).await;
    });
}

#[test]
fn bypass_08_somebody_elses_right_to_take_is_not_a_call_like_others() {
    row("b08", async |it: Actor| {
        let (payee, max) = (address(PAYEE), "f".repeat(64));
        it.allows("a transfer", &function(USD, "transfer(address,uint256)", &[&payee, &uint(1)]))
            .await;
        let zero = uint(0);
        for (what, signature, words) in [
            ("approve", "approve(address,uint256)", vec![&payee, &max]),
            ("approve a little", "approve(address,uint256)", vec![&payee, &zero]),
            ("increaseAllowance", "increaseAllowance(address,uint256)", vec![&payee, &max]),
            ("setApprovalForAll", "setApprovalForAll(address,bool)", vec![&payee, &max]),
            ("transferFrom", "transferFrom(address,address,uint256)", vec![&payee, &payee, &zero]),
            ("authorizeOperator", "authorizeOperator(address)", vec![&payee]),
            ("transferAndCall", "transferAndCall(address,uint256)", vec![&payee, &zero]),
            (
                "a permit",
                "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)",
                vec![&payee, &payee, &max, &max, &zero, &zero, &zero],
            ),
            (
                "Permit2",
                "approve(address,address,uint160,uint48)",
                vec![&payee, &payee, &zero, &zero],
            ),
        ] {
            for to in [USD, GATE, UNNAMED] {
                let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
                it.refuses(&format!("{what} at {to}"), &function(to, signature, &words)).await;
            }
        }
    });
}

#[test]
fn bypass_22_a_selector_means_something_only_where_the_book_binds_it() {
    row("b22", async |it: Actor| {
        let payee = address(PAYEE);
        it.allows("the gate's own", &function(GATE, "ping()", &[])).await;
        for (what, call) in [
            (
                "the asset's function at the gate",
                function(GATE, "transfer(address,uint256)", &[&payee, &uint(1)]),
            ),
            ("the gate's function at the asset", function(USD, "ping()", &[])),
            (
                "the asset's function at an unnamed token",
                function(UNNAMED, "transfer(address,uint256)", &[&payee, &uint(1)]),
            ),
            (
                "the processor's function at the gate",
                function(GATE, "executeCharge(uint256,uint256)", &[&uint(1), &uint(1)]),
            ),
            // `many_msg_babbage(bytes1)` and `transfer(address,uint256)` are said to share 0xa9059cbb.
            (
                "a namesake of transfer",
                function(USD, "many_msg_babbage(bytes1)", &[&"0".repeat(64)]),
            ),
        ] {
            it.refuses(what, &call).await;
        }
        assert_eq!(selector("many_msg_babbage(bytes1)"), selector("transfer(address,uint256)"));
    });
}
