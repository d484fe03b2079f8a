//! Spend limits: what is held, what is spent, and whether there is room.
//!
//! A limit keeps two sums, so that a decision costs the same whatever the history: `held` by what is not
//! final, and `spent` within the span. Entries that left the span are taken out of `spent` when the limit
//! is next touched. Sums are made here, in checked 256-bit arithmetic.

use super::column::{amount, corrupt, exactly_one};
use super::statement::{Tx, values};
use crate::core::amount::Amount;
use crate::core::policy::{Charge, ChargeKind, LimitId, Period};
use crate::core::time::Timestamp;
use crate::ports::store::{LimitExceeded, LimitNow, LimitUse, Settlement, StoreError};
use sqlx::FromRow;

statements! {
    LOCK_LIMIT = locked!("SELECT * FROM limits WHERE id = $1");
    OPEN_LIMIT = "INSERT INTO limits (id, label, grant_id, span_ms, held, spent) \
        VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (id) DO NOTHING";
    SET_LIMIT = "UPDATE limits SET held = $2, spent = $3 WHERE id = $1";
    DROP_AGED = "DELETE FROM limit_entries WHERE limit_id = $1 AND settled_at <= $2 \
        RETURNING kind, value, fee, settled_at";
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
    AGED = "SELECT kind, value, fee, settled_at FROM limit_entries \
        WHERE limit_id = $1 AND settled_at <= $2";
}

#[derive(FromRow)]
struct LimitColumns {
    label: String,
    span_ms: i64,
    held: Vec<u8>,
    spent: Vec<u8>,
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
struct Sums {
    held: Amount,
    spent: Amount,
    period: Period,
}

impl LimitColumns {
    fn sums(&self) -> Result<Sums, StoreError> {
        let period =
            Period::from_code(self.span_ms).ok_or_else(|| corrupt("the span of a limit"))?;
        Ok(Sums { held: amount(&self.held)?, spent: amount(&self.spent)?, period })
    }
}

impl Sums {
    /// What was settled then or before has left the span.
    fn gone_before(&self, now: Timestamp) -> i64 {
        self.period.gone_before(now).millis()
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
        ChargeKind::Count => (COUNT, Amount::ONE, Amount::ZERO),
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
    let rows = tx.execute(SET_LIMIT, values![id, held.as_slice(), spent.as_slice()]).await?;
    exactly_one(tx, "set_limit", rows)
}

/// Takes what left the span out of `spent`.
async fn age(tx: &mut Tx, id: &[u8], sums: &mut Sums, now: Timestamp) -> Result<(), StoreError> {
    let before = sums.gone_before(now);
    let aged = tx.all::<EntryColumns>(DROP_AGED, values![id, before]).await?;
    without(tx, sums, &aged)
}

/// The same as of `now`, and nothing is written.
async fn aged(tx: &mut Tx, id: &[u8], sums: &mut Sums, now: Timestamp) -> Result<(), StoreError> {
    let before = sums.gone_before(now);
    let aged = tx.all::<EntryColumns>(AGED, values![id, before]).await?;
    without(tx, sums, &aged)
}

fn without(tx: &mut Tx, sums: &mut Sums, aged: &[EntryColumns]) -> Result<(), StoreError> {
    for entry in aged {
        match sums.spent.checked_sub(entry.total()?) {
            Some(rest) => sums.spent = rest,
            None => return Err(tx.corrupt("a limit has spent less than its entries")),
        }
    }
    Ok(())
}

pub(super) async fn reserve(
    tx: &mut Tx,
    owner: &str,
    charges: &[Charge],
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    for charge in in_order(tx, charges)? {
        if let Some(full) = reserve_one(tx, owner, charge, now).await? {
            return Ok(Some(full));
        }
    }
    Ok(None)
}

/// In the order of ids, in which limits are locked.
fn in_order<'c>(tx: &mut Tx, charges: &'c [Charge]) -> Result<Vec<&'c Charge>, StoreError> {
    let mut ordered: Vec<&Charge> = charges.iter().collect();
    ordered.sort_by_key(|charge| charge.limit);
    // The second would be taken for another version of the first, and be held at no price.
    if ordered.windows(2).any(|pair| pair.first().map(|a| a.limit) == pair.last().map(|b| b.limit))
    {
        return Err(tx.corrupt("a limit is charged twice by one request"));
    }
    Ok(ordered)
}

/// A reservation and its settlement in one: for what has no nonce to wait for.
pub(super) async fn spend(
    tx: &mut Tx,
    owner: &str,
    charges: &[Charge],
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    for charge in in_order(tx, charges)? {
        let id = charge.limit.0.as_slice();
        let mut sums = lock_or_open(tx, charge).await?;
        age(tx, id, &mut sums, now).await?;
        let weighed = weigh(&sums, None, charge)?;
        // Where it could be held, the sum with what is spent was taken: this one too does not overflow.
        let room = weighed.held.and_then(|_| sums.spent.checked_add(weighed.asked));
        let Some(spent) = room else {
            return Ok(Some(weighed.exceeded(charge)));
        };
        sums.spent = spent;
        save(tx, id, &sums).await?;
        let (kind, _, _) = parts_of(charge);
        let (value, fee) = (weighed.value.to_be_bytes(), weighed.fee.to_be_bytes());
        let entry = values![id, owner, kind, value.as_slice(), fee.as_slice(), now.millis()];
        tx.execute(SPEND_ENTRY, entry).await?;
    }
    Ok(None)
}

async fn reserve_one(
    tx: &mut Tx,
    owner: &str,
    charge: &Charge,
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    let id = charge.limit.0.as_slice();
    let mut sums = lock_or_open(tx, charge).await?;
    age(tx, id, &mut sums, now).await?;
    let before = tx.one::<EntryColumns>(ENTRY, values![id, owner]).await?;
    if before.as_ref().is_some_and(|entry| entry.settled_at.is_some()) {
        return Err(tx.corrupt("a settled reservation was asked for again"));
    }
    let weighed = weigh(&sums, before.as_ref(), charge)?;
    let Some(held) = weighed.held else {
        return Ok(Some(weighed.exceeded(charge)));
    };
    sums.held = held;
    save(tx, id, &sums).await?;
    let (kind, _, _) = parts_of(charge);
    let (value, fee) = (weighed.value.to_be_bytes(), weighed.fee.to_be_bytes());
    let entry = values![id, owner, kind, value.as_slice(), fee.as_slice()];
    tx.execute(HOLD_ENTRY, entry).await?;
    Ok(None)
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

/// What [`reserve`] would find, without a lock and without a trace.
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
        let empty = Sums { held: Amount::ZERO, spent: Amount::ZERO, period: charge.period };
        let mut sums = row.map_or(Ok(empty), |row| row.sums())?;
        aged(tx, id, &mut sums, now).await?;
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
        let spent = kept_value.checked_add(kept_fee).and_then(|kept| sums.spent.checked_add(kept));
        match spent {
            Some(spent) => sums.spent = spent,
            None => return Err(tx.corrupt("a limit's sum is above 2^256")),
        }
        save(tx, &id, &sums).await?;
        let (value, fee) = (kept_value.to_be_bytes(), kept_fee.to_be_bytes());
        let values = values![id.as_slice(), owner, value.as_slice(), fee.as_slice(), now.millis()];
        let rows = tx.execute(SETTLE_ENTRY, values).await?;
        exactly_one(tx, "settle_entry", rows)?;
    }
    Ok(())
}

pub(super) async fn release(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    for id in held_by(tx, owner).await? {
        if let Some((sums, _)) = take_held(tx, &id, owner).await? {
            save(tx, &id, &sums).await?;
            tx.execute(DROP_ENTRY, values![id.as_slice(), owner]).await?;
        }
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
        aged(tx, &row.id, &mut sums, now).await?;
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
