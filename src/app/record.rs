//! What is written to the audit log and told as events: one place for the words.

mod approval;
mod bundle;
mod effect;
mod event;
pub mod read;
mod reconciled;
mod source;

pub use bundle::{By, bundle_activated, bundle_proposed, bundle_rejected, bundle_voice};

pub use reconciled::{chain_resumed, checkpoint_lost, orphans_closed, reconciled_account, resumed};

pub(crate) use event::{KeyFacts, key_event};
pub use event::{mined_event, policy_event, receipt, status_event};
pub(crate) use source::source_retracted;
pub use source::{SourceEnd, key_rebound, source_gone};

pub use approval::{
    approval_requested, approved, decided_event, rejected, released, requested_event, terms,
};

use crate::core::audit::{DENIED_TEXT_MAX, EncodedLeaf, Leaf, LeafKind, Value};
use crate::core::exposure::Change;
use crate::core::id::RequestId;
use crate::core::intent::{FeeAsk, Fees, Intent, TransactionIntent};
use crate::core::policy::verdict::Exposure;
use crate::core::policy::{Charge, ChargeKind, Effect, PolicyRequest, Reason, Verdict};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::Ending;
use crate::ports::chain::Block;
use crate::ports::store::{
    ExposureRow, Failure, LimitExceeded, NewAttempt, SignedAttempt, StoreError,
};
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};

/// What an operator said about a transaction.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// Who.
    pub who: Principal,
    /// Why, in their words.
    pub reason: Option<String>,
}

type Fields = BTreeMap<&'static str, Value>;

fn map<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(Fields::from(fields))
}

fn list<T>(items: &[T], write: impl Fn(&T) -> Value) -> Value {
    Value::List(items.iter().map(write).collect())
}

fn or_none<T: ToString>(value: Option<T>) -> Value {
    value.map_or_else(|| Value::from(""), Value::from)
}

fn finish(leaf: Leaf) -> Result<EncodedLeaf, StoreError> {
    leaf.encode().map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn fees(fees: Fees) -> Value {
    map([
        ("max_fee_per_gas", fees.max_fee.into()),
        ("max_priority_fee_per_gas", fees.max_priority_fee.into()),
    ])
}

fn transaction(intent: &TransactionIntent) -> Value {
    let (asked, kind) = match intent.fees {
        FeeAsk::UpTo(asked) => (asked, "up_to"),
        FeeAsk::Exact(asked) => (asked, "exact"),
    };
    let access = list(&intent.access_list, |item| {
        let slots = list(&item.storage_keys, |slot| Value::from(format!("{slot:#x}")));
        map([("address", format!("{:#x}", item.address).into()), ("storage_keys", slots)])
    });
    let source = intent.source.map_or_else(
        || Value::from(""),
        |source| {
            map([
                ("block_hash", format!("{:#x}", source.block_hash).into()),
                ("transaction_hash", format!("{:#x}", source.transaction_hash).into()),
                ("log_index", source.log_index.into()),
            ])
        },
    );
    map([
        ("kind", "transaction".into()),
        ("chain", (&intent.chain.name).into()),
        ("chain_id", intent.chain.id.into()),
        ("type", intent.tx_type.name().into()),
        ("to", or_none(intent.to.map(|to| format!("{to:#x}")))),
        ("value", intent.value.into()),
        ("data", format!("{:#x}", intent.data).into()),
        ("gas", intent.gas.into()),
        ("fees", fees(asked)),
        ("fees_are", kind.into()),
        ("access_list", access),
        ("nonce", or_none(intent.nonce)),
        ("not_after", or_none(intent.not_after)),
        ("source", source),
    ])
}

fn intent(intent: &Intent) -> Value {
    match intent {
        Intent::Transaction(tx) => transaction(tx),
        Intent::Message { text } => map([("kind", "message".into()), ("text", text.into())]),
        Intent::TypedData { chain, data } => map([
            ("kind", "typed_data".into()),
            ("chain", (&chain.name).into()),
            ("chain_id", chain.id.into()),
            ("data", serde_json::to_string(data).unwrap_or_default().into()),
        ]),
        Intent::Authorization { chain, address, nonce } => map([
            ("kind", "authorization".into()),
            ("chain", (&chain.name).into()),
            ("chain_id", chain.id.into()),
            ("address", format!("{address:#x}").into()),
            ("nonce", (*nonce).into()),
        ]),
    }
}

/// What a request would do, as leaves and the API say it.
#[must_use]
pub fn effects(effects: &[Effect]) -> Value {
    list(effects, effect::show)
}

/// Where it goes, by what for: what is known once a nonce is given for it.
fn destinations(effects: &[Effect]) -> Value {
    let shown = |(used_for, to): (String, BTreeSet<Address>)| {
        let to = to.iter().map(|to| format!("{to:#x}").into()).collect();
        map([("used_for", used_for.into()), ("to", Value::List(to))])
    };
    Value::List(crate::app::destinations::of(effects).into_iter().map(shown).collect())
}

fn charge(charge: &Charge) -> Value {
    let asked = match charge.kind {
        ChargeKind::Amount { value, fee } => map([("value", value.into()), ("fee", fee.into())]),
        ChargeKind::Count(count) => map([("count", count.into())]),
    };
    map([
        ("limit", hex::encode(charge.limit.0).into()),
        ("window", (&charge.label).into()),
        ("grant", (&charge.grant).into()),
        ("asked", asked),
        ("max", charge.max.into()),
        ("span", charge.period.text().into()),
    ])
}

fn exposure(it: &Exposure) -> Value {
    map([
        ("token", format!("{:#x}", it.token).into()),
        ("owner", format!("{:#x}", it.owner).into()),
        ("spender", format!("{:#x}", it.spender).into()),
        ("amount", it.amount.into()),
        ("charges", list(&it.charges, charge)),
    ])
}

/// What the grants in shadow mode would have said, as leaves and the API say it.
#[must_use]
pub fn shadows(verdict: &Verdict) -> Value {
    list(&verdict.shadows, |shadow| {
        map([
            ("grant", (&shadow.grant).into()),
            ("outcome", shadow.outcome.name().into()),
            ("reason", shadow.reason.as_ref().map_or_else(|| Value::from(""), reason)),
        ])
    })
}

/// Counts what the grants in shadow mode would have said of a request that was decided.
pub fn count_shadows(verdict: &Verdict) {
    for shadow in &verdict.shadows {
        let (grant, outcome) = (shadow.grant.as_str().to_owned(), shadow.outcome.name());
        metrics::counter!("claviger_policy_shadow_total", "grant" => grant, "outcome" => outcome)
            .increment(1);
    }
}

fn reason(reason: &Reason) -> Value {
    map([
        ("grant", or_none(reason.grant.as_ref())),
        ("field", (&reason.field).into()),
        ("expected", (&reason.expected).into()),
        ("actual", (&reason.actual).into()),
    ])
}

fn facts(request: &PolicyRequest) -> Value {
    let hash_of = |address| request.facts.code_hash_at(address).map(|hash| format!("{hash:#x}"));
    let codes = list(&request.facts.codes, |code| {
        map([
            ("address", format!("{:#x}", code.address).into()),
            ("block", format!("{:#x}", code.block).into()),
            ("code_hash", or_none(hash_of(code.address))),
            ("code_bytes", code.code.len().into()),
            ("delegation", or_none(code.delegation())),
        ])
    });
    let event = request.facts.event.as_ref().map_or_else(
        || Value::from(""),
        |event| {
            map([
                ("block_hash", format!("{:#x}", event.source.block_hash).into()),
                ("transaction_hash", format!("{:#x}", event.source.transaction_hash).into()),
                ("log_index", event.source.log_index.into()),
                ("emitter", format!("{:#x}", event.emitter).into()),
                ("block_number", event.block_number.into()),
                ("canonical", event.canonical.into()),
                ("finalized", event.finalized.into()),
                ("topics", list(&event.topics, |topic| format!("{topic:#x}").into())),
                ("data", format!("{:#x}", event.data).into()),
            ])
        },
    );
    let known = &request.facts.known_destinations;
    let known = Value::List(known.iter().map(|to| format!("{to:#x}").into()).collect());
    map([
        ("codes", codes),
        ("event", event),
        ("known_destinations", known),
        ("waiting_since", or_none(request.facts.waiting_since)),
    ])
}

fn decision(request: &PolicyRequest, verdict: &Verdict, now: Timestamp) -> Fields {
    Fields::from([
        ("now", now.into()),
        ("iss", (&request.principal.iss).into()),
        ("sub", (&request.principal.sub).into()),
        ("group", or_none(request.group.as_ref())),
        ("key", request.key.into()),
        ("address", format!("{:#x}", request.address).into()),
        ("request", intent(&request.intent)),
        ("facts", facts(request)),
        ("bundle", format!("{:#x}", verdict.bundle).into()),
        ("outcome", verdict.outcome.name().into()),
        ("grants", list(&verdict.grants, |grant| grant.into())),
        ("effects", effects(&verdict.effects)),
        ("destinations", destinations(&verdict.effects)),
        ("charges", list(&verdict.charges, charge)),
        ("exposures", list(&verdict.exposures, exposure)),
        ("fee_cap", verdict.fee_cap.map_or_else(|| Value::from(""), fees)),
        ("approval", verdict.approval.as_ref().map_or_else(|| Value::from(""), approval::need)),
        ("delay", verdict.delay.as_ref().map_or_else(|| Value::from(""), approval::delay)),
        ("shadows", shadows(verdict)),
    ])
}

/// Everything that an allowing decision looked at and said, as one JSON text. Each attempt's `DECIDED`
/// leaf carries it. `now` is the time that the decision was made for.
#[must_use]
pub fn decision_json(request: &PolicyRequest, verdict: &Verdict, now: Timestamp) -> String {
    // Strings, lists and maps with string keys always serialise.
    serde_json::to_string(&decision(request, verdict, now)).unwrap_or_default()
}

/// The `DENIED` leaf.
///
/// # Errors
/// When the leaf would be too long.
pub fn denied(
    id: RequestId,
    request: &PolicyRequest,
    verdict: &Verdict,
    reasons: &[Reason],
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    let what = serde_json::to_string(&decision(request, verdict, at)).unwrap_or_default();
    finish(
        Leaf::new(LeafKind::Denied, id, at)
            .with("decision", what)
            .with("reasons", serde_json::to_string(&list(reasons, reason)).unwrap_or_default()),
    )
    .map(without_large_texts)
}

/// Anybody may be denied as often as they like: of a long text, only hash and length are kept.
fn without_large_texts(mut leaf: EncodedLeaf) -> EncodedLeaf {
    leaf.blobs.retain(|(_, text)| text.len() <= DENIED_TEXT_MAX);
    leaf
}

/// The `DECIDED` leaf: these exact bytes may be signed.
///
/// # Errors
/// When the leaf would be too long.
pub fn decided(attempt: &NewAttempt, decision_json: &str) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Decided, attempt.request, attempt.at)
            .with("attempt", attempt.number)
            .with("reason", attempt.reason)
            .with("key", attempt.key)
            .with("payload", attempt.kind.name())
            .with_hex("bytes", &attempt.bytes)
            .with("digest", format!("{:#x}", attempt.digest))
            .with("decision", decision_json),
    )
}

/// The `SIGNED` leaf: this is what the HSM gave.
///
/// # Errors
/// When the leaf would be too long.
pub fn signed(
    attempt: &SignedAttempt,
    digest: &alloy::primitives::B256,
) -> Result<EncodedLeaf, StoreError> {
    let hash = attempt.envelope.as_ref().map(|(_, hash)| format!("{hash:#x}"));
    finish(
        Leaf::new(LeafKind::Signed, attempt.request, attempt.at)
            .with("attempt", attempt.number)
            .with("digest", format!("{digest:#x}"))
            .with_hex("r", &attempt.signature.r)
            .with_hex("s", &attempt.signature.s)
            .with("y_parity", u8::from(attempt.signature.y_parity))
            .with("transaction_hash", or_none(hash)),
    )
}

/// Why a no-op may be signed, in the place of the decision over what was asked.
#[must_use]
pub fn no_op_decision(ending: Ending, failure: Option<&Failure>) -> String {
    let why = failure.map_or(Value::from(""), |failure| (&failure.detail).into());
    let what = Fields::from([
        ("outcome", "no_op".into()),
        ("ending", ending.name().into()),
        ("because", why),
    ]);
    serde_json::to_string(&what).unwrap_or_default()
}

/// The `INSTRUCTED` leaf: who said it, and why.
///
/// # Errors
/// When the leaf would be too long.
pub fn instructed(
    id: impl ToString,
    action: &str,
    instruction: &Instruction,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Instructed, id, at)
            .with("action", action)
            .with("iss", &instruction.who.iss)
            .with("sub", &instruction.who.sub)
            .with("reason", or_none(instruction.reason.as_ref())),
    )
}

/// The `SETTLED` leaf: the nonce is final.
///
/// # Errors
/// When the leaf would be too long.
pub fn settled(
    id: impl ToString,
    status: &str,
    transaction_hash: &str,
    block_hash: &str,
    fee_paid: &str,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Settled, id, at)
            .with("status", status)
            .with("transaction_hash", transaction_hash)
            .with("block_hash", block_hash)
            .with("fee_paid", fee_paid),
    )
}

/// The `SETTLED` leaf of an exposure: what of it counts as spent, and what nobody can take any more.
///
/// # Errors
/// When the leaf would be too long.
pub fn exposure_seen(
    row: &ExposureRow,
    change: &Change,
    block: &Block,
    at: Timestamp,
) -> Result<EncodedLeaf, StoreError> {
    finish(
        Leaf::new(LeafKind::Settled, format!("{}/exposure/{}", row.owner, row.n), at)
            .with("status", change.ended.unwrap_or("open"))
            .with("token", format!("{:#x}", row.token))
            .with("account", format!("{:#x}", row.account))
            .with("spender", format!("{:#x}", row.spender))
            .with("used", change.used.to_string())
            .with("freed", change.freed.to_string())
            .with("block_hash", format!("{:#x}", block.hash)),
    )
}

/// An `ALARM` leaf.
///
/// # Errors
/// When the leaf would be too long.
pub fn alarm(subject: impl ToString, what: &str, at: Timestamp) -> Result<EncodedLeaf, StoreError> {
    finish(Leaf::new(LeafKind::Alarm, subject, at).with("what", what))
}

/// The reason that a full window gives.
#[must_use]
pub fn window_reason(full: &LimitExceeded) -> Reason {
    Reason {
        grant: Some(crate::core::id::GrantId::new(full.grant.clone())),
        field: format!("windows: {}", full.label),
        expected: format!("at most {}", full.max),
        actual: format!("{} used, {} more asked", full.used, full.asked),
    }
}

/// Why a request is refused that names an event which is not there, whatever policy says.
#[must_use]
pub fn no_event() -> Reason {
    Reason {
        grant: None,
        field: "event".to_owned(),
        expected: "a source event on the canonical chain".to_owned(),
        actual: "none there".to_owned(),
    }
}

/// What the chain says of an event, which anybody can read there: callers ask again once it is final.
const OF_THE_CHAIN: [&str; 2] = ["event.canonical", "event.finalized"];

/// The fields of reasons as anybody may see them: the first word of each, once. Which grant it was, what it says
/// and how full a window is would tell a caller where the limits are.
#[must_use]
pub fn reduced(reasons: &[Reason]) -> Vec<&str> {
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut fields = Vec::new();
    for reason in reasons {
        let mut field = reason.field.as_str();
        if !OF_THE_CHAIN.contains(&field) {
            field = field.split(|char| !is_word(char)).next().unwrap_or_default();
        }
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    fields
}

/// Why an accepted request was refused: a line for everybody, then the reasons in full, for those who may see
/// them.
#[must_use]
pub fn refusal_detail(reasons: &[Reason]) -> String {
    let mut lines =
        vec![format!("refused before a nonce was given: {}", reduced(reasons).join(", "))];
    lines.extend(reasons.iter().map(|reason| {
        let grant = reason.grant.as_ref().map_or_else(String::new, |grant| format!("{grant}: "));
        format!("{grant}{}: expected {}, is {}", reason.field, reason.expected, reason.actual)
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::GrantId;

    fn reason(field: &str) -> Reason {
        Reason {
            grant: Some(GrantId::new("secret-grant")),
            field: field.to_owned(),
            expected: "at most 77".to_owned(),
            actual: "55 used, 33 more asked".to_owned(),
        }
    }

    #[test]
    fn a_caller_is_told_the_first_word_of_each_reason_once() {
        let all = [
            "windows: secret-grant: value in 24h",
            "args.amount.max",
            "args.to",
            "per_tx",
            "deny.x",
            "event.finalized",
            "event.args",
        ];
        let all = all.map(reason);
        let told = ["windows", "args", "per_tx", "deny", "event.finalized", "event"];
        assert_eq!(reduced(&all), told);
        let detail = refusal_detail(&all);
        let (first, rest) = detail.split_once('\n').unwrap();
        assert_eq!(first, format!("refused before a nonce was given: {}", told.join(", ")));
        assert!(!first.contains("secret-grant"));
        for told in ["secret-grant", "77", "55 used"] {
            assert!(rest.contains(told), "{told} in {rest}");
        }
    }
}
