//! Make an operator key: intention first, then the HSM, then the pinned public key.

use crate::app::key_leaf::PinnedKey;
use crate::app::{App, AppError, create_wrapped};
use crate::core::audit::LeafKind;
use crate::core::ceremony::ceremony_of;
use crate::core::id::{GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyState, NonceMode, OperatorKey, PublicKey};
use crate::core::key_report::token_label;
use crate::core::principal::Principal;
use crate::ports::store::{End, NewKey, StoreError, Unit, look, unit};
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

/// So long is a begun key its maker's, in milliseconds: longer than all that is asked of the HSM for it takes,
/// each of which is given up after a quarter of a minute.
pub const CLAIM_MS: i64 = 90_000;

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
    let (begun, holder) = (Arc::new(key.clone()), app.leases.holder());
    let (now, until) = (key.at, key.at.plus_millis(CLAIM_MS));
    let begun = unit(&*app.store, "begin_key", move |unit| {
        let key = begun.clone();
        Box::pin(async move {
            if !may_begin(unit, &key.principal).await? {
                return Ok(End::Rollback(Err(())));
            }
            let new =
                unit.begin_key(&key).await? && unit.claim_key(key.id, holder, now, until).await?;
            Ok(if new { End::Commit(Ok(true)) } else { End::Rollback(Ok(false)) })
        })
    })
    .await?;
    if !begun.map_err(|()| ended())? {
        return Err(AppError::internal("a new key's id is taken"));
    }
    crate::failpoint!("create_key.after_begin");
    make(app, key).await.map_err(|error| match error {
        AppError::Signer(error) if error.is_unavailable() => AppError::KeyBegun(error),
        other => other,
    })
}

async fn make(app: &App, key: NewKey) -> Result<OperatorKey, AppError> {
    let public_key = app.signer.create_key(&key.place(), &token_label(&key.label)).await?;
    crate::failpoint!("create_key.after_hsm");
    finish(app, key, public_key).await
}

/// Whether who asks may have a key begun: a ceremony that has ended may not.
pub(super) async fn may_begin(unit: &mut dyn Unit, by: &Principal) -> Result<bool, StoreError> {
    match ceremony_of(by) {
        Some(id) => unit.holds_ceremony(id).await,
        None => Ok(true),
    }
}

pub(super) fn ended() -> AppError {
    let detail = "the ceremony is not open any more".to_owned();
    AppError::Conflict { detail, request: None }
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

/// Has the key prove itself, pins its public key, and makes it usable. It may sign from the proof on, but what
/// signs reads the key from the database. Who finds it pinned already, with this public key, is content.
async fn finish(app: &App, key: NewKey, public_key: PublicKey) -> Result<OperatorKey, AppError> {
    let place = key.place();
    let made = OperatorKey {
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
    let report = app.signer.describe_key(&place).await?;
    app.signer.enroll(&made).await?;
    let pinned = PinnedKey {
        id: made.id,
        place: &place,
        label: &made.label,
        group: made.group.as_ref(),
        mode: made.mode,
        principal: &key.principal,
        public_key,
        custody: &Custody::Token,
        report: report.as_ref(),
    };
    let now = app.clock.now();
    let leaf = pinned.leaf(LeafKind::KeyCreated, now).map_err(AppError::internal)?;
    let told = Arc::new((leaf, pinned.event("created", app.entropy.uuid().to_string(), now)));
    let id = made.id;
    unit(&*app.store, "pin_key", move |unit| {
        let told = Arc::clone(&told);
        Box::pin(async move {
            let (leaf, event) = &*told;
            if unit.pin_key(id, &public_key).await? {
                unit.append_leaf(leaf).await?;
                return Ok(End::Commit(unit.append_event(event).await?));
            }
            match unit.key(id).await? {
                Some(pinned) if pinned.public_key == public_key => Ok(End::Rollback(())),
                _ => Err(StoreError::Corrupt("a key was pinned twice".to_owned())),
            }
        })
    })
    .await?;
    crate::failpoint!("create_key.after_pinned");
    tracing::info!(key = %made.id, address = %made.address, "a key was made");
    Ok(made)
}

/// Finishes the creations that a crash interrupted, all or those of one principal: the pair is in the token, or
/// is made now. One that somebody holds may be made this moment, and is left alone. Answers how many are.
/// `is_start` says that this process has begun none yet.
///
/// # Errors
/// When the store does not answer. A key that the HSM cannot finish stays begun.
pub async fn finish_begun(
    app: &App,
    only: Option<&Principal>,
    is_start: bool,
) -> Result<usize, AppError> {
    let mut begun = unfinished(app).await?;
    begun.retain(|key| only.is_none_or(|only| key.principal == *only));
    let (mut held, holder) = (0_usize, app.leases.holder());
    for key in begun {
        let id = key.id;
        let now = app.clock.now();
        let until = now.plus_millis(CLAIM_MS);
        // Where the store is this process's alone and it has begun nothing yet, whoever has begun it is gone.
        let as_of = if is_start && app.store.is_alone() { now.plus_millis(CLAIM_MS) } else { now };
        let is_ours = unit(&*app.store, "claim_key", move |unit| {
            Box::pin(
                async move { Ok(End::Commit(unit.claim_key(id, holder, as_of, until).await?)) },
            )
        })
        .await?;
        if !is_ours {
            held = held.saturating_add(1);
            tracing::warn!(key = %id, "a begun key is being made elsewhere");
            continue;
        }
        let finished = match app.signer.find_key(&key.place()).await {
            Ok(Some(found)) => finish(app, key, found).await.map(|_| ()),
            Ok(None) => make(app, key).await.map(|_| ()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = finished {
            tracing::error!(key = %id, %error, "a begun key could not be finished");
        }
    }
    Ok(held)
}

/// The keys that were begun and are not finished.
///
/// # Errors
/// When the store does not answer.
pub async fn unfinished(app: &App) -> Result<Vec<NewKey>, AppError> {
    let begun = look(&*app.store, "unfinished_keys", |unit| {
        Box::pin(async move { unit.unfinished_keys().await })
    });
    Ok(begun.await?)
}
