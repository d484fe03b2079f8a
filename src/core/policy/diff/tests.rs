//! What a diff says, and that whatever it does not call looser is not.

use super::words::Unit;
use super::{Change, Diff, Direction, Notes, bounds, diff, frame};
use crate::core::id::{ChainName, GrantId};
use crate::core::intent::{FeeAsk, Fees};
use crate::core::policy::bundle::grant::Rules;
use crate::core::policy::bundle::guardrail::{ChangeRule, DenyRule, LimitRule, LimitUnit};
use crate::core::policy::evaluate::evaluate;
use crate::core::policy::evaluate::fixtures::*;
use crate::core::policy::{Bundle, Outcome, PolicyRequest};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};

fn said(diff: &Diff, direction: Direction) -> Vec<&str> {
    let all = diff.changes.iter().filter(|change| change.direction == direction);
    all.map(|change| change.what.as_str()).collect()
}

fn between(old: &[String], new: &[String]) -> Diff {
    diff(&bundle(old), &bundle(new))
}

/// The same grants with a text of them exchanged.
fn edited(grants: &[String], from: &str, to: &str) -> Vec<String> {
    let edited: Vec<String> = grants.iter().map(|grant| grant.replace(from, to)).collect();
    assert_ne!(edited, grants, "`{from}` is in none of them");
    edited
}

fn loosens_only(diff: &Diff, expected: &str) {
    assert_eq!(said(diff, Direction::Loosens), [expected], "{diff:#?}");
    assert!(said(diff, Direction::Tightens).is_empty(), "{diff:#?}");
}

fn tightens_only(diff: &Diff, expected: &str) {
    assert_eq!(said(diff, Direction::Tightens), [expected], "{diff:#?}");
    assert!(!diff.is_looser(), "{diff:#?}");
}

fn payouts() -> Vec<String> {
    vec![token_grant("payouts", "250")]
}

#[test]
fn a_bundle_is_no_different_from_itself() {
    let all = bundle(&[token_grant("a", "1"), native_grant("b", "1", ""), charge_grant()]);
    assert!(diff(&all, &all).is_empty());
}

#[test]
fn a_higher_amount_says_what_it_was() {
    let (old, new) = (payouts(), edited(&payouts(), "\"250\"", "\"499.5\""));
    let expected = "svc:payouts may send up to 499.5 tusd (was 250) to book list payees \
                    (0x70997970C51812dc3A010C7d01b50e0d17dc79C8) from payments on local";
    loosens_only(&between(&old, &new), expected);
    let back = "svc:payouts may send up to 250 tusd (was 499.5) to book list payees \
                (0x70997970C51812dc3A010C7d01b50e0d17dc79C8) from payments on local";
    tightens_only(&between(&new, &old), back);
}

#[test]
fn any_address_instead_of_a_list_loosens() {
    let (old, new) = (payouts(), edited(&payouts(), "{ book = \"payees\" }", "{ any = true }"));
    loosens_only(
        &between(&old, &new),
        "svc:payouts may send up to 250 tusd to any address from payments on local (was to book list payees \
         (0x70997970C51812dc3A010C7d01b50e0d17dc79C8) only)",
    );
    tightens_only(
        &between(&new, &old),
        "svc:payouts may send up to 250 tusd to book list payees (0x70997970C51812dc3A010C7d01b50e0d17dc79C8) \
         from payments on local (was to any address)",
    );
}

#[test]
fn an_address_added_to_a_list_is_newly_paid_by_the_grants_that_name_it() {
    let with = |list: &str| {
        let mut files = files(&payouts().concat());
        let book = String::from_utf8(files["book.toml"].clone()).unwrap();
        files.insert(
            "book.toml".to_owned(),
            book.replace("[\"0x70997970C51812dc3A010C7d01b50e0d17dc79C8\"]", list).into(),
        );
        Bundle::load(&files).unwrap()
    };
    let one = with("[\"0x70997970C51812dc3A010C7d01b50e0d17dc79C8\"]");
    let two = with(
        "[\"0x70997970C51812dc3A010C7d01b50e0d17dc79C8\", \
          \"0x90F79bf6EB2c4f870365E785982E1f101E93b906\"]",
    );
    let found = diff(&one, &two);
    let [what] = said(&found, Direction::Loosens)[..] else { panic!("{found:#?}") };
    assert!(
        what.ends_with("new in book list payees: 0x90F79bf6EB2c4f870365E785982E1f101E93b906"),
        "{what}"
    );
    assert_eq!(said(&found, Direction::Neutral).len(), 1, "the list itself: {found:#?}");
    assert!(!diff(&two, &one).is_looser());
}

#[test]
fn windows_fees_and_expiry_are_compared_one_by_one() {
    let old = payouts();
    for (from, to, grew) in [
        (
            "max = \"500\"",
            "max = \"600\"",
            "payouts on local: 24h window per group grew from 500 to 600 tusd",
        ),
        (
            "max_fee_gwei = \"100\"",
            "max_fee_gwei = \"150\"",
            "the highest fee per gas in wei is 150000000000 (was 100000000000)",
        ),
        ("max_gas = 100000", "max_gas = 100001", "the highest gas is 100001 (was 100000)"),
        ("2027-03-31", "2028-03-31", "it allows until 2028-03-31 (was 2027-03-31)"),
        ("[\"svc:payouts\"]", "[\"svc:payouts\", \"svc:other\"]", "svc:other may use it now"),
        ("[\"payments\"]", "[\"payments\", \"treasury\"]", "treasury may be asked to sign now"),
    ] {
        let new = edited(&old, from, to);
        loosens_only(&between(&old, &new), grew);
        assert!(!between(&new, &old).is_looser(), "{from}");
    }
    let none = edited(&old, "windows = [{ span = \"24h\", max = \"500\", scope = \"group\" }]", "");
    loosens_only(
        &between(&old, &none),
        "payouts on local: the 24h window of 500 tusd per group is gone",
    );
    tightens_only(
        &between(&none, &old),
        "payouts on local: a 24h window of 500 tusd per group is new",
    );
}

#[test]
fn a_removed_grant_loosens_only_where_another_grant_was_held_by_its_windows() {
    let (held, free) = (token_grant("a", "1"), token_grant("b", "1"));
    let both = [held, free.clone()];
    let found = between(&both, &[free]);
    assert!(
        said(&found, Direction::Loosens)[0].contains("grant `b` may still allow it"),
        "{found:#?}"
    );
    let other = native_grant("b", "1", "");
    let found = between(&[token_grant("a", "1"), other.clone()], &[other]);
    assert!(!found.is_looser(), "{found:#?}");
}

#[test]
fn conditions_and_events_of_calls_are_compared() {
    let old = vec![charge_grant()];
    loosens_only(
        &between(&old, &edited(&old, "{ max = \"1000\" }", "{ max = \"2000\" }")),
        "argument `amount`: at most 2000 (was at most 1000)",
    );
    tightens_only(
        &between(&old, &edited(&old, "{ max = \"1000\" }", "{ eq = \"7\" }")),
        "argument `amount`: one of 7 (was at most 1000)",
    );
    let call = |rest: &str| vec![call_grant("c", "setFlag(bool,int8)", rest)];
    let (wide, narrow) = (
        call("args = { flag = { any = true }, level = { min = \"-3\", max = \"3\" } }"),
        call("args = { flag = { eq = true }, level = { min = \"-1\", max = \"3\" } }"),
    );
    assert_eq!(said(&between(&wide, &narrow), Direction::Tightens).len(), 2);
    assert_eq!(said(&between(&narrow, &wide), Direction::Loosens).len(), 2);
    let grid = |cells: &str| {
        let args = format!("args = {{ cells = {cells}, pair = {{ any = true }} }}");
        vec![call_grant("c", "grid(uint8[][],address[2])", &args)]
    };
    let (any, seven) = (grid("{ any = true }"), grid("{ all = { max = \"7\" } }"));
    let two = grid("{ all = { in = [\"1\", \"2\"] } }");
    tightens_only(
        &between(&any, &seven),
        "argument `cells`: every element at most 7 (was anything)",
    );
    tightens_only(
        &between(&seven, &two),
        "argument `cells`: every element one of 1, 2 (was every element at most 7)",
    );
    assert_eq!(said(&between(&two, &seven), Direction::Loosens).len(), 1);
}

#[test]
fn fee_windows_that_go_with_the_fees_loosen() {
    let of = |windows: &str| {
        let grant = token_grant("a", "1");
        let fee = grant.find("max_gas = 100000").expect("a fee");
        let (head, rest) = grant.split_at(fee);
        bundle(&[format!("{head}{windows}{rest}")])
    };
    let with = of("windows = [{ span = \"24h\", max = \"1\", scope = \"group\" }], ");
    let fee = |bundle: &Bundle| {
        let Rules::OnChain(rules) = &bundle.rules()[0].rules else { panic!("on no chain") };
        rules.values().next().expect("one chain").fee.clone()
    };
    let unit = Unit::native(with.registry(), &ChainName::new("local"));
    let (some, none) = (fee(&with), fee(&of("")));
    let gone = notes(|it| bounds::fee((some.as_ref(), unit), (None, unit), it));
    assert_eq!(directions(&gone), [Direction::Tightens, Direction::Loosens], "{gone:#?}");
    let gone = notes(|it| bounds::fee((none.as_ref(), unit), (None, unit), it));
    assert_eq!(directions(&gone), [Direction::Tightens], "{gone:#?}");
}

fn notes(compare: impl FnOnce(&mut Notes)) -> Vec<Change> {
    let mut notes = Notes { about: String::new(), changes: vec![] };
    compare(&mut notes);
    notes.changes
}

fn directions(changes: &[Change]) -> Vec<Direction> {
    changes.iter().map(|change| change.direction).collect()
}

#[test]
fn a_deny_rule_with_more_conditions_denies_less() {
    let rule = |subs: Option<&[&str]>| DenyRule {
        id: GrantId::new("no"),
        reason: "r".into(),
        principals: subs.map(|subs| subs.iter().map(|&sub| sub.to_owned()).collect()),
        signers: None,
        chains: None,
        actions: Some(BTreeSet::from(["native.transfer".to_owned()])),
        to: None,
    };
    let (all, one, two) = (rule(None), rule(Some(&["a"])), rule(Some(&["a", "b"])));
    for (old, new, expected) in [
        (&all, &one, vec![Direction::Loosens]),
        (&one, &all, vec![Direction::Tightens]),
        (&one, &two, vec![Direction::Tightens]),
        (&two, &one, vec![Direction::Loosens]),
        (&two, &two, vec![]),
    ] {
        assert_eq!(directions(&notes(|it| frame::deny(old, new, it))), expected);
    }
}

#[test]
fn limits_and_the_change_rule_are_compared() {
    let registry = bundle(&payouts());
    let limit = |per_tx: Option<u64>, unit: LimitUnit| LimitRule {
        id: GrantId::new("l"),
        reason: "r".into(),
        chain: ChainName::new("local"),
        unit,
        per_tx: per_tx.map(Into::into),
        windows: vec![],
    };
    let asset = LimitUnit::Asset { name: "tusd".into(), address: TUSD };
    let compare = |old: LimitRule, new: LimitRule| {
        let it = registry.registry();
        notes(|notes| frame::limit((it, &old), (it, &new), notes))
    };
    let grew =
        compare(limit(Some(1_000_000), asset.clone()), limit(Some(2_000_000), asset.clone()));
    assert_eq!(grew[0].what, "a request may take 2 tusd (was 1 tusd)");
    assert_eq!(directions(&grew), [Direction::Loosens]);
    let gone = compare(limit(Some(1), asset.clone()), limit(None, asset.clone()));
    assert_eq!(directions(&gone), [Direction::Loosens]);
    let moved = compare(limit(Some(1), asset), limit(Some(1), LimitUnit::Native));
    assert_eq!(directions(&moved), [Direction::Loosens]);

    let change = |count: u32, delay_ms: i64| ChangeRule {
        quorum: BTreeMap::from([("security".to_owned(), count)]),
        delay_ms,
    };
    let (two, one) = (change(2, 1_000), change(1, 2_000));
    let found = notes(|notes| frame::change(Some(&two), Some(&one), notes));
    assert_eq!(directions(&found), [Direction::Loosens, Direction::Tightens]);
    let none = notes(|notes| frame::change(Some(&two), None, notes));
    assert_eq!(directions(&none), [Direction::Loosens]);
}

/// Which destinations were paid before is kept by the asset's name.
#[test]
fn another_name_of_an_asset_loosens_where_its_first_destinations_wait() {
    let named = |name: &str, delay: &str| {
        let grant = format!("{}{delay}", token_grant("payouts", "250"));
        let files = files(&grant).into_iter().map(|(path, bytes)| {
            let text = String::from_utf8(bytes).unwrap();
            (path, text.replace("\"tusd\"", &format!("\"{name}\"")).into_bytes())
        });
        Bundle::load(&files.collect()).unwrap()
    };
    let waits = "delay = { first_use_of_destination = \"24h\" }\n";
    assert!(!diff(&named("tusd", ""), &named("usdt", "")).is_looser());
    assert!(!diff(&named("tusd", ""), &named("tusd", waits)).is_looser());
    let found = diff(&named("tusd", waits), &named("usdt", waits));
    let [what] = said(&found, Direction::Loosens)[..] else { panic!("{found:#?}") };
    assert!(what.contains("not new to it"), "{what}");
}

/// A grant that may fit the requests below, or just not.
fn any_grant(id: &'static str) -> impl Strategy<Value = String> {
    let per_tx = select(vec!["0.000000000000001", "1", "3"]);
    let windows = select(vec![
        "",
        r#"[{ span = "1h", max = "0.004", scope = "key" }]"#,
        r#"[{ span = "1h", max = "2", scope = "group" }, { span = "1h", count = 2, scope = "key" }]"#,
    ]);
    let fee = select(vec![("100", "5"), ("40", "9"), ("60", "1")]);
    // Mostly the ones that the requests have: only grants that meet say something of each other.
    let mostly = |usual, other| prop_oneof![5 => Just(usual), 1 => Just(other)];
    let who = mostly("svc:payouts", "svc:other");
    let until = mostly("2027-03-31", "2020-03-31");
    let key = mostly("payments", "treasury");
    (per_tx, windows, fee, 0..5_u8, who, until, key).prop_map(
        move |(per_tx, windows, (fee, tip), kind, who, until, key)| {
            let to_all = |grant: String| grant.replace("{ book = \"payees\" }", "{ any = true }");
            let grant = match kind {
                0 => native_grant(id, per_tx, windows),
                1 => to_all(native_grant(id, per_tx, windows)),
                2 => token_grant(id, "100").replace("\"500\"", "\"70\""),
                3 => to_all(token_grant(id, per_tx.get(..1).unwrap())),
                _ => charge_grant().replace("\"charge\"", &format!("\"{id}\"")),
            };
            grant
                .replace("max_fee_gwei = \"100\"", &format!("max_fee_gwei = \"{fee}\""))
                .replace("max_tip_gwei = \"5\"", &format!("max_tip_gwei = \"{tip}\""))
                .replace("[\"svc:payouts\"]", &format!("[\"{who}\"]"))
                .replace("2027-03-31", until)
                .replace("[\"payments\"]", &format!("[\"{key}\"]"))
        },
    )
}

fn any_request() -> impl Strategy<Value = PolicyRequest> {
    let base = prop_oneof![
        (select(vec![PAYEE, STRANGER]), 0..4_000_000_000_000_000_000_u128)
            .prop_map(|(to, value)| asks(to, value, vec![])),
        (select(vec![PAYEE, STRANGER]), 0..200_000_000_u64).prop_map(|(to, amount)| asks(
            TUSD,
            0,
            transfer(to, amount)
        )),
        Just(charge()),
    ];
    (base, select(vec![1, 50, 70_u128]), 21_000..120_000_u64).prop_map(|(mut request, fee, gas)| {
        let tx = tx_of(&mut request);
        let max_fee = fee.saturating_mul(GWEI);
        tx.fees = FeeAsk::Exact(Fees { max_fee, max_priority_fee: 0 });
        tx.gas = gas;
        request
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_is_newly_allowed_is_called_looser(
        first in (any_grant("a"), any_grant("b")),
        second in (any_grant("a"), any_grant("b"), any_grant("c")),
        // Most pairs share a grant: the interesting ones differ in little.
        (keep, more) in (0..4_u8, proptest::bool::weighted(0.25)),
        requests in proptest::collection::vec(any_request(), 8),
    ) {
        let old = vec![first.0.clone(), first.1.clone()];
        let mut new = match keep {
            0 => vec![first.0, second.1],
            1 => vec![second.0, first.1],
            _ => vec![first.1],
        };
        if more {
            new.push(second.2);
        }
        let (old, new) = (bundle(&old), bundle(&new));
        let found = diff(&old, &new);
        for request in requests {
            let (before, after) = (evaluate(&old, &request, now()), evaluate(&new, &request, now()));
            if after.outcome > before.outcome {
                prop_assert_eq!(before.outcome, Outcome::Deny);
                prop_assert!(found.is_looser(), "{:?}\n{:#?}\n{:#?}", request, before.reasons, found);
            }
        }
        prop_assert!(diff(&new, &new).is_empty());
    }
}
