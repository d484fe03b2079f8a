//! Delays, approvals and the destinations that were used before.

use super::column::{address, corrupt, exactly_one, hash, parsed, to_i64};
use super::requests::insert_transaction_as;
use super::rows::TransactionColumns;
use super::statement::{Tx, values};
use super::waiting;
use crate::core::id::{ChainId, RequestId};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::ports::store::{
    Approvals, DueRequest, GivenApproval, NewTransaction, StoreError, TransactionRow,
    UsedDestinations, WaitingFilter, WaitingRequest,
};
use alloy::primitives::{Address, B256};
use async_trait::async_trait;
use sqlx::FromRow;
use std::collections::BTreeSet;

statements! {
    PUT_WAITING = "INSERT INTO waiting_requests (request_id, hash, terms, quorums, bundle, asked_at, \
        due_at, wake_at, released_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
        ON CONFLICT (request_id) DO UPDATE SET hash = excluded.hash, terms = excluded.terms, \
        quorums = excluded.quorums, bundle = excluded.bundle, asked_at = excluded.asked_at, \
        due_at = excluded.due_at, wake_at = excluded.wake_at, released_at = excluded.released_at, \
        failures = 0, retry_at = 0";
    WAITING_REQUEST = "SELECT * FROM waiting_requests WHERE request_id = $1";
    WAKE = "UPDATE waiting_requests SET wake_at = $2, failures = 0, retry_at = 0 \
        WHERE request_id = $1";
    RELEASE_TERMS = "UPDATE waiting_requests SET released_at = $3 \
        WHERE request_id = $1 AND hash = $2 AND released_at IS NULL";
    WAITING_PAGE = "SELECT * FROM transactions WHERE status IN ('delayed', 'awaiting_approval') \
        AND (status = $1 OR $1 IS NULL) AND (sub = $2 OR $2 IS NULL) AND seq < $3 \
        ORDER BY seq DESC LIMIT $4";
    INSERT_APPROVAL = "INSERT INTO approvals (request_id, hash, sub, iss, reason, approved_at) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (request_id, hash, sub) DO NOTHING";
    APPROVALS_OF = "SELECT * FROM approvals WHERE request_id = $1 ORDER BY approved_at, sub, hash";
    USE_DESTINATION = "INSERT INTO used_destinations (chain_id, scope, destination, request_id, used_at) \
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (chain_id, scope, destination) DO NOTHING";
    USED_DESTINATION = "SELECT destination FROM used_destinations \
        WHERE chain_id = $1 AND scope = $2 AND destination = $3";
}

#[derive(FromRow)]
struct WaitingColumns {
    request_id: String,
    hash: Vec<u8>,
    terms: String,
    quorums: String,
    bundle: Vec<u8>,
    asked_at: i64,
    due_at: i64,
    wake_at: i64,
    released_at: Option<i64>,
}

#[derive(FromRow)]
struct ApprovalColumns {
    request_id: String,
    hash: Vec<u8>,
    sub: String,
    iss: String,
    reason: String,
    approved_at: i64,
}

#[derive(FromRow)]
struct DestinationColumn {
    destination: Vec<u8>,
}

impl WaitingColumns {
    fn read(self) -> Result<WaitingRequest, StoreError> {
        let quorums = serde_json::from_str(&self.quorums);
        Ok(WaitingRequest {
            request: parsed(&self.request_id)?,
            hash: hash(&self.hash)?,
            terms: self.terms,
            quorums: quorums.map_err(|_| corrupt("a list of quorums"))?,
            bundle: hash(&self.bundle)?,
            asked_at: Timestamp::from_millis(self.asked_at),
            due_at: Timestamp::from_millis(self.due_at),
            wake_at: Timestamp::from_millis(self.wake_at),
            released_at: self.released_at.map(Timestamp::from_millis),
        })
    }
}

impl ApprovalColumns {
    fn read(self) -> Result<GivenApproval, StoreError> {
        Ok(GivenApproval {
            request: parsed(&self.request_id)?,
            hash: hash(&self.hash)?,
            who: Principal { iss: self.iss, sub: self.sub },
            reason: self.reason,
            at: Timestamp::from_millis(self.approved_at),
        })
    }
}

async fn put_waiting(tx: &mut Tx, wait: &WaitingRequest) -> Result<(), StoreError> {
    // Maps of texts to numbers always serialise.
    let quorums = serde_json::to_string(&wait.quorums).unwrap_or_default();
    let values = values![
        wait.request.to_string(),
        wait.hash.as_slice(),
        wait.terms.as_str(),
        quorums,
        wait.bundle.as_slice(),
        wait.asked_at.millis(),
        wait.due_at.millis(),
        wait.wake_at.millis(),
        wait.released_at.map(|at| at.millis()),
    ];
    let rows = tx.execute(PUT_WAITING, values).await?;
    exactly_one(tx, "put_waiting", rows)
}

async fn waiting_request(tx: &mut Tx, id: RequestId) -> Result<Option<WaitingRequest>, StoreError> {
    let row = tx.one::<WaitingColumns>(WAITING_REQUEST, values![id.to_string()]).await?;
    row.map(WaitingColumns::read).transpose()
}

async fn waiting_page(
    tx: &mut Tx,
    filter: &WaitingFilter,
    most: i64,
) -> Result<Vec<TransactionRow>, StoreError> {
    let status = filter.status.map(|status| status.name().to_owned());
    let before = filter.before_seq.unwrap_or(i64::MAX);
    let values = values![status, filter.requester.clone(), before, most];
    let rows = tx.all::<TransactionColumns>(WAITING_PAGE, values).await?;
    rows.into_iter().map(TransactionColumns::read).collect()
}

async fn insert_approval(tx: &mut Tx, approval: &GivenApproval) -> Result<bool, StoreError> {
    let values = values![
        approval.request.to_string(),
        approval.hash.as_slice(),
        approval.who.sub.as_str(),
        approval.who.iss.as_str(),
        approval.reason.as_str(),
        approval.at.millis(),
    ];
    Ok(tx.execute(INSERT_APPROVAL, values).await? == 1)
}

async fn approvals_of(tx: &mut Tx, id: RequestId) -> Result<Vec<GivenApproval>, StoreError> {
    let rows = tx.all::<ApprovalColumns>(APPROVALS_OF, values![id.to_string()]).await?;
    rows.into_iter().map(ApprovalColumns::read).collect()
}

/// In the order of the addresses, so that two units that use the same ones wait for each other in one order.
async fn use_destinations(tx: &mut Tx, used: &UsedDestinations) -> Result<(), StoreError> {
    for destination in &used.destinations {
        let values = values![
            to_i64(used.chain.get())?,
            used.scope.as_str(),
            destination.as_slice(),
            used.request.to_string(),
            used.at.millis(),
        ];
        tx.execute(USE_DESTINATION, values).await?;
    }
    Ok(())
}

async fn used_among(
    tx: &mut Tx,
    chain: ChainId,
    scope: &str,
    destinations: &BTreeSet<Address>,
) -> Result<BTreeSet<Address>, StoreError> {
    let mut known = BTreeSet::new();
    for destination in destinations {
        let values = values![to_i64(chain.get())?, scope, destination.as_slice()];
        if let Some(row) = tx.one::<DestinationColumn>(USED_DESTINATION, values).await? {
            known.insert(address(&row.destination)?);
        }
    }
    Ok(known)
}

// Whatever an operation meets forbids the commit: `kept`.
#[async_trait]
impl Approvals for Tx {
    async fn insert_waiting(
        &mut self,
        row: &NewTransaction,
        status: Status,
        wait: &WaitingRequest,
    ) -> Result<(), StoreError> {
        let stored = insert_transaction_as(self, row, status).await;
        self.kept(stored)?;
        let put = put_waiting(self, wait).await;
        self.kept(put)
    }

    async fn put_waiting(&mut self, wait: &WaitingRequest) -> Result<(), StoreError> {
        let put = put_waiting(self, wait).await;
        self.kept(put)
    }

    async fn waiting_request(
        &mut self,
        id: RequestId,
    ) -> Result<Option<WaitingRequest>, StoreError> {
        let found = waiting_request(self, id).await;
        self.kept(found)
    }

    async fn wake(&mut self, id: RequestId, at: Timestamp) -> Result<(), StoreError> {
        let woken = self.execute(WAKE, values![id.to_string(), at.millis()]).await;
        let rows = self.kept(woken)?;
        exactly_one(self, "wake", rows)
    }

    async fn release_terms(
        &mut self,
        id: RequestId,
        hash: B256,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        let values = values![id.to_string(), hash.as_slice(), at.millis()];
        let released = self.execute(RELEASE_TERMS, values).await;
        self.kept(released).map(|rows| rows == 1)
    }

    async fn due_requests(
        &mut self,
        now: Timestamp,
        bundle: B256,
        after: Option<DueRequest>,
        most: i64,
    ) -> Result<Vec<DueRequest>, StoreError> {
        let found = waiting::due_requests(self, now, bundle, after, most).await;
        self.kept(found)
    }

    async fn waiting_page(
        &mut self,
        filter: &WaitingFilter,
        most: i64,
    ) -> Result<Vec<TransactionRow>, StoreError> {
        let found = waiting_page(self, filter, most).await;
        self.kept(found)
    }

    async fn insert_approval(&mut self, approval: &GivenApproval) -> Result<bool, StoreError> {
        let inserted = insert_approval(self, approval).await;
        self.kept(inserted)
    }

    async fn approvals_of(&mut self, id: RequestId) -> Result<Vec<GivenApproval>, StoreError> {
        let found = approvals_of(self, id).await;
        self.kept(found)
    }

    async fn use_destinations(&mut self, used: &UsedDestinations) -> Result<(), StoreError> {
        let noted = use_destinations(self, used).await;
        self.kept(noted)
    }

    async fn used_among(
        &mut self,
        chain: ChainId,
        scope: &str,
        destinations: &BTreeSet<Address>,
    ) -> Result<BTreeSet<Address>, StoreError> {
        let found = used_among(self, chain, scope, destinations).await;
        self.kept(found)
    }

    async fn has_room_to_wait(&mut self, sub: &str, most: i64) -> Result<bool, StoreError> {
        let found = waiting::has_room_to_wait(self, sub, most).await;
        self.kept(found)
    }

    async fn waits_below(&mut self, sub: &str, most: i64) -> Result<bool, StoreError> {
        let found = waiting::waits_below(self, sub, most).await;
        self.kept(found)
    }

    async fn tell_waiter(
        &mut self,
        sub: &str,
        now: Timestamp,
        every_ms: i64,
    ) -> Result<bool, StoreError> {
        let told = waiting::tell_waiter(self, sub, now, every_ms).await;
        self.kept(told)
    }

    async fn put_off(
        &mut self,
        id: RequestId,
        failures: i64,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let put = waiting::put_off(self, id, failures, until).await;
        self.kept(put)
    }
}
