//! Send stored bytes. Ambiguous means sent: the same bytes again, never a new nonce.

use crate::app::sign::Signed;
use crate::app::{App, AppError, ChainRuntime};
use crate::ports::chain::Broadcast;
use crate::ports::store::{End, Sent, look, unit};

/// Hands the bytes to the nodes and records that it did. Whatever they answer, the transaction is followed
/// from here on.
///
/// # Errors
/// When the store does not answer. The bytes may have been taken.
pub async fn send(app: &App, chain: &ChainRuntime, signed: &Signed) -> Result<(), AppError> {
    let raw = signed.attempt.raw.as_ref();
    let raw = raw.ok_or_else(|| AppError::internal("an attempt without bytes cannot be sent"))?;
    crate::failpoint!("send.before_broadcast");
    if !is_wanted(app, signed).await? {
        tracing::info!(request = %signed.request, "not sent: a no-op is to take its nonce");
        return Ok(());
    }
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
    unit(&*app.store, "mark_sent", move |unit| {
        let sent = sent.clone();
        Box::pin(async move {
            unit.mark_sent(request, number, &sent, at).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("send.after_recorded");
    Ok(())
}

/// What was asked is not sent any more once it was cancelled, however long its bytes have been on their way
/// here.
async fn is_wanted(app: &App, signed: &Signed) -> Result<bool, AppError> {
    let (request, is_no_op) = (signed.request, signed.attempt.is_no_op());
    let row = look(&*app.store, "transaction", move |unit| {
        Box::pin(async move { unit.transaction(request).await })
    })
    .await?;
    Ok(row.is_some_and(|row| is_no_op || row.ending.is_none()))
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
