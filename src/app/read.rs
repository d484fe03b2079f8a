//! Read what was asked before.

use crate::app::{App, AppError, key_scopes};
use crate::core::id::RequestId;
use crate::core::key::OperatorKey;
use crate::core::principal::Principal;
use crate::ports::store::{
    AttemptRow, Filter, GivenApproval, KeyFilter, LogHead, SignatureRow, StoreError,
    TransactionRow, Unit, WaitingRequest, look,
};
use alloy::primitives::B256;

/// A transaction with its attempts.
#[derive(Debug, Clone)]
pub struct FullTransaction {
    /// The transaction.
    pub row: TransactionRow,
    /// Its attempts, in order.
    pub attempts: Vec<AttemptRow>,
    /// What it waits for, and who approved it, while it waits for time or people.
    pub waits: Option<(WaitingRequest, Vec<GivenApproval>)>,
}

async fn full(unit: &mut dyn Unit, row: TransactionRow) -> Result<FullTransaction, StoreError> {
    let id = row.new.id;
    let mut waits = None;
    if row.status.is_waiting()
        && let Some(wait) = unit.waiting_request(id).await?
    {
        waits = Some((wait, unit.approvals_of(id).await?));
    }
    Ok(FullTransaction { attempts: unit.attempts(id).await?, row, waits })
}

/// A transaction. With `only`, another principal's is not found.
///
/// # Errors
/// When there is none, or the store does not answer.
pub async fn transaction(
    app: &App,
    id: RequestId,
    only: Option<Principal>,
) -> Result<FullTransaction, AppError> {
    let found = look(&*app.store, "read_transaction", move |unit| {
        Box::pin(async move {
            let Some(row) = unit.transaction(id).await? else {
                return Ok(None);
            };
            full(unit, row).await.map(Some)
        })
    })
    .await?;
    found
        .filter(|found| {
            let whose = &found.row.new.principal;
            only.is_none_or(|principal| app.key_scopes.share(&principal, whose))
        })
        .ok_or(AppError::NotFound)
}

/// The request that an idempotency key of this principal is bound to.
///
/// # Errors
/// When the store does not answer.
pub async fn bound_to(
    app: &App,
    principal: &Principal,
    key: &str,
) -> Result<Option<RequestId>, AppError> {
    let bound = key_scopes::bound(app, principal, key).await?;
    Ok(bound.map(|(binding, _)| binding.request))
}

/// The transaction of which an attempt has this hash.
///
/// # Errors
/// When the store does not answer.
pub async fn request_of(app: &App, hash: B256) -> Result<Option<RequestId>, AppError> {
    let found = look(&*app.store, "request_of_hash", move |unit| {
        Box::pin(async move { unit.request_of_hash(hash).await })
    });
    Ok(found.await?)
}

/// Transactions that match, newest first, with their attempts. Where only one principal's are asked for, with those
/// of all who share its keys, as in [`transaction`].
///
/// # Errors
/// When the store does not answer.
pub async fn transactions(app: &App, filter: Filter) -> Result<Vec<FullTransaction>, AppError> {
    let who = filter.principal.as_ref();
    let whose = who.map_or_else(Vec::new, |who| app.key_scopes.members(who));
    let each = whose.into_iter().map(|it| Filter { principal: Some(it), ..filter.clone() });
    let mut filters: Vec<Filter> = each.collect();
    let most = usize::try_from(filter.limit).unwrap_or(0);
    if filters.is_empty() {
        filters.push(filter);
    }
    let found = look(&*app.store, "list_transactions", move |unit| {
        let filters = filters.clone();
        Box::pin(async move {
            let mut rows = Vec::new();
            for filter in &filters {
                rows.extend(unit.transactions(filter).await?);
            }
            rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
            rows.truncate(most);
            let mut found = Vec::new();
            for row in rows {
                found.push(full(unit, row).await?);
            }
            Ok(found)
        })
    })
    .await?;
    Ok(found)
}

/// A request for a signature. With `only`, another principal's is not found.
///
/// # Errors
/// When there is none, or the store does not answer.
pub async fn signature(
    app: &App,
    id: RequestId,
    only: Option<Principal>,
) -> Result<SignatureRow, AppError> {
    let found = look(&*app.store, "read_signature", move |unit| {
        Box::pin(async move { unit.signature(id).await })
    })
    .await?;
    found
        .filter(|found| only.is_none_or(|principal| found.new.principal == principal))
        .ok_or(AppError::NotFound)
}

/// Keys that match, oldest first.
///
/// # Errors
/// When the store does not answer.
pub async fn keys(app: &App, filter: KeyFilter) -> Result<Vec<OperatorKey>, AppError> {
    let found = look(&*app.store, "keys_page", move |unit| {
        let filter = filter.clone();
        Box::pin(async move { unit.keys_page(&filter).await })
    })
    .await?;
    Ok(found)
}

/// The audit log's head, and how many leaves are not in it yet.
///
/// # Errors
/// When the store does not answer.
pub async fn log_head(app: &App) -> Result<(LogHead, i64), AppError> {
    let head = look(&*app.store, "log_head", |unit| {
        Box::pin(async move { Ok((unit.log_head().await?, unit.waiting_leaf_count().await?)) })
    })
    .await?;
    Ok(head)
}

/// The newest signed checkpoint of the audit log, as the signed note. `None` before the first.
///
/// # Errors
/// When the store does not answer.
pub async fn signed_checkpoint(app: &App) -> Result<Option<String>, AppError> {
    let newest = look(&*app.store, "newest_checkpoint", |unit| {
        Box::pin(async move { unit.newest_checkpoint().await })
    })
    .await?;
    Ok(newest.map(|signed| signed.note))
}
