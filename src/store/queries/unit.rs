//! The port, operation by operation.

use super::statement::Tx;
use super::{
    anchors, attempts, audit, keys, lanes, leases, reconcile, requests, signatures, spend, waits,
};
use crate::core::audit::EncodedLeaf;
use crate::core::id::{ChainId, GroupName, HolderId, KeyId, RequestId};
use crate::core::intent::Fees;
use crate::core::key::{OperatorKey, PublicKey};
use crate::core::permit::DecisionRecord;
use crate::core::policy::Charge;
use crate::core::policy::verdict::EventUse;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    Anchor, AttemptRow, Bound, DecisionSummary, Filter, KeyBinding, Lane, LaneAge, LaneKey,
    LaneLoad, Lease, LeaseRow, LimitExceeded, LimitNow, LimitUse, LogBatch, LogHead, LogLeaf,
    NewAttempt, NewEvent, NewKey, NewSignatureRequest, NewTransaction, Orphan, Owed, Payment,
    Place, Sent, Settlement, SignatureRow, SignedAttempt, SignedCheckpoint, StatusChange,
    StoreError, Suspension, TransactionRow, Unit, Wait, WaitingLeaf,
};
use alloy::primitives::{Address, B256};
use async_trait::async_trait;

/// Whatever an operation meets, a bad column as well as a failed statement, forbids the commit.
macro_rules! kept {
    ($tx:ident, $operation:expr) => {{
        let answer = $operation.await;
        $tx.kept(answer)
    }};
}

#[async_trait]
impl Unit for Tx {
    async fn bind_key(&mut self, bind: &KeyBinding) -> Result<Bound, StoreError> {
        kept!(self, requests::bind_key(self, bind))
    }

    async fn bound_key(
        &mut self,
        scope: &str,
        key: &str,
    ) -> Result<Option<KeyBinding>, StoreError> {
        kept!(self, requests::bound_key(self, scope, key))
    }

    async fn claim_event(
        &mut self,
        event: &EventUse,
        request: RequestId,
    ) -> Result<Option<RequestId>, StoreError> {
        kept!(self, requests::claim_event(self, event, request))
    }

    async fn free_events(&mut self, request: RequestId) -> Result<(), StoreError> {
        kept!(self, requests::free_events(self, request))
    }

    async fn insert_transaction(&mut self, row: &NewTransaction) -> Result<(), StoreError> {
        kept!(self, requests::insert_transaction(self, row))
    }

    async fn transaction(&mut self, id: RequestId) -> Result<Option<TransactionRow>, StoreError> {
        kept!(self, requests::transaction(self, id))
    }

    async fn transactions(&mut self, filter: &Filter) -> Result<Vec<TransactionRow>, StoreError> {
        kept!(self, requests::transactions(self, filter))
    }

    async fn count_by_status(&mut self) -> Result<Vec<(Status, i64)>, StoreError> {
        kept!(self, requests::count_by_status(self))
    }

    async fn advance(&mut self, change: &StatusChange) -> Result<bool, StoreError> {
        kept!(self, requests::advance(self, change))
    }

    async fn touch(&mut self, id: RequestId, version: i64) -> Result<bool, StoreError> {
        kept!(self, requests::touch(self, id, version))
    }

    async fn decide_again(
        &mut self,
        id: RequestId,
        fee_cap: Fees,
        decision: &DecisionSummary,
        decision_json: &str,
    ) -> Result<(), StoreError> {
        kept!(self, requests::decide_again(self, id, fee_cap, decision, decision_json))
    }

    async fn lock_lane(&mut self, open: &LaneKey) -> Result<Lane, StoreError> {
        kept!(self, lanes::lock_lane(self, open))
    }

    async fn lane(&mut self, chain: ChainId, address: Address) -> Result<Option<Lane>, StoreError> {
        kept!(self, lanes::lane(self, chain, address))
    }

    async fn lanes(&mut self, chain: ChainId) -> Result<Vec<Lane>, StoreError> {
        kept!(self, lanes::lanes(self, chain))
    }

    async fn next_queued(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Option<TransactionRow>, StoreError> {
        kept!(self, lanes::next_queued(self, chain, address))
    }

    async fn in_flight(&mut self, chain: ChainId, address: Address) -> Result<i64, StoreError> {
        kept!(self, lanes::in_flight(self, chain, address))
    }

    async fn owed(&mut self, chain: ChainId, address: Address) -> Result<Vec<Owed>, StoreError> {
        kept!(self, lanes::owed(self, chain, address))
    }

    async fn take_nonce(
        &mut self,
        lane: &Lane,
        transaction: &TransactionRow,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        kept!(self, lanes::take_nonce(self, lane, transaction, now))
    }

    async fn halt_lane(
        &mut self,
        chain: ChainId,
        address: Address,
        reason: &str,
    ) -> Result<(), StoreError> {
        kept!(self, lanes::halt_lane(self, chain, address, reason))
    }

    async fn loads(&mut self, chain: ChainId) -> Result<Vec<LaneLoad>, StoreError> {
        kept!(self, lanes::loads(self, chain))
    }

    async fn insert_attempt(&mut self, row: &NewAttempt) -> Result<bool, StoreError> {
        kept!(self, attempts::insert_attempt(self, row))
    }

    async fn decision(
        &mut self,
        request: RequestId,
        attempt: i64,
    ) -> Result<Option<DecisionRecord>, StoreError> {
        kept!(self, attempts::decision(self, request, attempt))
    }

    async fn attempts(&mut self, request: RequestId) -> Result<Vec<AttemptRow>, StoreError> {
        kept!(self, attempts::attempts(self, request))
    }

    async fn unsigned_attempts(&mut self) -> Result<Vec<(RequestId, i64)>, StoreError> {
        kept!(self, attempts::unsigned_attempts(self))
    }

    async fn store_signature(&mut self, signed: &SignedAttempt) -> Result<bool, StoreError> {
        kept!(self, attempts::store_signature(self, signed))
    }

    async fn mark_sent(
        &mut self,
        request: RequestId,
        attempt: i64,
        sent: &Sent,
        told: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        kept!(self, attempts::mark_sent(self, request, attempt, sent, told, at))
    }

    async fn insert_signature(&mut self, row: &NewSignatureRequest) -> Result<(), StoreError> {
        kept!(self, signatures::insert_signature(self, row))
    }

    async fn signature(&mut self, id: RequestId) -> Result<Option<SignatureRow>, StoreError> {
        kept!(self, signatures::signature(self, id))
    }

    async fn unsettled_signatures(
        &mut self,
        chain: ChainId,
    ) -> Result<Vec<SignatureRow>, StoreError> {
        kept!(self, signatures::unsettled_signatures(self, chain))
    }

    async fn mark_settled(&mut self, owner: &str) -> Result<bool, StoreError> {
        kept!(self, signatures::mark_settled(self, owner))
    }

    async fn reserve(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError> {
        kept!(self, spend::take(self, spend::all_of(owner, charges, false), now))
    }

    async fn spend(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError> {
        kept!(self, spend::take(self, spend::all_of(owner, charges, true), now))
    }

    async fn settle(
        &mut self,
        owner: &str,
        outcome: Settlement,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        kept!(self, spend::settle(self, owner, outcome, now))
    }

    async fn release(&mut self, owner: &str) -> Result<(), StoreError> {
        kept!(self, spend::release(self, owner))
    }

    async fn room(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Vec<LimitUse>, StoreError> {
        kept!(self, spend::room(self, owner, charges, now))
    }

    async fn limits_now(&mut self, now: Timestamp) -> Result<Vec<LimitNow>, StoreError> {
        kept!(self, spend::limits_now(self, now))
    }

    async fn begin_key(&mut self, key: &NewKey) -> Result<bool, StoreError> {
        kept!(self, keys::begin_key(self, key))
    }

    async fn pin_key(&mut self, id: KeyId, public_key: &PublicKey) -> Result<bool, StoreError> {
        kept!(self, keys::pin_key(self, id, public_key))
    }

    async fn unfinished_keys(&mut self) -> Result<Vec<NewKey>, StoreError> {
        kept!(self, keys::unfinished_keys(self))
    }

    async fn keys(&mut self) -> Result<Vec<OperatorKey>, StoreError> {
        kept!(self, keys::keys(self))
    }

    async fn group_keys(&mut self, group: &GroupName) -> Result<Vec<OperatorKey>, StoreError> {
        kept!(self, keys::group_keys(self, group))
    }

    async fn pin_chain(&mut self, chain: ChainId, genesis: B256) -> Result<B256, StoreError> {
        kept!(self, keys::pin_chain(self, chain, genesis))
    }

    async fn append_leaf(&mut self, leaf: &EncodedLeaf) -> Result<(), StoreError> {
        kept!(self, audit::append_leaf(self, leaf))
    }

    async fn waiting_leaves(&mut self, most: i64) -> Result<Vec<WaitingLeaf>, StoreError> {
        kept!(self, audit::waiting_leaves(self, most))
    }

    async fn waiting_leaf_count(&mut self) -> Result<i64, StoreError> {
        kept!(self, audit::waiting_leaf_count(self))
    }

    async fn append_log(&mut self, batch: &LogBatch) -> Result<bool, StoreError> {
        kept!(self, audit::append_log(self, batch))
    }

    async fn log_head(&mut self) -> Result<LogHead, StoreError> {
        kept!(self, audit::log_head(self))
    }

    async fn log_nodes(&mut self, indexes: &[u64]) -> Result<Vec<[u8; 32]>, StoreError> {
        kept!(self, audit::log_nodes(self, indexes))
    }

    async fn log_leaves(&mut self, from: u64, most: i64) -> Result<Vec<LogLeaf>, StoreError> {
        kept!(self, audit::log_leaves(self, from, most))
    }

    async fn log_nodes_between(
        &mut self,
        from: u64,
        below: u64,
    ) -> Result<Vec<(u64, [u8; 32])>, StoreError> {
        kept!(self, audit::log_nodes_between(self, from, below))
    }

    async fn long_text(&mut self, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        kept!(self, audit::long_text(self, hash))
    }

    async fn keep_checkpoint(&mut self, signed: &SignedCheckpoint) -> Result<bool, StoreError> {
        kept!(self, audit::keep_checkpoint(self, signed))
    }

    async fn newest_checkpoint(&mut self) -> Result<Option<SignedCheckpoint>, StoreError> {
        kept!(self, audit::newest_checkpoint(self))
    }

    async fn checkpoints(
        &mut self,
        from: u64,
        most: i64,
    ) -> Result<Vec<SignedCheckpoint>, StoreError> {
        kept!(self, audit::checkpoints(self, from, most))
    }

    async fn append_event(&mut self, event: &NewEvent) -> Result<(), StoreError> {
        kept!(self, requests::append_event(self, event))
    }

    async fn events_of(&mut self, subject: &str) -> Result<Vec<NewEvent>, StoreError> {
        kept!(self, requests::events_of(self, subject))
    }

    async fn meta(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        kept!(self, requests::meta(self, name))
    }

    async fn set_meta(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        kept!(self, requests::set_meta(self, name, value))
    }

    async fn anchor(&mut self, chain: ChainId) -> Result<Option<Anchor>, StoreError> {
        kept!(self, anchors::anchor(self, chain))
    }

    async fn raise_anchor(
        &mut self,
        chain: ChainId,
        number: u64,
        hash: B256,
    ) -> Result<(), StoreError> {
        kept!(self, anchors::raise_anchor(self, chain, number, hash))
    }

    async fn break_anchor(
        &mut self,
        chain: ChainId,
        anchor: &Anchor,
        reason: &str,
    ) -> Result<bool, StoreError> {
        kept!(self, anchors::break_anchor(self, chain, anchor, reason))
    }

    async fn replace_anchor(
        &mut self,
        chain: ChainId,
        anchor: Option<(u64, B256)>,
    ) -> Result<(), StoreError> {
        kept!(self, anchors::replace_anchor(self, chain, anchor))
    }

    async fn take_lease(
        &mut self,
        lane: (ChainId, Address),
        holder: HolderId,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Lease>, StoreError> {
        kept!(self, leases::take_lease(self, lane, holder, now, until))
    }

    async fn seize_lease(
        &mut self,
        lane: (ChainId, Address),
        holder: HolderId,
        until: Timestamp,
    ) -> Result<Lease, StoreError> {
        kept!(self, leases::seize_lease(self, lane, holder, until))
    }

    async fn holds_lease(&mut self, lease: &Lease) -> Result<bool, StoreError> {
        kept!(self, leases::holds_lease(self, lease))
    }

    async fn lease(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Option<LeaseRow>, StoreError> {
        kept!(self, leases::lease(self, chain, address))
    }

    async fn release_lease(&mut self, lease: &Lease) -> Result<(), StoreError> {
        kept!(self, leases::release_lease(self, lease))
    }

    async fn release_leases(&mut self, holder: HolderId) -> Result<(), StoreError> {
        kept!(self, leases::release_leases(self, holder))
    }

    async fn end_leases(&mut self) -> Result<(), StoreError> {
        kept!(self, leases::end_leases(self))
    }

    async fn busy_accounts(&mut self, chain: ChainId) -> Result<Vec<Address>, StoreError> {
        kept!(self, lanes::busy_accounts(self, chain))
    }

    async fn open_of(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<TransactionRow>, StoreError> {
        kept!(self, lanes::open_of(self, chain, address))
    }

    async fn next_expired(
        &mut self,
        chain: ChainId,
        address: Address,
        now: Timestamp,
    ) -> Result<Option<TransactionRow>, StoreError> {
        kept!(self, lanes::next_expired(self, chain, address, now))
    }

    async fn lane_ages(&mut self, chain: ChainId) -> Result<Vec<LaneAge>, StoreError> {
        kept!(self, lanes::lane_ages(self, chain))
    }

    async fn suspension(&mut self) -> Result<Option<Suspension>, StoreError> {
        kept!(self, reconcile::suspension(self))
    }

    async fn suspend(&mut self, why: &Suspension) -> Result<bool, StoreError> {
        kept!(self, reconcile::suspend(self, why))
    }

    async fn lift_suspension(&mut self) -> Result<(), StoreError> {
        kept!(self, reconcile::lift_suspension(self))
    }

    async fn insert_orphan(&mut self, orphan: &Orphan, at: Timestamp) -> Result<bool, StoreError> {
        kept!(self, reconcile::insert_orphan(self, orphan, at))
    }

    async fn orphans(
        &mut self,
        chain: ChainId,
        only_open: bool,
    ) -> Result<Vec<Orphan>, StoreError> {
        kept!(self, reconcile::orphans(self, chain, only_open))
    }

    async fn claim_orphan(&mut self, hash: B256, request: RequestId) -> Result<bool, StoreError> {
        kept!(self, reconcile::claim_orphan(self, hash, request))
    }

    async fn close_orphans(&mut self, chain: ChainId, address: Address) -> Result<u64, StoreError> {
        kept!(self, reconcile::close_orphans(self, chain, address))
    }

    async fn given_nonces(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<(u64, RequestId)>, StoreError> {
        kept!(self, reconcile::given_nonces(self, chain, address))
    }

    async fn adopt_nonce(
        &mut self,
        row: &TransactionRow,
        nonce: u64,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        kept!(self, reconcile::adopt_nonce(self, row, nonce, at))
    }

    async fn release_lane(&mut self, lane: &Lane, next_nonce: u64) -> Result<(), StoreError> {
        kept!(self, reconcile::release_lane(self, lane, next_nonce))
    }

    async fn every_lane(&mut self) -> Result<Vec<(ChainId, Address, u64)>, StoreError> {
        kept!(self, reconcile::every_lane(self))
    }

    async fn queued_of(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<TransactionRow>, StoreError> {
        kept!(self, reconcile::queued_of(self, chain, address))
    }

    async fn live_leases(&mut self, now: Timestamp) -> Result<i64, StoreError> {
        kept!(self, reconcile::live_leases(self, now))
    }

    async fn same_orphans(&mut self, same: &Payment) -> Result<Vec<Orphan>, StoreError> {
        kept!(self, reconcile::same_orphans(self, same))
    }

    async fn give_up_nonce(&mut self, id: RequestId) -> Result<bool, StoreError> {
        kept!(self, reconcile::give_up_nonce(self, id))
    }

    async fn claimed_by(&mut self, event: &EventUse) -> Result<Option<RequestId>, StoreError> {
        kept!(self, requests::claimed_by(self, event))
    }

    async fn note_wait(
        &mut self,
        id: RequestId,
        version: i64,
        wait: Option<&Wait>,
    ) -> Result<(), StoreError> {
        kept!(self, waits::note_wait(self, id, version, wait))
    }

    async fn place(&mut self, row: &TransactionRow) -> Result<Place, StoreError> {
        kept!(self, waits::place(self, row))
    }

    async fn next_payable(
        &mut self,
        chain: ChainId,
        address: Address,
        base_fee: u128,
        now: Timestamp,
    ) -> Result<Option<TransactionRow>, StoreError> {
        kept!(self, waits::next_payable(self, chain, address, base_fee, now))
    }

    async fn note_unpayable(
        &mut self,
        chain: ChainId,
        address: Address,
        base_fee: u128,
        wait: &Wait,
    ) -> Result<(), StoreError> {
        kept!(self, waits::note_unpayable(self, chain, address, base_fee, wait))
    }
}
