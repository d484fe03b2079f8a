//! Send stored bytes. Ambiguous means sent: the same bytes again, never a new nonce.

use crate::app::sign::Signed;
use crate::app::{App, AppError, ChainRuntime};
use crate::ports::chain::Broadcast;
use crate::ports::store::{End, unit};

/// Hands the bytes to the nodes and records that it did. Whatever they answer, the transaction is followed
/// from here on.
///
/// # Errors
/// When the store does not answer. The bytes may have been taken.
pub async fn send(app: &App, chain: &ChainRuntime, signed: &Signed) -> Result<(), AppError> {
    let raw = signed.attempt.raw.as_ref();
    let raw = raw.ok_or_else(|| AppError::internal("an attempt without bytes cannot be sent"))?;
    crate::failpoint!("send.before_broadcast");
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
    let kind = match (signed.attempt.sent_at, number) {
        (Some(_), _) => "resend",
        (None, 1) => "first",
        (None, _) => "replacement",
    };
    metrics::counter!("claviger_attempts_total", "kind" => kind).increment(1);
    let at = app.clock.now();
    unit(&*app.store, "mark_sent", move |unit| {
        Box::pin(async move { Ok(End::Commit(unit.mark_sent(request, number, at).await?)) })
    })
    .await?;
    crate::failpoint!("send.after_recorded");
    Ok(())
}
