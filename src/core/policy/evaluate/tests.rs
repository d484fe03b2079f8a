//! What is allowed, what is not, and for which reason. The numbers are the classes of bypass that
//! the design lists.

use super::evaluate;
use super::fixtures::*;
use crate::core::amount::Amount;
use crate::core::intent::{FeeAsk, Fees, Intent, TxType};
use crate::core::policy::{Bundle, ChargeKind, Effect, Outcome, PolicyRequest, Verdict};
use crate::core::time::Timestamp;
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256};

fn all() -> Bundle {
    bundle(&[
        native_grant(
            "native",
            "2",
            r#"[{ span = "24h", max = "3", scope = "group" },
                { span = "1h", count = 5, scope = "principal" }]"#,
        ),
        token_grant("token", "100"),
        charge_grant(),
        call_grant("pay", "pay(uint256)", r#"value = { max = "0.5" }"#),
    ])
}

fn judge(bundle: &Bundle, request: &PolicyRequest) -> Verdict {
    evaluate(bundle, request, now())
}

#[track_caller]
fn denied_for(bundle: &Bundle, request: &PolicyRequest, field: &str) {
    let verdict = judge(bundle, request);
    assert_eq!(verdict.outcome, Outcome::Deny, "{field}");
    let fields: Vec<&str> = verdict.reasons.iter().map(|reason| reason.field.as_str()).collect();
    assert!(fields.contains(&field), "{field} is not in {fields:?}");
    assert!(verdict.charges.is_empty() && verdict.grants.is_empty());
    assert!(verdict.fee_cap.is_none() && verdict.event_use.is_none());
}

#[track_caller]
fn allowed_by(bundle: &Bundle, request: &PolicyRequest, grant: &str) -> Verdict {
    let verdict = judge(bundle, request);
    assert_eq!(verdict.outcome, Outcome::Allow, "{:?}", verdict.reasons);
    assert!(verdict.grants.iter().any(|id| id.as_str() == grant));
    assert!(verdict.reasons.is_empty());
    verdict
}

#[test]
fn a_payout_is_allowed_with_the_lower_fee_and_charged_at_its_cap() {
    let verdict = allowed_by(&all(), &asks(PAYEE, 10, vec![]), "native");
    let cap = Fees { max_fee: 100 * GWEI, max_priority_fee: 5 * GWEI };
    assert_eq!(verdict.fee_cap, Some(cap));
    let fee = Amount::from(50_000 * 100 * GWEI);
    assert!(verdict.effects.contains(&Effect::FeeMax { amount: fee }));
    let kinds: Vec<ChargeKind> = verdict.charges.iter().map(|charge| charge.kind).collect();
    assert_eq!(kinds.len(), 2);
    assert!(kinds.contains(&ChargeKind::Count(1)));
    assert!(kinds.contains(&ChargeKind::Amount { value: Amount::from(10_u64), fee }));
    assert!(verdict.charges.is_sorted_by_key(|charge| charge.limit));
}

#[test]
fn bounds_are_inclusive_and_one_more_is_denied() {
    let ether = 10_u128.pow(18);
    allowed_by(&all(), &asks(PAYEE, 2 * ether, vec![]), "native");
    denied_for(&all(), &asks(PAYEE, 2 * ether + 1, vec![]), "per_tx");
    allowed_by(&all(), &asks(TUSD, 0, transfer(PAYEE, 100_000_000)), "token");
    denied_for(&all(), &asks(TUSD, 0, transfer(PAYEE, 100_000_001)), "per_tx");
}

#[test]
fn who_where_and_to_whom_must_all_fit() {
    let good = asks(PAYEE, 1, vec![]);
    denied_for(&all(), &asks(STRANGER, 1, vec![]), "to");
    denied_for(&all(), &asks(TUSD, 0, transfer(STRANGER, 1)), "to");
    let mut other = good.clone();
    other.principal.sub = "svc:watcher".into();
    denied_for(&all(), &other, "principals");
    let mut other = good.clone();
    other.group = None;
    denied_for(&all(), &other, "signers");
    // 16: the same address on another chain is another place.
    let mut other = good.clone();
    tx_of(&mut other).chain.name = crate::core::id::ChainName::new("mainnet");
    denied_for(&all(), &other, "chains");
    // 25: an issuer that the bundle does not name vouches for nobody.
    let mut other = good;
    other.principal.iss = "another".into();
    denied_for(&all(), &other, "issuer");
}

#[test]
fn a_grant_ends_with_its_last_day_and_its_windows_do_not() {
    let at = |text: &str| Timestamp::parse_rfc3339(text).unwrap();
    let request = asks(PAYEE, 1, vec![]);
    let last = evaluate(&all(), &request, at("2027-03-31T23:59:59.999Z"));
    assert_eq!(last.outcome, Outcome::Allow);
    let after = evaluate(&all(), &request, at("2027-04-01T00:00:00Z"));
    assert_eq!(after.outcome, Outcome::Deny);
    assert!(after.reasons.iter().any(|reason| reason.field == "expires"));

    let windows = r#"[{ span = "24h", max = "3", scope = "group" }]"#;
    let old = native_grant("old", "1", windows).replace("2027-03-31", "2020-01-01");
    let new = native_grant("new", "2", "");
    let verdict = allowed_by(&bundle(&[old, new]), &request, "new");
    let charged: Vec<&str> = verdict.charges.iter().map(|charge| charge.grant.as_str()).collect();
    assert_eq!(charged, ["old"]);
}

#[test]
fn counters_survive_a_changed_maximum_and_nothing_else() {
    let limit = |window: &str, id: &str| {
        let bundle = bundle(&[native_grant(id, "1", &format!("[{window}]"))]);
        judge(&bundle, &asks(PAYEE, 1, vec![])).charges[0].limit
    };
    let base = limit(r#"{ span = "24h", max = "3", scope = "group" }"#, "a");
    assert_eq!(base, limit(r#"{ span = "24h", max = "2", scope = "group" }"#, "a"));
    assert_eq!(base, limit(r#"{ span = "1d", max = "3", scope = "group" }"#, "a"));
    for (window, id) in [
        (r#"{ span = "24h", max = "3", scope = "group" }"#, "b"),
        (r#"{ span = "23h", max = "3", scope = "group" }"#, "a"),
        (r#"{ span = "24h", max = "3", scope = "key" }"#, "a"),
        (r#"{ span = "24h", count = 3, scope = "group" }"#, "a"),
    ] {
        assert_ne!(base, limit(window, id), "{window} {id}");
    }
}

#[test]
fn one_request_above_a_window_is_denied_with_both_numbers() {
    let bundle =
        bundle(&[native_grant("native", "9", r#"[{ span = "1h", max = "1", scope = "key" }]"#)]);
    let ether = 10_u128.pow(18);
    // 18: the value alone would fit; with the fee it does not.
    denied_for(&bundle, &asks(PAYEE, ether, vec![]), "windows");
    let reasons = judge(&bundle, &asks(PAYEE, ether, vec![])).reasons;
    assert_eq!(reasons[0].actual, (ether + 50_000 * 100 * GWEI).to_string());
    allowed_by(&bundle, &asks(PAYEE, ether - 50_000 * 100 * GWEI, vec![]), "native");
}

#[test]
fn native_windows_count_the_fees_of_everything_and_token_windows_do_not() {
    let verdict = allowed_by(&all(), &asks(TUSD, 0, transfer(PAYEE, 5)), "token");
    let fee = Amount::from(50_000 * 100 * GWEI);
    let of = |grant: &str| {
        let mut charges = verdict.charges.iter().filter(|charge| charge.grant.as_str() == grant);
        (charges.next().map(|charge| charge.kind), charges.next().is_none())
    };
    assert_eq!(of("native"), (Some(ChargeKind::Amount { value: Amount::ZERO, fee }), true));
    let value = Amount::from(5_u64);
    assert_eq!(of("token"), (Some(ChargeKind::Amount { value, fee: Amount::ZERO }), true));
}

#[test]
fn fees_as_a_drain_are_capped_or_denied() {
    // 18
    let mut request = asks(PAYEE, 1, vec![]);
    tx_of(&mut request).gas = 100_001;
    denied_for(&all(), &request, "fee.max_gas");
    let exact = |max_fee: u128, max_priority_fee: u128, tx_type| {
        let mut request = asks(PAYEE, 1, vec![]);
        tx_of(&mut request).fees = FeeAsk::Exact(Fees { max_fee, max_priority_fee });
        tx_of(&mut request).tx_type = tx_type;
        request
    };
    allowed_by(&all(), &exact(100 * GWEI, 5 * GWEI, TxType::Eip1559), "native");
    denied_for(&all(), &exact(100 * GWEI + 1, 0, TxType::Eip1559), "fee.max_fee_gwei");
    denied_for(&all(), &exact(100 * GWEI, 5 * GWEI + 1, TxType::Eip1559), "fee.max_tip_gwei");
    denied_for(&all(), &exact(GWEI, 2 * GWEI, TxType::Eip1559), "fee");
    // A legacy price is all tip above the base fee.
    denied_for(&all(), &exact(6 * GWEI, 6 * GWEI, TxType::Legacy), "fee.max_tip_gwei");
    allowed_by(&all(), &exact(5 * GWEI, 5 * GWEI, TxType::Legacy), "native");
    let mut legacy = asks(PAYEE, 1, vec![]);
    tx_of(&mut legacy).tx_type = TxType::Legacy;
    let cap = allowed_by(&all(), &legacy, "native").fee_cap;
    assert_eq!(cap, Some(Fees { max_fee: 5 * GWEI, max_priority_fee: 5 * GWEI }));
}

#[test]
fn overflow_denies() {
    // 13
    let any = native_grant("any", "1", r#"[{ span = "1h", max = "9", scope = "key" }]"#)
        .replace(r#"per_tx = "1""#, &format!("per_tx = \"{}\"", "1".repeat(59)));
    let mut request = asks(PAYEE, 1, vec![]);
    tx_of(&mut request).value = Amount::new(U256::MAX);
    denied_for(&bundle(&[any]), &request, "per_tx");
    tx_of(&mut request).value = Amount::ONE;
    tx_of(&mut request).gas = u64::MAX;
    tx_of(&mut request).fees = FeeAsk::Exact(Fees { max_fee: u128::MAX, max_priority_fee: 0 });
    denied_for(&all(), &request, "fee.max_gas");
}

#[test]
fn the_top_of_256_bits_is_within_no_bound() {
    // 13: sums that overflow stay there.
    let top = format!("{}", U256::MAX);
    let (whole, wei) = top.split_at(top.len() - 18);
    let most = format!("{whole}.{wei}");
    let windows = r#"[{ span = "1h", count = 5, scope = "key" }]"#;
    for windows in ["", windows] {
        let bundle = bundle(&[native_grant("any", &most, windows)]);
        let mut request = asks(PAYEE, 1, vec![]);
        tx_of(&mut request).value = Amount::new(U256::MAX - U256::ONE);
        allowed_by(&bundle, &request, "any");
        tx_of(&mut request).value = Amount::new(U256::MAX);
        denied_for(&bundle, &request, "per_tx");
    }
}

#[test]
fn a_call_carries_only_the_value_that_its_own_grant_allows() {
    let data = calldata("pay(uint256)", vec![uint(1)]);
    let half = 10_u128.pow(18) / 2;
    allowed_by(&all(), &asks(PROCESSOR, half, data.clone()), "pay");
    denied_for(&all(), &asks(PROCESSOR, half + 1, data), "value.max");
    // 5: a token transfer with native value needs a grant for each.
    denied_for(&all(), &asks(TUSD, 1, transfer(PAYEE, 1)), "to");
}

#[test]
fn a_charge_answers_exactly_its_event() {
    let verdict = allowed_by(&all(), &charge(), "charge");
    let used = verdict.event_use.unwrap();
    // By address and selector: a name in the book may change, what was used up stays used up.
    let at = format!("{PROCESSOR:#x}.c2f48502");
    assert_eq!((used.chain.as_str(), used.used_for), ("eip155:31337", at));
    assert_eq!((used.block_hash, used.log_index), (B256::repeat_byte(1), 3));
}

#[test]
fn an_invented_early_or_different_event_is_no_event() {
    // 24
    let deny = |change: &dyn Fn(&mut PolicyRequest), field: &str| {
        let mut request = charge();
        change(&mut request);
        denied_for(&all(), &request, field);
    };
    let fact = |request: &mut PolicyRequest| request.facts.event.clone().unwrap();
    deny(&|r| r.facts.event = None, "event");
    deny(&|r| tx_of(r).source = None, "source");
    deny(&|r| tx_of(r).source.as_mut().unwrap().log_index = 4, "event");
    deny(&|r| tx_of(r).data = execute_charge(7, 501).into(), "event.args");
    deny(&|r| tx_of(r).data = execute_charge(8, 500).into(), "event.args");
    deny(&|r| tx_of(r).value = Amount::ONE, "value.max");
    type Change = fn(&mut crate::core::policy::EventFact);
    let changes: [(Change, &str); 9] = [
        (|f| f.canonical = false, "event.canonical"),
        (|f| f.finalized = false, "event.finalized"),
        (|f| f.emitter = STRANGER, "event.contract"),
        (|f| f.topics[0] = B256::ZERO, "event.signature"),
        (|f| f.topics.truncate(2), "event.signature"),
        (|f| f.topics.push(B256::ZERO), "event.signature"),
        (|f| f.topics[2].0[0] = 1, "event.signature"),
        (|f| f.data = [f.data.as_ref(), &[0]].concat().into(), "event.signature"),
        (|f| f.data = vec![].into(), "event.signature"),
    ];
    for (change, field) in changes {
        let mut request = charge();
        let mut changed = fact(&mut request);
        change(&mut changed);
        request.facts.event = Some(changed);
        denied_for(&all(), &request, field);
    }
    let mut request = charge();
    tx_of(&mut request).data = execute_charge(7, 1001).into();
    denied_for(&all(), &request, "args.amount.max");
}

#[test]
fn conditions_compare_in_the_type_of_the_argument() {
    // 14
    let args = r#"args = { flag = { eq = true }, level = { min = "-3", max = "4" } }"#;
    let bundle = bundle(&[call_grant("flag", "setFlag(bool,int8)", args)]);
    let ask = |flag: u8, level: i64| {
        let level = if level < 0 { U256::MAX - U256::from(-level - 1) } else { U256::from(level) };
        let words = [U256::from(flag).to_be_bytes::<32>(), level.to_be_bytes::<32>()].concat();
        let selector = calldata("setFlag(bool,int8)", vec![])[..4].to_vec();
        asks(PROCESSOR, 0, [selector, words].concat())
    };
    for level in [-3, -1, 0, 4] {
        allowed_by(&bundle, &ask(1, level), "flag");
    }
    denied_for(&bundle, &ask(1, -4), "args.level.min");
    denied_for(&bundle, &ask(1, 5), "args.level.max");
    denied_for(&bundle, &ask(0, 0), "args.flag.eq");
    // 1: true written as 2, and a number that is not of 8 bits.
    denied_for(&bundle, &ask(2, 0), "effects");
    denied_for(&bundle, &ask(1, 128), "effects");
}

#[test]
fn a_condition_on_all_holds_for_every_element() {
    let args = format!(
        r#"args = {{ cells = {{ all = {{ min = "2", max = "7" }} }}, pair = {{ all = {{ in = ["{PAYEE}", "{TUSD}"] }} }} }}"#
    );
    let bundle = bundle(&[call_grant("grid", "grid(uint8[][],address[2])", &args)]);
    let ask = |cells: &[&[u8]], pair: [Address; 2]| {
        let row = |row: &&[u8]| {
            let cell = |cell: &u8| DynSolValue::Uint(U256::from(*cell), 8);
            DynSolValue::Array(row.iter().map(cell).collect())
        };
        let cells = DynSolValue::Array(cells.iter().map(row).collect());
        let pair = DynSolValue::FixedArray(pair.map(DynSolValue::Address).to_vec());
        asks(PROCESSOR, 0, calldata("grid(uint8[][],address[2])", vec![cells, pair]))
    };
    for cells in [&[&[2_u8, 7][..], &[3]][..], &[&[], &[5]], &[&[]], &[]] {
        allowed_by(&bundle, &ask(cells, [PAYEE, TUSD]), "grid");
    }
    denied_for(&bundle, &ask(&[&[2, 7], &[3, 8]], [PAYEE; 2]), "args.cells.all.max");
    denied_for(&bundle, &ask(&[&[], &[1, 3]], [PAYEE; 2]), "args.cells.all.min");
    denied_for(&bundle, &ask(&[&[2]], [PAYEE, STRANGER]), "args.pair.all.in");
    denied_for(&bundle, &ask(&[&[2]], [STRANGER, PAYEE]), "args.pair.all.in");
    let said = judge(&bundle, &ask(&[&[9]], [PAYEE; 2])).reasons;
    assert_eq!((said[0].expected.as_str(), said[0].actual.as_str()), ("7", "[[9]]"));
}

#[test]
fn messages_are_text_that_a_grant_names() {
    let grants = |text: &str| {
        let grant = grant("m", &format!("action = \"message\"\ntext = {text}"));
        bundle(&[grant.replace("chains = [\"local\"]\n", "")])
    };
    let say = |text: &str| request(Intent::Message { text: text.into() }, Default::default());
    let exact = grants(r#"{ exact = ["yes", "no"] }"#);
    allowed_by(&exact, &say("yes"), "m");
    denied_for(&exact, &say("yes "), "text.exact");
    denied_for(&grants(r#"{ prefix = "I am " }"#), &say("you are"), "text.prefix");
    let any = grants("{ any = true }");
    allowed_by(&any, &say("anything\nat all"), "m");
    // 10: what could be a digest is none of our texts.
    denied_for(&any, &say("0123456789abcdef0123456789abcdef"), "effects");
    denied_for(&any, &say("zero \0 byte"), "effects");
    denied_for(&all(), &say("yes"), "chains");
}
