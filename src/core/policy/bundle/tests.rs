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
    assert_eq!(bundle.cases().len(), 17);
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
    // Nor are arrays and tuples, and what is said of their elements is typed as well.
    refused(&call("grid(uint8[][],address[2])", ""), "`cells` can carry anything");
    refused(&call("pairs((address,uint256)[])", ""), "`pairs` can carry anything");
    for (cells, part) in [
        ("{ all = { max = \"255\" } }", ""),
        ("{ all = { max = \"256\" } }", "not a value"),
        ("{ all = { any = true } }", "stands alone"),
        ("{ all = { } }", "exactly one"),
        ("{ all = { all = { eq = \"1\" } } }", "stands alone"),
        ("{ all = { eq = \"1\" }, any = true }", "stands alone"),
        ("{ max = \"255\" }", "cannot be written"),
        ("{ eq = \"1\" }", "cannot be written"),
    ] {
        let args = format!("args = {{ cells = {cells}, pair = {{ any = true }} }}");
        let grant = call("grid(uint8[][],address[2])", &args);
        match part {
            "" => drop(try_bundle(&grant).unwrap()),
            part => refused(&grant, part),
        }
    }
    let tuples = "args = { pairs = { all = { eq = \"1\" } } }";
    refused(&call("pairs((address,uint256)[])", tuples), "arrays of plain values");
    let one = "args = { amount = { all = { eq = \"1\" } } }";
    refused(&call("executeCharge(uint256,uint256)", one), "arrays of plain values");
    for function in ["approve(address,uint256)", "multicall(bytes[])"] {
        refused(&call(function, ""), "action \"call\" cannot name");
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

#[test]
fn quorums_that_nobody_could_meet_are_refused_where_they_are_asked_for() {
    let asks = |approval: &str| format!("{}approval = {approval}\n", native_grant("a", "1", ""));
    let people = |quorums: &str, change: &str| {
        let mut files = files(&asks("{ quorum = { treasury = 2, security = 1 }, ttl = \"1h\" }"));
        let text = String::from_utf8(files["bundle.toml"].clone()).unwrap();
        let text = format!(
            "{text}[[issuer]]\niss = \"dev\"\nroles = [\"approver\"]\nsubjects = [\"a:*\", \"svc:payouts\"]\n\
             {quorums}{change}"
        );
        files.insert("bundle.toml".into(), text.into_bytes());
        Bundle::load(&files).map(drop).map_err(|error| error.to_string())
    };
    let group = |name: &str, members: &str| {
        format!("[[quorum]]\nname = \"{name}\"\nmembers = [{members}]\n")
    };
    let treasury = group("treasury", "\"a:1\", \"a:2\"");
    let good = treasury.clone() + &group("security", "\"a:3\"");
    assert_eq!(people(&good, ""), Ok(()));
    let refused = |quorums: &str, change: &str, part: &str| {
        let error = people(quorums, change).unwrap_err();
        assert!(error.contains(part) && error.contains("line"), "{error}");
    };
    refused(&treasury, "", "no quorum group `security`");
    refused(&(treasury.clone() + &group("security", "")), "", "has no members");
    refused(&(treasury.clone() + &group("security", "\"b:1\"")), "", "no issuer may vouch");
    refused(&(good.clone() + &treasury), "", "there twice");
    // One person is counted for one group.
    let shared = treasury.clone() + &group("security", "\"a:1\"");
    refused(&shared, "", "more people than its groups have");
    // Nobody approves their own request.
    let own = treasury + &group("security", "\"svc:payouts\"");
    refused(&own, "", "without `svc:payouts`");
    refused(&good, "[change]\nquorum = { treasury = 1 }\n", "as policy_admin");
    refused(&good, "[change]\nquorum = {}\n", "quorum is empty");
    // Whoever wrote a change has no voice: any member may be its author.
    let admins = "[[issuer]]\niss = \"dev\"\nroles = [\"policy_admin\"]\nsubjects = [\"a:*\"]\n";
    let good = format!("{admins}{good}");
    refused(&good, "[change]\nquorum = { treasury = 2 }\n", "without `a:1`");
    assert_eq!(people(&good, "[change]\nquorum = { treasury = 1 }\n"), Ok(()));
    for (approval, part) in [
        ("{ quorum = { treasury = 0 }, ttl = \"1h\" }", "no quorum group"),
        ("{ quorum = {}, ttl = \"1h\" }", "quorum is empty"),
        ("{ above = \"1\", ttl = \"1h\" }", "quorum"),
    ] {
        let error = try_bundle(&asks(approval)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn guardrails_name_what_is_there_and_say_something() {
    let load = |rails: &str| {
        let mut files = files(&native_grant("a", "1", ""));
        let text = String::from_utf8(files["bundle.toml"].clone()).unwrap();
        files.insert("bundle.toml".into(), format!("{text}{rails}").into_bytes());
        Bundle::load(&files).map_err(|error| error.to_string())
    };
    let deny = |rest: &str| load(&format!("[[deny]]\nid = \"d\"\nreason = \"r\"\n{rest}\n"));
    let bundle = deny("to = { book = \"payees\" }").unwrap();
    assert_eq!(bundle.guardrails().denies.len(), 1);
    for (rest, part) in [
        ("", "at least one"),
        ("actions = []", "actions is empty"),
        ("actions = [\"erc721.transfer\"]", "none of native.transfer"),
        ("principals = [\"root\"]", "no issuer may vouch"),
        ("chains = []", "chains is empty"),
        ("to = { book = \"friends\" }", "no list `friends`"),
        ("chains = [\"other\"]\nto = { book = \"payees\" }", "on `other`"),
        ("actions = [\"deploy\", \"call\"]\nto = { book = \"payees\" }", "no destination"),
        ("actions = [\"message\"]\nchains = [\"local\"]", "belongs to no chain"),
        ("actions = [\"message\"]\nto = { book = \"payees\" }", "belongs to no chain"),
    ] {
        let error = deny(rest).unwrap_err();
        assert!(error.contains(part) && error.contains("line 8: deny `d`"), "{rest}: {error}");
    }
    let limit = |rest: &str| load(&format!("[[limit]]\nid = \"l\"\nreason = \"r\"\n{rest}\n"));
    assert!(limit("chain = \"local\"\nasset = \"tusd\"\nper_tx = \"0.000001\"").is_ok());
    for (rest, part) in [
        ("chain = \"local\"", "say per_tx, windows"),
        ("chain = \"local\"\nasset = \"other\"\nper_tx = \"1\"", "no asset `other`"),
        ("chain = \"local\"\nasset = \"tusd\"\nper_tx = \"0.0000001\"", "per_tx"),
        ("chain = \"local\"\nwindows = []", "windows is empty"),
    ] {
        let error = limit(rest).unwrap_err();
        assert!(error.contains(part) && error.contains("limit `l`"), "{rest}: {error}");
    }
    let twice = load("[[limit]]\nid = \"a\"\nreason = \"r\"\nchain = \"local\"\nper_tx = \"1\"\n");
    assert!(twice.unwrap_err().contains("has the id of a guardrail"));
}

#[test]
fn windows_hours_and_delays_say_what_they_mean() {
    let window = |window: &str| native_grant("a", "1", &format!("[{window}]"));
    for good in [
        r#"{ span = "day", rolling = false, max = "1", scope = "destination" }"#,
        r#"{ span = "month", rolling = false, count = 1, scope = "chain" }"#,
        r#"{ span = "7d", rolling = true, max = "1", scope = "key" }"#,
    ] {
        assert!(try_bundle(&window(good)).is_ok(), "{good}");
    }
    for (bad, part) in [
        (r#"{ span = "day", max = "1", scope = "key" }"#, "needs rolling = false"),
        (r#"{ span = "24h", rolling = false, max = "1", scope = "key" }"#, "day, week or month"),
        (r#"{ span = "1h", max = "1", scope = "world" }"#, "scope `world`"),
        (r#"{ span = "1h", count = 0, scope = "key" }"#, "allows nothing"),
        (r#"{ span = "1h", count = 1, max = "1", scope = "key" }"#, "either max or count"),
    ] {
        refused(&window(bad), part);
    }
    let more = |text: &str| format!("{}{text}\n", native_grant("a", "1", ""));
    for good in [
        "hours = { days = \"mon-fri\", utc = \"07:00-19:00\" }",
        "hours = { days = \"mon,wed-thu,sun\", utc = \"00:00-24:00\" }",
        "delay = { first_use_of_destination = \"24h\", always = \"10m\" }",
        "mode = \"shadow\"",
    ] {
        assert!(try_bundle(&more(good)).is_ok(), "{good}");
    }
    for (bad, part) in [
        ("hours = { days = \"fri-mon\", utc = \"07:00-19:00\" }", "goes backwards"),
        ("hours = { days = \"mon,mon\", utc = \"07:00-19:00\" }", "a day twice"),
        ("hours = { days = \"monday\", utc = \"07:00-19:00\" }", "is none of mon"),
        ("hours = { days = \"mon\", utc = \"19:00-07:00\" }", "not like 07:00-19:00"),
        ("hours = { days = \"mon\", utc = \"7:00-19:00\" }", "not like 07:00-19:00"),
        ("hours = { days = \"mon\", utc = \"07:00-24:01\" }", "not like 07:00-19:00"),
        ("delay = {}", "say first_use_of_destination"),
        ("delay = { always = \"soon\" }", "not like 30m"),
        ("through = []", "through is empty"),
        ("through = [\"processor\"]", "has no `wraps`"),
        ("through = [\"nobody\"]", "no contract `nobody`"),
    ] {
        refused(&more(bad), part);
    }
    // A signature cannot wait.
    let message = grant("m", "action = \"message\"\ntext = { any = true }");
    let message = message.replace("chains = [\"local\"]\n", "");
    assert!(try_bundle(&message).is_ok());
    refused(&format!("{message}delay = {{ always = \"1h\" }}\n"), "it cannot wait");
    let scope = r#"windows = [{ span = "1h", count = 1, scope = "destination" }]"#;
    refused(&format!("{message}{scope}\n"), "no destination");
}

#[test]
fn cases_can_wait_and_find_windows_full() {
    let rule = r#"[{ span = "24h", max = "3", scope = "group" }]"#;
    let grants = format!(
        "{}delay = {{ first_use_of_destination = \"2h\" }}\n",
        native_grant("a", "2", rule)
    );
    let case = |rest: &str| {
        let mut files = files(&grants);
        let case = format!(
            "[[case]]\nname = \"c\"\nprincipal = \"svc:payouts\"\nsigner = \"payments\"\n\
             chain = \"local\"\nto = \"{PAYEE}\"\nvalue = \"1000000000000000000\"\n\
             code_at_to = \"none\"\nnow = \"2026-11-22T12:00:00Z\"\n{rest}\n"
        );
        files.insert("cases.toml".into(), case.into_bytes());
        Bundle::load(&files).map(drop).map_err(|error| error.to_string())
    };
    let known = format!("known_destinations = [\"{PAYEE}\"]\n");
    assert_eq!(case("expect = \"delay\""), Ok(()));
    assert_eq!(case("expect = \"delay\"\nwaiting = \"119m\""), Ok(()));
    assert_eq!(case("expect = \"allow\"\nwaiting = \"2h\""), Ok(()));
    assert_eq!(case(&format!("{known}expect = \"allow\"\ngrant = \"a\"")), Ok(()));
    let used = |used: &str| {
        format!("{known}used = {{ {used} }}\nexpect = \"deny\"\nreason_field = \"windows\"")
    };
    assert_eq!(case(&used("\"a 24h group\" = \"2000000000000000000\"")), Ok(()));
    let room = case(&used("\"a 24h group\" = \"1000000000000000000\"")).unwrap_err();
    assert!(room.contains("expected deny, but it is allow"), "{room}");
    for (used_by, part) in [
        ("\"a 25h group\" = \"1\"", "no such window"),
        ("\"a 24h group count\" = \"1\"", "no such window"),
        ("\"a\" = \"1\"", "GRANT SPAN SCOPE"),
        ("\"a 24h group\" = \"1.5\"", "used: `1.5`"),
    ] {
        let error = case(&used(used_by)).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let error = case("expect = \"allow\"\nquorum = { x = 1 }").unwrap_err();
    assert!(error.contains("only what needs approval"), "{error}");
    let error = case("expect = \"maybe\"").unwrap_err();
    assert!(error.contains("none of allow, deny, need_approval, delay"), "{error}");
}
