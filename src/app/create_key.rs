//! Make an operator key: intention first, then the HSM, then the pinned public key.

use crate::app::key_leaf::PinnedKey;
use crate::app::{App, AppError, create_wrapped};
use crate::core::audit::LeafKind;
use crate::core::id::{GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey, PublicKey};
use crate::core::key_report::token_label;
use crate::core::principal::Principal;
use crate::ports::store::{End, NewKey, StoreError, look, unit};
use std::sync::Arc;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct CreateKey {
    /// Who asks.
    pub principal: Principal,
    /// What people call it: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub label: String,
    /// The group that will use it.
    pub group: Option<GroupName>,
    /// Who gives its nonces, for ever.
    pub mode: NonceMode,
    /// The token that it is to be in.
    pub hsm: HsmName,
    /// Whether its private half is kept wrapped in the database, and not as an object of the token.
    pub is_wrapped: bool,
}

/// Makes a key inside the HSM and pins its public key. A crash in between is finished at the next start.
///
/// # Errors
/// An unknown group, a bad label, or the HSM or the store not answering.
pub async fn create(app: &App, command: CreateKey) -> Result<OperatorKey, AppError> {
    check_asked(app, command.group.as_ref(), &command.hsm, &command.label)?;
    app.signer.is_up(&command.hsm)?;
    if command.is_wrapped {
        return create_wrapped::create(app, command).await;
    }
    let key = NewKey {
        id: KeyId::new(app.entropy.uuid()),
        hsm: command.hsm,
        cka_id: CkaId::new(app.entropy.bytes16().to_vec()),
        label: command.label,
        group: command.group,
        mode: command.mode,
        principal: command.principal,
        at: app.clock.now(),
    };
    let begun = Arc::new(key.clone());
    let new = unit(&*app.store, "begin_key", move |unit| {
        let key = begun.clone();
        Box::pin(async move { Ok(End::Commit(unit.begin_key(&key).await?)) })
    })
    .await?;
    if !new {
        return Err(AppError::internal("a new key's id is taken"));
    }
    crate::failpoint!("create_key.after_begin");
    let public_key = app.signer.create_key(&key.place(), &token_label(&key.label)).await?;
    crate::failpoint!("create_key.after_hsm");
    finish(app, key, public_key).await
}

/// Whether group, token and name can be.
pub(super) fn check_asked(
    app: &App,
    group: Option<&GroupName>,
    hsm: &HsmName,
    label: &str,
) -> Result<(), AppError> {
    if group.is_some_and(|group| !app.groups.contains(group)) {
        return Err(AppError::invalid("group", "is not configured here"));
    }
    if !app.signer.hsms().contains(hsm) {
        return Err(AppError::invalid("hsm", "is not configured here"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(1..=64).contains(&label.len()) || !label.chars().all(fits) {
        return Err(AppError::invalid("label", "must be 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    Ok(())
}

/// Pins the public key and makes the key usable.
async fn finish(app: &App, key: NewKey, public_key: PublicKey) -> Result<OperatorKey, AppError> {
    let place = key.place();
    let report = app.signer.describe_key(&place).await?;
    let pinned = PinnedKey {
        id: key.id,
        place: &place,
        label: &key.label,
        group: key.group.as_ref(),
        mode: key.mode,
        principal: &key.principal,
        public_key,
        custody: &Custody::Token,
        report: report.as_ref(),
    };
    let leaf = pinned.leaf(LeafKind::KeyCreated, app.clock.now()).map_err(AppError::internal)?;
    let leaf = Arc::new(leaf);
    let id = key.id;
    unit(&*app.store, "pin_key", move |unit| {
        let leaf = leaf.clone();
        Box::pin(async move {
            if !unit.pin_key(id, &public_key).await? {
                return Err(StoreError::Corrupt("a key was pinned twice".to_owned()));
            }
            Ok(End::Commit(unit.append_leaf(&leaf).await?))
        })
    })
    .await?;
    crate::failpoint!("create_key.after_pinned");
    let key = OperatorKey {
        id: key.id,
        hsm: key.hsm,
        cka_id: key.cka_id,
        custody: Custody::Token,
        label: key.label,
        group: key.group,
        mode: key.mode,
        public_key,
        address: public_key.address(),
        state: KeyState::Active,
        created_at: key.at,
    };
    app.signer.enroll(&key).await?;
    tracing::info!(key = %key.id, address = %key.address, "a key was made");
    Ok(key)
}

/// Finishes the creations that a crash interrupted: the pair is in the token, or is made now.
///
/// # Errors
/// When the store does not answer. A key that the HSM cannot finish stays begun.
pub async fn finish_begun(app: &App) -> Result<(), AppError> {
    let begun = look(&*app.store, "unfinished_keys", |unit| {
        Box::pin(async move { unit.unfinished_keys().await })
    })
    .await?;
    for key in begun {
        let id = key.id;
        let finished = match app.signer.find_key(&key.place()).await {
            Ok(Some(found)) => finish(app, key, found).await.map(|_| ()),
            Ok(None) => match app.signer.create_key(&key.place(), &token_label(&key.label)).await {
                Ok(made) => finish(app, key, made).await.map(|_| ()),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        };
        if let Err(error) = finished {
            tracing::error!(key = %id, %error, "a begun key could not be finished");
        }
    }
    Ok(())
}
