//! What delays, approvals and the first use of a destination read and write.

use super::{NewTransaction, StoreError, TransactionRow};
use crate::core::approval::Quorum;
use crate::core::id::{ChainId, RequestId};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use alloy::primitives::{Address, B256};
use async_trait::async_trait;
use std::collections::BTreeSet;

/// The part of a unit that delays and approvals use. Whoever changes what a transaction waits for has moved
/// its version on in the same unit, and so holds its row.
#[async_trait]
pub trait Approvals: Send {
    /// Stores a new transaction in a waiting status, with what it waits for.
    async fn insert_waiting(
        &mut self,
        row: &NewTransaction,
        status: Status,
        wait: &WaitingRequest,
    ) -> Result<(), StoreError>;

    /// Puts what a transaction waits for in the place of what it waited for before. Approvals of the terms
    /// before stay in the record, and count for nothing.
    async fn put_waiting(&mut self, wait: &WaitingRequest) -> Result<(), StoreError>;

    /// What a transaction waits for, or waited for last.
    async fn waiting_request(
        &mut self,
        id: RequestId,
    ) -> Result<Option<WaitingRequest>, StoreError>;

    /// Has a waiting transaction looked at from then on, also one that was put off.
    async fn wake(&mut self, id: RequestId, at: Timestamp) -> Result<(), StoreError>;

    /// Notes that these very terms have let the transaction go on. `false` if it waits for others, or they
    /// have done so already: terms are used once.
    async fn release_terms(
        &mut self,
        id: RequestId,
        hash: B256,
        at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Waiting transactions that are to be looked at: their time has come, or another bundle than this one
    /// decided. None that was put off until later, but those that were put off by a clock that was far ahead
    /// ([`PUT_OFF_MS_MAX`]). Those first that were never put off, by id, then the others
    /// by when they are due again; after that one, at most so many.
    async fn due_requests(
        &mut self,
        now: Timestamp,
        bundle: B256,
        after: Option<DueRequest>,
        most: i64,
    ) -> Result<Vec<DueRequest>, StoreError>;

    /// Waiting transactions that match all of the filter, newest first, at most so many.
    async fn waiting_page(
        &mut self,
        filter: &WaitingFilter,
        most: i64,
    ) -> Result<Vec<TransactionRow>, StoreError>;

    /// Records an approval. `false` if this person has approved these terms already.
    async fn insert_approval(&mut self, approval: &GivenApproval) -> Result<bool, StoreError>;

    /// All approvals that were given to a transaction, of whichever terms, oldest first.
    async fn approvals_of(&mut self, id: RequestId) -> Result<Vec<GivenApproval>, StoreError>;

    /// Notes that these destinations are used. What was used before stays as it was noted.
    async fn use_destinations(&mut self, used: &UsedDestinations) -> Result<(), StoreError>;

    /// Which of these destinations were used before on this chain, in this scope.
    async fn used_among(
        &mut self,
        chain: ChainId,
        scope: &str,
        destinations: &BTreeSet<Address>,
    ) -> Result<BTreeSet<Address>, StoreError>;

    // -- how much waits, and what cannot be judged ---------------------------------------------------

    /// Whether fewer than so many requests of this subject wait, on all chains and of all issuers. Until the
    /// end of the unit nobody else is told so of the same subject: who asks before adding one never goes
    /// over. Locked after the idempotency key and before everything else.
    async fn has_room_to_wait(&mut self, sub: &str, most: i64) -> Result<bool, StoreError>;

    /// The same of this moment, in a read: nothing is locked, and another one may be faster.
    async fn waits_below(&mut self, sub: &str, most: i64) -> Result<bool, StoreError>;

    /// Whether the log is to be told that no more of this subject may wait: `false` if it was told within
    /// that time, in milliseconds.
    async fn tell_waiter(
        &mut self,
        sub: &str,
        now: Timestamp,
        every_ms: i64,
    ) -> Result<bool, StoreError>;

    /// Puts off the next look at a waiting transaction that could not be judged, so many times before. `false`
    /// if another process has put it off meanwhile, or it was woken.
    async fn put_off(
        &mut self,
        id: RequestId,
        failures: i64,
        until: Timestamp,
    ) -> Result<bool, StoreError>;
}

/// The longest that what could not be judged is put off, in milliseconds. What is put off until more than twice
/// as long after now was put off by a wrong clock, and is due.
pub const PUT_OFF_MS_MAX: i64 = 32_000;

/// What a transaction waits for before it is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRequest {
    /// The transaction.
    pub request: RequestId,
    /// SHA-256 of `terms`: what an approval names.
    pub hash: B256,
    /// The text that people approve; see [`crate::core::approval::Terms`].
    pub terms: String,
    /// Who must approve; empty where it only has to wait.
    pub quorums: Vec<Quorum>,
    /// The bundle that says so.
    pub bundle: B256,
    /// When it was asked.
    pub asked_at: Timestamp,
    /// When the delay is over, or until when it may be approved.
    pub due_at: Timestamp,
    /// When it is to be looked at next.
    pub wake_at: Timestamp,
    /// When these terms let it go on.
    pub released_at: Option<Timestamp>,
}

/// A waiting transaction that is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueRequest {
    /// Which.
    pub request: RequestId,
    /// Until when it was put off; the epoch if it was not.
    pub retry_at: Timestamp,
    /// How often it could not be judged, one time after the other.
    pub failures: i64,
}

/// Which waiting transactions are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitingFilter {
    /// Only in this status, `delayed` or `awaiting_approval`.
    pub status: Option<Status>,
    /// Only of this requester, by `sub`.
    pub requester: Option<String>,
    /// Only older than this order number.
    pub before_seq: Option<i64>,
}

/// An approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenApproval {
    /// Of which transaction.
    pub request: RequestId,
    /// Of which terms.
    pub hash: B256,
    /// Who.
    pub who: Principal,
    /// Why, in their words; may be empty.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Destinations that a transaction uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedDestinations {
    /// On which chain.
    pub chain: ChainId,
    /// For whom they are known from now on: a group, or a key without one.
    pub scope: String,
    /// Which.
    pub destinations: BTreeSet<Address>,
    /// By which transaction.
    pub request: RequestId,
    /// Now.
    pub at: Timestamp,
}
