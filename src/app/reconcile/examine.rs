//! Look: every mined nonce of every managed account, against the requests of the database. Changes nothing.

use super::locate::Locator;
use super::{Account, Finding, Forgotten, Remembered, Standstill, What};
use crate::app::AppError;
use crate::app::adopt::{OnChain, Prove};
use crate::core::id::RequestId;
use crate::core::intent::ChainRef;
use crate::core::key::{NonceMode, OperatorKey};
use crate::ports::chain::{BlockAt, Chain, ChainError, MinedTransaction};
use crate::ports::store::{AttemptRow, Lane, Store, TransactionRow, look};
use alloy::primitives::B256;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The configured chains.
pub type Places = [(ChainRef, Arc<dyn Chain>)];

/// What the database has of one account.
struct Rows {
    lane: Option<Lane>,
    given: BTreeMap<u64, RequestId>,
    open: BTreeMap<RequestId, (TransactionRow, Vec<AttemptRow>)>,
    queued: Vec<TransactionRow>,
    orphans: BTreeSet<u64>,
}

/// What the chain has of one account.
struct Counts {
    latest: u64,
    last_final: Option<u64>,
    pending: Option<u64>,
    head: u64,
    final_number: u64,
}

/// Compares all managed accounts. `progress` is told each block that is looked at.
///
/// # Errors
/// When the store or the nodes do not answer, or the nodes are of another chain.
pub async fn examine(
    store: &dyn Store,
    places: &Places,
    remembered: &Remembered,
    prove: Prove,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Account>, AppError> {
    let keys = look(store, "keys", |unit| Box::pin(async move { unit.keys().await })).await?;
    let mut accounts = Vec::new();
    for (chain, port) in places {
        let (id, _) = port.identity().await?;
        if id != chain.id {
            return Err(AppError::Internal(format!(
                "the nodes of `{}` say chain id {id}, the configuration says {}",
                chain.name, chain.id
            )));
        }
        let is_still = still(store, chain).await?.is_some();
        for key in &keys {
            let account = Examiner { store, chain, port: &**port, key, prove, progress, is_still };
            let given = remembered.get(&(chain.id, key.address)).copied();
            accounts.extend(account.look(given).await?);
        }
    }
    Ok(accounts)
}

/// What is remembered of accounts that were not examined, and that the database does not have as far.
///
/// # Errors
/// When the store does not answer.
pub async fn forgotten(
    store: &dyn Store,
    remembered: &Remembered,
    examined: &[Account],
) -> Result<Vec<Forgotten>, AppError> {
    let lanes = look(store, "every_lane", |unit| Box::pin(async move { unit.every_lane().await }));
    let lanes = lanes.await?;
    let is_known = |chain, address, given| {
        let is_examined =
            examined.iter().any(|account| (account.chain.id, account.address) == (chain, address));
        let is_as_far =
            |lane: &(_, _, u64)| (lane.0, lane.1) == (chain, address) && lane.2 >= given;
        given == 0 || is_examined || lanes.iter().any(is_as_far)
    };
    let all = remembered.iter().map(|((chain, address), given)| (*chain, *address, *given));
    let lost = all.filter(|(chain, address, given)| !is_known(*chain, *address, *given));
    Ok(lost.map(|(chain, address, given)| Forgotten { chain, address, given }).collect())
}

/// The chains that stand still, because they were reorganised below what was told as final.
///
/// # Errors
/// When the store does not answer.
pub async fn standing_still(
    store: &dyn Store,
    places: &Places,
) -> Result<Vec<Standstill>, AppError> {
    let mut found = Vec::new();
    for (chain, _) in places {
        found.extend(still(store, chain).await?);
    }
    Ok(found)
}

async fn still(store: &dyn Store, chain: &ChainRef) -> Result<Option<Standstill>, AppError> {
    let id = chain.id;
    let anchor =
        look(store, "anchor", move |unit| Box::pin(async move { unit.anchor(id).await })).await?;
    let reason = anchor.and_then(|anchor| anchor.broken);
    Ok(reason.map(|reason| Standstill { chain: chain.clone(), reason }))
}

struct Examiner<'a> {
    store: &'a dyn Store,
    chain: &'a ChainRef,
    port: &'a dyn Chain,
    key: &'a OperatorKey,
    prove: Prove,
    progress: &'a (dyn Fn(u64) + Send + Sync),
    /// The chain was reorganised below what was told as final: ends are looked at again.
    is_still: bool,
}

impl Examiner<'_> {
    /// `None` for an account that is not ours to number, or was never used here.
    async fn look(&self, remembered: Option<u64>) -> Result<Option<Account>, AppError> {
        // The chain first: what is given and mined meanwhile is then known to the database.
        let counts = self.counts().await?;
        let rows = self.rows().await?;
        let mode = rows.lane.as_ref().map_or(self.key.mode, |lane| lane.mode);
        let is_unused = rows.lane.is_none() && counts.latest == 0 && remembered.is_none();
        if mode != NonceMode::Managed || is_unused {
            return Ok(None);
        }
        let mut findings = Vec::new();
        let mut taken = BTreeSet::new();
        let mut locator = Locator::new(self.port, self.key.address, counts.head, self.progress);
        for nonce in 0..counts.latest {
            if let Some(row) = self.unexplained(&rows, nonce).await? {
                let mined = locator.find(nonce).await?;
                findings.extend(self.finding(&rows, row, (nonce, mined), &counts, &mut taken));
            }
        }
        findings.extend(self.undone(&rows, &counts, &mut locator).await?);
        Ok(Some(Account {
            chain: self.chain.clone(),
            address: self.key.address,
            key: self.key.id,
            next: rows.lane.as_ref().map_or(0, |lane| lane.next_nonce),
            latest: counts.latest,
            last_final: counts.last_final,
            pending: counts.pending,
            remembered,
            queued: rows.queued.len().saturating_sub(taken.len()),
            halted: rows.lane.and_then(|lane| lane.halted),
            findings,
        }))
    }

    async fn counts(&self) -> Result<Counts, ChainError> {
        let account = self.key.address;
        let head = self.port.block(BlockAt::Latest).await?.ok_or(ChainError::UnknownBlock)?.number;
        let last_final = self.port.block(BlockAt::Final).await?;
        let final_number = last_final.map_or(0, |block| block.number);
        let latest = self.port.nonce(account, BlockAt::Number(head)).await?;
        Ok(Counts {
            latest,
            last_final: self.port.nonce(account, BlockAt::Number(final_number)).await.ok(),
            pending: self.port.pending_nonce(account).await.ok(),
            head,
            final_number,
        })
    }

    async fn rows(&self) -> Result<Rows, AppError> {
        let (chain, account) = (self.chain.id, self.key.address);
        Ok(look(self.store, "account", move |unit| {
            Box::pin(async move {
                let mut open = BTreeMap::new();
                for row in unit.open_of(chain, account).await? {
                    let attempts = unit.attempts(row.new.id).await?;
                    open.insert(row.new.id, (row, attempts));
                }
                let queued = unit.queued_of(chain, account).await?;
                let orphans = unit.orphans(chain, false).await?;
                let orphans = orphans.iter().filter(|orphan| orphan.address == account);
                Ok(Rows {
                    lane: unit.lane(chain, account).await?,
                    given: unit.given_nonces(chain, account).await?.into_iter().collect(),
                    open,
                    queued,
                    orphans: orphans.map(|orphan| orphan.nonce).collect(),
                })
            })
        })
        .await?)
    }

    /// The nonce is used on the chain, and the database does not say by what: answers the request that has
    /// it, if one does.
    async fn unexplained(
        &self,
        rows: &Rows,
        nonce: u64,
    ) -> Result<Option<Option<RequestId>>, AppError> {
        let Some(request) = rows.given.get(&nonce) else {
            return Ok((!rows.orphans.contains(&nonce)).then_some(None));
        };
        // What is over was seen final.
        let Some((_, attempts)) = rows.open.get(request) else {
            return Ok(None);
        };
        for hash in attempts.iter().filter_map(|attempt| attempt.hash) {
            if is_canonical(self.port, hash).await? {
                return Ok(None);
            }
        }
        Ok(Some(Some(*request)))
    }

    /// `None` if it is a request's own attempt all the same, that one node has and another one has not yet.
    fn finding(
        &self,
        rows: &Rows,
        request: Option<RequestId>,
        (nonce, mined): (u64, Option<MinedTransaction>),
        counts: &Counts,
        taken: &mut BTreeSet<RequestId>,
    ) -> Option<Finding> {
        let Some(mined) = mined else {
            return Some(nothing_at(nonce, What::Unseen));
        };
        let row = request.and_then(|request| rows.open.get(&request));
        if row.is_some_and(|(_, all)| all.iter().any(|attempt| attempt.hash == Some(mined.hash))) {
            return None;
        }
        let account = self.key.address;
        let found = mined.raw.as_ref().and_then(OnChain::read);
        let key = &self.key.public_key;
        let found = found.filter(|it| {
            it.says.nonce == nonce && it.hash == mined.hash && it.is_of(key, self.prove)
        });
        let mut asked_by = None;
        let what = match (row, &found) {
            (Some((row, _)), Some(found)) if found.is_asked_by(row) => What::Attempt(row.new.id),
            (Some((row, _)), Some(found)) if found.says.is_no_op_of(account) => {
                What::NoOp(row.new.id)
            }
            (Some((row, _)), found) => {
                asked_by = found.as_ref().and_then(|found| waiting_for(rows, found, taken));
                What::Foreign(row.new.id)
            }
            (None, Some(found)) => {
                waiting_for(rows, found, taken).map_or(What::Orphan, What::Queued)
            }
            (None, None) => What::Orphan,
        };
        let is_final = mined.block_number <= counts.final_number;
        let (mined, again) = (Some(mined), None);
        Some(Finding { nonce, mined, found, is_final, what, again, asked_by })
    }

    /// Requests whose end was told, and which the chain does not have so any more: their nonce is not used,
    /// or, on a chain that stands still, another transaction has it.
    async fn undone(
        &self,
        rows: &Rows,
        counts: &Counts,
        locator: &mut Locator<'_>,
    ) -> Result<Vec<Finding>, AppError> {
        let mut undone = Vec::new();
        let over = rows.given.iter().filter(|(_, request)| !rows.open.contains_key(*request));
        for (nonce, request) in over {
            if *nonce < counts.latest && !self.is_still {
                continue;
            }
            let (nonce, request) = (*nonce, *request);
            let (row, attempts) = look(self.store, "told", move |unit| {
                Box::pin(async move {
                    Ok((unit.transaction(request).await?, unit.attempts(request).await?))
                })
            })
            .await?;
            let mined = row.and_then(|row| row.mined).map(|mined| mined.transaction_hash);
            if nonce >= counts.latest {
                let bytes = attempts.into_iter().find(|it| mined.is_some() && it.hash == mined);
                let again = bytes.and_then(|attempt| attempt.raw);
                undone.push(Finding { again, ..nothing_at(nonce, What::Vanished(request)) });
            } else if let Some(hash) = mined
                && !is_canonical(self.port, hash).await?
            {
                let mined = locator.find(nonce).await?;
                undone.push(Finding { mined, ..nothing_at(nonce, What::Turned(request)) });
            }
        }
        Ok(undone)
    }
}

/// The oldest request that waits for a nonce and asks for this; each is named once.
fn waiting_for(rows: &Rows, found: &OnChain, taken: &mut BTreeSet<RequestId>) -> Option<RequestId> {
    let asks = |row: &&TransactionRow| !taken.contains(&row.new.id) && found.is_asked_by(row);
    let id = rows.queued.iter().find(asks)?.new.id;
    taken.insert(id);
    Some(id)
}

const fn nothing_at(nonce: u64, what: What) -> Finding {
    Finding { nonce, mined: None, found: None, is_final: false, what, again: None, asked_by: None }
}

/// Whether a transaction is mined in a block of the canonical chain.
async fn is_canonical(port: &dyn Chain, hash: B256) -> Result<bool, ChainError> {
    let Some(receipt) = port.receipt(hash).await? else {
        return Ok(false);
    };
    let block = port.block(BlockAt::Number(receipt.block_number)).await?;
    Ok(block.is_some_and(|block| block.hash == receipt.block_hash))
}
