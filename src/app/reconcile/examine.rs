//! Look: every mined nonce of every managed account, against the requests of the database. Changes nothing.

use super::{Account, Finding, Remembered, Standstill, What};
use crate::app::AppError;
use crate::app::adopt::{OnChain, Prove};
use crate::core::id::RequestId;
use crate::core::intent::ChainRef;
use crate::core::key::{NonceMode, OperatorKey};
use crate::core::tx::state::Status;
use crate::ports::chain::{BlockAt, Chain, ChainError, MinedTransaction};
use crate::ports::store::{AttemptRow, Filter, Lane, Store, TransactionRow, look};
use alloy::primitives::B256;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Blocks that are read one by one where no node has old state.
const WALK_MAX: u64 = 20_000;
/// Queued requests of a chain that are looked at.
const QUEUED_MAX: i64 = 100_000;

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
        for nonce in 0..counts.latest {
            if let Some(row) = self.unexplained(&rows, nonce).await? {
                findings.push(self.finding(&rows, row, nonce, &counts, &mut taken).await?);
            }
        }
        findings.extend(self.undone(&rows, &counts).await?);
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
        let queued = Filter {
            status: Some(Status::Queued),
            chain: Some(self.chain.name.clone()),
            limit: QUEUED_MAX,
            ..Filter::default()
        };
        Ok(look(self.store, "account", move |unit| {
            let queued = queued.clone();
            Box::pin(async move {
                let mut open = BTreeMap::new();
                for row in unit.open_transactions(chain).await? {
                    if row.new.address == account {
                        let attempts = unit.attempts(row.new.id).await?;
                        open.insert(row.new.id, (row, attempts));
                    }
                }
                let mut queued = unit.transactions(&queued).await?;
                queued.retain(|row| row.new.address == account);
                queued.reverse();
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

    async fn finding(
        &self,
        rows: &Rows,
        request: Option<RequestId>,
        nonce: u64,
        counts: &Counts,
        taken: &mut BTreeSet<RequestId>,
    ) -> Result<Finding, AppError> {
        let Some(mined) = self.locate(nonce, counts.head).await? else {
            return Ok(nothing_at(nonce, What::Unseen));
        };
        let account = self.key.address;
        let found = mined.raw.as_ref().and_then(OnChain::read);
        let key = &self.key.public_key;
        let found = found.filter(|it| it.says.nonce == nonce && it.is_of(key, self.prove));
        let row = request.and_then(|request| rows.open.get(&request));
        let what = match (row, &found) {
            (Some((row, _)), Some(found)) if found.is_asked_by(row) => What::Attempt(row.new.id),
            (Some((row, _)), Some(found)) if found.says.is_no_op_of(account) => {
                What::NoOp(row.new.id)
            }
            (Some((row, _)), _) => What::Foreign(row.new.id),
            (None, Some(found)) => {
                let asks =
                    |row: &&TransactionRow| !taken.contains(&row.new.id) && found.is_asked_by(row);
                match rows.queued.iter().find(asks) {
                    Some(row) => {
                        taken.insert(row.new.id);
                        What::Queued(row.new.id)
                    }
                    None => What::Orphan,
                }
            }
            (None, None) => What::Orphan,
        };
        let is_final = mined.block_number <= counts.final_number;
        Ok(Finding { nonce, mined: Some(mined), found, is_final, what, again: None })
    }

    /// Requests whose end was told, and which the chain does not have so any more: their nonce is not used,
    /// or, on a chain that stands still, another transaction has it.
    async fn undone(&self, rows: &Rows, counts: &Counts) -> Result<Vec<Finding>, AppError> {
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
                let mined = self.locate(nonce, counts.head).await?;
                undone.push(Finding { mined, ..nothing_at(nonce, What::Turned(request)) });
            }
        }
        Ok(undone)
    }

    /// Finds the mined transaction with this nonce: by the account's count at past blocks, where a node has
    /// their state; else block by block from the newest that may hold it.
    async fn locate(&self, nonce: u64, head: u64) -> Result<Option<MinedTransaction>, ChainError> {
        let (mut below, mut above, mut step) = (None, head, 1_u64);
        // `above` has the nonce used, `below` has not.
        loop {
            let middle = match below {
                None => above.saturating_sub(step),
                Some(below) if above.saturating_sub(below) <= 1 => break,
                Some(below) => below.midpoint(above),
            };
            (self.progress)(middle);
            match self.port.nonce(self.key.address, BlockAt::Number(middle)).await {
                Ok(used) if used > nonce && middle == 0 => break,
                Ok(used) if used > nonce => above = middle,
                Ok(_) => below = Some(middle),
                Err(_) => return self.walk(nonce, above).await,
            }
            step = step.saturating_mul(2);
        }
        self.in_block(nonce, above).await
    }

    async fn walk(&self, nonce: u64, from: u64) -> Result<Option<MinedTransaction>, ChainError> {
        for back in 0..=WALK_MAX.min(from) {
            let number = from.saturating_sub(back);
            (self.progress)(number);
            if let Some(found) = self.in_block(nonce, number).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn in_block(
        &self,
        nonce: u64,
        number: u64,
    ) -> Result<Option<MinedTransaction>, ChainError> {
        let sent = self.port.sent_in(number, self.key.address).await?;
        Ok(sent.into_iter().find(|sent| sent.nonce == nonce))
    }
}

const fn nothing_at(nonce: u64, what: What) -> Finding {
    Finding { nonce, mined: None, found: None, is_final: false, what, again: None }
}

/// Whether a transaction is mined in a block of the canonical chain.
async fn is_canonical(port: &dyn Chain, hash: B256) -> Result<bool, ChainError> {
    let Some(receipt) = port.receipt(hash).await? else {
        return Ok(false);
    };
    let block = port.block(BlockAt::Number(receipt.block_number)).await?;
    Ok(block.is_some_and(|block| block.hash == receipt.block_hash))
}
