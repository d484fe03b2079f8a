//! Cancel a transaction. Without a nonce it ends at once; with one, a no-op of the same nonce is sent, and
//! whichever is mined wins. The end is told when that block is final.

use crate::app::record::Instruction;
use crate::app::{App, AppError, follow, outbid, record, suspension};
use crate::core::audit::EncodedLeaf;
use crate::core::id::RequestId;
use crate::core::key::NonceMode;
use crate::core::tx::state::{Ending, Status};
use crate::ports::store::{
    End, LaneKey, NewEvent, StatusChange, StoreError, TransactionRow, Unit, look, unit,
};
use std::sync::Arc;

/// How often a row that changes under our hands is looked at again.
const TRIES: u8 = 8;

/// What became of it.
enum Found {
    /// It ended: it had no nonce.
    Ended,
    /// A no-op is to be sent.
    Begun,
    /// It was cancelled before.
    Before,
    /// It has changed meanwhile.
    Moved,
}

/// Cancels. What is cancelled already stays so.
///
/// # Errors
/// `NotFound`; `Conflict` where it is mined, or over. When the store does not answer. Whether the nodes
/// answer makes no difference: the no-op is sent as soon as they do.
pub async fn cancel(app: &App, id: RequestId, said: &Instruction) -> Result<(), AppError> {
    // What looks queued here may be mined.
    suspension::refuse(app).await?;
    for _ in 0..TRIES {
        let row = look(&*app.store, "transaction", move |unit| {
            Box::pin(async move { unit.transaction(id).await })
        })
        .await?;
        let row = row.ok_or(AppError::NotFound)?;
        match once(app, row, said).await? {
            Found::Moved => {}
            Found::Before => return Ok(()),
            Found::Ended => {
                crate::failpoint!("cancel.after_ended");
                app.changed_one(id);
                return Ok(());
            }
            Found::Begun => {
                app.changed_one(id);
                crate::failpoint!("cancel.after_begun");
                // Said is said: if it cannot be followed up now, the next look does.
                if let Err(error) = follow::follow_up(app, id).await {
                    tracing::warn!(request = %id, %error, "the no-op waits for the next look");
                }
                return Ok(());
            }
        }
    }
    Err(StoreError::Contended.into())
}

/// What is written.
struct Cancellation {
    lane: LaneKey,
    change: StatusChange,
    event: NewEvent,
    leaf: EncodedLeaf,
}

async fn once(app: &App, row: TransactionRow, said: &Instruction) -> Result<Found, AppError> {
    match row.status {
        Status::Cancelled => return Ok(Found::Before),
        Status::Cancelling if row.ending == Some(Ending::Cancelled) => return Ok(Found::Before),
        Status::Delayed | Status::AwaitingApproval | Status::Queued | Status::Submitted => {}
        Status::Cancelling
        | Status::Mined
        | Status::Finalized
        | Status::Reverted
        | Status::Expired
        | Status::Failed
        | Status::Rejected => return Err(conflict(&row, "cancelled")),
    }
    let now = app.clock.now();
    let is_queued = row.status.is_before_nonce();
    let (mut change, mut event) = outbid::begin(app, &row, Ending::Cancelled, None, now);
    if is_queued {
        change.status = Status::Cancelled;
        event = record::status_event(&row, Status::Cancelled, event.id, now);
    }
    let lane = LaneKey {
        chain: row.new.intent.chain.id,
        address: row.new.address,
        key: row.new.key,
        mode: NonceMode::Managed,
    };
    let leaf = record::instructed(row.new.id, "cancel", said, now)?;
    let work = Arc::new(Cancellation { lane, change, event, leaf });
    let stored = unit(&*app.store, "cancel", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let stored = store(unit, &work).await?;
            Ok(if stored { End::Commit(true) } else { End::Rollback(false) })
        })
    })
    .await?;
    Ok(match (stored, is_queued) {
        (false, _) => Found::Moved,
        (true, true) => Found::Ended,
        (true, false) => Found::Begun,
    })
}

/// Without the lane's lease, on purpose: an operator's word is written wherever it arrives. It decides no
/// version and takes no nonce; the row's version keeps it apart from whoever works the lane, whose next
/// look sends the no-op.
async fn store(unit: &mut dyn Unit, work: &Cancellation) -> Result<bool, StoreError> {
    // Whoever gives nonces holds the lane, and takes limits after it: so does this.
    unit.lock_lane(&work.lane).await?;
    if unit.suspension().await?.is_some() || !unit.advance(&work.change).await? {
        return Ok(false);
    }
    if work.change.status == Status::Cancelled {
        // It was never signed: what it held is free, and its event may be answered.
        unit.release(&work.change.id.to_string()).await?;
        unit.free_events(work.change.id).await?;
    }
    unit.append_leaf(&work.leaf).await?;
    unit.append_event(&work.event).await?;
    Ok(true)
}

/// What is mined or over cannot be changed.
pub(crate) fn conflict(row: &TransactionRow, wish: &str) -> AppError {
    let detail = match row.status {
        Status::Cancelling => "a no-op is taking its nonce already".to_owned(),
        Status::Mined => format!("it is mined, and can no longer be {wish}"),
        status => format!("it is {status}, and cannot be {wish}"),
    };
    AppError::Conflict { detail, request: Some(row.new.id) }
}
