//! Finds the block that holds a nonce of an account, by the account's count at past blocks, where a node has
//! their state; else block by block from the head.

use crate::ports::chain::{BlockAt, Chain, ChainError, MinedTransaction};
use alloy::primitives::Address;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

/// Blocks that are read one by one where no node has old state.
const WALK_MAX: u64 = 20_000;
/// How often a node is asked that does not answer, and how long is waited in between. Nodes that failed are
/// left alone for a second at first and for longer then.
const TRIES: u32 = 4;
const BETWEEN: Duration = Duration::from_millis(1_500);

/// Looks for the transactions of one account, and keeps what it has seen on the way.
pub(super) struct Locator<'a> {
    port: &'a dyn Chain,
    account: Address,
    head: u64,
    progress: &'a (dyn Fn(u64) + Send + Sync),
    seen: BTreeMap<u64, MinedTransaction>,
    /// All blocks from this one to the head were read.
    read_from: Option<u64>,
}

impl<'a> Locator<'a> {
    /// Nothing is asked yet.
    pub(super) const fn new(
        port: &'a dyn Chain,
        account: Address,
        head: u64,
        progress: &'a (dyn Fn(u64) + Send + Sync),
    ) -> Self {
        Self { port, account, head, progress, seen: BTreeMap::new(), read_from: None }
    }

    /// The mined transaction with this nonce, which the account has used at the head. `None` if no node has
    /// the state of its block, and it is not in the newest ones.
    pub(super) async fn find(
        &mut self,
        nonce: u64,
    ) -> Result<Option<MinedTransaction>, ChainError> {
        if !self.seen.contains_key(&nonce) {
            match self.by_count(nonce).await? {
                Some(block) => self.read(block).await?,
                None => self.walk(nonce).await?,
            }
        }
        Ok(self.seen.get(&nonce).cloned())
    }

    /// The block, by the account's count at past ones; `None` if a node that answers has not got their state.
    async fn by_count(&self, nonce: u64) -> Result<Option<u64>, ChainError> {
        // Who walked once has met the end of what nodes keep.
        if self.read_from.is_some() {
            return Ok(None);
        }
        let (mut below, mut above, mut step) = (None, self.head, 1_u64);
        // `above` has the nonce used, `below` has not.
        loop {
            let middle = match below {
                None => above.saturating_sub(step),
                Some(below) if above.saturating_sub(below) <= 1 => break,
                Some(below) => below.midpoint(above),
            };
            (self.progress)(middle);
            match patiently(|| self.port.nonce(self.account, BlockAt::Number(middle))).await {
                Ok(used) if used > nonce && middle == 0 => return Ok(Some(0)),
                Ok(used) if used > nonce => above = middle,
                Ok(_) => below = Some(middle),
                // The words for a state that is not kept are each client's own (`missing trie node`, `distance to
                // target block exceeds maximum`, `state is pruned`), so any refusal is one.
                Err(ChainError::UnknownBlock | ChainError::Refused(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
            step = step.saturating_mul(2);
        }
        Ok(Some(above))
    }

    async fn walk(&mut self, nonce: u64) -> Result<(), ChainError> {
        let lowest = self.head.saturating_sub(WALK_MAX);
        while !self.seen.contains_key(&nonce) {
            let next = match self.read_from {
                None => self.head,
                Some(read) if read <= lowest => break,
                Some(read) => read.saturating_sub(1),
            };
            (self.progress)(next);
            self.read(next).await?;
            self.read_from = Some(next);
        }
        Ok(())
    }

    async fn read(&mut self, block: u64) -> Result<(), ChainError> {
        let sent = patiently(|| self.port.sent_in(block, self.account)).await?;
        self.seen.extend(sent.into_iter().map(|sent| (sent.nonce, sent)));
        Ok(())
    }
}

/// Asks again where no node answers: that says nothing about the chain, and must not be taken for an answer.
async fn patiently<T, A>(ask: impl Fn() -> A + Send) -> Result<T, ChainError>
where
    A: Future<Output = Result<T, ChainError>> + Send,
    T: Send,
{
    for _ in 1..TRIES {
        match ask().await {
            Err(ChainError::Unavailable(_)) => tokio::time::sleep(BETWEEN).await,
            answer => return answer,
        }
    }
    ask().await
}
