//! The port, operation by operation.

use super::statement::Tx;
use super::{attempts, audit, keys, lanes, requests, signatures, spend};
use crate::core::audit::EncodedLeaf;
use crate::core::id::{ChainId, GroupName, KeyId, RequestId};
use crate::core::key::{OperatorKey, PublicKey};
use crate::core::permit::DecisionRecord;
use crate::core::policy::Charge;
use crate::core::policy::verdict::EventUse;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    AttemptRow, Bound, Filter, KeyBinding, Lane, LaneKey, LimitExceeded, LimitRow, LogBatch,
    LogHead, LogLeaf, NewAttempt, NewEvent, NewKey, NewSignatureRequest, NewTransaction,
    Settlement, SignatureRow, SignedAttempt, StatusChange, StoreError, TransactionRow, Unit,
    WaitingLeaf,
};
use alloy::primitives::{Address, B256};
use async_trait::async_trait;

#[async_trait]
impl Unit for Tx {
    async fn bind_key(&mut self, bind: &KeyBinding) -> Result<Bound, StoreError> {
        requests::bind_key(self, bind).await
    }

    async fn bound_key(
        &mut self,
        scope: &str,
        key: &str,
    ) -> Result<Option<KeyBinding>, StoreError> {
        requests::bound_key(self, scope, key).await
    }

    async fn claim_event(
        &mut self,
        event: &EventUse,
        request: RequestId,
    ) -> Result<Option<RequestId>, StoreError> {
        requests::claim_event(self, event, request).await
    }

    async fn insert_transaction(&mut self, row: &NewTransaction) -> Result<(), StoreError> {
        requests::insert_transaction(self, row).await
    }

    async fn transaction(&mut self, id: RequestId) -> Result<Option<TransactionRow>, StoreError> {
        requests::transaction(self, id).await
    }

    async fn transactions(&mut self, filter: &Filter) -> Result<Vec<TransactionRow>, StoreError> {
        requests::transactions(self, filter).await
    }

    async fn open_transactions(
        &mut self,
        chain: ChainId,
    ) -> Result<Vec<TransactionRow>, StoreError> {
        requests::open_transactions(self, chain).await
    }

    async fn count_by_status(&mut self) -> Result<Vec<(Status, i64)>, StoreError> {
        requests::count_by_status(self).await
    }

    async fn advance(&mut self, change: &StatusChange) -> Result<bool, StoreError> {
        requests::advance(self, change).await
    }

    async fn lock_lane(&mut self, open: &LaneKey) -> Result<Lane, StoreError> {
        lanes::lock_lane(self, open).await
    }

    async fn lane(&mut self, chain: ChainId, address: Address) -> Result<Option<Lane>, StoreError> {
        lanes::lane(self, chain, address).await
    }

    async fn lanes(&mut self, chain: ChainId) -> Result<Vec<Lane>, StoreError> {
        lanes::lanes(self, chain).await
    }

    async fn next_queued(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Option<TransactionRow>, StoreError> {
        lanes::next_queued(self, chain, address).await
    }

    async fn waiting_accounts(&mut self, chain: ChainId) -> Result<Vec<Address>, StoreError> {
        lanes::waiting_accounts(self, chain).await
    }

    async fn in_flight(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<(i64, i64), StoreError> {
        lanes::in_flight(self, chain, address).await
    }

    async fn owed(
        &mut self,
        chain: ChainId,
        address: Address,
    ) -> Result<Vec<TransactionRow>, StoreError> {
        lanes::owed(self, chain, address).await
    }

    async fn take_nonce(
        &mut self,
        lane: &Lane,
        transaction: &TransactionRow,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        lanes::take_nonce(self, lane, transaction, now).await
    }

    async fn halt_lane(
        &mut self,
        chain: ChainId,
        address: Address,
        reason: &str,
    ) -> Result<(), StoreError> {
        lanes::halt_lane(self, chain, address, reason).await
    }

    async fn insert_attempt(&mut self, row: &NewAttempt) -> Result<bool, StoreError> {
        attempts::insert_attempt(self, row).await
    }

    async fn decision(
        &mut self,
        request: RequestId,
        attempt: i64,
    ) -> Result<Option<DecisionRecord>, StoreError> {
        attempts::decision(self, request, attempt).await
    }

    async fn attempts(&mut self, request: RequestId) -> Result<Vec<AttemptRow>, StoreError> {
        attempts::attempts(self, request).await
    }

    async fn unsigned_attempts(&mut self) -> Result<Vec<(RequestId, i64)>, StoreError> {
        attempts::unsigned_attempts(self).await
    }

    async fn store_signature(&mut self, signed: &SignedAttempt) -> Result<bool, StoreError> {
        attempts::store_signature(self, signed).await
    }

    async fn mark_sent(
        &mut self,
        request: RequestId,
        attempt: i64,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        attempts::mark_sent(self, request, attempt, at).await
    }

    async fn insert_signature(&mut self, row: &NewSignatureRequest) -> Result<(), StoreError> {
        signatures::insert_signature(self, row).await
    }

    async fn signature(&mut self, id: RequestId) -> Result<Option<SignatureRow>, StoreError> {
        signatures::signature(self, id).await
    }

    async fn unsettled_signatures(
        &mut self,
        chain: ChainId,
    ) -> Result<Vec<SignatureRow>, StoreError> {
        signatures::unsettled_signatures(self, chain).await
    }

    async fn mark_settled(&mut self, owner: &str) -> Result<(), StoreError> {
        signatures::mark_settled(self, owner).await
    }

    async fn reserve(
        &mut self,
        owner: &str,
        charges: &[Charge],
        now: Timestamp,
    ) -> Result<Option<LimitExceeded>, StoreError> {
        spend::reserve(self, owner, charges, now).await
    }

    async fn settle(
        &mut self,
        owner: &str,
        outcome: Settlement,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        spend::settle(self, owner, outcome, now).await
    }

    async fn release(&mut self, owner: &str) -> Result<(), StoreError> {
        spend::release(self, owner).await
    }

    async fn limits(&mut self) -> Result<Vec<LimitRow>, StoreError> {
        spend::limits(self).await
    }

    async fn begin_key(&mut self, key: &NewKey) -> Result<bool, StoreError> {
        keys::begin_key(self, key).await
    }

    async fn pin_key(&mut self, id: KeyId, public_key: &PublicKey) -> Result<bool, StoreError> {
        keys::pin_key(self, id, public_key).await
    }

    async fn unfinished_keys(&mut self) -> Result<Vec<NewKey>, StoreError> {
        keys::unfinished_keys(self).await
    }

    async fn keys(&mut self) -> Result<Vec<OperatorKey>, StoreError> {
        keys::keys(self).await
    }

    async fn group_keys(&mut self, group: &GroupName) -> Result<Vec<OperatorKey>, StoreError> {
        keys::group_keys(self, group).await
    }

    async fn pin_chain(&mut self, chain: ChainId, genesis: B256) -> Result<B256, StoreError> {
        keys::pin_chain(self, chain, genesis).await
    }

    async fn append_leaf(&mut self, leaf: &EncodedLeaf) -> Result<(), StoreError> {
        audit::append_leaf(self, leaf).await
    }

    async fn waiting_leaves(&mut self, most: i64) -> Result<Vec<WaitingLeaf>, StoreError> {
        audit::waiting_leaves(self, most).await
    }

    async fn waiting_leaf_count(&mut self) -> Result<i64, StoreError> {
        audit::waiting_leaf_count(self).await
    }

    async fn append_log(&mut self, batch: &LogBatch) -> Result<bool, StoreError> {
        audit::append_log(self, batch).await
    }

    async fn log_head(&mut self) -> Result<LogHead, StoreError> {
        audit::log_head(self).await
    }

    async fn log_nodes(&mut self, indexes: &[u64]) -> Result<Vec<[u8; 32]>, StoreError> {
        audit::log_nodes(self, indexes).await
    }

    async fn log_leaves(&mut self, from: u64, most: i64) -> Result<Vec<LogLeaf>, StoreError> {
        audit::log_leaves(self, from, most).await
    }

    async fn append_event(&mut self, event: &NewEvent) -> Result<(), StoreError> {
        requests::append_event(self, event).await
    }

    async fn events_of(&mut self, subject: &str) -> Result<Vec<NewEvent>, StoreError> {
        requests::events_of(self, subject).await
    }

    async fn meta(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        requests::meta(self, name).await
    }

    async fn set_meta(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        requests::set_meta(self, name, value).await
    }
}
