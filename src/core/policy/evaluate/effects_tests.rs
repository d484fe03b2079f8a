//! Many effects in one request, and what limits them: sums, whose assets, guardrails, people, time.

#![expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use super::fixtures::{GWEI, code, now, transaction};
use super::judge;
use super::universe::{ANN, BOB, ETHER, OWN, SAFE, Spec, load};
use crate::core::amount::Amount;
use crate::core::id::{GroupName, KeyId};
use crate::core::intent::{FeeAsk, Fees, Intent};
use crate::core::policy::effect::{ApprovalForm, OpaqueCall, PermitTerms};
use crate::core::policy::{Bundle, Effect, Outcome, PolicyRequest, Verdict};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256, U256};
use uuid::Uuid;

fn ask() -> PolicyRequest {
    let mut tx = transaction(ANN, 0, vec![]);
    let fees = Fees { max_fee: 50 * GWEI, max_priority_fee: GWEI };
    tx.fees = FeeAsk::UpTo(fees);
    PolicyRequest {
        principal: Principal { iss: "dev".into(), sub: "svc:payouts".into() },
        group: Some(GroupName::new("payments")),
        key: KeyId::new(Uuid::from_u128(7)),
        address: OWN,
        intent: Intent::Transaction(Box::new(tx)),
        facts: code(ANN, &[]),
    }
}

fn fee() -> Effect {
    Effect::FeeMax { amount: Amount::from(50_000 * 50 * GWEI) }
}

fn pay(from: Address, to: Address, milli: u128) -> Effect {
    Effect::NativeOut { from, to, amount: Amount::from(milli * ETHER / 1_000) }
}

fn token(to: Address, units: u64) -> Effect {
    let amount = Amount::from(units * 1_000_000);
    Effect::TokenOut { asset: "tusd".into(), from: OWN, to, amount }
}

fn allowance(spender: Address, amount: Amount, permit: Option<PermitTerms>) -> Effect {
    let form = if permit.is_some() { ApprovalForm::Permit } else { ApprovalForm::Approve };
    Effect::Approve { asset: "tusd".into(), owner: OWN, spender, amount, form, permit }
}

fn units(units: u64) -> Amount {
    Amount::from(units * 1_000_000)
}

fn bundle(grants: &[Spec], rails: &str) -> Bundle {
    super::universe::bundle_of(grants, rails, |at| format!("g{at}"))
}

fn decide(bundle: &Bundle, effects: &[Effect]) -> Verdict {
    decide_at(bundle, &ask(), effects, now())
}

fn decide_at(
    bundle: &Bundle,
    request: &PolicyRequest,
    effects: &[Effect],
    now: Timestamp,
) -> Verdict {
    let sends = matches!(request.intent, Intent::Transaction(_));
    let fee = sends.then(fee);
    let effects: Vec<Effect> = effects.iter().cloned().chain(fee).collect();
    judge(bundle, request, &effects, now)
}

#[track_caller]
fn denied(verdict: &Verdict, field: &str) {
    assert_eq!(verdict.outcome, Outcome::Deny);
    let fields: Vec<&str> = verdict.reasons.iter().map(|reason| reason.field.as_str()).collect();
    assert!(fields.contains(&field), "{field} is not in {:?}", verdict.reasons);
}

#[track_caller]
fn allowed(verdict: &Verdict) {
    assert_eq!(verdict.outcome, Outcome::Allow, "{:?}", verdict.reasons);
}

fn native(per_tx: &'static str) -> Spec {
    Spec { per_tx, through: false, ..Spec::free(0) }
}

#[test]
fn a_batch_is_judged_by_its_sum() {
    let rules = bundle(&[native("2")], "");
    allowed(&decide(&rules, &[pay(OWN, ANN, 1_000), pay(OWN, BOB, 1_000)]));
    denied(&decide(&rules, &[pay(OWN, ANN, 1_000), pay(OWN, BOB, 1_001)]), "per_tx");
    // Every effect needs a grant; the fee alone is nothing to sign for.
    denied(&decide(&rules, &[pay(OWN, ANN, 1), token(ANN, 1)]), "effects");
    denied(&decide(&rules, &[]), "effects");
    let both = bundle(&[native("2"), Spec::free(1)], "");
    let verdict = decide(&both, &[pay(OWN, ANN, 1), token(ANN, 1)]);
    allowed(&verdict);
    let ids: Vec<&str> = verdict.grants.iter().map(|id| id.as_str()).collect();
    assert_eq!(ids, ["g0", "g1"]);
}

#[test]
fn the_fee_is_what_all_grants_of_a_batch_allow() {
    let low = Spec { fee: (30, 2), ..Spec::free(1) };
    let verdict = decide(&bundle(&[native("2"), low], ""), &[pay(OWN, ANN, 1), token(ANN, 1)]);
    allowed(&verdict);
    let cap = Fees { max_fee: 30 * GWEI, max_priority_fee: GWEI };
    assert_eq!(verdict.fee_cap, Some(cap));
    assert_eq!(
        verdict.effects.last(),
        Some(&Effect::FeeMax { amount: Amount::from(50_000 * 30 * GWEI) })
    );
    // Of what fits, the highest.
    let two = [Spec { fee: (30, 2), ..native("2") }, native("2")];
    let highest = decide(&bundle(&two, ""), &[pay(OWN, ANN, 1)]).fee_cap;
    assert_eq!(highest, Some(Fees { max_fee: 50 * GWEI, max_priority_fee: GWEI }));
    // A fee that does not fit a window is lowered to one that another grant has.
    let window = r#"{ span = "24h", max = "0.002", scope = "chain" }"#;
    let tight = Spec { windows: vec![window], ..native("2") };
    let cheap = Spec { fee: (30, 2), ..native("2") };
    denied(&decide(&bundle(std::slice::from_ref(&tight), ""), &[pay(OWN, ANN, 0)]), "windows");
    let verdict = decide(&bundle(&[tight, cheap], ""), &[pay(OWN, ANN, 0)]);
    allowed(&verdict);
    assert_eq!(verdict.fee_cap, Some(cap));
}

#[test]
fn the_assets_of_another_account_need_to_be_said() {
    let effects = [pay(SAFE, ANN, 1)];
    denied(&decide(&bundle(&[native("2")], ""), &effects), "through");
    let through = Spec { through: true, ..native("2") };
    allowed(&decide(&bundle(&[through], ""), &effects));
}

#[test]
fn windows_count_each_destination_and_the_chain() {
    let windows = vec![
        r#"{ span = "day", rolling = false, max = "2", scope = "destination" }"#,
        r#"{ span = "24h", max = "9", scope = "chain" }"#,
        r#"{ span = "week", rolling = false, count = 3, scope = "destination" }"#,
    ];
    let rules = bundle(&[Spec { windows, ..native("9") }], "");
    let verdict = decide(&rules, &[pay(OWN, ANN, 500), pay(OWN, ANN, 700), pay(OWN, BOB, 100)]);
    allowed(&verdict);
    let mut asked: Vec<String> = verdict
        .charges
        .iter()
        .map(|charge| format!("{} {}", charge.label, charge.asked().unwrap()))
        .collect();
    asked.sort();
    let (ann, bob) = (format!("local:{ANN:#x}"), format!("local:{BOB:#x}"));
    let fee = 50_000 * 50 * GWEI;
    let mut expected = vec![
        format!("g0: value (native:local) in day per destination {ann} {}", 12 * ETHER / 10 + fee),
        format!("g0: value (native:local) in day per destination {bob} {}", ETHER / 10 + fee),
        format!("g0: value (native:local) in 24h per chain local {}", 13 * ETHER / 10 + fee),
        format!("g0: count (count) in week per destination {ann} 2"),
        format!("g0: count (count) in week per destination {bob} 1"),
    ];
    expected.sort();
    assert_eq!(asked, expected);
    denied(&decide(&rules, &[pay(OWN, ANN, 1_500), pay(OWN, ANN, 500)]), "windows");
}

#[test]
fn of_two_windows_of_one_counter_the_tighter_one_holds() {
    // A key without a group is a group of its own.
    let mut request = ask();
    request.group = None;
    let tight = r#"{ span = "24h", max = "2", scope = "key" }"#;
    let wide = r#"{ span = "24h", max = "100", scope = "group" }"#;
    let limit = |windows: &str| {
        format!(
            "[[limit]]\nid = \"all\"\nreason = \"r\"\nchain = \"local\"\nasset = \"tusd\"\n\
             windows = [{windows}]\n"
        )
    };
    for windows in [[tight, wide], [wide, tight]] {
        for (kind, effect, max) in [
            (0, pay(OWN, ANN, 100), Amount::from(2 * ETHER)),
            (1, token(ANN, 1), units(2)),
            (2, allowance(ANN, units(1), None), units(2)),
        ] {
            let rule = Spec { windows: windows.to_vec(), ..Spec::free(kind) };
            let text = rule.text("g0").replace("[\"payments\"]", &format!("[\"{OWN}\"]"));
            let rules = load(&text, &limit(&windows.join(", "))).unwrap();
            let verdict = decide_at(&rules, &request, std::slice::from_ref(&effect), now());
            allowed(&verdict);
            let held = verdict.exposures.iter().flat_map(|exposure| &exposure.charges);
            let all: Vec<_> = verdict.charges.iter().chain(held).collect();
            assert_eq!(all.len(), if kind == 0 { 1 } else { 2 }, "{all:?}");
            assert!(all.iter().all(|charge| charge.max == max), "{all:?}");
            let twice = [token(ANN, 3), pay(OWN, ANN, 3_000), allowance(ANN, units(3), None)];
            let more = twice
                .get(if kind == 0 {
                    1
                } else if kind == 1 {
                    0
                } else {
                    2
                })
                .unwrap();
            let more = std::slice::from_ref(more);
            denied(&decide_at(&rules, &request, more, now()), "windows");
        }
    }
}

#[test]
fn a_deny_by_address_knows_typed_messages_and_what_is_acted_through() {
    let free = Spec::free(0);
    let deny = |actions: &str, to: Address| {
        let rail = format!(
            "[[deny]]\nid = \"no\"\nreason = \"r\"\nchains = [\"local\"]\n{actions}\
             to = {{ address = [\"{to}\"] }}\n"
        );
        bundle(std::slice::from_ref(&free), &rail)
    };
    let mut typed = ask();
    typed.intent = super::fixtures::any_typed_data();
    let message = [Effect::TypedMessage {
        type_hash: B256::ZERO,
        primary_type: "Note".into(),
        verifying_contract: BOB,
    }];
    let of_typed = "actions = [\"typed_data\"]\n";
    denied(&decide_at(&deny(of_typed, BOB), &typed, &message, now()), "deny.no");
    denied(&decide_at(&deny(of_typed, ANN), &typed, &message, now()), "action");
    // A Safe, by whose assets move, and by who is called.
    denied(&decide(&deny("", SAFE), &[pay(SAFE, ANN, 1)]), "deny.no");
    let mut called = ask();
    if let Intent::Transaction(tx) = &mut called.intent {
        tx.to = Some(SAFE);
    }
    let sent = [pay(OWN, ANN, 1)];
    denied(&decide_at(&deny("", SAFE), &called, &sent, now()), "deny.no");
    let terms =
        PermitTerms { verifying_contract: SAFE, nonce: U256::ZERO, deadline: None, expires: None };
    let permit = [allowance(ANN, units(1), Some(terms))];
    denied(&decide_at(&deny("", SAFE), &typed, &permit, now()), "deny.no");
    // The account itself is not whom it pays, and what only calls is no destination.
    allowed(&decide(&deny("", OWN), &sent));
    denied(&decide(&deny("", OWN), &[pay(SAFE, OWN, 1)]), "deny.no");
}

#[test]
fn an_allowance_is_held_and_not_charged() {
    let windows = vec![
        r#"{ span = "24h", max = "9", scope = "group" }"#,
        r#"{ span = "1h", count = 2, scope = "principal" }"#,
    ];
    let limit = "[[limit]]\nid = \"tusd\"\nreason = \"r\"\nchain = \"local\"\nasset = \"tusd\"\n\
                 windows = [{ span = \"24h\", max = \"10\", scope = \"chain\" }]\n";
    let rules = bundle(&[Spec { windows, per_tx: "9", ..Spec::free(2) }, Spec::free(1)], limit);
    let verdict = decide(&rules, &[allowance(ANN, units(4), None), allowance(BOB, units(5), None)]);
    allowed(&verdict);
    assert_eq!(verdict.exposures.len(), 2);
    for (exposure, (spender, amount)) in verdict.exposures.iter().zip([(ANN, 4), (BOB, 5)]) {
        assert_eq!((exposure.spender, exposure.amount), (spender, units(amount)));
        let grants: Vec<&str> = exposure.charges.iter().map(|it| it.grant.as_str()).collect();
        assert_eq!(grants.len(), 2);
        assert!(grants.contains(&"g0") && grants.contains(&"tusd"), "{grants:?}");
        assert!(exposure.charges.iter().all(|it| it.asked() == Some(units(amount))));
    }
    let counts: Vec<&str> = verdict.charges.iter().map(|it| it.grant.as_str()).collect();
    assert_eq!(counts, ["g0"], "the count alone");
    // All that others may take, and what moves, is one sum for the window.
    let many = [allowance(ANN, units(4), None), allowance(BOB, units(5), None), token(ANN, 2)];
    denied(&decide(&rules, &many), "windows");
    denied(&decide(&rules, &[allowance(ANN, units(10), None)]), "per_tx");
    denied(&decide(&rules, &[allowance(ANN, Amount::new(U256::MAX), None)]), "unlimited");
    let one = decide(&rules, &[allowance(ANN, units(1), None), allowance(ANN, units(2), None)]);
    assert_eq!(one.exposures.len(), 1);
    assert_eq!(one.exposures[0].amount, units(3));
}

#[test]
fn what_is_given_in_two_forms_is_two_exposures() {
    let windows = vec![r#"{ span = "24h", max = "9", scope = "group" }"#];
    let rules = bundle(&[Spec { windows, per_tx: "9", ..Spec::free(2) }], "");
    let by_permit2 = |contract, amount| {
        let mut effect = allowance(ANN, units(amount), None);
        if let Effect::Approve { form, .. } = &mut effect {
            *form = ApprovalForm::Permit2Approve(contract);
        }
        effect
    };
    let all = [
        allowance(ANN, units(1), None),
        by_permit2(BOB, 4),
        by_permit2(SAFE, 2),
        by_permit2(BOB, 1),
    ];
    let verdict = decide(&rules, &all);
    allowed(&verdict);
    let held: Vec<(ApprovalForm, Amount)> =
        verdict.exposures.iter().map(|it| (it.form, it.amount)).collect();
    let by = ApprovalForm::Permit2Approve;
    let expected = [(ApprovalForm::Approve, units(1)), (by(BOB), units(5)), (by(SAFE), units(2))];
    assert_eq!(held, expected);
    assert!(verdict.exposures.iter().all(|it| it.charges[0].asked() == Some(it.amount)));
    let more = [allowance(ANN, units(5), None), by_permit2(BOB, 5)];
    denied(&decide(&rules, &more), "per_tx");
}

#[test]
fn a_permit_is_signed_for_no_longer_than_the_grant_says() {
    let text = Spec { through: false, ..Spec::free(2) }
        .text("permits")
        .replace("fee =", "permit_for = \"1h\"\n#");
    let rules = load(&text, "").unwrap();
    let mut request = ask();
    request.intent = super::fixtures::any_typed_data();
    let seconds = u64::try_from(now().millis() / 1_000).unwrap();
    let terms = |deadline, expires| {
        Some(PermitTerms { verifying_contract: BOB, nonce: U256::ZERO, deadline, expires })
    };
    let signed = |permit| decide_at(&rules, &request, &[allowance(ANN, units(1), permit)], now());
    let verdict = signed(terms(Some(seconds + 3_600), None));
    allowed(&verdict);
    assert_eq!((verdict.fee_cap, verdict.exposures.len()), (None, 1));
    allowed(&signed(terms(Some(seconds + 60), Some(seconds + 3_600))));
    for bad in [
        terms(Some(seconds + 3_601), None),
        terms(None, None),
        terms(Some(u64::MAX), None),
        terms(Some(seconds + 60), Some(seconds + 3_601)),
    ] {
        denied(&signed(bad), "permit_for");
    }
    // One over nothing is a permit as well: it would be kept until its end, which must come.
    let nothing = |permit| {
        let effects = [allowance(ANN, Amount::ZERO, permit)];
        decide_at(&rules, &request, &effects, now())
    };
    allowed(&nothing(terms(Some(seconds + 60), None)));
    denied(&nothing(terms(None, None)), "permit_for");
    // What is signed and has no terms of its own never ends: whatever the grant says of permits.
    denied(&signed(None), "permit_for");
    // Without a fee there is no transaction, and without `permit_for` no permit.
    denied(&decide(&rules, &[allowance(ANN, units(1), None)]), "fee");
    let transactions = bundle(&[Spec::free(2)], "");
    let permit = [allowance(ANN, units(1), terms(Some(seconds), None))];
    denied(&decide_at(&transactions, &request, &permit, now()), "permit_for");
    let endless = [allowance(ANN, units(1), None)];
    denied(&decide_at(&transactions, &request, &endless, now()), "permit_for");
    // What is signed moves nothing by other grants: a typed payment is none.
    denied(&decide_at(&bundle(&[native("2")], ""), &request, &[pay(OWN, ANN, 1)], now()), "fee");
}

#[test]
fn tokens_that_are_not_fungible_are_counted_and_named() {
    let nft = |id: u64, amount: u64| Effect::NftOut {
        asset: "badges".into(),
        from: OWN,
        to: ANN,
        id: U256::from(id),
        amount: Amount::from(amount),
    };
    let text = Spec { per_tx: "3", ..Spec::free(3) }.text("nft");
    let text = text.replace("ids = { any = true }", "ids = [\"1\", \"2\"]");
    let rules = load(&text, "").unwrap();
    allowed(&decide(&rules, &[nft(1, 2), nft(2, 1)]));
    denied(&decide(&rules, &[nft(1, 2), nft(2, 2)]), "per_tx");
    denied(&decide(&rules, &[nft(1, 1), nft(3, 1)]), "ids");
}

#[test]
fn what_is_not_understood_needs_to_be_named_to_the_selector_and_perhaps_the_code() {
    let call = |selector, code_hash| Effect::Opaque {
        why: "unknown function".into(),
        call: Some(OpaqueCall {
            from: OWN,
            to: "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc".parse().unwrap(),
            selector,
            value: Amount::ZERO,
            code_hash,
        }),
    };
    let rules = bundle(&[Spec::free(7)], "");
    allowed(&decide(&rules, &[call(Some([1, 2, 3, 4]), None)]));
    denied(&decide(&rules, &[call(Some([1, 2, 3, 5]), None)]), "selector");
    denied(&decide(&rules, &[call(None, None)]), "selector");
    let hash = B256::repeat_byte(9);
    let text = format!("{}code_hash = \"{hash}\"\n", Spec::free(7).text("pinned"));
    let pinned = load(&text, "").unwrap();
    allowed(&decide(&pinned, &[call(Some([1, 2, 3, 4]), Some(hash))]));
    denied(&decide(&pinned, &[call(Some([1, 2, 3, 4]), None)]), "code_hash");
    denied(&decide(&pinned, &[call(Some([1, 2, 3, 4]), Some(B256::ZERO))]), "code_hash");
    denied(&decide(&bundle(&[native("1")], ""), &[call(Some([1, 2, 3, 4]), None)]), "effects");
}

#[test]
fn what_is_above_an_amount_needs_people() {
    let rule = Spec { approval: Some("1"), ..native("9") };
    let rules = bundle(std::slice::from_ref(&rule), "");
    allowed(&decide(&rules, &[pay(OWN, ANN, 600), pay(OWN, BOB, 400)]));
    let verdict = decide(&rules, &[pay(OWN, ANN, 600), pay(OWN, BOB, 401)]);
    assert_eq!(verdict.outcome, Outcome::NeedApproval);
    let need = verdict.approval.unwrap();
    assert_eq!((need.grants.len(), need.quorums.len(), need.ttl_ms), (1, 1, 30 * 60_000));
    assert_eq!(need.quorums[0].get("treasury"), Some(&2));
    assert!(!verdict.grants.is_empty() && verdict.fee_cap.is_some());
    // Another grant without it is no way around, nor is the end of the grant that asks for it.
    for old in [rule.clone(), Spec { expired: true, ..rule }] {
        let verdict = decide(&bundle(&[old, native("9")], ""), &[pay(OWN, ANN, 1_001)]);
        assert_eq!(verdict.outcome, Outcome::NeedApproval);
    }
    let unlimited = Spec { approval: Some("3"), ..Spec::free(2) }.text("u") + "unlimited = true\n";
    let verdict =
        decide(&load(&unlimited, "").unwrap(), &[allowance(ANN, Amount::new(U256::MAX), None)]);
    assert_eq!(verdict.outcome, Outcome::NeedApproval, "unlimited is above every amount");
}

#[test]
fn a_first_use_waits_and_then_needs_what_else_it_needs() {
    let rule = Spec { delay: Some("first"), approval: Some("1"), ..native("9") };
    let rules = bundle(&[rule], "");
    let mut request = ask();
    let effects = [pay(OWN, ANN, 10)];
    let decide =
        |request: &PolicyRequest, effects: &[Effect]| decide_at(&rules, request, effects, now());
    let verdict = decide(&request, &effects);
    assert_eq!(verdict.outcome, Outcome::Delay);
    assert_eq!(verdict.delay.unwrap().ms, 24 * 3_600_000);
    request.facts.waiting_since = Some(now().plus_millis(1 - 24 * 3_600_000));
    assert_eq!(decide(&request, &effects).outcome, Outcome::Delay);
    request.facts.waiting_since = Some(now().plus_millis(-24 * 3_600_000));
    allowed(&decide(&request, &effects));
    let large = [pay(OWN, ANN, 2_000)];
    assert_eq!(decide(&request, &large).outcome, Outcome::NeedApproval);
    // The clock went back: it has not waited.
    request.facts.waiting_since = Some(now().plus_millis(1));
    let verdict = decide(&request, &large);
    assert_eq!((verdict.outcome, verdict.approval.is_some()), (Outcome::Delay, true));
    request.facts.waiting_since = None;
    request.facts.known_destinations = [ANN].into();
    allowed(&decide(&request, &effects));
    assert_eq!(decide(&request, &[pay(OWN, ANN, 1), pay(OWN, BOB, 1)]).outcome, Outcome::Delay);
}

#[test]
fn hours_are_utc_and_end_before_their_last_minute() {
    let rules = bundle(&[Spec { hours: true, ..native("9") }], "");
    let at = |text: &str| {
        let now = Timestamp::parse_rfc3339(text).unwrap();
        decide_at(&rules, &ask(), &[pay(OWN, ANN, 1)], now)
    };
    for open in ["2026-11-23T07:00:00Z", "2026-11-27T18:59:59.999Z", "2026-11-23T08:00:00+01:00"] {
        allowed(&at(open));
    }
    for shut in ["2026-11-22T12:00:00Z", "2026-11-23T06:59:59.999Z", "2026-11-27T19:00:00Z"] {
        denied(&at(shut), "hours");
    }
}

#[test]
fn a_shadow_says_what_it_would_and_changes_nothing() {
    let windows = vec![r#"{ span = "1h", max = "3", scope = "key" }"#];
    let shadow = |spec: Spec| Spec { shadow: true, windows: windows.clone(), ..spec };
    let real = decide(&bundle(&[native("9")], ""), &[pay(OWN, ANN, 2_000)]);
    let rules = [
        native("9"),
        shadow(native("1")),
        shadow(Spec { approval: Some("1"), ..native("9") }),
        shadow(native("2")),
        shadow(Spec::free(1)),
    ];
    let verdict = decide(&bundle(&rules, ""), &[pay(OWN, ANN, 2_000)]);
    allowed(&verdict);
    assert_eq!(verdict.charges, real.charges);
    let said: Vec<(&str, Outcome, Option<&str>)> = verdict
        .shadows
        .iter()
        .map(|it| (it.grant.as_str(), it.outcome, it.reason.as_ref().map(|it| it.field.as_str())))
        .collect();
    let expected = [
        ("g1", Outcome::Deny, Some("per_tx")),
        ("g2", Outcome::NeedApproval, None),
        ("g3", Outcome::Allow, None),
    ];
    assert_eq!(said, expected);
    denied(&decide(&bundle(&[shadow(native("9"))], ""), &[pay(OWN, ANN, 1)]), "effects");
}

#[test]
fn no_grant_lifts_a_guardrail() {
    let deny = "[[deny]]\nid = \"no-bob\"\nreason = \"r\"\nchains = [\"local\"]\n\
                actions = [\"native.transfer\"]\n\
                to = { address = [\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\"] }\n";
    let rules = bundle(&[native("9"), Spec::free(1)], deny);
    allowed(&decide(&rules, &[pay(OWN, ANN, 1), token(BOB, 1)]));
    denied(&decide(&rules, &[token(ANN, 1), pay(OWN, BOB, 1)]), "deny.no-bob");
    let limit = "[[limit]]\nid = \"cap\"\nreason = \"r\"\nchain = \"local\"\nper_tx = \"1.0025\"\n\
                 windows = [{ span = \"24h\", max = \"5\", scope = \"chain\" }]\n";
    let rules = bundle(&[native("9"), Spec::free(1), Spec::free(5)], limit);
    let verdict = decide(&rules, &[pay(OWN, ANN, 1_000)]);
    allowed(&verdict);
    assert_eq!(verdict.charges.len(), 1);
    assert_eq!(verdict.charges[0].grant.as_str(), "cap");
    // The fee counts: 0.0025 at its cap, and one milli-ether more is too much.
    denied(&decide(&rules, &[pay(OWN, ANN, 1_001)]), "per_tx");
    // Tokens move nothing native but their fee.
    let fee = decide(&rules, &[token(ANN, 1)]);
    assert_eq!(fee.charges[0].asked(), Some(Amount::from(50_000 * 50 * GWEI)));
}
