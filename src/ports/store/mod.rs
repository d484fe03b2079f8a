//! The server's database, as the use cases see it: whole transactions of named operations.
//!
//! A [`Unit`] is one database transaction. It is handed to a closure that may be run again from the
//! start (a serialisation failure), so the closure has no effects outside. Whatever fails inside it, the
//! first error is kept and nothing is stored. Nobody can hold a unit across a wait for the network.

mod approvals;
mod bundles;
mod ceremonies;
mod many_keys;
mod outbox;
mod reconcile;
mod replication;
mod rows;
mod run;
mod sources;
mod windows;
mod work;

pub use approvals::{
    Approvals, DueRequest, GivenApproval, PUT_OFF_MS_MAX, UsedDestinations, WaitingFilter,
    WaitingRequest,
};
pub use bundles::*;
pub use ceremonies::{KeyBook, OpenCeremony};
pub use many_keys::*;
pub use outbox::*;
pub use reconcile::*;
pub use replication::Replication;
pub use rows::*;
pub use run::{look, unit};
pub use sources::Sources;
pub use windows::*;
pub use work::*;

use crate::core::audit::EncodedLeaf;
use crate::core::id::{ChainId, GroupName, HolderId, KeyId, RequestId};
use crate::core::intent::Fees;
use crate::core::key::{NonceMode, OperatorKey, PublicKey};
use crate::core::permit::DecisionRecord;
use crate::core::policy::{Charge, verdict::EventUse};
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use alloy::primitives::{Address, B256};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::any::Any;
use std::sync::Arc;

/// Why the store did not do it. Nothing of the unit is stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database is not reachable, full, or locked for too long.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Another server has this SQLite file.
    #[error(
        "the database is not available: another server is running on {0}; SQLite serves one process"
    )]
    Held(String),
    /// What was read breaks a rule of ours: a wrong row count, a value that cannot be.
    #[error("the database holds something it must not: {0}")]
    Corrupt(String),
    /// The unit conflicted with another too often.
    #[error("the transaction conflicted with others and was given up")]
    Contended,
}

/// How a closure ends its unit.
#[derive(Debug)]
pub enum End<T> {
    /// Keep everything.
    Commit(T),
    /// Keep nothing; not an error.
    Rollback(T),
}

/// A boxed answer of a unit; [`unit`] gives it its type back.
pub type Erased = Box<dyn Any + Send>;
/// A closure over one transaction.
pub type Work = Arc<
    dyn for<'u> Fn(&'u mut dyn Unit) -> BoxFuture<'u, Result<End<Erased>, StoreError>>
        + Send
        + Sync,
>;

/// A database.
#[async_trait]
pub trait Store: Send + Sync {
    /// Runs the closure in one transaction and commits it. Durable on `Ok(End::Commit)`; nothing is
    /// stored otherwise. The closure may run more than once; only the last run counts. May be called
    /// concurrently.
    async fn run(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError>;

    /// Runs the closure in one transaction that is never committed, beside the writer. Sees one
    /// consistent state.
    async fn look(&self, name: &'static str, work: Work) -> Result<End<Erased>, StoreError>;

    /// Whether the database answers; for `doctor` and `readyz`.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Whether no other process can write to this database while this one has it open.
    fn is_alone(&self) -> bool;

    /// Whether commits wait for a copy elsewhere; `None` where there are no such copies.
    async fn replication(&self) -> Result<Option<Replication>, StoreError> {
        Ok(None)
    }

    /// Which copy of the database this is: PostgreSQL's system identifier and timeline, of which a restored
    /// cluster or a promoted replica has others. `None` where there is no such thing, or it may not be
    /// read: a file is what it is, whoever copied it.
    async fn identity(&self) -> Result<Option<String>, StoreError> {
        Ok(None)
    }
}

/// One open transaction. Every method is atomic with the rest of the unit. Locks are taken in one
/// order: idempotency, the principal whose requests wait, lease, lane, limits by id.
#[async_trait]
pub trait Unit:
    Approvals + BundleBook + EventConsumers + KeyBook + ManyKeys + Outbox + Sources + Windows + Send
{
    // -- requests -----------------------------------------------------------------------------------

    /// Binds an idempotency key to a request, or says to what it is bound already. Waits for another
    /// unit that is binding the same key.
    async fn bind_key(&mut self, bind: &KeyBinding) -> Result<Bound, StoreError>;

    /// What an idempotency key is bound to.
    async fn bound_key(&mut self, scope: &str, key: &str)
    -> Result<Option<KeyBinding>, StoreError>;

    /// Uses an event up for a function; answers the request that has it already, if one does.
    async fn claim_event(
        &mut self,
        event: &EventUse,
        request: RequestId,
    ) -> Result<Option<RequestId>, StoreError>;

    /// Lets others answer the events that this request has claimed: it ended before anything was decided.
    /// Nothing is freed for a request that has an attempt.
    async fn free_events(&mut self, request: RequestId) -> Result<(), StoreError>;

    /// Stores a new transaction as queued.
    async fn insert_transaction(&mut self, row: &NewTransaction) -> Result<(), StoreError>;

    /// A transaction.
    async fn transaction(&mut self, id: RequestId) -> Result<Option<TransactionRow>, StoreError>;

    /// Transactions, newest first, that match all of the filter.
    async fn transactions(&mut self, filter: &Filter) -> Result<Vec<TransactionRow>, StoreError>;

    /// How many transactions there are in each status; for metrics.
    async fn count_by_status(&mut self) -> Result<Vec<(Status, i64)>, StoreError>;

    /// Moves a transaction to a status, if its version is still this one: `false` means another process
    /// was faster and nothing was changed.
    async fn advance(&mut self, change: &StatusChange) -> Result<bool, StoreError>;

    /// Moves a transaction's version on, if it is still this one: so two units that decide from the same
    /// reading exclude each other.
    async fn touch(&mut self, id: RequestId, version: i64) -> Result<bool, StoreError>;

    /// Puts a second decision over a transaction without a nonce in the place of the first.
    async fn decide_again(
        &mut self,
        id: RequestId,
        fee_cap: Fees,
        decision: &DecisionSummary,
        decision_json: &str,
    ) -> Result<(), StoreError>;

    // -- lanes --------------------------------------------------------------------------------------

    /// The lane of an account, made on first use with this mode. Locked until the end of the unit.
    async fn lock_lane(&mut self, open: &LaneKey) -> Result<Lane, StoreError>;

    /// A lane, if the account has been used on this chain. Not locked.
    async fn lane(&mut self, chain: ChainId, address: Address) -> Result<Option<Lane>, StoreError>;

    /// All lanes of a chain.
    async fn lanes(&mut self, chain: ChainId) -> Result<Vec<Lane>, StoreError>;

    /// The transaction that has waited longest for a nonce of this lane.
    async fn next_queued(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Option<TransactionRow>, StoreError>;

    /// How many transactions of the lane have a nonce and are not mined.
    async fn in_flight(&mut self, chain: ChainId, address: Address) -> Result<i64, StoreError>;

    /// What each of the lane's unmined transactions may still take, by nonce. As many as are in flight.
    async fn owed(&mut self, chain: ChainId, address: Address) -> Result<Vec<Owed>, StoreError>;

    /// Takes the lane's next nonce and gives it to a queued transaction, which becomes submitted.
    /// `None` if the lane moved on meanwhile.
    async fn take_nonce(
        &mut self,
        lane: &Lane,
        transaction: &TransactionRow,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError>;

    /// Stops a lane; it allocates no more until an operator has looked.
    async fn halt_lane(
        &mut self,
        chain: ChainId,
        address: Address,
        reason: &str,
    ) -> Result<(), StoreError>;

    /// The lanes of a chain, each with its lease, with how many of its transactions have a nonce and are not
    /// mined, and with how many wait for one, counted up to 256: busier is full all the same.
    async fn loads(&mut self, chain: ChainId) -> Result<Vec<LaneLoad>, StoreError>;

    // -- decisions and signatures -------------------------------------------------------------------

    /// Stores a decision: the exact bytes that may be signed. `false` if that attempt exists already.
    async fn insert_attempt(&mut self, row: &NewAttempt) -> Result<bool, StoreError>;

    /// The committed decision of an attempt. The only source of permits.
    async fn decision(
        &mut self,
        request: RequestId,
        attempt: i64,
    ) -> Result<Option<DecisionRecord>, StoreError>;

    /// The attempts of a request, in order.
    async fn attempts(&mut self, request: RequestId) -> Result<Vec<AttemptRow>, StoreError>;

    /// Decisions without a signature, oldest first; without those of what a no-op is to replace.
    async fn unsigned_attempts(&mut self) -> Result<Vec<(RequestId, i64)>, StoreError>;

    /// Stores the signature of a decided attempt. `false` if it has one: the loser throws its away.
    async fn store_signature(&mut self, signed: &SignedAttempt) -> Result<bool, StoreError>;

    /// Records that the bytes were handed to nodes, and what they said: as a whole, and in the words of each.
    async fn mark_sent(
        &mut self,
        request: RequestId,
        attempt: i64,
        sent: &Sent,
        told: &str,
        at: Timestamp,
    ) -> Result<(), StoreError>;

    /// Stores a request for a signature (message, typed data, external transaction).
    async fn insert_signature(&mut self, row: &NewSignatureRequest) -> Result<(), StoreError>;

    /// A request for a signature.
    async fn signature(&mut self, id: RequestId) -> Result<Option<SignatureRow>, StoreError>;

    /// External transactions whose reservation is not settled.
    async fn unsettled_signatures(
        &mut self,
        chain: ChainId,
    ) -> Result<Vec<SignatureRow>, StoreError>;

    /// Marks all signature requests of this reservation as settled.
    async fn mark_settled(&mut self, owner: &str) -> Result<bool, StoreError>;

    // -- spend --------------------------------------------------------------------------------------

    /// Holds what is asked of each limit, for `owner`, or says which limit has no room; then the unit
    /// must be rolled back. An owner that holds already is charged the increase only.
    async fn reserve(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError>;

    /// Spends what is asked of each limit at once, for a new `owner` that has nothing to wait for, or says
    /// which limit has no room; then the unit must be rolled back.
    async fn spend(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError>;

    /// Turns what `owner` holds into spend, counted from `now` for each limit's span.
    async fn settle(
        &mut self,
        owner: &str,
        outcome: Settlement,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Gives back what `owner` holds: only for what was never signed.
    async fn release(&mut self, owner: &str) -> Result<(), StoreError>;

    /// What [`Self::reserve`] would find for each of the charges, in their order. Changes nothing.
    async fn room(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Vec<LimitUse>, StoreError>;

    /// All limits by label, with what is spent within their spans as of `now`. Changes nothing.
    async fn limits_now(&mut self, now: Timestamp) -> Result<Vec<LimitNow>, StoreError>;

    // -- keys and chains ----------------------------------------------------------------------------

    /// Records the intention to make a key, before the HSM is asked. `false` if its id is taken.
    async fn begin_key(&mut self, key: &NewKey) -> Result<bool, StoreError>;

    /// Pins the public key of a key that was begun; it becomes active.
    async fn pin_key(&mut self, id: KeyId, public_key: &PublicKey) -> Result<bool, StoreError>;

    /// Keys whose creation was begun and not finished.
    async fn unfinished_keys(&mut self) -> Result<Vec<NewKey>, StoreError>;

    /// All finished keys, oldest first.
    async fn keys(&mut self) -> Result<Vec<OperatorKey>, StoreError>;

    /// The active keys of a group, oldest first.
    async fn group_keys(&mut self, group: &GroupName) -> Result<Vec<OperatorKey>, StoreError>;

    /// Pins a chain to its genesis, or says to which it is pinned already.
    async fn pin_chain(&mut self, chain: ChainId, genesis: B256) -> Result<B256, StoreError>;

    // -- audit and events ---------------------------------------------------------------------------

    /// Queues a leaf for the log, with its long texts.
    async fn append_leaf(&mut self, leaf: &EncodedLeaf) -> Result<(), StoreError>;

    /// The oldest leaves that are not in the log yet.
    async fn waiting_leaves(&mut self, most: i64) -> Result<Vec<WaitingLeaf>, StoreError>;

    /// How many leaves are not in the log yet.
    async fn waiting_leaf_count(&mut self) -> Result<i64, StoreError>;

    /// Appends leaves and tree nodes to the log, if its size is still `batch.size_before`: `false` if
    /// another sequencer was faster.
    async fn append_log(&mut self, batch: &LogBatch) -> Result<bool, StoreError>;

    /// The log's size and root.
    async fn log_head(&mut self) -> Result<LogHead, StoreError>;

    /// Stored nodes of the tree by their index, in the order asked.
    async fn log_nodes(&mut self, indexes: &[u64]) -> Result<Vec<[u8; 32]>, StoreError>;

    /// Leaves of the log from an index on.
    async fn log_leaves(&mut self, from: u64, most: i64) -> Result<Vec<LogLeaf>, StoreError>;

    /// Stored nodes of the tree with an index from `from` to below `below`, those that there are.
    async fn log_nodes_between(
        &mut self,
        from: u64,
        below: u64,
    ) -> Result<Vec<(u64, [u8; 32])>, StoreError>;

    /// A text that is kept beside the log, by its SHA-256.
    async fn long_text(&mut self, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps a signed checkpoint. `false` if there is one of that size; then nothing was changed.
    async fn keep_checkpoint(&mut self, signed: &SignedCheckpoint) -> Result<bool, StoreError>;

    /// The signed checkpoint of the largest size.
    async fn newest_checkpoint(&mut self) -> Result<Option<SignedCheckpoint>, StoreError>;

    /// Signed checkpoints of at least this size, the smallest first.
    async fn checkpoints(
        &mut self,
        from: u64,
        most: i64,
    ) -> Result<Vec<SignedCheckpoint>, StoreError>;

    /// Queues an event about a transaction, in order.
    async fn append_event(&mut self, event: &NewEvent) -> Result<(), StoreError>;

    /// The events of one subject, oldest first.
    async fn events_of(&mut self, subject: &str) -> Result<Vec<NewEvent>, StoreError>;

    // -- the database itself ------------------------------------------------------------------------

    /// A named value about this database.
    async fn meta(&mut self, name: &str) -> Result<Option<String>, StoreError>;

    /// Sets a named value.
    async fn set_meta(&mut self, name: &str, value: &str) -> Result<(), StoreError>;

    // -- final blocks -------------------------------------------------------------------------------

    /// The newest block of a chain in which an end was told.
    async fn anchor(&mut self, chain: ChainId) -> Result<Option<Anchor>, StoreError>;

    /// Remembers a block in which an end is told, if it is newer than what is remembered and the chain does
    /// not stand still.
    async fn raise_anchor(
        &mut self,
        chain: ChainId,
        number: u64,
        hash: B256,
    ) -> Result<(), StoreError>;

    /// Another block was found in the place of this one: the chain stands still, whatever becomes of its
    /// lanes, until an operator releases it. `false` if something else is remembered by now, or it stood
    /// still already; then nothing was changed.
    async fn break_anchor(
        &mut self,
        chain: ChainId,
        anchor: &Anchor,
        reason: &str,
    ) -> Result<bool, StoreError>;

    /// An operator has looked: the chain goes on, and from now on this block (or none) is remembered.
    async fn replace_anchor(
        &mut self,
        chain: ChainId,
        anchor: Option<(u64, B256)>,
    ) -> Result<(), StoreError>;

    // -- leases and the work of accounts --------------------------------------------------------------

    /// Takes the lease of an account's lane, or renews it for who holds it, until this time of our clock.
    /// `None` if another holds it and `now` is before its end. The token grows at every change of the holder,
    /// and no token is ever given twice.
    async fn take_lease(
        &mut self,
        lane: (ChainId, Address),
        holder: HolderId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Lease>, StoreError>;

    /// Takes the lease whoever holds it. What the other writes from then on changes nothing.
    async fn seize_lease(
        &mut self,
        lane: (ChainId, Address),
        holder: HolderId,
        until: Timestamp,
    ) -> Result<Lease, StoreError>;

    /// The fence: whether this is the lane's lease still. It cannot change hands before the end of the unit.
    /// A unit that writes for a lane and meets `false` must be rolled back. No clock is asked: a lease that
    /// has run out and was not taken by another is as good as new.
    async fn holds_lease(&mut self, lease: &Lease) -> Result<bool, StoreError>;

    /// The lease of an account's lane. Not locked.
    async fn lease(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Option<LeaseRow>, StoreError>;

    /// Ends a lease, if it is held still: another process may take the lane at once.
    async fn release_lease(&mut self, lease: &Lease) -> Result<(), StoreError>;

    /// Ends all leases of a process that stops: others need not wait for them.
    async fn release_leases(&mut self, holder: HolderId) -> Result<(), StoreError>;

    /// Ends all leases: only for a process that knows itself to be the only one.
    async fn end_leases(&mut self) -> Result<(), StoreError>;

    /// Accounts of a chain that have transactions without an end, with a nonce or without one. Costs a look
    /// for each of them, however many keys there are and whatever waits there.
    async fn busy_accounts(&mut self, chain: ChainId) -> Result<Vec<Address>, StoreError>;

    /// Transactions of an account that have a nonce and no end, by nonce.
    async fn open_of(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<TransactionRow>, StoreError>;

    /// A transaction without a nonce whose `not_after` has passed, wherever it stands in its lane.
    async fn next_expired(
        &mut self,
        chain: ChainId,
        address: Address,
        now: Timestamp,
    ) -> Result<Option<TransactionRow>, StoreError>;

    /// The lanes of a chain, for metrics; of more than [`FEW_LANES`] those that have work.
    async fn lane_ages(&mut self, chain: ChainId) -> Result<Vec<LaneAge>, StoreError>;

    // -- reconciling with the chain -----------------------------------------------------------------

    /// Why the server waits for an operator, if it does. Whoever gives a nonce, decides or signs asks in
    /// the same unit.
    async fn suspension(&mut self) -> Result<Option<Suspension>, StoreError>;

    /// Has the server wait. `false` if it does already: the first reason stays.
    async fn suspend(&mut self, why: &Suspension) -> Result<bool, StoreError>;

    /// Lets the server go on.
    async fn lift_suspension(&mut self) -> Result<(), StoreError>;

    /// Records a mined transaction that no request made. `false` if it is recorded already.
    async fn insert_orphan(&mut self, orphan: &Orphan, at: Timestamp) -> Result<bool, StoreError>;

    /// The orphans of a chain by account and nonce; or only those that nobody has claimed, the oldest
    /// first.
    async fn orphans(&mut self, chain: ChainId, only_open: bool)
    -> Result<Vec<Orphan>, StoreError>;

    /// Binds an orphan to the request that asked for the same. `false` if another has it.
    async fn claim_orphan(&mut self, hash: B256, request: RequestId) -> Result<bool, StoreError>;

    /// Closes the account's unclaimed orphans: no request is bound to them any more. Answers how many.
    async fn close_orphans(&mut self, chain: ChainId, address: Address) -> Result<u64, StoreError>;

    /// The nonces of an account that requests have, in order.
    async fn given_nonces(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<(u64, RequestId)>, StoreError>;

    /// Gives a transaction without a nonce the one that its mined transaction has; it becomes submitted. `false`
    /// if it changed meanwhile.
    async fn adopt_nonce(
        &mut self,
        row: &TransactionRow,
        nonce: u64,
        at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Lets a lane go on from this nonce, which may not be below its next one.
    async fn release_lane(&mut self, lane: &Lane, next_nonce: u64) -> Result<(), StoreError>;

    /// All managed lanes of all chains, each with its next nonce.
    async fn every_lane(&mut self) -> Result<Vec<(ChainId, Address, u64)>, StoreError>;

    /// Transactions of an account that have no nonce yet, the oldest first: all of them, also those that have
    /// to wait or to be approved first.
    async fn queued_of(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<TransactionRow>, StoreError>;

    /// How many leases have not ended: server processes work then, or were killed a moment ago.
    async fn live_leases(&mut self, now: Timestamp) -> Result<i64, StoreError>;

    /// The orphans that nobody has claimed and that pay the same, the oldest first.
    async fn same_orphans(&mut self, same: &Payment) -> Result<Vec<Orphan>, StoreError>;

    /// Takes the nonce of a failed transaction away: it was used for another request, whose it is. `false` if
    /// that transaction is not failed, or has none.
    async fn give_up_nonce(&mut self, id: RequestId) -> Result<bool, StoreError>;

    // -- what is told -------------------------------------------------------------------------------

    /// The request that has used an event up for this function, if one has. Changes nothing.
    async fn claimed_by(&mut self, event: &EventUse) -> Result<Option<RequestId>, StoreError>;

    /// Notes what a transaction waits for, or that it is not so any more, if its version is still this one.
    /// `since` stays what it was where it waits for the same as before. Moves no version.
    async fn note_wait(
        &mut self,
        id: RequestId,
        version: i64,
        wait: Option<&Wait>,
    ) -> Result<(), StoreError>;

    /// Where a transaction stands in its lane.
    async fn place(&mut self, row: &TransactionRow) -> Result<Place, StoreError>;

    /// Of the transactions that wait for a nonce of this lane and have a fee cap of at least `base_fee`, or no
    /// time left, the one that has waited longest.
    async fn next_payable(
        &mut self,
        chain: ChainId,
        address: Address,
        base_fee: u128,
        now: Timestamp,
    ) -> Result<Option<TransactionRow>, StoreError>;

    /// Notes [`Wait::BASE_FEE`] for all that wait for a nonce of this lane with a fee cap below `base_fee`,
    /// and forgets it for the others. What was noted so before stays as it was.
    async fn note_unpayable(
        &mut self,
        chain: ChainId,
        address: Address,
        base_fee: u128,
        wait: &Wait,
    ) -> Result<(), StoreError>;
}

/// What a use case needs to open a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneKey {
    /// The chain.
    pub chain: ChainId,
    /// The account.
    pub address: Address,
    /// The account's key.
    pub key: KeyId,
    /// Who gives the nonces, if the lane is new; for ever.
    pub mode: NonceMode,
}
