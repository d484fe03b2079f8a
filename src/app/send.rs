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
    let refusal: Option<String> = match &answer {
        Broadcast::Refused(why) => Some(why.clone()),
        _ => None,
    };
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
    unit(&*app.store, "mark_sent", move |unit| {
        let refusal = refusal.clone();
        Box::pin(async move {
            unit.mark_sent(request, number, refusal.as_deref(), at).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("send.after_recorded");
    Ok(())
}
