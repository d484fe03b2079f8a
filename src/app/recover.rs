//! Go on after a crash: decisions without a signature are signed, keys that were begun are finished, all
//! keys prove themselves.

use crate::app::{App, AppError, create_key, finality, lease, send, sign};
use crate::core::id::RequestId;
use crate::ports::signer::SignerError;
use crate::ports::store::{Wrapped, look};

/// Signs what was decided and not signed, and sends what are transactions of ours, but for the lanes of
/// other processes. The same bytes with the same nonce: the permit is minted from the committed decision.
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
    let row = look(&*app.store, "transaction", move |unit| {
        Box::pin(async move { unit.transaction(request).await })
    })
    .await?;
    // Requests for signatures have no lane: their bytes are their caller's to send.
    let chain = row.as_ref().and_then(|row| app.chain_of(row.new.intent.chain.id));
    let mut lease = None;
    if let (Some(row), Some(chain)) = (&row, chain) {
        if finality::stands_still(app, chain).await?.is_some() {
            return Ok(());
        }
        lease = lease::hold(app, chain, row.new.address).await?;
        if lease.is_none() {
            return Ok(());
        }
    }
    let signed = match sign::sign(app, request, number).await {
        Err(error @ AppError::Signer(_)) => {
            // Another server may have made the key since this one started, or its HSM may answer.
            let found = matches!(error, AppError::Signer(SignerError::KeyUnusable(_)))
                && enroll_again(app, request, number).await?;
            if let Some(lease) = lease.filter(|_| !found && lease::is_unable(&error)) {
                lease::leave(app, &lease).await?;
            }
            return Err(error);
        }
        other => other?,
    };
    match signed {
        Some(signed) => send::send(app, &signed).await,
        None => Ok(()),
    }
}

/// Looks for the key of an attempt in the HSM once more; answers whether it can be used now.
async fn enroll_again(app: &App, request: RequestId, number: i64) -> Result<bool, AppError> {
    let key = look(&*app.store, "key_of", move |unit| {
        Box::pin(async move {
            match unit.decision(request, number).await? {
                Some(decision) => unit.key(decision.key).await,
                None => Ok(None),
            }
        })
    })
    .await?;
    let Some(key) = key else {
        return Ok(false);
    };
    let enrolled = app.signer.enroll(&key).await;
    if let Err(error) = &enrolled {
        tracing::error!(key = %key.id, address = %key.address, %error, "a key cannot be used");
    }
    Ok(enrolled.is_ok())
}

/// Finishes keys whose creation was interrupted, then enrolls every key of a token. A key that cannot be used
/// is told in an alarm; the others serve. Wrapped keys need no enrolment, and may be very many: it is only
/// looked whether each is under the wrapping key of its token.
///
/// # Errors
/// When the store does not answer.
pub async fn keys(app: &App) -> Result<(), AppError> {
    create_key::finish_begun(app, None, true).await?;
    let open = look(&*app.store, "open_ceremony", |unit| {
        Box::pin(async move { unit.open_ceremony().await })
    });
    if let Some(open) = open.await? {
        tracing::warn!(id = %open.id, title = open.title, "a key ceremony was begun and has not ended");
    }
    let (keys, wrapped) = look(&*app.store, "token_keys", |unit| {
        Box::pin(async move { Ok((unit.token_keys().await?, unit.wrapped_under().await?)) })
    })
    .await?;
    for Wrapped { hsm, under, keys } in wrapped {
        let id = hex::encode(under.as_bytes());
        if app.signer.wrapping_key(&hsm) == Some(under) {
            tracing::info!(%hsm, wrapping_key = id, keys, "wrapped keys");
        } else {
            tracing::error!(
                %hsm,
                wrapping_key = id,
                keys,
                "ALARM: wrapped keys cannot be used: this is not the token's wrapping_key"
            );
        }
    }
    for key in keys {
        if let Err(error) = app.signer.enroll(&key).await {
            tracing::error!(key = %key.id, address = %key.address, %error, "a key cannot be used");
        }
    }
    Ok(())
}
