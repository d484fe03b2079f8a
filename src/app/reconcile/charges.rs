//! What an adopted request takes from the windows, where it still waits for time or people in this database: it
//! holds nothing then, and the money has moved.

use super::{Account, What};
use crate::app::AppError;
use crate::app::policies;
use crate::app::record::read::recorded;
use crate::core::amount::Amount;
use crate::core::id::{GrantId, RequestId};
use crate::core::policy::{Bundle, Charge, ChargeKind, LimitId, Outcome, Period, evaluate};
use crate::core::time::duration_ms;
use crate::ports::store::{Hold, Store, TransactionRow, look};
use alloy::primitives::B256;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// What each request takes that is to be adopted and holds nothing, by the row's version.
pub(super) type Charges = BTreeMap<RequestId, (i64, Hold)>;

/// Reads the requests of an account that wait and are to be adopted, and what they take.
///
/// # Errors
/// When the store does not answer, or a stored decision is none.
pub(super) async fn of(store: &dyn Store, account: &Account) -> Result<Charges, AppError> {
    let mut charges = Charges::new();
    for finding in &account.findings {
        let id = match finding.what {
            What::Queued(id) => Some(id),
            _ => finding.asked_by,
        };
        let Some(id) = id else { continue };
        let row =
            look(store, "adopted", move |unit| Box::pin(async move { unit.transaction(id).await }))
                .await?;
        if let Some(row) = row.filter(|row| row.status.is_waiting()) {
            charges.insert(id, (row.version, hold(store, &row).await?));
        }
    }
    Ok(charges)
}

/// What policy charges for it, by the bundle in force if that permits it, else by the one that let it wait. Where
/// there is no room it is held all the same: what is too much is for those who come after. Where neither bundle
/// loads in this version, what was recorded is held: allowances then count as spent, and not until they end.
async fn hold(store: &dyn Store, row: &TransactionRow) -> Result<Hold, AppError> {
    let (owner, chain) = (row.new.id.to_string(), Some(row.new.intent.chain.id));
    let own = row.new.decision.bundle;
    let bundles = active(store).await?.into_iter().chain([own]);
    if let Ok(decided) = recorded(&row.new.decision_json, row.new.at) {
        for hash in bundles {
            let Some(bundle) = kept(store, hash).await? else { continue };
            // With the facts and the time of the decision: what was spent was decided then.
            let verdict = evaluate(&bundle, &decided.request, decided.now);
            if verdict.outcome != Outcome::Deny {
                return Ok(without_bounds(Hold::of(owner, chain, &verdict, false)));
            }
        }
    }
    let charges = written(&row.new.decision_json).map_err(AppError::internal)?;
    Ok(without_bounds(Hold { owner, chain, charges, exposures: Vec::new(), at_once: false }))
}

async fn active(store: &dyn Store) -> Result<Option<B256>, AppError> {
    let active =
        look(store, "active_bundle", |unit| Box::pin(async move { unit.active_bundle().await }));
    Ok(active.await?.map(|active| active.bundle))
}

/// Who is in which quorum group, by the bundle in force; nobody where there is none that loads in this version.
pub(super) async fn groups(
    store: &dyn Store,
) -> Result<BTreeMap<String, BTreeSet<String>>, AppError> {
    let Some(hash) = active(store).await? else {
        return Ok(BTreeMap::new());
    };
    let bundle = kept(store, hash).await?;
    Ok(bundle.map(|bundle| bundle.guardrails().quorums.clone()).unwrap_or_default())
}

async fn kept(store: &dyn Store, hash: B256) -> Result<Option<Bundle>, AppError> {
    let row = look(store, "bundle", move |unit| Box::pin(async move { unit.bundle(hash).await }));
    Ok(row.await?.and_then(|row| policies::load(&row.files_json).ok()))
}

/// The same, with windows that are never full.
fn without_bounds(mut hold: Hold) -> Hold {
    let exposed = hold.exposures.iter_mut().flat_map(|exposure| &mut exposure.charges);
    for charge in hold.charges.iter_mut().chain(exposed) {
        charge.max = Amount::MAX;
    }
    hold
}

/// What a decision's text says of the windows.
#[derive(Deserialize)]
struct Written {
    charges: Vec<WrittenCharge>,
    exposures: Vec<WrittenExposure>,
}

#[derive(Deserialize)]
struct WrittenExposure {
    charges: Vec<WrittenCharge>,
}

#[derive(Deserialize)]
struct WrittenCharge {
    limit: String,
    window: String,
    grant: String,
    asked: WrittenAsked,
    span: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenAsked {
    Amount { value: String, fee: String },
    Count { count: String },
}

/// All charges of a decision's text, those of its exposures too, each limit once.
fn written(decision_json: &str) -> Result<Vec<Charge>, String> {
    let it: Written = serde_json::from_str(decision_json).map_err(|error| error.to_string())?;
    let exposed = it.exposures.into_iter().flat_map(|exposure| exposure.charges);
    let mut all: BTreeMap<LimitId, Charge> = BTreeMap::new();
    for one in it.charges.into_iter().chain(exposed) {
        let charge = one.read()?;
        match all.get_mut(&charge.limit) {
            Some(before) => before.kind = sum(before.kind, charge.kind),
            None => {
                all.insert(charge.limit, charge);
            }
        }
    }
    Ok(all.into_values().collect())
}

fn sum(one: ChargeKind, other: ChargeKind) -> ChargeKind {
    let add = |one: Amount, other: Amount| one.checked_add(other).unwrap_or(Amount::MAX);
    match (one, other) {
        (ChargeKind::Amount { value, fee }, ChargeKind::Amount { value: more, fee: paid }) => {
            ChargeKind::Amount { value: add(value, more), fee: add(fee, paid) }
        }
        (ChargeKind::Count(one), ChargeKind::Count(other)) => {
            ChargeKind::Count(one.saturating_add(other))
        }
        // A limit counts one or the other.
        (one, _) => one,
    }
}

impl WrittenCharge {
    fn read(self) -> Result<Charge, String> {
        let wrong = |what: &str| format!("the {what} of a charge of {}", self.window);
        let limit = hex::decode(&self.limit).ok().and_then(|bytes| bytes.try_into().ok());
        let amount = |text: &str| Amount::parse(text).map_err(|_| wrong("amount"));
        let kind = match &self.asked {
            WrittenAsked::Amount { value, fee } => {
                ChargeKind::Amount { value: amount(value)?, fee: amount(fee)? }
            }
            WrittenAsked::Count { count } => {
                ChargeKind::Count(count.parse().map_err(|_| wrong("count"))?)
            }
        };
        let calendar = [Period::Day, Period::Week, Period::Month];
        let period = calendar.into_iter().find(|period| period.text() == self.span);
        let period = period.or_else(|| duration_ms(&self.span).map(Period::Rolling));
        Ok(Charge {
            limit: LimitId(limit.ok_or_else(|| wrong("limit"))?),
            period: period.ok_or_else(|| wrong("span"))?,
            label: self.window,
            grant: GrantId::new(self.grant),
            kind,
            max: Amount::MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_of_the_windows_reads_back() {
        let charge = |limit: u8, asked: &str, span: &str| {
            let limit = hex::encode([limit; 32]);
            format!(
                r#"{{"limit":"{limit}","window":"w","grant":"g","asked":{asked},"max":"5","span":"{span}"}}"#
            )
        };
        let native = charge(1, r#"{"value":"7","fee":"2"}"#, "24h");
        let counted = charge(2, r#"{"count":"1"}"#, "week");
        let exposed = charge(1, r#"{"value":"4","fee":"0"}"#, "24h");
        let text = format!(
            r#"{{"charges":[{native},{counted}],"exposures":[{{"token":"0x","charges":[{exposed}]}}]}}"#
        );
        let found = written(&text).unwrap();
        let told: Vec<_> = found.iter().map(|it| (it.limit.0[0], it.kind, it.period)).collect();
        let amount = ChargeKind::Amount { value: Amount::from(11_u64), fee: Amount::from(2_u64) };
        assert_eq!(
            told,
            [(1, amount, Period::Rolling(86_400_000)), (2, ChargeKind::Count(1), Period::Week),]
        );
        assert!(written(&text.replace("week", "weak")).is_err());
        assert!(written("{}").is_err(), "no decision");
    }
}
