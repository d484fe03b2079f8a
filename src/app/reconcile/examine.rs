//! Look: every mined nonce of every managed account, against the requests of the database. Changes nothing.

use super::locate::Locator;
use super::matching::{Match, Unsent, matching};
use super::{Account, Choices, Finding, Forgotten, Remembered, Standstill, What, charges};
use crate::app::AppError;
use crate::app::adopt::{OnChain, Prove};
use crate::core::id::RequestId;
use crate::core::intent::ChainRef;
use crate::core::key::{NonceMode, OperatorKey};
use crate::core::time::Timestamp;
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
    queued: Vec<Unsent>,
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

/// Compares all managed accounts. `choices` are what an operator has named, `progress` is told each block that is
/// looked at.
///
/// # Errors
/// When the store or the nodes do not answer, or the nodes are of another chain.
pub async fn examine(
    store: &dyn Store,
    places: &Places,
    (remembered, choices): (&Remembered, &Choices),
    prove: Prove,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Vec<Account>, AppError> {
    let groups = charges::groups(store).await?;
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
            let port = &**port;
            let account = Examiner {
                store,
                chain,
                port,
                key,
                prove,
                progress,
                choices,
                groups: &groups,
                is_still,
            };
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
    choices: &'a Choices,
    groups: &'a BTreeMap<String, BTreeSet<String>>,
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
                let found = self.finding(&rows, row, (nonce, mined), &counts, &mut taken);
                findings.extend(found.await?);
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
        let groups = Arc::new(self.groups.clone());
        Ok(look(self.store, "account", move |unit| {
            let groups = Arc::clone(&groups);
            Box::pin(async move {
                let mut open = BTreeMap::new();
                for row in unit.open_of(chain, account).await? {
                    let attempts = unit.attempts(row.new.id).await?;
                    open.insert(row.new.id, (row, attempts));
                }
                let mut queued = Vec::new();
                for row in unit.queued_of(chain, account).await? {
                    let mut waiting = None;
                    if row.status.is_waiting() {
                        let wait = unit.waiting_request(row.new.id).await?;
                        waiting = wait.zip(Some(unit.approvals_of(row.new.id).await?));
                    }
                    queued.push(Unsent::new(row, waiting, &groups));
                }
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
    async fn finding(
        &self,
        rows: &Rows,
        request: Option<RequestId>,
        (nonce, mined): (u64, Option<MinedTransaction>),
        counts: &Counts,
        taken: &mut BTreeSet<RequestId>,
    ) -> Result<Option<Finding>, AppError> {
        let Some(mined) = mined else {
            return Ok(Some(nothing_at(nonce, What::Unseen)));
        };
        let row = request.and_then(|request| rows.open.get(&request));
        if row.is_some_and(|(_, all)| all.iter().any(|attempt| attempt.hash == Some(mined.hash))) {
            return Ok(None);
        }
        let account = self.key.address;
        let found = mined.raw.as_ref().and_then(OnChain::read);
        let key = &self.key.public_key;
        let found = found.filter(|it| {
            it.says.nonce == nonce && it.hash == mined.hash && it.is_of(key, self.prove)
        });
        let (mut asked_by, mut candidates, mut is_chosen) = (None, Vec::new(), false);
        let what = match (row, &found) {
            (Some((row, _)), Some(found)) if found.is_asked_by(row) => What::Attempt(row.new.id),
            (Some((row, _)), Some(found)) if found.says.is_no_op_of(account) => {
                What::NoOp(row.new.id)
            }
            (Some((row, _)), None) => What::Foreign(row.new.id),
            (None, None) => What::Orphan,
            (row, Some(found)) => {
                let mined_at = self.mined_at(rows, found, &mined).await?;
                let (of, chosen) = matching(&rows.queued, (found, mined_at), taken, self.choices);
                is_chosen = chosen;
                match (row, of) {
                    (None, Match::None) => What::Orphan,
                    (None, Match::One(request)) => What::Queued(request),
                    (None, Match::Several(all)) => {
                        candidates = all;
                        What::Undecided
                    }
                    (Some((row, _)), of) => {
                        match of {
                            Match::None => {}
                            Match::One(request) => asked_by = Some(request),
                            Match::Several(all) => candidates = all,
                        }
                        What::Foreign(row.new.id)
                    }
                }
            }
        };
        let is_final = mined.block_number <= counts.final_number;
        let (mined, again) = (Some(mined), None);
        Ok(Some(Finding {
            nonce,
            mined,
            found,
            is_final,
            what,
            again,
            asked_by,
            candidates,
            is_chosen,
        }))
    }

    /// When it was mined, by its block, where that says what a request needed then; else no time at all.
    async fn mined_at(
        &self,
        rows: &Rows,
        found: &OnChain,
        mined: &MinedTransaction,
    ) -> Result<Timestamp, ChainError> {
        let asks = |it: &Unsent| it.goes_by_time() && found.is_asked_by(&it.row);
        if !rows.queued.iter().any(asks) {
            return Ok(Timestamp::from_millis(0));
        }
        let block = self.port.block(BlockAt::Number(mined.block_number)).await?;
        let seconds = block.map_or(0, |block| block.timestamp_s);
        let millis = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000);
        Ok(Timestamp::from_millis(millis))
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

const fn nothing_at(nonce: u64, what: What) -> Finding {
    Finding {
        nonce,
        mined: None,
        found: None,
        is_final: false,
        what,
        again: None,
        asked_by: None,
        candidates: Vec::new(),
        is_chosen: false,
    }
}

/// Whether a transaction is mined in a block of the canonical chain.
async fn is_canonical(port: &dyn Chain, hash: B256) -> Result<bool, ChainError> {
    let Some(receipt) = port.receipt(hash).await? else {
        return Ok(false);
    };
    let block = port.block(BlockAt::Number(receipt.block_number)).await?;
    Ok(block.is_some_and(|block| block.hash == receipt.block_hash))
}
