//! Send stored bytes. Ambiguous means sent: the same bytes again, never a new nonce.

use crate::app::sign::Signed;
use crate::app::{App, AppError, ChainRuntime, lease};
use crate::ports::chain::Broadcast;
use crate::ports::store::{End, Sent, TransactionRow, look, unit};

/// Hands the bytes to the nodes and records that it did. Whatever they answer, the transaction is followed
/// from here on.
///
/// # Errors
/// When the store does not answer. The bytes may have been taken.
pub async fn send(app: &App, chain: &ChainRuntime, signed: &Signed) -> Result<(), AppError> {
    let raw = signed.attempt.raw.as_ref();
    let raw = raw.ok_or_else(|| AppError::internal("an attempt without bytes cannot be sent"))?;
    crate::failpoint!("send.before_broadcast");
    let Some(row) = wanted(app, signed).await? else {
        tracing::info!(request = %signed.request, "not sent: a no-op is to take its nonce");
        return Ok(());
    };
    // What the nodes say now is told by who works the lane now.
    let lease = app.leases.of((row.new.intent.chain.id, row.new.address));
    let answer = chain.port.broadcast(raw).await;
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
    let told = unit(&*app.store, "mark_sent", move |unit| {
        let sent = sent.clone();
        Box::pin(async move {
            if let Some(lease) = &lease
                && !unit.holds_lease(lease).await?
            {
                return Ok(End::Rollback(Some(*lease)));
            }
            unit.mark_sent(request, number, &sent, at).await?;
            Ok(End::Commit(None))
        })
    })
    .await?;
    if let Some(late) = told {
        lease::was_fenced(app, &late, "mark_sent");
    }
    crate::failpoint!("send.after_recorded");
    Ok(())
}

/// What was asked is not sent any more once it was cancelled, however long its bytes have been on their way
/// here.
async fn wanted(app: &App, signed: &Signed) -> Result<Option<TransactionRow>, AppError> {
    let (request, is_no_op) = (signed.request, signed.attempt.is_no_op());
    let row = look(&*app.store, "transaction", move |unit| {
        Box::pin(async move { unit.transaction(request).await })
    })
    .await?;
    Ok(row.filter(|row| is_no_op || row.ending.is_none()))
}

fn sent(answer: Broadcast) -> Sent {
    match answer {
        Broadcast::Accepted => Sent::Accepted,
        Broadcast::Refused(why) => Sent::Refused(why),
        Broadcast::InsufficientFunds => Sent::Unfunded,
        Broadcast::Ambiguous(_) => Sent::Unknown,
        Broadcast::NonceTooLow | Broadcast::Underpriced => Sent::Idle,
    }
}
