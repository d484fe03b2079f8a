//! The bundle's own test cases: one that fails keeps the bundle from loading. The format is
//! described in `policies/README.md`.

use super::abi::read_event;
use super::condition::{read_address, read_hex, read_value};
use super::counters::Counters;
use super::read_grant::read_gwei;
use super::read_window::read_span;
use super::registry::chain_name;
use super::syntax::{RawCase, RawCaseEvent, RawScalar};
use super::{At, Bundle, BundleError, line_of};
use crate::core::access::Role;
use crate::core::amount::Amount;
use crate::core::evm::decode::abi::encode;
use crate::core::id::{ChainId, ChainName, GrantId, GroupName, KeyId};
use crate::core::intent::{ChainRef, EventSource, FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::policy::{
    CodeFact, EventFact, Facts, Outcome, PolicyRequest, Reason, Verdict, evaluate,
};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::dyn_abi::DynSolValue;
use alloy::dyn_abi::Specifier as _;
use alloy::json_abi::Function;
use alloy::primitives::{B256, Bytes};
use std::collections::BTreeSet;
use toml::Spanned;
use uuid::Uuid;

/// What one case came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// Where it begins in `cases.toml`, from 1.
    pub line: usize,
    /// What it expects, as written.
    pub expected: String,
    /// What the bundle decided; `None` if the case itself cannot be read.
    pub got: Option<Outcome>,
    /// The grants that covered it.
    pub grants: Vec<GrantId>,
    /// Why the bundle denied it.
    pub reasons: Vec<Reason>,
    /// What is wrong with the case, or with what the bundle made of it; `None` if it holds.
    pub problem: Option<String>,
}

/// Runs all cases, in their order.
pub(super) fn run(bundle: &Bundle, cases: &[Spanned<RawCase>], text: &str) -> Vec<CaseReport> {
    let mut names = BTreeSet::new();
    let mut reports = Vec::with_capacity(cases.len());
    for case in cases {
        let line = line_of(text, case.span().start);
        let case = case.get_ref();
        let mut report = CaseReport {
            name: case.name.clone(),
            line,
            expected: case.expect.clone(),
            got: None,
            grants: Vec::new(),
            reasons: Vec::new(),
            problem: None,
        };
        report.problem = if case.name.trim().is_empty() || !names.insert(case.name.as_str()) {
            Some("names are not empty, and each is there once".to_owned())
        } else {
            run_one(bundle, case, &mut report).err()
        };
        reports.push(report);
    }
    reports
}

/// Why the cases keep the bundle from loading, if they do.
pub(super) fn refusal(reports: &[CaseReport]) -> Option<BundleError> {
    let file = "cases.toml";
    if reports.is_empty() {
        let problem = "there is no case: leave the file out if there is none";
        return Some(At { file, line: 1 }.error(problem));
    }
    reports.iter().find_map(|report| {
        let problem = report.problem.as_ref()?;
        Some(At { file, line: report.line }.error(format!("case `{}`: {problem}", report.name)))
    })
}

fn run_one(bundle: &Bundle, case: &RawCase, report: &mut CaseReport) -> Result<(), String> {
    let expected = read_expected(case)?;
    if let Some(grant) = &case.grant
        && !bundle.grants.iter().any(|known| known.id.as_str() == grant)
    {
        return Err(format!("there is no grant `{grant}`"));
    }
    let now = Timestamp::parse_rfc3339(&case.now)
        .ok_or_else(|| format!("now: `{}` is not RFC 3339", case.now))?;
    let counters = Counters::read(bundle, case.used.as_ref())?;
    let request = read_request(bundle, case, now)?;
    let mut verdict = evaluate(bundle, &request, now);
    let full = counters.full(&verdict);
    if !full.is_empty() {
        (verdict.outcome, verdict.reasons) = (Outcome::Deny, full);
    }
    report.got = Some(verdict.outcome);
    report.grants.clone_from(&verdict.grants);
    report.reasons.clone_from(&verdict.reasons);
    if verdict.outcome != expected {
        let (expected, actual) = (expected.name(), verdict.outcome.name());
        return Err(format!("expected {expected}, but it is {actual}{}", why(&verdict)));
    }
    if let Some(grant) = &case.grant
        && !verdict.grants.iter().any(|id| id.as_str() == grant)
    {
        let ids: Vec<&str> = verdict.grants.iter().map(|id| id.as_str()).collect();
        return Err(format!("allowed, but by {} and not by {grant}", ids.join(", ")));
    }
    if let Some(field) = &case.reason_field
        && !verdict.reasons.iter().any(|reason| reason.field == *field)
    {
        return Err(format!("denied, but not for `{field}`{}", why(&verdict)));
    }
    if let Some(quorum) = &case.quorum {
        let asked = verdict.approval.map(|approval| approval.quorums).unwrap_or_default();
        if !asked.contains(quorum) {
            return Err(format!("the quorum asked for is {asked:?}"));
        }
    }
    Ok(())
}

fn read_expected(case: &RawCase) -> Result<Outcome, String> {
    let known = [Outcome::Allow, Outcome::Deny, Outcome::NeedApproval, Outcome::Delay];
    let expected = known.into_iter().find(|outcome| outcome.name() == case.expect);
    let expected = expected.ok_or_else(|| {
        let known = known.map(Outcome::name).join(", ");
        format!("expect: `{}` is none of {known}", case.expect)
    })?;
    let denied = expected == Outcome::Deny;
    if denied && case.grant.is_some() {
        return Err("what is denied has no grant".to_owned());
    }
    if !denied && case.reason_field.is_some() {
        return Err("only what is denied has a reason_field".to_owned());
    }
    if case.quorum.is_some() && !matches!(expected, Outcome::NeedApproval | Outcome::Delay) {
        return Err("only what needs approval has a quorum".to_owned());
    }
    Ok(expected)
}

fn why(verdict: &Verdict) -> String {
    let line = |reason: &crate::core::policy::Reason| {
        let grant = reason.grant.as_ref().map_or_else(String::new, |id| format!("{id}: "));
        format!("{grant}{} expected {}, is {}", reason.field, reason.expected, reason.actual)
    };
    let lines: Vec<String> = verdict.reasons.iter().take(3).map(line).collect();
    if lines.is_empty() { String::new() } else { format!(" ({})", lines.join("; ")) }
}

fn read_request(bundle: &Bundle, case: &RawCase, now: Timestamp) -> Result<PolicyRequest, String> {
    let sub = case.principal.clone();
    let iss = match &case.issuer {
        Some(iss) => iss.clone(),
        None => bundle
            .issuers()
            .into_iter()
            .find(|iss| bundle.issuer_allows(iss, Role::Client, &sub))
            .unwrap_or_default()
            .to_owned(),
    };
    let intent = read_intent(case)?;
    Ok(PolicyRequest {
        principal: Principal { iss, sub },
        group: Some(GroupName::new(case.signer.clone())),
        key: KeyId::new(Uuid::nil()),
        address: case.account.as_deref().map(read_address).transpose()?.unwrap_or_default(),
        facts: read_facts(bundle, case, &intent, now)?,
        intent,
    })
}

fn read_intent(case: &RawCase) -> Result<Intent, String> {
    let chain = || -> Result<ChainRef, String> {
        let name = case.chain.as_deref().ok_or("`chain` is missing")?;
        Ok(ChainRef { name: chain_name(name)?, id: ChainId::new(case.chain_id.unwrap_or(1)) })
    };
    match (&case.message, &case.typed_data) {
        (Some(_), Some(_)) => Err("either message or typed_data".to_owned()),
        (Some(text), None) => {
            refuse_transaction_fields(case)?;
            if case.chain.is_some() || case.chain_id.is_some() {
                return Err("a message belongs to no chain".to_owned());
            }
            Ok(Intent::Message { text: text.clone() })
        }
        (None, Some(json)) => {
            refuse_transaction_fields(case)?;
            let data = serde_json::from_str(json).map_err(|e| format!("typed_data: {e}"))?;
            Ok(Intent::TypedData { chain: chain()?, data: Box::new(data) })
        }
        (None, None) => {
            read_transaction(case, chain()?).map(|tx| Intent::Transaction(Box::new(tx)))
        }
    }
}

fn refuse_transaction_fields(case: &RawCase) -> Result<(), String> {
    let given = [
        ("to", case.to.is_some()),
        ("value", case.value.is_some()),
        ("data", case.data.is_some()),
        ("function", case.function.is_some()),
        ("args", case.args.is_some()),
        ("gas", case.gas.is_some()),
        ("max_fee_gwei", case.max_fee_gwei.is_some()),
        ("max_tip_gwei", case.max_tip_gwei.is_some()),
        ("code_at_to", case.code_at_to.is_some()),
        ("event", case.event.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(format!("`{field}` is of transactions only")),
        None => Ok(()),
    }
}

fn read_transaction(case: &RawCase, chain: ChainRef) -> Result<TransactionIntent, String> {
    let value = case.value.as_deref().unwrap_or("0");
    let gwei = |field: &str, text: &Option<String>, default: &str| {
        read_gwei(field, text.as_deref().unwrap_or(default))
    };
    let fees = Fees {
        max_fee: gwei("max_fee_gwei", &case.max_fee_gwei, "1")?,
        max_priority_fee: gwei("max_tip_gwei", &case.max_tip_gwei, "0")?,
    };
    Ok(TransactionIntent {
        chain,
        tx_type: TxType::Eip1559,
        to: case.to.as_deref().map(read_address).transpose()?,
        value: Amount::parse(value).map_err(|error| format!("value: `{value}`: {error}"))?,
        data: read_data(case)?,
        gas: case.gas.unwrap_or(21_000),
        // What would be signed, to the letter: a case says which fees are allowed.
        fees: FeeAsk::Exact(fees),
        access_list: vec![],
        nonce: None,
        not_after: None,
        source: case.event.as_ref().map(|_| SOURCE),
    })
}

/// Where the event of a case is said to be.
const SOURCE: EventSource =
    EventSource { block_hash: B256::ZERO, transaction_hash: B256::ZERO, log_index: 0 };

fn read_data(case: &RawCase) -> Result<Bytes, String> {
    match (&case.data, &case.function, &case.args) {
        (None, None, None) => Ok(Bytes::new()),
        (Some(data), None, None) => read_hex(data).map(Into::into),
        (None, Some(signature), args) => {
            let function = Function::parse(signature).map_err(|error| error.to_string())?;
            let args = args.as_deref().unwrap_or_default();
            if function.inputs.len() != args.len() {
                return Err(format!("args: `{signature}` has {}", function.inputs.len()));
            }
            let values = function
                .inputs
                .iter()
                .zip(args)
                .map(|(input, arg)| {
                    read_value(&input.resolve().map_err(|error| error.to_string())?, arg)
                })
                .collect::<Result<Vec<_>, String>>()?;
            Ok([function.selector().as_slice(), &encode(values)].concat().into())
        }
        _ => Err("either data, or function with args".to_owned()),
    }
}

fn read_facts(
    bundle: &Bundle,
    case: &RawCase,
    intent: &Intent,
    now: Timestamp,
) -> Result<Facts, String> {
    let mut facts = Facts::default();
    if let (Intent::Transaction(tx), Some(code)) = (intent, &case.code_at_to) {
        let code = read_code("code_at_to", code)?;
        facts.codes.extend(tx.to.map(|address| CodeFact { address, block: B256::ZERO, code }));
    }
    for (address, code) in case.codes.iter().flatten() {
        let (address, code) = (read_address(address)?, read_code("codes", code)?);
        if facts.code_at(address).is_some() {
            return Err(format!("codes: {address} is said twice"));
        }
        facts.codes.push(CodeFact { address, block: B256::ZERO, code });
    }
    for address in case.known_destinations.iter().flatten() {
        facts.known_destinations.insert(read_address(address)?);
    }
    if let Some(text) = &case.waiting {
        let waited = read_span(text).map_err(|problem| format!("waiting: {problem}"))?;
        facts.waiting_since = Some(now.plus_millis(waited.saturating_neg()));
    }
    if let (Intent::Transaction(tx), Some(event)) = (intent, &case.event) {
        facts.event = Some(read_event_fact(bundle, &tx.chain.name, event)?);
    }
    Ok(facts)
}

fn read_code(field: &str, text: &str) -> Result<Bytes, String> {
    match text {
        "none" => Ok(Bytes::new()),
        "some" => Ok(Bytes::from_static(&[0x60, 0x80])),
        code if code.starts_with("0x") => read_hex(code).map(Into::into),
        other => Err(format!("{field}: `{other}` is neither none nor some, nor code in hex")),
    }
}

fn read_event_fact(
    bundle: &Bundle,
    chain: &ChainName,
    raw: &RawCaseEvent,
) -> Result<EventFact, String> {
    let contract = bundle
        .registry
        .contract(chain, &raw.contract)
        .ok_or_else(|| format!("event: the book has no contract `{}`", raw.contract))?;
    let (event, types) = read_event(&raw.signature)?;
    if raw.args.len() != event.inputs.len() {
        return Err("event.args: not the arguments of the event".to_owned());
    }
    let (mut topics, mut plain) = (vec![event.selector()], Vec::new());
    for (input, ty) in event.inputs.iter().zip(&types) {
        let arg: &RawScalar =
            raw.args.get(&input.name).ok_or_else(|| format!("event.args: no `{}`", input.name))?;
        let value: DynSolValue = read_value(ty, arg)?;
        if input.indexed {
            topics.push(value.encode_topic());
        } else {
            plain.push(value);
        }
    }
    Ok(EventFact {
        source: SOURCE,
        block_number: 1,
        canonical: raw.canonical,
        finalized: raw.finalized,
        emitter: contract.address,
        topics,
        data: encode(plain).into(),
    })
}
