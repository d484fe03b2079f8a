//! Recorded decisions, read back: the request, its facts and the time, so that another bundle can judge it.

use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName, GrantId, GroupName, KeyId};
use crate::core::intent::{
    AccessListItem, ChainRef, EventSource, FeeAsk, Fees, Intent, TransactionIntent, TxType,
};
use crate::core::policy::{CodeFact, EventFact, Facts, Outcome, PolicyRequest};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::primitives::{Address, B256, Bytes};
use serde::Deserialize;
use std::str::FromStr;

/// No contract has more code than that of EIP-170, and an init code twice that.
const CODE_BYTES_MAX: usize = 49_152;

/// A decision as it was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was judged, with the facts of then. Of code only its hash and length are kept.
    pub request: PolicyRequest,
    /// The time for which it was judged.
    pub now: Timestamp,
    /// What policy said. A request that policy allowed may have been refused for a full window.
    pub outcome: Outcome,
    /// The hash of the bundle that said so.
    pub bundle: B256,
    /// The grants that covered it.
    pub grants: Vec<GrantId>,
}

/// Why a recorded decision cannot be judged again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no decision of policy: it says why a no-op was signed.
    #[error("it is no decision over a request")]
    NoRequest,
    /// Something that a decision needs is not recorded, or is not what it should be.
    #[error("{0}")]
    Field(String),
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    now: String,
    iss: String,
    sub: String,
    group: String,
    key: String,
    address: String,
    request: WrittenIntent,
    facts: WrittenFacts,
    bundle: String,
    outcome: String,
    grants: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum WrittenIntent {
    Transaction(Box<WrittenTransaction>),
    Message { text: String },
    TypedData { chain: String, chain_id: String, data: String },
    Authorization { chain: String, chain_id: String, address: String, nonce: String },
}

#[derive(Deserialize)]
struct WrittenTransaction {
    chain: String,
    chain_id: String,
    #[serde(rename = "type")]
    tx_type: String,
    to: String,
    value: String,
    data: String,
    gas: String,
    fees: WrittenFees,
    fees_are: String,
    access_list: Vec<WrittenAccess>,
    nonce: String,
    not_after: String,
    source: OrNothing<WrittenSource>,
}

#[derive(Deserialize)]
struct WrittenFees {
    max_fee_per_gas: String,
    max_priority_fee_per_gas: String,
}

#[derive(Deserialize)]
struct WrittenAccess {
    address: String,
    storage_keys: Vec<String>,
}

#[derive(Deserialize)]
struct WrittenSource {
    block_hash: String,
    transaction_hash: String,
    log_index: String,
}

/// What may be absent: then an empty text stands there.
#[derive(Deserialize)]
#[serde(untagged)]
enum OrNothing<T> {
    Some(T),
    Nothing(String),
}

#[derive(Deserialize)]
struct WrittenFacts {
    codes: Vec<WrittenCode>,
    event: OrNothing<WrittenEvent>,
    known_destinations: Vec<String>,
    waiting_since: String,
}

#[derive(Deserialize)]
struct WrittenCode {
    address: String,
    block: String,
    code_hash: String,
    code_bytes: String,
    delegation: String,
}

#[derive(Deserialize)]
struct WrittenEvent {
    #[serde(flatten)]
    source: WrittenSource,
    emitter: String,
    block_number: String,
    canonical: String,
    finalized: String,
    topics: Vec<String>,
    data: String,
}

/// Reads the `decision` of a `DECIDED` or `DENIED` leaf. `at` is the leaf's time, for a record that does not
/// say for when it was made.
///
/// # Errors
/// When it was written by a version that did not record all that a decision needs, or is no decision.
pub fn recorded(decision_json: &str, at: Timestamp) -> Result<Recorded, Unreadable> {
    let value: serde_json::Value = serde_json::from_str(decision_json)
        .map_err(|error| Unreadable::Field(error.to_string()))?;
    if value.get("outcome").and_then(|outcome| outcome.as_str()) == Some("no_op") {
        return Err(Unreadable::NoRequest);
    }
    let it: Written =
        serde_json::from_value(value).map_err(|error| Unreadable::Field(error.to_string()))?;
    Ok(Recorded {
        now: if it.now.is_empty() { at } else { time("now", &it.now)? },
        outcome: outcome(&it.outcome)?,
        bundle: parsed("bundle", &it.bundle)?,
        grants: it.grants.into_iter().map(GrantId::new).collect(),
        request: PolicyRequest {
            principal: Principal { iss: it.iss, sub: it.sub },
            group: Some(it.group).filter(|group| !group.is_empty()).map(GroupName::new),
            key: parsed::<KeyId>("key", &it.key)?,
            address: parsed("address", &it.address)?,
            intent: intent(it.request)?,
            facts: facts(it.facts)?,
        },
    })
}

fn wrong(field: &str, text: &str) -> Unreadable {
    Unreadable::Field(format!("{field}: `{text}`"))
}

fn parsed<T: FromStr>(field: &str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| wrong(field, text))
}

fn optional<T: FromStr>(field: &str, text: &str) -> Result<Option<T>, Unreadable> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

fn time(field: &str, text: &str) -> Result<Timestamp, Unreadable> {
    Timestamp::parse_rfc3339(text).ok_or_else(|| wrong(field, text))
}

fn optional_time(field: &str, text: &str) -> Result<Option<Timestamp>, Unreadable> {
    if text.is_empty() { Ok(None) } else { time(field, text).map(Some) }
}

fn all<T: FromStr>(field: &str, texts: &[String]) -> Result<Vec<T>, Unreadable> {
    texts.iter().map(|text| parsed(field, text)).collect()
}

fn outcome(name: &str) -> Result<Outcome, Unreadable> {
    [Outcome::Deny, Outcome::Delay, Outcome::NeedApproval, Outcome::Allow]
        .into_iter()
        .find(|outcome| outcome.name() == name)
        .ok_or_else(|| wrong("outcome", name))
}

fn chain(name: String, id: &str) -> Result<ChainRef, Unreadable> {
    Ok(ChainRef { name: ChainName::new(name), id: ChainId::new(parsed("chain_id", id)?) })
}

fn source(it: &WrittenSource) -> Result<EventSource, Unreadable> {
    Ok(EventSource {
        block_hash: parsed("block_hash", &it.block_hash)?,
        transaction_hash: parsed("transaction_hash", &it.transaction_hash)?,
        log_index: parsed("log_index", &it.log_index)?,
    })
}

fn intent(it: WrittenIntent) -> Result<Intent, Unreadable> {
    match it {
        WrittenIntent::Message { text } => Ok(Intent::Message { text }),
        WrittenIntent::TypedData { chain: name, chain_id, data } => {
            let read = serde_json::from_str(&data).map_err(|_| wrong("typed data", &data))?;
            Ok(Intent::TypedData { chain: chain(name, &chain_id)?, data: Box::new(read) })
        }
        WrittenIntent::Authorization { chain: name, chain_id, address, nonce } => {
            Ok(Intent::Authorization {
                chain: chain(name, &chain_id)?,
                address: parsed("address", &address)?,
                nonce: parsed("nonce", &nonce)?,
            })
        }
        WrittenIntent::Transaction(tx) => transaction(*tx).map(Box::new).map(Intent::Transaction),
    }
}

fn transaction(tx: WrittenTransaction) -> Result<TransactionIntent, Unreadable> {
    let fees = Fees {
        max_fee: parsed("max_fee_per_gas", &tx.fees.max_fee_per_gas)?,
        max_priority_fee: parsed("max_priority_fee_per_gas", &tx.fees.max_priority_fee_per_gas)?,
    };
    let access = tx.access_list.iter().map(|item| {
        Ok(AccessListItem {
            address: parsed("access_list", &item.address)?,
            storage_keys: all("access_list", &item.storage_keys)?,
        })
    });
    Ok(TransactionIntent {
        chain: chain(tx.chain, &tx.chain_id)?,
        tx_type: TxType::from_name(&tx.tx_type).ok_or_else(|| wrong("type", &tx.tx_type))?,
        to: optional::<Address>("to", &tx.to)?,
        value: Amount::parse(&tx.value).map_err(|_| wrong("value", &tx.value))?,
        data: parsed::<Bytes>("data", &tx.data)?,
        gas: parsed("gas", &tx.gas)?,
        fees: match tx.fees_are.as_str() {
            "up_to" => FeeAsk::UpTo(fees),
            "exact" => FeeAsk::Exact(fees),
            other => return Err(wrong("fees_are", other)),
        },
        access_list: access.collect::<Result<_, _>>()?,
        nonce: optional("nonce", &tx.nonce)?,
        not_after: optional_time("not_after", &tx.not_after)?,
        source: match &tx.source {
            OrNothing::Some(it) => Some(source(it)?),
            OrNothing::Nothing(text) if text.is_empty() => None,
            OrNothing::Nothing(text) => return Err(wrong("source", text)),
        },
    })
}

fn facts(it: WrittenFacts) -> Result<Facts, Unreadable> {
    let mut facts = Facts {
        event: match it.event {
            OrNothing::Some(event) => Some(read_event(&event)?),
            OrNothing::Nothing(text) if text.is_empty() => None,
            OrNothing::Nothing(text) => return Err(wrong("event", &text)),
        },
        known_destinations: all("known_destinations", &it.known_destinations)?
            .into_iter()
            .collect(),
        waiting_since: optional_time("waiting_since", &it.waiting_since)?,
        ..Facts::default()
    };
    for code in it.codes {
        let address = parsed("code", &code.address)?;
        let length: usize = parsed("code_bytes", &code.code_bytes)?;
        if length > CODE_BYTES_MAX {
            return Err(wrong("code_bytes", &code.code_bytes));
        }
        facts.codes.push(CodeFact {
            address,
            block: parsed("block", &code.block)?,
            code: CodeFact::stand_in(length, optional("delegation", &code.delegation)?.as_ref()),
        });
        facts.code_hashes.insert(address, parsed("code_hash", &code.code_hash)?);
    }
    Ok(facts)
}

fn read_event(it: &WrittenEvent) -> Result<EventFact, Unreadable> {
    Ok(EventFact {
        source: source(&it.source)?,
        block_number: parsed("block_number", &it.block_number)?,
        canonical: parsed("canonical", &it.canonical)?,
        finalized: parsed("finalized", &it.finalized)?,
        emitter: parsed("emitter", &it.emitter)?,
        topics: all("topics", &it.topics)?,
        data: parsed("data", &it.data)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::record::decision_json;
    use crate::core::policy::evaluate;
    use crate::core::policy::evaluate::fixtures::*;
    use alloy::dyn_abi::TypedData;
    use proptest::prelude::*;
    use proptest::sample::select;

    const PERMIT: &str = r#"{"types":{"EIP712Domain":[{"name":"chainId","type":"uint256"},
        {"name":"verifyingContract","type":"address"}],"Ask":[{"name":"amount","type":"uint256"},
        {"name":"note","type":"string"}]},"primaryType":"Ask","domain":{"chainId":"31337",
        "verifyingContract":"0x5FbDB2315678afecb367f032d93F642f64180aa3"},
        "message":{"amount":"7","note":"a \"quote\""}}"#;

    fn typed() -> PolicyRequest {
        let data: TypedData = serde_json::from_str(PERMIT).unwrap();
        request(Intent::TypedData { chain: local(), data: Box::new(data) }, Facts::default())
    }

    fn grants() -> Vec<String> {
        let message = "[[grant]]\nid = \"m\"\nowner = \"o\"\nreason = \"r\"\nexpires = \"2027-03-31\"\n\
                       signers = [\"payments\"]\nprincipals = [\"svc:payouts\"]\naction = \"message\"\n\
                       text = { prefix = \"hello\" }\n";
        let native = native_grant("n", "1", r#"[{ span = "1h", max = "5", scope = "group" }]"#);
        vec![native, token_grant("t", "100"), charge_grant(), message.to_owned()]
    }

    fn any_code() -> impl Strategy<Value = Vec<u8>> {
        let delegation = [&[0xef, 0x01, 0x00], PAYEE.as_slice()].concat();
        let longer = [delegation.as_slice(), &[7; 30]].concat();
        select(vec![vec![], vec![0x60], delegation, longer, vec![0xef, 0x01, 0x00], vec![1; 23]])
    }

    fn any_request() -> impl Strategy<Value = PolicyRequest> {
        let base = prop_oneof![
            (select(vec![PAYEE, STRANGER]), any::<u64>()).prop_map(|(to, value)| asks(
                to,
                u128::from(value),
                vec![]
            )),
            (select(vec![PAYEE, TUSD]), 0..200_000_000_u64).prop_map(|(to, amount)| asks(
                to,
                0,
                transfer(PAYEE, amount)
            )),
            Just(charge()),
            Just(typed()),
            ".{0,40}".prop_map(|text| request(Intent::Message { text }, Facts::default())),
        ];
        let facts = (any_code(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        (base, facts, any::<[bool; 4]>(), any::<i32>()).prop_map(
            |(mut request, (code, recode, no_event, canonical, known), flags, ms)| {
                if recode {
                    for fact in &mut request.facts.codes {
                        fact.code = code.clone().into();
                    }
                }
                if let Some(event) = &mut request.facts.event {
                    event.canonical = canonical;
                    event.finalized = flags[0];
                }
                if no_event && flags[1] {
                    request.facts.event = None;
                }
                if known {
                    request.facts.known_destinations.insert(PAYEE);
                    request.facts.waiting_since = Some(now().plus_millis(i64::from(ms)));
                }
                if flags[2] {
                    request.group = None;
                }
                if let Intent::Transaction(tx) = &mut request.intent {
                    tx.nonce = flags[3].then_some(7);
                    tx.not_after = flags[0].then(|| now().plus_millis(i64::from(ms)));
                    if flags[1] {
                        tx.access_list = vec![AccessListItem {
                            address: PAYEE,
                            storage_keys: vec![B256::repeat_byte(3)],
                        }];
                    }
                    if flags[2] {
                        tx.to = None;
                    }
                }
                request
            },
        )
    }

    proptest! {
        #[test]
        fn a_recorded_decision_is_decided_again_exactly(
            request in any_request(), ms in 0..40_000_000_000_i64,
        ) {
            let (bundle, at) = (bundle(&grants()), now().plus_millis(ms));
            let verdict = evaluate(&bundle, &request, at);
            let written = decision_json(&request, &verdict, at);
            let read = recorded(&written, Timestamp::from_millis(0)).unwrap();
            prop_assert_eq!(read.now, at);
            prop_assert_eq!(read.outcome, verdict.outcome);
            prop_assert_eq!(read.bundle, verdict.bundle);
            prop_assert_eq!(&read.grants, &verdict.grants);
            let again = evaluate(&bundle, &read.request, read.now);
            prop_assert_eq!(&again, &verdict);
            // What was read is written as it was.
            prop_assert_eq!(decision_json(&read.request, &again, read.now), written);
        }
    }

    #[test]
    fn the_hash_of_code_that_is_not_kept_is_the_recorded_one() {
        let request = asks(PROCESSOR, 0, execute_charge(1, 1));
        let expected = request.facts.code_hash_at(PROCESSOR);
        let verdict = evaluate(&bundle(&grants()), &request, now());
        let read = recorded(&decision_json(&request, &verdict, now()), now()).unwrap();
        assert_ne!(read.request.facts.codes, request.facts.codes);
        assert_eq!(read.request.facts.code_hash_at(PROCESSOR), expected);
    }

    #[test]
    fn an_authorization_is_read_back() {
        let mut request = asks(PAYEE, 0, vec![]);
        let chain = request.intent.chain().unwrap().clone();
        request.intent = Intent::Authorization { chain, address: PROCESSOR, nonce: 7 };
        let verdict = evaluate(&bundle(&grants()), &request, now());
        let read = recorded(&decision_json(&request, &verdict, now()), now()).unwrap();
        assert_eq!(read.request.intent, request.intent);
    }

    #[test]
    fn what_is_no_decision_is_said_to_be_none() {
        let no_op = r#"{"outcome":"no_op","ending":"cancelled","because":""}"#;
        assert_eq!(recorded(no_op, now()).unwrap_err(), Unreadable::NoRequest);
        assert!(matches!(recorded("{}", now()).unwrap_err(), Unreadable::Field(_)));
        assert!(matches!(recorded("sha256:00:5000", now()).unwrap_err(), Unreadable::Field(_)));
    }
}
