//! Whatever a bundle newly permits, the diff says so: in outcome, in what is counted and how much a window
//! holds, in fees, in people and in time. Over bundles that differ by any edit that the format has, and
//! requests with a history of spend.

#![expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use super::edits::{self, *};
use super::{Diff, Direction, diff};
use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName, GroupName, KeyId};
use crate::core::intent::{ChainRef, EventSource, FeeAsk, Fees, Intent};
use crate::core::policy::evaluate::evaluate;
use crate::core::policy::evaluate::fixtures::{GWEI, calldata, now, transaction, tx_of, uint};
use crate::core::policy::verdict::{Exposure, LimitId};
use crate::core::policy::{
    Bundle, Charge, ChargeKind, CodeFact, EventFact, Facts, Outcome, PolicyRequest, Verdict,
};
use crate::core::principal::Principal;
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, U256, keccak256};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

fn account(address: Address) -> DynSolValue {
    DynSolValue::Address(address)
}

fn typed(chain: u64, contract: Address, types: &str, message: Value) -> Intent {
    let (name, fields) = types.trim_end_matches(')').split_once('(').unwrap();
    let field = |field: &str| {
        let (kind, name) = field.split_once(' ').unwrap();
        json!({ "name": name, "type": kind })
    };
    let data = json!({
        "types": {
            "EIP712Domain": [{ "name": "chainId", "type": "uint256" },
                             { "name": "verifyingContract", "type": "address" }],
            name: fields.split(',').map(field).collect::<Vec<_>>(),
        },
        "primaryType": name,
        "domain": { "chainId": chain, "verifyingContract": contract.to_string() },
        "message": message,
    });
    let data = Box::new(serde_json::from_value(data).unwrap());
    Intent::TypedData { chain: place(chain), data }
}

fn place(id: u64) -> ChainRef {
    let name = if id == 5 { "side" } else { "local" };
    ChainRef { name: ChainName::new(name), id: ChainId::new(id) }
}

/// A call, and value in tenths of an ether.
type Does = (Option<Address>, u64, Vec<u8>);

fn of_safe((to, value, data): Does) -> Does {
    let values = vec![
        account(to.unwrap()),
        DynSolValue::Uint(U256::from(value) * U256::from(10).pow(U256::from(17)), 256),
        DynSolValue::Bytes(data),
        DynSolValue::Uint(U256::ZERO, 8),
        uint(0),
        uint(0),
        uint(0),
        account(Address::ZERO),
        account(Address::ZERO),
        DynSolValue::Bytes(vec![7; 65]),
    ];
    let signature = "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)";
    (Some(SAFE), 0, calldata(signature, values))
}

/// Something that grants of this action may be about.
fn intent_for(action: &str, dice: &mut Dice) -> Intent {
    let chain = if dice.chance(85) { 31337 } else { 5 };
    let to = *dice.pick(&[ANN, ANN, BOB, TILL]);
    let payee = *dice.pick(&[ANN, ANN, BOB]);
    // Tenths of a whole.
    let amount = *dice.pick(&[0_u64, 5, 10, 15, 30, 35, 90]);
    let token = *dice.pick(&[TUSD, TUSD, TDAI]);
    let units = amount * 100_000;
    let erc20 = |signature: &str| -> Does {
        (Some(token), 0, calldata(signature, vec![account(payee), uint(units)]))
    };
    let card = |id: u64| vec![account(OWN), account(payee), uint(id)];
    let id = *dice.pick(&[1_u64, 2, 3]);
    let number = *dice.pick(&[1_u64, 4, 5, 6, 7, 8]);
    let mut call: Does = match action {
        "erc20.transfer" => erc20("transfer(address,uint256)"),
        "erc20.approve" if dice.chance(40) => {
            let deadline = now().millis() / 1_000 + dice.pick(&[1_800_i64, 7_200, 4_000_000]);
            let value = if dice.chance(10) { U256::MAX } else { U256::from(units) };
            let message = json!({ "owner": OWN, "spender": payee, "value": value.to_string(),
                                  "nonce": "3", "deadline": deadline.to_string() });
            let types = "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)";
            return typed(chain, token, types, message);
        }
        "erc20.approve" => match dice.below(6) {
            0 => {
                let all = vec![account(payee), DynSolValue::Uint(U256::MAX, 256)];
                (Some(token), 0, calldata("approve(address,uint256)", all))
            }
            1 => erc20("increaseAllowance(address,uint256)"),
            _ => erc20("approve(address,uint256)"),
        },
        "nft.transfer" | "erc721.transfer" if dice.chance(30) => {
            let values = vec![
                account(OWN),
                account(payee),
                uint(id),
                uint(number),
                DynSolValue::Bytes(vec![]),
            ];
            let signature = "safeTransferFrom(address,address,uint256,uint256,bytes)";
            (Some(BADGES), 0, calldata(signature, values))
        }
        "nft.transfer" | "erc721.transfer" => {
            (Some(CARDS), 0, calldata("transferFrom(address,address,uint256)", card(id)))
        }
        "nft.approve" if dice.chance(50) => {
            let values = vec![account(payee), DynSolValue::Bool(dice.chance(80))];
            let at = *dice.pick(&[CARDS, BADGES]);
            (Some(at), 0, calldata("setApprovalForAll(address,bool)", values))
        }
        "nft.approve" => {
            let values = vec![account(payee), uint(id)];
            (Some(CARDS), 0, calldata("approve(address,uint256)", values))
        }
        "call" if dice.chance(30) => {
            let ids = DynSolValue::Array(vec![uint(4), uint(number)]);
            (Some(TILL), amount, calldata("many(uint256[])", vec![ids]))
        }
        "call" => (Some(TILL), amount, pay(*dice.pick(&[1, 4, 6]), number)),
        "admin" if dice.chance(30) => {
            let values = vec![DynSolValue::FixedBytes(B256::ZERO, 32), account(payee)];
            (Some(TILL), 0, calldata("grantRole(bytes32,address)", values))
        }
        "admin" => (Some(TILL), amount, calldata("upgradeTo(address)", vec![account(payee)])),
        "deploy" => (None, amount, vec![*dice.pick(&[1, 2, 3])]),
        "opaque" => {
            let data = dice.pick(&[vec![1, 2, 3, 4], vec![1, 2, 3, 5], vec![]]).clone();
            (Some(*dice.pick(&[VAULT, TILL])), amount, data)
        }
        "delegate" => {
            return Intent::Authorization { chain: place(chain), address: to, nonce: 1 };
        }
        "message" => {
            let text = *dice.pick(&["hello world", "hello you", "bye", "else"]);
            return Intent::Message { text: text.to_owned() };
        }
        "typed_data" => {
            let (id, at) = (number.to_string(), *dice.pick(&[TILL, TILL, VAULT]));
            return if dice.chance(60) {
                typed(chain, at, NOTE, json!({ "id": id, "text": "t" }))
            } else {
                typed(chain, at, MEMO, json!({ "id": id }))
            };
        }
        _ => (Some(payee), amount, vec![]),
    };
    if call.0.is_some() && dice.chance(12) {
        call = of_safe(call);
    }
    let (to, tenths, data) = call;
    let mut tx = transaction(to.unwrap_or_default(), u128::from(tenths) * 100_000_000 * GWEI, data);
    tx.to = to;
    tx.chain = place(chain);
    tx.gas = *dice.pick(&[30_000, 60_000, 120_000]);
    let (fee, tip) = *dice.pick(&[(200, 10), (80, 3), (50, 1), (160, 20)]);
    let fees = Fees { max_fee: fee * GWEI, max_priority_fee: tip * GWEI };
    tx.fees = if dice.chance(20) { FeeAsk::Exact(fees) } else { FeeAsk::UpTo(fees) };
    Intent::Transaction(Box::new(tx))
}

fn any_request(kinds: [&str; 2], dice: &mut Dice) -> PolicyRequest {
    let action = *dice.pick(&kinds);
    let mut intent = intent_for(action, dice);
    let source = EventSource {
        block_hash: B256::repeat_byte(1),
        transaction_hash: B256::repeat_byte(2),
        log_index: 3,
    };
    let mut event = None;
    if let Intent::Transaction(tx) = &mut intent
        && dice.chance(70)
    {
        tx.source = Some(source);
        let word = |at: usize| tx.data.get(at..at + 32).map(B256::from_slice);
        let straight = dice.chance(70);
        let (id, amount) = if straight { (word(4), word(36)) } else { (word(36), word(4)) };
        event = Some(EventFact {
            source,
            block_number: 9,
            canonical: true,
            finalized: true,
            emitter: *dice.pick(&[TILL, TILL, VAULT]),
            topics: vec![keccak256("Asked(uint256,uint256)"), id.unwrap_or_default()],
            data: amount.unwrap_or_default().to_vec().into(),
        });
    }
    let code = |address: Address, code: &[u8]| CodeFact {
        address,
        block: B256::ZERO,
        code: code.to_vec().into(),
    };
    let mut codes: Vec<CodeFact> = [TILL, VAULT, SAFE, TUSD, TDAI, CARDS, BADGES, PERMIT2]
        .iter()
        .map(|at| code(*at, &[0x60]))
        .collect();
    codes.extend([code(ANN, &[]), code(BOB, &[])]);
    let known = [ANN, BOB, TILL, VAULT].into_iter().filter(|_| dice.chance(50));
    let known_destinations = known.collect();
    let waited = dice.chance(50).then(|| *dice.pick(&[1_i64, 3, 5, 30]));
    let groups = [Some("payments"), Some("payments"), Some("payments"), Some("treasury"), None];
    PolicyRequest {
        principal: Principal {
            iss: (*dice.pick(&["dev", "dev", "dev", "dev", "other"])).to_owned(),
            sub: (*dice.pick(&["svc:payouts", "svc:payouts", "svc:payouts", "svc:other"]))
                .to_owned(),
        },
        group: dice.pick(&groups).map(GroupName::new),
        key: KEY.parse::<KeyId>().unwrap(),
        address: OWN,
        intent,
        facts: Facts {
            codes,
            event,
            known_destinations,
            waiting_since: waited.map(|hours| now().plus_millis(-hours * 3_600_000)),
            ..Facts::default()
        },
    }
}

/// What is newly permitted, and which rules have to do with it.
struct Looser {
    what: String,
    rules: BTreeSet<String>,
}

/// Where the second bundle permits what the first does not, if it does: asked at the fees that the second would
/// let be signed.
fn looser(
    (old, new): (&Bundle, &Bundle),
    request: &PolicyRequest,
    after: &Verdict,
) -> Option<Looser> {
    if after.outcome == Outcome::Deny {
        return None;
    }
    let mut asked = request.clone();
    if let (Intent::Transaction(tx), Some(cap)) = (&mut asked.intent, after.fee_cap)
        && let FeeAsk::UpTo(fees) = tx.fees
    {
        tx.fees = FeeAsk::UpTo(fees.at_most(cap));
    }
    let before = evaluate(old, &asked, now());
    let mut rules: BTreeSet<String> = after.grants.iter().map(ToString::to_string).collect();
    let found = |what: &str| Some(what.to_owned());
    let what = if before.outcome == Outcome::Deny {
        for reason in &before.reasons {
            rules.extend(reason.grant.as_ref().map(ToString::to_string));
            rules.extend(reason.field.strip_prefix("deny.").map(str::to_owned));
        }
        format!("it was denied: {:?}", before.reasons)
    } else if let Some(charge) = lighter(&before.charges, &after.charges) {
        rules.insert(charge.grant.to_string());
        format!("charged less or more loosely: {charge:?}")
    } else if let Some(charge) = held_less(&before.exposures, &after.exposures) {
        rules.insert(charge.grant.to_string());
        format!("held less or more loosely: {charge:?}")
    } else {
        let needs = || {
            let fees = |verdict: &Verdict| {
                verdict.fee_cap.unwrap_or(Fees { max_fee: 0, max_priority_fee: 0 })
            };
            let (was, is) = (fees(&before), fees(after));
            if is.max_fee > was.max_fee || is.max_priority_fee > was.max_priority_fee {
                return found("higher fees");
            }
            let ms = |verdict: &Verdict| verdict.delay.as_ref().map_or(0, |delay| delay.ms);
            if ms(after) < ms(&before) {
                return found("a shorter delay");
            }
            if fewer_people((old, &before), (new, after)) {
                return found("fewer people, or more time for them");
            }
            if before.event_use.is_some() && before.event_use != after.event_use {
                // Without the event it might have been asked for before.
                let mut free = asked.clone();
                tx_of(&mut free).source = None;
                if evaluate(old, &free, now()).outcome < after.outcome {
                    return found("an event that is not used up");
                }
            }
            None
        };
        let what = needs()?;
        for grants in [
            before.delay.as_ref().map(|delay| &delay.grants),
            before.approval.as_ref().map(|need| &need.grants),
        ] {
            rules.extend(grants.into_iter().flatten().map(ToString::to_string));
        }
        what
    };
    Some(Looser { what, rules })
}

fn parts(kind: ChargeKind) -> (Amount, Amount) {
    match kind {
        ChargeKind::Amount { value, fee } => (value, fee),
        ChargeKind::Count(count) => (Amount::from(count), Amount::ZERO),
    }
}

/// A charge that is gone, is of less, or of a window that holds more.
fn lighter<'c>(before: &'c [Charge], after: &[Charge]) -> Option<&'c Charge> {
    let is_kept = |old: &&Charge| {
        after.iter().any(|new| {
            let (was, is) = (parts(old.kind), parts(new.kind));
            let same = new.limit == old.limit && new.period == old.period;
            same && new.max <= old.max && is.0 >= was.0 && is.1 >= was.1
        })
    };
    before.iter().find(|old| !is_kept(old))
}

fn held_less<'c>(before: &'c [Exposure], after: &[Exposure]) -> Option<&'c Charge> {
    let key = |it: &Exposure| (it.token, it.owner, it.spender, it.form, it.amount);
    before.iter().find_map(|old| {
        let same = |new: &&Exposure| key(new) == key(old) && new.permit == old.permit;
        let now = after.iter().find(same).map_or(&[][..], |new| &new.charges);
        lighter(&old.charges, now)
    })
}

/// Whether some quorum of before is not asked for any more: as many people, of groups without anybody new, in no
/// more time.
fn fewer_people((old, before): (&Bundle, &Verdict), (new, after): (&Bundle, &Verdict)) -> bool {
    let Some(before) = &before.approval else {
        return false;
    };
    let Some(after) = &after.approval else {
        return true;
    };
    let members = |bundle: &Bundle, group: &String| {
        bundle.guardrails().quorums.get(group).cloned().unwrap_or_default()
    };
    let is_within = |was: &BTreeMap<String, u32>, is: &BTreeMap<String, u32>| {
        was.iter().all(|(group, count)| {
            is.get(group).is_some_and(|now| now >= count)
                && members(new, group).is_subset(&members(old, group))
        })
    };
    let all = before.quorums.iter().all(|was| after.quorums.iter().any(|is| is_within(was, is)));
    !all || after.ttl_ms > before.ttl_ms
}

/// What counts so far.
type Ledger = BTreeMap<LimitId, Amount>;

fn all_charges(verdict: &Verdict) -> impl Iterator<Item = &Charge> {
    verdict.charges.iter().chain(verdict.exposures.iter().flat_map(|it| &it.charges))
}

fn has_room(ledger: &Ledger, verdict: &Verdict) -> bool {
    let mut asked: BTreeMap<LimitId, (Amount, Amount)> = BTreeMap::new();
    for charge in all_charges(verdict) {
        let used = ledger.get(&charge.limit).copied().unwrap_or_default();
        let sum = asked.entry(charge.limit).or_insert((used, charge.max));
        sum.0 = sum.0.checked_add(charge.asked().unwrap()).unwrap_or(Amount::new(U256::MAX));
    }
    asked.values().all(|(sum, max)| sum <= max)
}

fn spend(ledger: &mut Ledger, verdict: &Verdict) {
    for charge in all_charges(verdict) {
        let used = ledger.entry(charge.limit).or_default();
        *used = used.checked_add(charge.asked().unwrap()).unwrap_or(Amount::new(U256::MAX));
    }
}

/// Whether the diff calls something looser that is one of these.
fn names(found: &Diff, all: &BTreeSet<String>) -> bool {
    let mut loose = found.changes.iter().filter(|it| it.direction == Direction::Loosens);
    loose.any(|change| all.iter().any(|name| change.about.contains(name.as_str())))
}

/// What a decision comes to, but for the name of the bundle and words for people.
fn decided(bundle: &Bundle, request: &PolicyRequest) -> Verdict {
    let mut verdict = evaluate(bundle, request, now());
    verdict.bundle = B256::ZERO;
    verdict.effects.clear();
    verdict.reasons.clear();
    verdict.shadows.clear();
    for charge in &mut verdict.charges {
        charge.label.clear();
    }
    for charge in verdict.exposures.iter_mut().flat_map(|it| &mut it.charges) {
        charge.label.clear();
    }
    if let Some(need) = &mut verdict.delay {
        need.why.clear();
    }
    verdict
}

/// How often each edit was tried, and each edit that permits more was met.
#[derive(Default)]
struct Met {
    edits: RefCell<BTreeMap<String, usize>>,
    looser: RefCell<BTreeMap<String, usize>>,
}

fn note(met: &RefCell<BTreeMap<String, usize>>, what: &str) {
    *met.borrow_mut().entry(what.to_owned()).or_default() += 1;
}

/// Two bundles, and the edits between them.
fn pair(kinds: [&str; 2], dice: &mut Dice) -> (Value, Value, Vec<Edit>) {
    let is_plain = dice.chance(60);
    let (before, place) =
        if is_plain { plain_bundle(kinds[0], dice) } else { (any_bundle(kinds, dice), ("", "")) };
    let (mut after, mut done) = (before.clone(), Vec::new());
    let wanted = if is_plain { 1 } else { *dice.pick(&[1, 1, 2, 3]) };
    for _ in 0..60 {
        if done.len() == wanted {
            break;
        }
        let mut tried = after.clone();
        let edit = if is_plain {
            edit_field(place, &mut tried, dice)
        } else {
            edits::edit(&mut tried, dice)
        };
        if let Some(edit) = edit
            && load(&tried).is_ok()
        {
            after = tried;
            done.push(edit);
        }
    }
    // A change and its reverse are the same edit.
    if dice.chance(50) { (after, before, done) } else { (before, after, done) }
}

fn check(seed: u64, met: &Met) -> Result<(), TestCaseError> {
    let mut dice = Dice(seed);
    let mut kinds = [*dice.pick(&ACTIONS), *dice.pick(&ACTIONS)];
    if dice.chance(50) {
        kinds[1] = kinds[0];
    }
    let (before, after, edits) = pair(kinds, &mut dice);
    let (old, new) = (load(&before).unwrap(), load(&after).unwrap());
    let found = diff(&old, &new);
    let (mut was, mut is) = (Ledger::new(), Ledger::new());
    let about = |request: &PolicyRequest, what: &str| {
        format!("{what}\n{edits:#?}\n{found:#?}\n{request:#?}\n{before:#}\n{after:#}")
    };
    for edit in &edits {
        note(&met.edits, &edit.kind);
    }
    for _ in 0..16 {
        let request = any_request(kinds, &mut dice);
        let verdict = evaluate(&new, &request, now());
        if let Some(Looser { what, mut rules }) = looser((&old, &new), &request, &verdict) {
            rules.extend(edits.iter().flat_map(|edit| edit.names.clone()));
            prop_assert!(found.is_looser(), "not told: {}", about(&request, &what));
            prop_assert!(names(&found, &rules), "not named: {}", about(&request, &what));
            if let [edit] = &edits[..] {
                note(&met.looser, &edit.kind);
            }
        }
        if found.changes.iter().all(|change| change.direction == Direction::Neutral) {
            let (was, is) = (decided(&old, &request), decided(&new, &request));
            prop_assert!(was == is, "{was:#?}\n{is:#?}\n{}", about(&request, "not neutral"));
        }
        // What went before is the same for both: what the new one let pass.
        let earlier = evaluate(&old, &request, now());
        if verdict.outcome != Outcome::Deny && has_room(&is, &verdict) {
            let passed = earlier.outcome != Outcome::Deny && has_room(&was, &earlier);
            let same_fee = earlier.fee_cap == verdict.fee_cap;
            let told = passed || found.is_looser() || !same_fee;
            prop_assert!(told, "{}", about(&request, "it had no room"));
            spend(&mut is, &verdict);
            spend(&mut was, &earlier);
        }
    }
    prop_assert!(diff(&new, &new).is_empty());
    Ok(())
}

/// `CLAVIGER_DIFF_CASES` for more of them.
#[test]
fn whatever_is_newly_permitted_is_told_with_what_permits_it() {
    let cases = std::env::var("CLAVIGER_DIFF_CASES").ok().and_then(|text| text.parse().ok());
    let cases = cases.unwrap_or(500);
    let met = Met::default();
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let run = TestRunner::new(config).run(&any::<u64>(), |seed| check(seed, &met));
    run.unwrap_or_else(|error| panic!("{error}"));
    let (edits, looser) = (met.edits.borrow(), met.looser.borrow());
    // An edit that never permits anything shows nothing.
    let loose: usize = looser.values().sum();
    assert!(loose >= 40 && looser.len() >= 10, "{looser:#?}\n{edits:#?}");
}

/// A field that is added to the format has to be edited here too.
#[test]
fn every_field_of_the_format_is_edited() {
    let source = include_str!("../bundle/syntax.rs");
    let shapes = source.split("`cases.toml`").next().unwrap();
    let mut fields: BTreeSet<String> = BTreeSet::new();
    let mut renamed = None;
    for line in shapes.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next().map(str::to_owned);
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|it| it.split_once(':'))
        {
            fields.insert(renamed.take().unwrap_or_else(|| name.to_owned()));
        }
    }
    let mut edited: BTreeSet<String> = ["schema", "id", "action"].map(str::to_owned).into();
    let mut add = |part: &str, own: &Value| {
        edited.insert(part.to_owned());
        for (field, values) in choices(part, own) {
            assert!(
                values.len() > 1 || field == "contract",
                "{part}.{field}: one choice is no edit"
            );
            edited.insert(field.to_owned());
            values.iter().for_each(|value| keys(value, &mut edited));
        }
    };
    ACTIONS.iter().for_each(|action| add("grant", &json!({ "action": action })));
    for (_, part) in PARTS.iter().filter(|(_, part)| *part != "grant") {
        add(part, &json!({}));
    }
    add("bundle", &Value::Null);
    let missing: Vec<&String> = fields.difference(&edited).collect();
    assert!(missing.is_empty(), "no edit of {missing:?}");
    assert!(fields.len() > 60, "{fields:?}");
}

/// Every name of a field inside a value.
fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => all.iter().for_each(|(name, value)| {
            into.insert(name.clone());
            keys(value, into);
        }),
        Value::Array(all) => all.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}
