//! Send stored bytes. Ambiguous means sent: the same bytes again, never a new nonce.

use crate::app::sign::{Signed, is_over};
use crate::app::{App, AppError, ChainRuntime, lease};
use crate::ports::chain::Broadcast;
use crate::ports::store::{End, Sent, look, unit};
use alloy::primitives::Address;
use std::sync::Arc;

/// Hands the bytes to the nodes of their chain and records that it did. Whatever they answer, the
/// transaction is followed from here on. Bytes that are their caller's to send are not sent.
///
/// # Errors
/// When the store does not answer. The bytes may have been taken.
pub async fn send(app: &App, signed: &Signed) -> Result<(), AppError> {
    let raw = signed.attempt.raw.as_ref();
    let raw = raw.ok_or_else(|| AppError::internal("an attempt without bytes cannot be sent"))?;
    crate::failpoint!("send.before_broadcast");
    let Some((chain, account)) = wanted_on(app, signed).await? else {
        return Ok(());
    };
    // What the nodes say now is told by who works the lane now.
    let lease = app.leases.of((chain.settings.id, account));
    let (answer, told) = chain.port.broadcast_told(raw).await;
    crate::failpoint!("send.after_broadcast");
    let (request, number) = (signed.request, signed.attempt.number);
    match &answer {
        Broadcast::Accepted | Broadcast::NonceTooLow => {
            tracing::debug!(%request, number, ?answer, "sent");
        }
        Broadcast::Underpriced
        | Broadcast::InsufficientFunds
        | Broadcast::Refused(_)
        | Broadcast::Ambiguous(_) => {
            tracing::warn!(%request, number, ?answer, "the nodes did not take the bytes");
        }
    }
    // Bytes that go out again are no attempt more.
    let again = signed.attempt.sent_at.is_some();
    let kind = if again { "resend".to_owned() } else { signed.attempt.reason.clone() };
    metrics::counter!("claviger_attempts_total", "kind" => kind).increment(1);
    let at = app.clock.now();
    let sent = sent(answer);
    let late = unit(&*app.store, "mark_sent", move |unit| {
        let (sent, told) = (sent.clone(), told.clone());
        Box::pin(async move {
            if let Some(lease) = &lease
                && !unit.holds_lease(lease).await?
            {
                return Ok(End::Rollback(Some(*lease)));
            }
            unit.mark_sent(request, number, &sent, &told, at).await?;
            Ok(End::Commit(None))
        })
    })
    .await?;
    if let Some(late) = late {
        lease::was_fenced(app, &late, "mark_sent");
    }
    crate::failpoint!("send.after_recorded");
    Ok(())
}

/// The chain to send it on; `None` where it is not ours to send. What was asked is not sent any more once
/// it was cancelled or its time is over, however long its bytes have been on their way here.
async fn wanted_on<'a>(
    app: &'a App,
    signed: &Signed,
) -> Result<Option<(&'a Arc<ChainRuntime>, Address)>, AppError> {
    let request = signed.request;
    let row = look(&*app.store, "transaction", move |unit| {
        Box::pin(async move { unit.transaction(request).await })
    })
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    if is_over(&row, &signed.attempt, app.clock.now()) {
        tracing::info!(%request, "not sent: a no-op is to take its nonce");
        return Ok(None);
    }
    Ok(app.chain_of(row.new.intent.chain.id).map(|chain| (chain, row.new.address)))
}

fn sent(answer: Broadcast) -> Sent {
    match answer {
        Broadcast::Accepted => Sent::Accepted,
        Broadcast::Refused(why) => Sent::Refused(why),
        Broadcast::InsufficientFunds => Sent::Unfunded,
        Broadcast::Ambiguous(_) => Sent::Unknown,
        Broadcast::Underpriced => Sent::Underpriced,
        Broadcast::NonceTooLow => Sent::Idle,
    }
}
