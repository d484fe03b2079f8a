//! Go on after a crash: decisions without a signature are signed, keys that were begun are finished, all
//! keys prove themselves.

use crate::app::{App, AppError, create_key, send, sign};
use crate::core::id::RequestId;
use crate::ports::store::look;

/// Signs what was decided and not signed, and sends what are transactions of ours. The same bytes with the
/// same nonce: the permit is minted from the committed decision.
///
/// # Errors
/// When the store does not answer. An attempt that cannot be signed now stays for the next call.
pub async fn unsigned(app: &App) -> Result<(), AppError> {
    let waiting = look(&*app.store, "unsigned_attempts", |unit| {
        Box::pin(async move { unit.unsigned_attempts().await })
    })
    .await?;
    for (request, number) in waiting {
        if let Err(error) = one(app, request, number).await {
            tracing::warn!(%request, number, %error, "a decided attempt could not be signed yet");
        }
    }
    Ok(())
}

async fn one(app: &App, request: RequestId, number: i64) -> Result<(), AppError> {
    let Some(signed) = sign::sign(app, request, number).await? else {
        return Ok(());
    };
    send::send(app, &signed).await
}

/// Finishes keys whose creation was interrupted, then enrolls every key. A key that cannot be used is told
/// in an alarm; the others serve.
///
/// # Errors
/// When the store does not answer.
pub async fn keys(app: &App) -> Result<(), AppError> {
    create_key::finish_begun(app).await?;
    let keys = look(&*app.store, "keys", |unit| Box::pin(async move { unit.keys().await })).await?;
    for key in keys {
        if let Err(error) = app.signer.enroll(&key).await {
            tracing::error!(key = %key.id, address = %key.address, %error, "a key cannot be used");
        }
    }
    Ok(())
}
