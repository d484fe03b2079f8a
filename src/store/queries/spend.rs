//! Spend limits: what is held, what is spent, and whether there is room.
//!
//! A limit keeps two sums, so that a decision costs the same whatever the history: `held` by what is not
//! final, and `spent` within the span. What left the span is taken out of `spent` in pieces (see `buckets`)
//! when the limit is next touched. Sums are made here, in checked 256-bit arithmetic.

use super::column::{amount, corrupt, exactly_one};
use super::statement::{Tx, values};
use super::{buckets, exposures};
use crate::core::amount::Amount;
use crate::core::policy::{Charge, ChargeKind, LimitId, Period};
use crate::core::time::Timestamp;
use crate::ports::store::{LimitExceeded, LimitNow, LimitUse, Settlement, StoreError};
use sqlx::FromRow;
use std::collections::BTreeSet;

statements! {
    LOCK_LIMIT = locked!("SELECT * FROM limits WHERE id = $1");
    OPEN_LIMIT = "INSERT INTO limits (id, label, grant_id, span_ms, held, spent, seen_at) \
        VALUES ($1, $2, $3, $4, $5, $5, 0) ON CONFLICT (id) DO NOTHING";
    SET_LIMIT = "UPDATE limits SET held = $2, spent = $3, seen_at = $4 WHERE id = $1";
    DROP_ENTRY = "DELETE FROM limit_entries WHERE limit_id = $1 AND owner = $2";
    ENTRY = "SELECT kind, value, fee, settled_at FROM limit_entries \
        WHERE limit_id = $1 AND owner = $2";
    HOLD_ENTRY = "INSERT INTO limit_entries (limit_id, owner, kind, value, fee) \
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (limit_id, owner) \
        DO UPDATE SET value = excluded.value, fee = excluded.fee";
    SETTLE_ENTRY = "UPDATE limit_entries SET value = $3, fee = $4, settled_at = $5 \
        WHERE limit_id = $1 AND owner = $2 AND settled_at IS NULL";
    SPEND_ENTRY = "INSERT INTO limit_entries (limit_id, owner, kind, value, fee, settled_at) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    HELD_BY = "SELECT limit_id FROM limit_entries WHERE owner = $1 AND settled_at IS NULL \
        ORDER BY limit_id";
    ALL_LIMITS = "SELECT * FROM limits ORDER BY label";
    READ_LIMIT = "SELECT * FROM limits WHERE id = $1";
}

#[derive(FromRow)]
struct LimitColumns {
    label: String,
    span_ms: i64,
    held: Vec<u8>,
    spent: Vec<u8>,
    seen_at: i64,
}

#[derive(FromRow)]
struct EntryColumns {
    kind: String,
    value: Vec<u8>,
    fee: Vec<u8>,
    settled_at: Option<i64>,
}

#[derive(FromRow)]
struct LimitIdColumn {
    limit_id: Vec<u8>,
}

#[derive(FromRow)]
struct LimitNowColumns {
    id: Vec<u8>,
    grant_id: String,
    #[sqlx(flatten)]
    limit: LimitColumns,
}

const AMOUNT: &str = "amount";
const COUNT: &str = "count";

/// A locked limit's sums.
pub(super) struct Sums {
    pub(super) held: Amount,
    pub(super) spent: Amount,
    pub(super) period: Period,
    /// When something was asked of it last.
    seen_at: Timestamp,
}

impl LimitColumns {
    fn sums(&self) -> Result<Sums, StoreError> {
        let period =
            Period::from_code(self.span_ms).ok_or_else(|| corrupt("the span of a limit"))?;
        let seen_at = Timestamp::from_millis(self.seen_at);
        Ok(Sums { held: amount(&self.held)?, spent: amount(&self.spent)?, period, seen_at })
    }
}

impl Sums {
    const fn empty(period: Period) -> Self {
        let seen_at = Timestamp::from_millis(0);
        Self { held: Amount::ZERO, spent: Amount::ZERO, period, seen_at }
    }

    /// When a settlement counts from: a clock that went back frees nothing early.
    fn settles_at(&self, now: Timestamp) -> Timestamp {
        now.max(self.seen_at)
    }
}

impl EntryColumns {
    fn parts(&self) -> Result<(Amount, Amount), StoreError> {
        Ok((amount(&self.value)?, amount(&self.fee)?))
    }

    fn total(&self) -> Result<Amount, StoreError> {
        let (value, fee) = self.parts()?;
        value.checked_add(fee).ok_or_else(|| corrupt("an entry of a limit"))
    }
}

fn parts_of(charge: &Charge) -> (&'static str, Amount, Amount) {
    match charge.kind {
        ChargeKind::Amount { value, fee } => (AMOUNT, value, fee),
        ChargeKind::Count(count) => (COUNT, Amount::from(count), Amount::ZERO),
    }
}

async fn lock(tx: &mut Tx, id: &[u8]) -> Result<Option<Sums>, StoreError> {
    let row = tx.one::<LimitColumns>(LOCK_LIMIT, values![id]).await?;
    row.map(|row| row.sums()).transpose()
}

async fn lock_or_open(tx: &mut Tx, charge: &Charge) -> Result<Sums, StoreError> {
    let id = charge.limit.0.as_slice();
    if let Some(sums) = lock(tx, id).await? {
        return Ok(sums);
    }
    let zero = Amount::ZERO.to_be_bytes();
    let new = values![
        id,
        charge.label.as_str(),
        charge.grant.as_str(),
        charge.period.code(),
        zero.as_slice(),
    ];
    tx.execute(OPEN_LIMIT, new).await?;
    match lock(tx, id).await? {
        Some(sums) => Ok(sums),
        None => Err(tx.corrupt("a limit was opened and is not there")),
    }
}

async fn save(tx: &mut Tx, id: &[u8], sums: &Sums) -> Result<(), StoreError> {
    let (held, spent) = (sums.held.to_be_bytes(), sums.spent.to_be_bytes());
    let values = values![id, held.as_slice(), spent.as_slice(), sums.seen_at.millis()];
    let rows = tx.execute(SET_LIMIT, values).await?;
    exactly_one(tx, "set_limit", rows)
}

/// What one owner asks of one limit.
#[derive(Clone, Copy)]
pub(super) struct Asked<'c> {
    pub(super) owner: &'c str,
    pub(super) charge: &'c Charge,
    /// Spent at once, instead of held: a new owner that has nothing to wait for.
    pub(super) at_once: bool,
}

/// Takes from each limit what is asked, in the order of their ids, in which limits are locked; or says which
/// one has no room, and then the unit must be rolled back.
pub(super) async fn take(
    tx: &mut Tx,
    mut asked: Vec<Asked<'_>>,
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    asked.sort_by_key(|it| (it.charge.limit, it.owner));
    let key = |it: Option<&Asked<'_>>| it.map(|it| (it.charge.limit, it.owner.to_owned()));
    // The second would be taken for another version of the first, and be held at no price.
    if asked.windows(2).any(|pair| key(pair.first()) == key(pair.last())) {
        return Err(tx.corrupt("a limit is charged twice by one request"));
    }
    for one in asked {
        if let Some(full) = take_one(tx, one, now).await? {
            return Ok(Some(full));
        }
    }
    Ok(None)
}

async fn take_one(
    tx: &mut Tx,
    Asked { owner, charge, at_once }: Asked<'_>,
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    let id = charge.limit.0.as_slice();
    let mut sums = lock_or_open(tx, charge).await?;
    buckets::age(tx, id, &mut sums, now).await?;
    sums.seen_at = sums.settles_at(now);
    let mut before = match at_once {
        true => None,
        false => tx.one::<EntryColumns>(ENTRY, values![id, owner]).await?,
    };
    if let Some(settled_at) = before.as_ref().and_then(|entry| entry.settled_at) {
        if settled_at > sums.period.gone_before(now).millis() {
            return Err(tx.corrupt("a settled reservation was asked for again"));
        }
        tx.execute(DROP_ENTRY, values![id, owner]).await?;
        before = None;
    }
    let weighed = weigh(&sums, before.as_ref(), charge)?;
    let Some(held) = weighed.held else {
        return Ok(Some(weighed.exceeded(charge)));
    };
    let (kind, _, _) = parts_of(charge);
    let (value, fee) = (weighed.value.to_be_bytes(), weighed.fee.to_be_bytes());
    let (value, fee) = (value.as_slice(), fee.as_slice());
    if at_once {
        let at = sums.seen_at;
        buckets::add(tx, id, &mut sums, weighed.asked, at).await?;
        tx.execute(SPEND_ENTRY, values![id, owner, kind, value, fee, at.millis()]).await?;
    } else {
        sums.held = held;
        tx.execute(HOLD_ENTRY, values![id, owner, kind, value, fee]).await?;
    }
    save(tx, id, &sums).await?;
    Ok(None)
}

/// What one owner asks, all of it held or all of it spent.
pub(super) fn all_of<'c>(owner: &'c str, charges: &'c [Charge], at_once: bool) -> Vec<Asked<'c>> {
    charges.iter().map(|charge| Asked { owner, charge, at_once }).collect()
}

/// A charge against a limit's sums.
struct Weighed {
    /// The parts of the entry, if it is held.
    value: Amount,
    fee: Amount,
    /// Held and spent before.
    used: Amount,
    /// What is asked more than this owner holds already.
    asked: Amount,
    /// The limit's `held` after it; `None` if there is no room.
    held: Option<Amount>,
}

impl Weighed {
    fn exceeded(&self, charge: &Charge) -> LimitExceeded {
        LimitExceeded {
            label: charge.label.clone(),
            grant: charge.grant.as_str().to_owned(),
            used: self.used,
            asked: self.asked,
            max: charge.max,
        }
    }
}

/// Versions of one nonce exclude each other on the chain: the largest of each part is held.
fn weigh(
    sums: &Sums,
    before: Option<&EntryColumns>,
    charge: &Charge,
) -> Result<Weighed, StoreError> {
    let (_, value, fee) = parts_of(charge);
    let (old_value, old_fee) = match before {
        Some(entry) => entry.parts()?,
        None => (Amount::ZERO, Amount::ZERO),
    };
    let (value, fee) = (value.max(old_value), fee.max(old_fee));
    let held = (|| {
        let old = old_value.checked_add(old_fee)?;
        let new = value.checked_add(fee)?;
        let asked = new.checked_sub(old)?;
        Some((sums.held.checked_add(asked)?, asked))
    })();
    let used = sums.held.checked_add(sums.spent).unwrap_or(charge.max);
    let asked = held.map_or_else(Amount::default, |(_, asked)| asked);
    let fits = held
        .and_then(|(held, asked)| Some((held, asked, held.checked_add(sums.spent)?)))
        .filter(|(_, asked, total)| asked.is_zero() || *total <= charge.max);
    Ok(Weighed { value, fee, used, asked, held: fits.map(|(held, _, _)| held) })
}

/// What [`take`] would find, without a lock and without a trace.
pub(super) async fn room(
    tx: &mut Tx,
    owner: &str,
    charges: &[Charge],
    now: Timestamp,
) -> Result<Vec<LimitUse>, StoreError> {
    let mut found = Vec::with_capacity(charges.len());
    for charge in charges {
        let id = charge.limit.0.as_slice();
        let row = tx.one::<LimitColumns>(READ_LIMIT, values![id]).await?;
        let mut sums = row.map_or(Ok(Sums::empty(charge.period)), |row| row.sums())?;
        buckets::aged(tx, id, &mut sums, now).await?;
        let before = tx.one::<EntryColumns>(ENTRY, values![id, owner]).await?;
        let before = before.filter(|entry| entry.settled_at.is_none());
        let weighed = weigh(&sums, before.as_ref(), charge)?;
        let (used, asked, fits) = (weighed.used, weighed.asked, weighed.held.is_some());
        found.push(LimitUse { used, asked, fits });
    }
    Ok(found)
}

/// The limits that an owner holds, in the order of their ids.
async fn held_by(tx: &mut Tx, owner: &str) -> Result<Vec<Vec<u8>>, StoreError> {
    let rows = tx.all::<LimitIdColumn>(HELD_BY, values![owner]).await?;
    Ok(rows.into_iter().map(|row| row.limit_id).collect())
}

pub(super) async fn settle(
    tx: &mut Tx,
    owner: &str,
    outcome: Settlement,
    now: Timestamp,
) -> Result<(), StoreError> {
    if !outcome.value_moved {
        lock_with_exposures(tx, owner).await?;
    }
    for id in held_by(tx, owner).await? {
        let Some((mut sums, entry)) = take_held(tx, &id, owner).await? else {
            continue;
        };
        let (value, fee) = entry.parts()?;
        let kept_value =
            if entry.kind == COUNT || outcome.value_moved { value } else { Amount::ZERO };
        let kept_fee = match outcome.fee_paid {
            None => fee,
            // Only native windows hold fees; in those the value is of the same unit.
            Some(paid) if outcome.fee_from_value && !fee.is_zero() => paid.min(entry.total()?),
            Some(paid) => paid.min(fee),
        };
        let Some(kept) = kept_value.checked_add(kept_fee) else {
            return Err(tx.corrupt("an entry of a limit is above 2^256"));
        };
        let at = sums.settles_at(now);
        buckets::add(tx, &id, &mut sums, kept, at).await?;
        save(tx, &id, &sums).await?;
        let (value, fee) = (kept_value.to_be_bytes(), kept_fee.to_be_bytes());
        let values = values![id.as_slice(), owner, value.as_slice(), fee.as_slice(), at.millis()];
        let rows = tx.execute(SETTLE_ENTRY, values).await?;
        exactly_one(tx, "settle_entry", rows)?;
    }
    exposures::settled(tx, owner, outcome.value_moved, now).await
}

pub(super) async fn release(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    lock_with_exposures(tx, owner).await?;
    release_one(tx, owner).await?;
    exposures::released(tx, owner).await
}

/// Gives back what is held under this very name.
pub(super) async fn release_one(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    for id in held_by(tx, owner).await? {
        if let Some((sums, _)) = take_held(tx, &id, owner).await? {
            save(tx, &id, &sums).await?;
            tx.execute(DROP_ENTRY, values![id.as_slice(), owner]).await?;
        }
    }
    Ok(())
}

/// Where an owner has exposures, the limits of all of it are locked first: in the order of their ids.
async fn lock_with_exposures(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    let mut holders = exposures::holders(tx, owner).await?;
    if holders.is_empty() {
        return Ok(());
    }
    holders.push(owner.to_owned());
    lock_of(tx, &holders).await
}

/// Locks the limits that any of these hold, in the order of their ids.
pub(super) async fn lock_of(tx: &mut Tx, owners: &[String]) -> Result<(), StoreError> {
    let mut ids = BTreeSet::new();
    for owner in owners {
        ids.extend(held_by(tx, owner).await?);
    }
    for id in ids {
        lock(tx, &id).await?;
    }
    Ok(())
}

/// Turns a part of what an owner holds of each of its limits into spend, under a name of its own, and gives
/// another part back. What is left is held on.
pub(super) async fn use_up(
    tx: &mut Tx,
    owner: &str,
    used_as: &str,
    (used, freed): (Amount, Amount),
    now: Timestamp,
) -> Result<(), StoreError> {
    for id in held_by(tx, owner).await? {
        let Some((mut sums, entry)) = take_held(tx, &id, owner).await? else {
            continue;
        };
        let (value, fee) = entry.parts()?;
        let spent = used.min(value);
        let rest = value.checked_sub(spent).unwrap_or_default();
        let rest = rest.checked_sub(freed.min(rest)).unwrap_or_default();
        let at = sums.settles_at(now);
        let (id, none) = (id.as_slice(), Amount::ZERO.to_be_bytes());
        if !spent.is_zero() {
            buckets::add(tx, id, &mut sums, spent, at).await?;
            let (kind, value) = (entry.kind.as_str(), spent.to_be_bytes());
            let (value, none) = (value.as_slice(), none.as_slice());
            tx.execute(SPEND_ENTRY, values![id, used_as, kind, value, none, at.millis()]).await?;
        }
        let kept = rest.checked_add(fee).and_then(|kept| sums.held.checked_add(kept));
        match kept {
            Some(held) => sums.held = held,
            None => return Err(tx.corrupt("a limit holds more than 2^256")),
        }
        if rest.is_zero() && fee.is_zero() {
            tx.execute(DROP_ENTRY, values![id, owner]).await?;
        } else {
            let (rest, fee) = (rest.to_be_bytes(), fee.to_be_bytes());
            let kind = entry.kind.as_str();
            let values = values![id, owner, kind, rest.as_slice(), fee.as_slice()];
            tx.execute(HOLD_ENTRY, values).await?;
        }
        save(tx, id, &sums).await?;
    }
    Ok(())
}

/// Locks a limit and takes an owner's entry out of `held`.
async fn take_held(
    tx: &mut Tx,
    id: &[u8],
    owner: &str,
) -> Result<Option<(Sums, EntryColumns)>, StoreError> {
    let Some(mut sums) = lock(tx, id).await? else {
        return Err(tx.corrupt("an entry belongs to no limit"));
    };
    // Read again under the lock: another process may have settled it meanwhile.
    let entry = tx.one::<EntryColumns>(ENTRY, values![id, owner]).await?;
    let Some(entry) = entry.filter(|entry| entry.settled_at.is_none()) else {
        return Ok(None);
    };
    match sums.held.checked_sub(entry.total()?) {
        Some(held) => sums.held = held,
        None => return Err(tx.corrupt("a limit holds less than its entries")),
    }
    Ok(Some((sums, entry)))
}

pub(super) async fn limits_now(tx: &mut Tx, now: Timestamp) -> Result<Vec<LimitNow>, StoreError> {
    let rows = tx.all::<LimitNowColumns>(ALL_LIMITS, values![]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let mut sums = row.limit.sums()?;
        buckets::aged(tx, &row.id, &mut sums, now).await?;
        let id = row.id.try_into().map_err(|_| corrupt("the id of a limit"))?;
        found.push(LimitNow {
            id: LimitId(id),
            label: row.limit.label,
            grant: row.grant_id,
            period: sums.period,
            held: sums.held,
            spent: sums.spent,
        });
    }
    Ok(found)
}
