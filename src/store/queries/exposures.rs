//! Exposures: what others may take later, and what it holds of the windows until then.

use super::column::{address, amount, corrupt, exactly_one, to_i64, to_u64};
use super::spend::{self, Asked};
use super::statement::{Tx, Value, values};
use crate::core::amount::Amount;
use crate::core::id::ChainId;
use crate::core::policy::Exposure;
use crate::core::policy::effect::{ApprovalForm, PermitTerms};
use crate::core::time::Timestamp;
use crate::ports::store::{
    ExposureChange, ExposureRow, ExposureState, Hold, LimitExceeded, StoreError, Windows,
};
use async_trait::async_trait;
use sqlx::FromRow;
use std::collections::BTreeSet;

statements! {
    EXPOSURES_OF = "SELECT * FROM exposures WHERE owner = $1 ORDER BY n";
    PUT_EXPOSURE = "INSERT INTO exposures (owner, n, chain_id, token, account, spender, form, \
        amount, remaining, permit_contract, permit_nonce, deadline, expires, submitted, state, \
        from_block, seen_block, looked_at, uses, created_at, updated_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, $11, $12, $13, $14, 0, 0, 0, 0, $15, $15) \
        ON CONFLICT (owner, n) DO UPDATE SET amount = excluded.amount, \
        remaining = excluded.remaining, updated_at = excluded.updated_at";
    OPEN_EXPOSURES_OF_OWNER = "UPDATE exposures SET state = 'open', submitted = 1, uses = uses + 1, \
        updated_at = $2, from_block = COALESCE((SELECT anchors.number FROM anchors \
        WHERE anchors.chain_id = exposures.chain_id), 0) WHERE owner = $1 AND state = 'held'";
    DROP_EXPOSURES_OF_OWNER = "DELETE FROM exposures WHERE owner = $1 AND state = 'held'";
    END_EXPOSURES_OF_OWNER = "UPDATE exposures SET state = 'ended', \
        ended_by = 'not_executed', uses = uses + 1 WHERE owner = $1 AND state = 'held'";
    EXPOSE_FROM = "UPDATE exposures SET from_block = $2 WHERE owner = $1 AND from_block < $2";
    OPEN_TO_LOOK_AT = "SELECT * FROM exposures WHERE chain_id = $1 AND state = 'open' \
        AND seen_block < $2 AND from_block <= $2 ORDER BY looked_at, owner, n LIMIT $3";
    LOOK_AT_EXPOSURE = "UPDATE exposures SET looked_at = $3 WHERE owner = $1 AND n = $2";
    OPEN_BESIDE = "SELECT * FROM exposures WHERE chain_id = $1 AND state = 'open' \
        AND token = $2 AND account = $3 AND spender = $4 ORDER BY created_at, owner, n";
    SEE_EXPOSURE = "UPDATE exposures SET remaining = $4, submitted = $5, state = $6, ended_by = $7, \
        seen_block = $8, updated_at = $9, uses = uses + 1 \
        WHERE owner = $1 AND n = $2 AND uses = $3 AND state = 'open'";
    SEE_UNCHANGED = "UPDATE exposures SET seen_block = $1, updated_at = $2, uses = uses + 1 \
        WHERE state = 'open' AND ((owner = $3 AND n = $4 AND uses = $5) \
        OR (owner = $6 AND n = $7 AND uses = $8) OR (owner = $9 AND n = $10 AND uses = $11) \
        OR (owner = $12 AND n = $13 AND uses = $14) OR (owner = $15 AND n = $16 AND uses = $17) \
        OR (owner = $18 AND n = $19 AND uses = $20) OR (owner = $21 AND n = $22 AND uses = $23) \
        OR (owner = $24 AND n = $25 AND uses = $26))";
    LOCK_BESIDE = locked!("SELECT n FROM exposures WHERE chain_id = $1 AND token = $2 \
        AND account = $3 AND spender = $4 AND state = 'open' ORDER BY owner, n");
}

/// How many rows [`SEE_UNCHANGED`] names.
const PAGE: usize = 8;

const HELD: &str = "held";
const OPEN: &str = "open";
const ENDED: &str = "ended";

#[derive(FromRow)]
struct NumberColumn {
    #[expect(dead_code, reason = "read to be locked")]
    n: i64,
}

/// The forms that a name alone says.
const FORMS: [ApprovalForm; 8] = [
    ApprovalForm::Approve,
    ApprovalForm::Increase,
    ApprovalForm::Permit,
    ApprovalForm::DaiPermit,
    ApprovalForm::Permit2,
    ApprovalForm::Permit2Transfer,
    ApprovalForm::TransferAuthorization,
    ApprovalForm::Seaport,
];

#[derive(FromRow)]
struct ExposureColumns {
    owner: String,
    n: i64,
    chain_id: i64,
    token: Vec<u8>,
    account: Vec<u8>,
    spender: Vec<u8>,
    form: String,
    amount: Vec<u8>,
    remaining: Vec<u8>,
    permit_contract: Option<Vec<u8>>,
    permit_nonce: Option<Vec<u8>>,
    deadline: Option<i64>,
    expires: Option<i64>,
    submitted: i64,
    state: String,
    from_block: i64,
    seen_block: i64,
    uses: i64,
}

impl ExposureColumns {
    fn row(&self) -> Result<ExposureRow, StoreError> {
        let contract = self.permit_contract.as_deref().map(address).transpose()?;
        let by_permit2 = contract.map(ApprovalForm::Permit2Approve);
        let form = FORMS.into_iter().chain(by_permit2).find(|form| form.name() == self.form);
        let permit = match (contract, &self.permit_nonce) {
            (Some(verifying_contract), Some(nonce)) => Some(PermitTerms {
                verifying_contract,
                nonce: amount(nonce)?.units(),
                deadline: self.deadline.map(to_u64).transpose()?,
                expires: self.expires.map(to_u64).transpose()?,
            }),
            _ => None,
        };
        Ok(ExposureRow {
            owner: self.owner.clone(),
            n: self.n,
            chain: to_u64(self.chain_id)?,
            token: address(&self.token)?,
            account: address(&self.account)?,
            spender: address(&self.spender)?,
            form: form.ok_or_else(|| corrupt("the form of an exposure"))?,
            amount: amount(&self.amount)?,
            remaining: amount(&self.remaining)?,
            permit,
            submitted: self.submitted != 0,
            state: match self.state.as_str() {
                HELD => ExposureState::Held,
                OPEN => ExposureState::Open,
                ENDED => ExposureState::Ended,
                _ => return Err(corrupt("the state of an exposure")),
            },
            from_block: to_u64(self.from_block)?,
            seen_block: to_u64(self.seen_block)?,
            uses: self.uses,
        })
    }
}

/// Under which an exposure's part of the windows is held.
fn held_as(owner: &str, n: i64) -> String {
    format!("{owner}/exposure/{n}")
}

async fn of(tx: &mut Tx, owner: &str) -> Result<Vec<ExposureRow>, StoreError> {
    let rows = tx.all::<ExposureColumns>(EXPOSURES_OF, values![owner]).await?;
    rows.iter().map(ExposureColumns::row).collect()
}

fn is_same(row: &ExposureRow, exposure: &Exposure) -> bool {
    (row.token, row.account, row.spender, row.form, &row.permit)
        == (exposure.token, exposure.owner, exposure.spender, exposure.form, &exposure.permit)
}

/// The number of each exposure: that of the same one in another version of the nonce, or a new one. The same
/// twice in one request is two of them: both may be taken.
fn numbered(before: &[ExposureRow], hold: &Hold) -> Vec<i64> {
    let mut taken = BTreeSet::new();
    let mut next = before.iter().map(|row| row.n.saturating_add(1)).max().unwrap_or(0);
    let number = |exposure: &Exposure| {
        let same = before.iter().filter(|row| is_same(row, exposure)).map(|row| row.n);
        let n = same.into_iter().find(|n| !taken.contains(n)).unwrap_or(next);
        taken.insert(n);
        next = next.max(n.saturating_add(1));
        n
    };
    hold.exposures.iter().map(number).collect()
}

async fn hold(
    tx: &mut Tx,
    hold: &Hold,
    now: Timestamp,
) -> Result<Option<LimitExceeded>, StoreError> {
    let mut asked = spend::all_of(&hold.owner, &hold.charges, hold.at_once);
    if hold.exposures.is_empty() {
        return spend::take(tx, asked, now).await;
    }
    let before = of(tx, &hold.owner).await?;
    if before.iter().any(|row| row.state != ExposureState::Held)
        || (hold.at_once && !before.is_empty())
    {
        return Err(tx.corrupt("an exposure that is open was asked for again"));
    }
    let numbers = numbered(&before, hold);
    let owners: Vec<String> = numbers.iter().map(|n| held_as(&hold.owner, *n)).collect();
    for (exposure, owner) in hold.exposures.iter().zip(&owners) {
        let charges = exposure.charges.iter();
        asked.extend(charges.map(|charge| Asked { owner, charge, at_once: false }));
    }
    if let Some(full) = spend::take(tx, asked, now).await? {
        return Ok(Some(full));
    }
    for (exposure, n) in hold.exposures.iter().zip(numbers) {
        let old = before.iter().find(|row| row.n == n).map_or(Amount::ZERO, |row| row.amount);
        let given = exposure.amount.max(old);
        put(tx, hold, exposure, n, given, now).await?;
    }
    Ok(None)
}

async fn put(
    tx: &mut Tx,
    hold: &Hold,
    exposure: &Exposure,
    n: i64,
    given: Amount,
    now: Timestamp,
) -> Result<(), StoreError> {
    let permit = exposure.permit.as_ref();
    // Without one, the allowance on the chain would be taken for all that may be taken: none yet.
    if hold.at_once && permit.is_none() {
        return Err(tx.corrupt("an allowance that no transaction gives has no permit"));
    }
    let seconds = |at: Option<u64>| at.and_then(|at| i64::try_from(at).ok());
    let contract = match exposure.form {
        ApprovalForm::Permit2Approve(contract) => Some(contract),
        _ => permit.map(|permit| permit.verifying_contract),
    };
    let contract = contract.map(|contract| contract.as_slice().to_vec());
    let nonce = permit.map(|permit| permit.nonce.to_be_bytes_vec());
    // What cannot be counted by this clock any more never ends by it.
    let deadline = seconds(permit.and_then(|permit| permit.deadline));
    let expires = seconds(permit.and_then(|permit| permit.expires));
    let values = values![
        hold.owner.as_str(),
        n,
        to_i64(hold.chain.map_or(0, ChainId::get))?,
        exposure.token.as_slice(),
        exposure.owner.as_slice(),
        exposure.spender.as_slice(),
        exposure.form.name(),
        given.to_be_bytes().as_slice(),
        contract,
        nonce,
        deadline,
        expires,
        i64::from(permit.is_none()),
        if hold.at_once { OPEN } else { HELD },
        now.millis(),
    ];
    let rows = tx.execute(PUT_EXPOSURE, values).await?;
    exactly_one(tx, "put_exposure", rows)
}

/// The nonce of their transaction is final: what succeeded is open from the newest block in which an end was
/// told, of which this one is; what did not is nothing.
pub(super) async fn settled(
    tx: &mut Tx,
    owner: &str,
    moved: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    if moved {
        return tx.execute(OPEN_EXPOSURES_OF_OWNER, values![owner, now.millis()]).await.map(|_| ());
    }
    give_back(tx, owner).await?;
    tx.execute(END_EXPOSURES_OF_OWNER, values![owner]).await.map(|_| ())
}

/// Nothing of the owner was signed, and it may be decided once more: nothing stays of what was not open.
pub(super) async fn released(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    give_back(tx, owner).await?;
    tx.execute(DROP_EXPOSURES_OF_OWNER, values![owner]).await.map(|_| ())
}

/// Gives back what the exposures of an owner hold that are not open yet.
async fn give_back(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    for row in of(tx, owner).await? {
        if row.state == ExposureState::Held {
            spend::release_one(tx, &held_as(owner, row.n)).await?;
        }
    }
    Ok(())
}

/// The names under which an owner's exposures hold, for whoever locks their limits.
pub(super) async fn holders(tx: &mut Tx, owner: &str) -> Result<Vec<String>, StoreError> {
    let rows = of(tx, owner).await?;
    let held = rows.iter().filter(|row| row.state == ExposureState::Held);
    Ok(held.map(|row| held_as(owner, row.n)).collect())
}

async fn open(
    tx: &mut Tx,
    chain: ChainId,
    block: u64,
    most: i64,
) -> Result<Vec<Vec<ExposureRow>>, StoreError> {
    let chain = to_i64(chain.get())?;
    let values = values![chain, to_i64(block)?, most];
    let due = tx.all::<ExposureColumns>(OPEN_TO_LOOK_AT, values).await?;
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for row in due {
        if !seen.insert((row.token.clone(), row.account.clone(), row.spender.clone())) {
            continue;
        }
        let values =
            values![chain, row.token.as_slice(), row.account.as_slice(), row.spender.as_slice()];
        let all = tx.all::<ExposureColumns>(OPEN_BESIDE, values).await?;
        groups.push(all.iter().map(ExposureColumns::row).collect::<Result<_, _>>()?);
    }
    Ok(groups)
}

/// Whether a look has shown nothing new.
fn is_unchanged(change: &ExposureChange) -> bool {
    change.used.is_zero()
        && change.freed.is_zero()
        && change.ended.is_none()
        && change.submitted == change.row.submitted
}

/// Locks what is open of the same token, account and spender, in one order for all who look at it.
async fn lock_beside(tx: &mut Tx, row: &ExposureRow) -> Result<(), StoreError> {
    let values = values![
        to_i64(row.chain)?,
        row.token.as_slice(),
        row.account.as_slice(),
        row.spender.as_slice(),
    ];
    tx.all::<NumberColumn>(LOCK_BESIDE, values).await.map(|_| ())
}

async fn see(tx: &mut Tx, changes: &[ExposureChange], now: Timestamp) -> Result<bool, StoreError> {
    let (still, news): (Vec<_>, Vec<_>) = changes.iter().partition(|it| is_unchanged(it));
    let holders: Vec<String> = news.iter().map(|it| held_as(&it.row.owner, it.row.n)).collect();
    spend::lock_of(tx, &holders).await?;
    if let [first, _, ..] = changes {
        lock_beside(tx, &first.row).await?;
    }
    for page in still.chunks(PAGE) {
        if !see_unchanged(tx, page, now).await? {
            return Ok(false);
        }
    }
    for change in news {
        if !see_news(tx, change, now).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Notes a look at not more than a page of exposures. They are of one look, so of one block.
async fn see_unchanged(
    tx: &mut Tx,
    page: &[&ExposureChange],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(first) = page.first() else { return Ok(true) };
    let mut values = values![to_i64(first.block)?, now.millis()];
    // A page that is not full names its first row more than once.
    for change in page.iter().chain(std::iter::repeat(first)).take(PAGE) {
        let row = &change.row;
        values.extend(values![row.owner.as_str(), row.n, row.uses]);
    }
    let seen = tx.execute(SEE_UNCHANGED, values).await?;
    Ok(usize::try_from(seen).is_ok_and(|seen| seen == page.len()))
}

async fn see_news(
    tx: &mut Tx,
    change: &ExposureChange,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let row = &change.row;
    let name = held_as(&row.owner, row.n);
    let left = row.remaining.checked_sub(change.used);
    let left = left.and_then(|left| left.checked_sub(change.freed));
    let Some(left) = left else {
        return Err(tx.corrupt("more of an exposure is gone than there was"));
    };
    let values = vec![
        Value::from(row.owner.as_str()),
        Value::from(row.n),
        Value::from(row.uses),
        Value::from(left.to_be_bytes().as_slice()),
        Value::from(i64::from(change.submitted)),
        Value::from(if change.ended.is_some() { ENDED } else { OPEN }),
        Value::from(change.ended.map(str::to_owned)),
        Value::from(to_i64(change.block)?),
        Value::from(now.millis()),
    ];
    if tx.execute(SEE_EXPOSURE, values).await? != 1 {
        return Ok(false);
    }
    // A limit's part may be larger than what is left of the exposure: at the end all of it goes.
    let freed = if change.ended.is_some() { Amount::MAX } else { change.freed };
    if !change.used.is_zero() || !freed.is_zero() {
        let used_as = format!("{name}/{}", row.uses);
        spend::use_up(tx, &name, &used_as, (change.used, freed), now).await?;
    }
    Ok(true)
}

#[async_trait]
impl Windows for Tx {
    async fn hold(
        &mut self,
        asked: &Hold,
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError> {
        let answer = hold(self, asked, now).await;
        self.kept(answer)
    }

    async fn exposures_of(&mut self, owner: &str) -> Result<Vec<ExposureRow>, StoreError> {
        let answer = of(self, owner).await;
        self.kept(answer)
    }

    async fn open_exposures(
        &mut self,
        chain: ChainId,
        block: u64,
        most: i64,
    ) -> Result<Vec<Vec<ExposureRow>>, StoreError> {
        let answer = open(self, chain, block, most).await;
        self.kept(answer)
    }

    async fn expose_from(&mut self, owner: &str, block: u64) -> Result<(), StoreError> {
        let values = values![owner, to_i64(block)?];
        self.execute(EXPOSE_FROM, values).await.map(|_| ())
    }

    async fn look_at_exposures(
        &mut self,
        rows: &[ExposureRow],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // In the order in which others lock them.
        let mut rows: Vec<&ExposureRow> = rows.iter().collect();
        rows.sort_by_key(|row| (row.owner.as_str(), row.n));
        for row in rows {
            let values = values![row.owner.as_str(), row.n, now.millis()];
            self.execute(LOOK_AT_EXPOSURE, values).await?;
        }
        Ok(())
    }

    async fn see_exposures(
        &mut self,
        changes: &[ExposureChange],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let answer = see(self, changes, now).await;
        self.kept(answer)
    }
}
