//! `claviger policy explain DIR --request FILE`: what a bundle decides about a request, and why. Nothing is asked
//! of a server, a chain or a database: the facts are in the file.

use crate::app::record::{self, read};
use crate::cli::{Failure, load, print};
use crate::core::policy::{
    Bundle, Charge, CodeFact, Explanation, Outcome, PolicyRequest, Reason, Verdict, explain,
    facts::Facts,
};
use crate::core::time::Timestamp;
use alloy::primitives::{Address, Bytes};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What stands in the file, unless it is a recorded decision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    principal: Who,
    /// As the body of `POST /v1/transactions` or of `POST /v1/signatures`.
    request: Map<String, Value>,
    facts: Known,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    iss: String,
    sub: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// The account that would sign.
    address: String,
    group: Option<String>,
    key: Option<String>,
    chain_id: Option<u64>,
    now: String,
    /// By address: `none`, `some`, or the code in hex.
    #[serde(default)]
    codes: BTreeMap<String, String>,
    #[serde(default)]
    event: Option<Value>,
    #[serde(default)]
    known_destinations: Vec<String>,
    waiting_since: Option<String>,
}

/// Decides and prints.
///
/// # Errors
/// When the bundle does not load, or the file is not a request with its facts.
pub fn run(dir: &Path, file: &Path, all: bool, as_json: bool) -> Result<(), Failure> {
    let bundle = load::bundle(dir)?;
    let wrong = |error: &dyn std::fmt::Display| Failure::of(&file.display().to_string(), error);
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    // What stands in a leaf's `decision` says all of it by itself.
    let decision = if value.get("outcome").is_some() {
        value
    } else {
        written(value).map_err(|e| wrong(&e))?
    };
    let asked = read::recorded(&decision.to_string(), Timestamp::default());
    let asked = asked.map_err(|error| wrong(&error))?;
    let explained = explain(&bundle, &asked.request, asked.now);
    if as_json {
        print::json(&shown(&bundle, &explained));
    } else {
        tell(&bundle, &asked.request, &explained, all);
    }
    Ok(())
}

/// The question in the words of a recorded decision, which is read by one reader.
fn written(value: Value) -> Result<Value, String> {
    let it: Question = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let mut codes = Vec::new();
    for (address, code) in &it.facts.codes {
        codes.push(code_fact(address, code)?);
    }
    Ok(json!({
        "now": it.facts.now,
        "iss": it.principal.iss,
        "sub": it.principal.sub,
        "group": it.facts.group.unwrap_or_default(),
        "key": it.facts.key.unwrap_or_else(|| uuid::Uuid::nil().to_string()),
        "address": it.facts.address,
        "request": intent(&it.request, it.facts.chain_id)?,
        "facts": {
            "codes": codes,
            "event": it.facts.event.unwrap_or_else(|| "".into()),
            "known_destinations": it.facts.known_destinations,
            "waiting_since": it.facts.waiting_since.unwrap_or_default(),
        },
        "bundle": format!("{:#x}", alloy::primitives::B256::ZERO),
        "outcome": "deny",
        "grants": [],
    }))
}

fn code_fact(address: &str, code: &str) -> Result<Value, String> {
    let at: Address = address.parse().map_err(|_| format!("codes: `{address}` is no address"))?;
    let code: Bytes = match code {
        "none" => Bytes::new(),
        "some" => Bytes::from_static(&[0x60, 0x80]),
        hex => hex.parse().map_err(|_| format!("codes: `{hex}` is not none, some or hex"))?,
    };
    let fact = CodeFact { address: at, block: alloy::primitives::B256::ZERO, code };
    let facts = Facts { codes: vec![fact.clone()], ..Facts::default() };
    let hash = facts.code_hash_at(at).map(|hash| format!("{hash:#x}"));
    Ok(json!({
        "address": address,
        "block": format!("{:#x}", fact.block),
        "code_hash": hash,
        "code_bytes": fact.code.len().to_string(),
        "delegation": fact.delegation().map(|rest| rest.to_string()).unwrap_or_default(),
    }))
}

/// A body of one of the two doors.
fn intent(body: &Map<String, Value>, chain_id: Option<u64>) -> Result<Value, String> {
    let chain = text(body, "chain")?.unwrap_or_default();
    let id =
        || chain_id.map(|id| id.to_string()).ok_or_else(|| "facts.chain_id is missing".to_owned());
    if let Some(message) = body.get("message") {
        return Ok(json!({ "kind": "message", "text": message.get("text") }));
    }
    if let Some(data) = body.get("typed_data") {
        let data = data.to_string();
        return Ok(
            json!({ "kind": "typed_data", "chain": chain, "chain_id": id()?, "data": data }),
        );
    }
    if let Some(Value::Object(inner)) = body.get("authorization") {
        return Ok(json!({
            "kind": "authorization",
            "chain": chain,
            "chain_id": id()?,
            "address": text(inner, "address")?,
            "nonce": text(inner, "nonce")?,
        }));
    }
    let (fields, kind) = match body.get("transaction") {
        Some(Value::Object(inner)) => (inner, "exact"),
        Some(_) => return Err("transaction is no object".to_owned()),
        None => (body, "up_to"),
    };
    let price = text(fields, "gas_price")?;
    let highest = u128::MAX.to_string();
    let fee = text(fields, "max_fee_per_gas")?.or_else(|| price.clone());
    let tip = text(fields, "max_priority_fee_per_gas")?.or_else(|| price.clone());
    let default_type = if price.is_some() { "legacy" } else { "eip1559" };
    Ok(json!({
        "kind": "transaction",
        "chain": chain,
        "chain_id": id()?,
        "type": text(fields, "type")?.unwrap_or_else(|| default_type.to_owned()),
        "to": text(fields, "to")?.unwrap_or_default(),
        "value": text(fields, "value")?.unwrap_or_else(|| "0".to_owned()),
        "data": text(fields, "data")?.unwrap_or_else(|| "0x".to_owned()),
        "gas": text(fields, "gas")?.unwrap_or_else(|| "21000".to_owned()),
        "fees": {
            "max_fee_per_gas": fee.unwrap_or_else(|| highest.clone()),
            "max_priority_fee_per_gas": tip.unwrap_or(highest),
        },
        "fees_are": kind,
        "access_list": fields.get("access_list").cloned().unwrap_or_else(|| json!([])),
        "nonce": text(fields, "nonce")?.unwrap_or_default(),
        "not_after": text(fields, "not_after")?.unwrap_or_default(),
        "source": source(fields)?,
    }))
}

fn source(fields: &Map<String, Value>) -> Result<Value, String> {
    match fields.get("source") {
        None | Some(Value::Null) => Ok("".into()),
        Some(Value::Object(source)) => Ok(json!({
            "block_hash": text(source, "block_hash")?.unwrap_or_default(),
            "transaction_hash": text(source, "transaction_hash")?.unwrap_or_default(),
            "log_index": text(source, "log_index")?.unwrap_or_default(),
        })),
        Some(_) => Err("source is no object".to_owned()),
    }
}

/// A field that is written as a text or as a whole number.
fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if number.is_u64() => Ok(Some(number.to_string())),
        Some(_) => Err(format!("{name}: is neither a text nor a whole number")),
    }
}

fn asked(charge: &Charge) -> String {
    charge.asked().map_or_else(|| "more than 2^256".to_owned(), |asked| asked.to_string())
}

fn tell(bundle: &Bundle, request: &PolicyRequest, explained: &Explanation, all: bool) {
    let verdict = &explained.verdict;
    print::line(&format!("bundle {} {:#x}", bundle.version(), bundle.hash()));
    print::line(&format!("{} asks: {}", request.principal, verdict.outcome.name()));
    print::line("");
    let mut rows = vec![["#", "EFFECT"].map(str::to_owned).to_vec()];
    let effects = effects(verdict);
    rows.extend(
        effects.iter().zip(1..).map(|(it, at): (_, u32)| vec![at.to_string(), in_words(it)]),
    );
    print::table(&rows);
    let grants: Vec<&str> = verdict.grants.iter().map(|grant| grant.as_str()).collect();
    if verdict.outcome != Outcome::Deny {
        print::line("");
        print::line(&format!("covered by {}", grants.join(", ")));
    }
    if let Some(cap) = verdict.fee_cap {
        let (fee, tip) = (cap.max_fee, cap.max_priority_fee);
        print::line(&format!("at most {fee} wei per gas, of which {tip} as tip"));
    }
    if let Some(delay) = &verdict.delay {
        let wait = crate::core::time::duration_text(delay.ms);
        print::line(&format!("waits {wait}: {}", delay.why));
    }
    if let Some(need) = &verdict.approval {
        let quorums: Vec<String> = need.quorums.iter().map(|it| format!("{it:?}")).collect();
        print::line(&format!("needs approval by {}", quorums.join(" and ")));
    }
    tell_reasons(explained, all);
    tell_windows(verdict);
}

/// The reasons of the verdict, or with them all that every grant misses.
fn tell_reasons(explained: &Explanation, all: bool) {
    let Explanation { verdict, misses } = explained;
    let heads = ["GRANT", "#", "FIRST FIELD THAT FAILS", "EXPECTED", "IS"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let row = |reason: &Reason, effect: Option<usize>| {
        let grant = reason.grant.as_ref().map_or_else(|| "(any)".to_owned(), ToString::to_string);
        let effect = effect.map_or_else(String::new, |at| at.saturating_add(1).to_string());
        vec![grant, effect, reason.field.clone(), reason.expected.clone(), reason.actual.clone()]
    };
    let missed = |reason: &Reason| misses.iter().find(|miss| miss.reason == *reason);
    let (by_grants, others): (Vec<&Reason>, Vec<&Reason>) =
        verdict.reasons.iter().partition(|reason| missed(reason).is_some());
    rows.extend(others.into_iter().map(|reason| row(reason, None)));
    let nearest = |reason: &&Reason| row(reason, missed(reason).and_then(|miss| miss.effect));
    let shown = if all {
        rows.extend(misses.iter().map(|miss| row(&miss.reason, miss.effect)));
        misses.len()
    } else {
        rows.extend(by_grants.iter().map(nearest));
        misses.iter().filter(|miss| by_grants.contains(&&miss.reason)).count()
    };
    rows.extend(verdict.shadows.iter().map(|shadow| {
        let reason = shadow.reason.as_ref();
        let part = |read: fn(&crate::core::policy::Reason) -> &String| {
            reason.map_or_else(String::new, |reason| read(reason).clone())
        };
        let grant = format!("{} (shadow: {})", shadow.grant, shadow.outcome.name());
        vec![
            grant,
            String::new(),
            part(|it| &it.field),
            part(|it| &it.expected),
            part(|it| &it.actual),
        ]
    }));
    if rows.len() > 1 {
        print::line("");
        print::table(&rows);
    }
    let hidden = misses.len().saturating_sub(shown);
    if hidden > 0 {
        let more = if shown == 0 { "" } else { " more" };
        print::line(&format!(
            "{hidden}{more} times a grant does not cover an effect: --all lists them"
        ));
    }
}

fn tell_windows(verdict: &Verdict) {
    let exposed = verdict.exposures.iter().flat_map(|exposure| &exposure.charges);
    let mut rows = vec![["WINDOW", "ASKED", "HOLDS"].map(str::to_owned).to_vec()];
    rows.extend(
        verdict
            .charges
            .iter()
            .chain(exposed)
            .map(|charge| vec![charge.label.clone(), asked(charge), charge.max.to_string()]),
    );
    if rows.len() > 1 {
        print::line("");
        print::table(&rows);
    }
}

fn effects(verdict: &Verdict) -> Vec<Value> {
    match serde_json::to_value(record::effects(&verdict.effects)) {
        Ok(Value::Array(effects)) => effects,
        _ => Vec::new(),
    }
}

/// `token_out asset=tusd amount=5 …`
fn in_words(effect: &Value) -> String {
    let Value::Object(fields) = effect else {
        return effect.to_string();
    };
    let name = fields.get("effect").and_then(Value::as_str).unwrap_or_default();
    let rest =
        fields.iter().filter(|(field, _)| *field != "effect").map(|(field, value)| match value {
            Value::String(text) => format!("{field}={text}"),
            other => format!("{field}={other}"),
        });
    format!("{name} {}", rest.collect::<Vec<_>>().join(" "))
}

fn shown(bundle: &Bundle, explained: &Explanation) -> Value {
    let verdict = &explained.verdict;
    let exposed = verdict.exposures.iter().flat_map(|exposure| &exposure.charges);
    let windows: Vec<Value> = verdict
        .charges
        .iter()
        .chain(exposed)
        .map(|charge| {
            json!({ "window": charge.label, "grant": charge.grant, "asked": asked(charge),
                    "max": charge.max.to_string() })
        })
        .collect();
    json!({
        "bundle": format!("{:#x}", bundle.hash()),
        "outcome": verdict.outcome.name(),
        "effects": effects(verdict),
        "grants": verdict.grants,
        "reasons": verdict.reasons,
        "misses": explained.misses,
        "windows": windows,
        "delay_ms": verdict.delay.as_ref().map(|delay| delay.ms.to_string()),
        "approval": verdict.approval.as_ref().map(|need| &need.quorums),
    })
}
