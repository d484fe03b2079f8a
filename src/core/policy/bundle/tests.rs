//! What does not load, and why.

use crate::core::access::Role;
use crate::core::policy::Bundle;
use crate::core::policy::evaluate::fixtures::*;
use std::collections::BTreeMap;

fn example() -> BTreeMap<String, Vec<u8>> {
    macro_rules! files {
        ($($path:literal),*) => {
            BTreeMap::from([$((
                $path.to_owned(),
                include_bytes!(concat!("../../../../policies/payments/", $path)).to_vec(),
            )),*])
        };
    }
    files!(
        "bundle.toml",
        "grants.toml",
        "book.toml",
        "assets.toml",
        "cases.toml",
        "abi/PaymentProcessor.json"
    )
}

#[track_caller]
fn refused(grants: &str, part: &str) {
    let error = try_bundle(grants).expect_err("it loads").to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn the_example_loads_and_says_what_it_needs() {
    let bundle = Bundle::load(&example()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(bundle.cases().len(), 14);
    assert_eq!(bundle.issuers().into_iter().collect::<Vec<_>>(), ["claviger-dev"]);
    assert_eq!(bundle.groups().len(), 1);
    assert_eq!(bundle.chains().len(), 1);
    let ids: Vec<String> = bundle.grants().into_iter().map(|grant| grant.id).collect();
    assert_eq!(ids, ["charge", "native-payouts", "proof-of-address", "tusd-payouts"]);
}

#[test]
fn a_failing_case_keeps_the_bundle_out() {
    let mut files = example();
    let cases = String::from_utf8(files["cases.toml"].clone()).unwrap();
    let wrong = cases.replacen("expect = \"allow\"", "expect = \"deny\"", 1);
    let wrong = wrong.replacen("grant = \"native-payouts\"\n", "", 1);
    files.insert("cases.toml".into(), wrong.into_bytes());
    let error = Bundle::load(&files).unwrap_err().to_string();
    assert!(error.contains("case `a payout to a payee`: expected deny"), "{error}");
    let other = cases.replacen("reason_field = \"per_tx\"", "reason_field = \"to\"", 1);
    files.insert("cases.toml".into(), other.into_bytes());
    let error = Bundle::load(&files).unwrap_err().to_string();
    assert!(error.contains("denied, but not for `to`"), "{error}");
}

#[test]
fn every_byte_and_every_name_is_in_the_hash() {
    let hash = |files: &BTreeMap<String, Vec<u8>>| Bundle::load(files).unwrap().hash();
    let base = hash(&files(&native_grant("a", "1", "")));
    assert_eq!(base, hash(&files(&native_grant("a", "1", ""))));
    assert_ne!(base, hash(&files(&native_grant("a", "1.0", ""))));
}

#[test]
fn an_issuer_vouches_for_what_is_named_and_nothing_else() {
    let bundle = bundle(&[native_grant("a", "1", "")]);
    assert!(bundle.issuer_allows("dev", Role::Client, "svc:x"));
    assert!(!bundle.issuer_allows("dev", Role::Operator, "svc:x"));
    assert!(!bundle.issuer_allows("dev", Role::Client, "root"));
    assert!(!bundle.issuer_allows("other", Role::Client, "svc:x"));
    let mut files = files(&native_grant("a", "1", ""));
    let text = String::from_utf8(files["bundle.toml"].clone()).unwrap();
    files.insert("bundle.toml".into(), text.replace("svc:*", "*").into_bytes());
    assert!(Bundle::load(&files).unwrap_err().to_string().contains("a prefix that ends in `*`"));
}

#[test]
fn what_is_unknown_is_refused_with_its_line() {
    let good = native_grant("a", "1", "");
    refused(&good.replace("per_tx", "per_txs"), "line 11");
    refused(&good.replace("per_tx", "per_txs"), "per_txs");
    let mut files = files(&good);
    files.insert("notes.txt".into(), vec![]);
    assert!(Bundle::load(&files).unwrap_err().to_string().contains("notes.txt"));
    files.remove("notes.txt");
    files.insert("abi/unused.json".into(), b"[]".to_vec());
    assert!(Bundle::load(&files).unwrap_err().to_string().contains("no contract of the book"));
}

#[test]
fn what_the_format_does_not_have_is_refused_and_not_ignored() {
    let good = native_grant("a", "1", r#"[{ span = "1h", max = "1", scope = "key" }]"#);
    assert!(try_bundle(&good).is_ok());
    assert!(try_bundle(&format!("{good}mode = \"enforce\"\n")).is_ok());
    refused(&good.replace("native.transfer", "sweep"), "action `sweep` is unknown");
    refused(&format!("{good}mode = \"off\"\n"), "neither enforce nor shadow");
    refused(&format!("{good}colour = \"red\"\n"), "unknown field");
    refused(&format!("{good}ids = [\"1\"]\n"), "has no `ids`");
}

#[test]
fn empty_lists_dangling_names_and_sloppy_values_are_refused() {
    // 15, 21
    let good = native_grant("a", "1", r#"[{ span = "1h", max = "1", scope = "key" }]"#);
    for (from, to, part) in [
        ("[\"svc:payouts\"]", "[]", "principals is empty"),
        ("[\"svc:payouts\"]", "[\"root\"]", "no issuer may vouch"),
        ("[\"payments\"]", "[]", "signers is empty"),
        ("[\"local\"]", "[]", "chains is empty"),
        ("{ book = \"payees\" }", "{ address = [] }", "is empty"),
        ("{ book = \"payees\" }", "{ any = false }", "exactly one"),
        ("{ book = \"payees\" }", "{ book = \"friends\" }", "no list `friends`"),
        ("per_tx = \"1\"", "per_tx = 1", "string"),
        ("per_tx = \"1\"", "per_tx = \"1e3\"", "per_tx"),
        ("per_tx = \"1\"", "per_tx = \"0.0000000000000000001\"", "per_tx"),
        ("2027-03-31", "2027-02-30", "expires"),
        ("2027-03-31", "31.3.2027", "expires"),
        ("\"1h\"", "\"1 hour\"", "span"),
        ("owner = \"o\"", "owner = \" \"", "owner is empty"),
        ("max_tip_gwei = \"5\"", "max_tip_gwei = \"500\"", "above max_fee_gwei"),
        ("fee = {", "args = {}\nfee = {", "has no `args`"),
    ] {
        refused(&good.replace(from, to), part);
    }
    refused(&[good.clone(), good.clone()].concat(), "there twice");
    for address in [
        "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
        "0x70997970C51812dc3A010C7d01b50e0d17dc79c8",
        "0X70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "70997970C51812dc3A010C7d01b50e0d17dc79C8",
        " 0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C",
        "0x７0997970C51812dc3A010C7d01b50e0d17dc79C8",
    ] {
        let to = format!("{{ address = [\"{address}\"] }}");
        refused(&good.replace("{ book = \"payees\" }", &to), "`");
    }
}

#[test]
fn calls_are_typed_against_the_abi() {
    let call = |function: &str, rest: &str| call_grant("c", function, rest);
    assert!(try_bundle(&call("executeCharge(uint256,uint256)", "")).is_ok());
    refused(&call("executeCharge(uint256)", ""), "has no function");
    refused(&call("executeCharge(uint256,uint256)", "args = { who = { any = true } }"), "`who`");
    for (condition, part) in [
        ("{ max = \"-1\" }", "not a value"),
        ("{ eq = true }", "not a value"),
        ("{ eq = 5 }", "strings"),
        ("{ in = [] }", "exactly one"),
        ("{ eq = \"1\", max = \"2\" }", "exactly one"),
        ("{ min = \"3\", max = \"2\" }", "min is above max"),
    ] {
        let rest = format!("args = {{ amount = {condition} }}");
        refused(&call("executeCharge(uint256,uint256)", &rest), part);
    }
    // 2: bytes can be another call, so they are not left unsaid.
    refused(&call("note(uint256,bytes,string)", ""), "can carry anything");
    let said = call("note(uint256,bytes,string)", "args = { memo = { any = true } }");
    assert!(try_bundle(&said).is_ok());
    for function in ["approve(address,uint256)", "multicall(bytes[])"] {
        refused(&call(function, ""), "not supported by this version");
    }
    refused(&call("upgradeTo(address)", ""), "use action \"admin\"");
    let admin = |function: &str| call(function, "").replace("\"call\"", "\"admin\"");
    assert!(try_bundle(&admin("upgradeTo(address)")).is_ok());
    refused(&admin("executeCharge(uint256,uint256)"), "use action \"call\"");
}

#[test]
fn an_event_must_determine_the_whole_call() {
    let good = charge_grant();
    refused(&good.replace(", amount = \"amount\" }", " }"), "where does `amount` come from");
    refused(&good.replace("amount = \"amount\"", "amount = \"payer\""), "different types");
    refused(&good.replace("amount = \"amount\"", "amount = \"sum\""), "exactly one `sum`");
    refused(&good.replace("uint256 indexed orderId", "uint256 orderId"), "these `indexed`");
    refused(&format!("{good}value = {{ max = \"1\" }}\n"), "carries no value");
}

#[test]
fn two_functions_with_one_selector_are_refused() {
    // 22: a known collision of four bytes.
    let function = |name: &str, kind: &str| {
        serde_json::json!({
            "type": "function", "name": name, "stateMutability": "nonpayable", "outputs": [],
            "inputs": [{ "name": "a", "type": kind }]
        })
    };
    let abi = serde_json::json!([
        function("burn", "uint256"),
        function("collate_propagate_storage", "bytes16")
    ]);
    let error = super::abi::ContractAbi::read(abi.to_string().as_bytes()).unwrap_err();
    assert!(error.contains("same selector"), "{error}");
}
