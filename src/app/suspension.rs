//! While the database may be older than the chain, the server waits: what is stored is read, followed, sent
//! again and settled, and nothing new is accepted, given a nonce, decided or signed, until an operator has
//! run `claviger reconcile`. The state is a row of the database, looked at in the units themselves.

use crate::app::{App, AppError, chains, record};
use crate::core::id::KeyId;
use crate::core::key::NonceMode;
use crate::core::time::Timestamp;
use crate::ports::chain::BlockAt;
use crate::ports::store::{
    DATABASE_IDENTITY, End, Lane, LaneKey, Store, StoreError, Suspension, Unit, known_identity,
    look, other_copy, unit,
};
use alloy::primitives::Address;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many accounts of a chain are compared with it before the server is ready.
const COMPARED_MAX: usize = 1_024;
/// How many of them at once.
const COMPARED_AT_ONCE: usize = 8;

/// The copy of the database that was told of in the log as another one.
const TOLD: &str = "database_identity_told";

/// Has the server wait, with an alarm in the log. `false` if it does already.
///
/// # Errors
/// When the store does not answer.
pub async fn suspend(store: &dyn Store, reason: &str, now: Timestamp) -> Result<bool, StoreError> {
    suspend_and_tell(store, reason, None, now).await
}

/// As [`suspend`]. Where it is for another copy of the database, a connection of the store that met it may have
/// had the server wait already, without a leaf: the alarm is in the log once for each copy.
async fn suspend_and_tell(
    store: &dyn Store,
    reason: &str,
    copy: Option<&str>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let why = Arc::new(Suspension { reason: reason.to_owned(), since: now });
    let leaf = Arc::new(record::alarm("database", reason, now)?);
    let copy: Option<Arc<str>> = copy.map(Arc::from);
    let new = unit(store, "suspend", move |unit| {
        let (why, leaf, copy) = (why.clone(), leaf.clone(), copy.clone());
        Box::pin(async move {
            let mut is_news = unit.suspend(&why).await?;
            if let Some(copy) = copy {
                is_news |= unit.meta(TOLD).await?.as_deref() != Some(&*copy);
                if is_news {
                    unit.set_meta(TOLD, &copy).await?;
                }
            }
            if !is_news {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(&leaf).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    if new {
        tracing::error!(reason, "ALARM: nothing is signed until `claviger reconcile` has run");
    }
    crate::failpoint!("suspension.after_suspend");
    Ok(new)
}

/// Why the server waits, if it does.
///
/// # Errors
/// When the store does not answer.
pub async fn current(store: &dyn Store) -> Result<Option<Suspension>, StoreError> {
    look(store, "suspension", |unit| Box::pin(async move { unit.suspension().await })).await
}

/// Refuses what would sign or spend while the server waits.
///
/// # Errors
/// `ReconcileRequired`. When the store does not answer.
pub async fn refuse(app: &App) -> Result<(), AppError> {
    match current(&*app.store).await? {
        Some(why) => Err(AppError::ReconcileRequired(why.reason)),
        None => Ok(()),
    }
}

/// Compares the database with the copy of it that was served last, by its own word. A copy that is seen for
/// the first time is remembered.
///
/// # Errors
/// When the store does not answer.
pub async fn check_identity(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    let Some(found) = store.identity().await? else {
        return Ok(());
    };
    let known = known_identity(store).await?;
    match known {
        None => remember_identity(store, found).await,
        Some(known) if known == found => Ok(()),
        Some(other) => {
            let reason = other_copy(&found, &other);
            suspend_and_tell(store, &reason, Some(&found), now).await.map(|_| ())
        }
    }
}

async fn remember_identity(store: &dyn Store, found: String) -> Result<(), StoreError> {
    unit(store, "remember_identity", move |unit| {
        let found = found.clone();
        Box::pin(async move { Ok(End::Commit(unit.set_meta(DATABASE_IDENTITY, &found).await?)) })
    })
    .await
}

/// What an operator looked at: the copy of the database, and why the server waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The copy, where the database can tell.
    pub identity: Option<String>,
    /// Why the server waits, if it does.
    pub suspension: Option<Suspension>,
}

/// How it stands now.
///
/// # Errors
/// When the store does not answer.
pub async fn standing(store: &dyn Store) -> Result<Standing, StoreError> {
    Ok(Standing { identity: store.identity().await?, suspension: current(store).await? })
}

/// One look, again and again: whether the server waits, for people to see; and whether the database has
/// become another copy under it.
///
/// # Errors
/// When the store does not answer.
pub async fn watch(app: &App) -> Result<(), AppError> {
    check_identity(&*app.store, app.clock.now()).await?;
    let waits = current(&*app.store).await?;
    metrics::gauge!("claviger_suspended").set(if waits.is_some() { 1.0 } else { 0.0 });
    if let Some(why) = waits {
        tracing::warn!(
            reason = why.reason,
            since = %why.since,
            "suspended: `claviger reconcile` must run"
        );
    }
    Ok(())
}

/// Compares managed accounts with their chain at the start: those of the tokens, also those that were never
/// used here, and those of wrapped keys that have a lane. A lane whose account has more mined transactions than
/// nonces were given stands still at once. What is not compared now, because a node does not answer or because
/// there are very many, is before its lane's first nonce.
///
/// # Errors
/// When the store does not answer.
pub async fn check_lanes(app: &App) -> Result<(), AppError> {
    for chain in app.chains.values() {
        let id = chain.settings.id;
        let (keys, lanes) = look(&*app.store, "managed_accounts", move |unit| {
            Box::pin(async move { Ok((unit.token_keys().await?, unit.lanes(id).await?)) })
        })
        .await?;
        let keys = keys.into_iter().filter(|key| key.mode == NonceMode::Managed);
        let keys = keys.map(|key| (key.address, key.id));
        let lanes = lanes.into_iter().filter(|lane| lane.mode == NonceMode::Managed);
        let lanes = lanes.map(|lane| (lane.address, lane.key));
        let accounts: BTreeMap<Address, KeyId> = keys.chain(lanes).collect();
        if accounts.is_empty() {
            continue;
        }
        if let Err(error) = chains::verify(app, chain).await {
            tracing::warn!(chain = %chain.settings.name, %error, "its lanes are compared later");
            continue;
        }
        if accounts.len() > COMPARED_MAX {
            let (all, now) = (accounts.len(), COMPARED_MAX);
            tracing::info!(chain = %chain.settings.name, all, now, "the others are compared later");
        }
        let compared = accounts.into_iter().take(COMPARED_MAX).map(|(address, key)| async move {
            // The chain first: what we give and mine meanwhile cannot look like a stranger's then.
            match chain.port.nonce(address, BlockAt::Latest).await {
                Ok(mined) if mined > 0 => {
                    let open = LaneKey { chain: id, address, key, mode: NonceMode::Managed };
                    check_lane(app, open, mined).await
                }
                _ => Ok(()),
            }
        });
        let compared = stream::iter(compared).buffer_unordered(COMPARED_AT_ONCE);
        compared.try_collect::<()>().await?;
    }
    Ok(())
}

async fn check_lane(app: &App, open: LaneKey, mined: u64) -> Result<(), AppError> {
    let now = app.clock.now();
    let (chain, address) = (open.chain, open.address);
    let halted = unit(&*app.store, "check_lane", move |unit| {
        let open = open.clone();
        Box::pin(async move {
            let lane = unit.lock_lane(&open).await?;
            Ok(match halt_if_ahead(unit, &lane, mined, now).await? {
                Some(reason) => End::Commit(Some(reason)),
                None => End::Rollback(None),
            })
        })
    })
    .await?;
    if let Some(reason) = halted {
        tracing::error!(%chain, %address, reason, "the lane was halted");
    }
    Ok(())
}

/// Halts a managed lane whose account has more mined transactions than nonces were given, if it does not stand
/// still already. Answers why.
pub(crate) async fn halt_if_ahead(
    unit: &mut dyn Unit,
    lane: &Lane,
    mined: u64,
    now: Timestamp,
) -> Result<Option<String>, StoreError> {
    let is_ahead = lane.mode == NonceMode::Managed && mined > lane.next_nonce;
    if lane.halted.is_some() || !is_ahead {
        return Ok(None);
    }
    let reason = format!(
        "the chain has mined {mined} transactions of this account, but only {} nonces were given",
        lane.next_nonce
    );
    unit.halt_lane(lane.chain, lane.address, &reason).await?;
    let account = format!("{}:{:#x}", lane.chain, lane.address);
    unit.append_leaf(&record::alarm(account, &reason, now)?).await?;
    Ok(Some(reason))
}
