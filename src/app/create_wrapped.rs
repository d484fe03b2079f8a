//! Make a wrapped operator key: the HSM makes and wraps it, and one unit stores it with its leaf. There is no
//! half-made state: whoever has not the row has no key.

use crate::app::create_key::{CreateKey, ended, may_begin};
use crate::app::key_leaf::PinnedKey;
use crate::app::{App, AppError};
use crate::core::audit::LeafKind;
use crate::core::id::KeyId;
use crate::core::key::{CkaId, Custody, KeyState, OperatorKey};
use crate::ports::store::{End, NewKey, StoreError, unit};
use std::sync::Arc;

/// Makes a wrapped key, pinned and usable at once. What the caller asked has been looked at.
///
/// # Errors
/// Where the token has no wrapping key, or the HSM or the store does not answer; nothing is left then.
pub(crate) async fn create(app: &App, command: CreateKey) -> Result<OperatorKey, AppError> {
    if app.signer.wrapping_key(&command.hsm).is_none() {
        return Err(AppError::invalid("custody", "no wrapping_key is configured for this token"));
    }
    let (public_key, wrapped) = app.signer.create_wrapped(&command.hsm).await?;
    crate::failpoint!("create_wrapped.after_hsm");
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
    let (place, custody) = (key.place(), Custody::Wrapped(wrapped.clone()));
    let pinned = PinnedKey {
        id: key.id,
        place: &place,
        label: &key.label,
        group: key.group.as_ref(),
        mode: key.mode,
        principal: &key.principal,
        public_key,
        custody: &custody,
        report: None,
    };
    let leaf = pinned.leaf(LeafKind::KeyCreated, key.at).map_err(AppError::internal)?;
    let event = pinned.event("created", app.entropy.uuid().to_string(), key.at);
    let all = Arc::new((key, wrapped, leaf, event));
    let stored = Arc::clone(&all);
    let may = unit(&*app.store, "insert_wrapped_key", move |unit| {
        let stored = Arc::clone(&stored);
        Box::pin(async move {
            let (key, wrapped, leaf, event) = &*stored;
            if !may_begin(unit, &key.principal).await? {
                return Ok(End::Rollback(false));
            }
            if !unit.insert_wrapped_key(key, &public_key, wrapped).await? {
                return Err(StoreError::Corrupt("a new key's id or address is taken".to_owned()));
            }
            unit.append_leaf(leaf).await?;
            unit.append_event(event).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    if !may {
        return Err(ended());
    }
    crate::failpoint!("create_wrapped.after_stored");
    let (key, wrapped, ..) = &*all;
    tracing::info!(key = %key.id, address = %public_key.address(), "a wrapped key was made");
    Ok(OperatorKey {
        id: key.id,
        hsm: key.hsm.clone(),
        cka_id: key.cka_id.clone(),
        custody: Custody::Wrapped(wrapped.clone()),
        label: key.label.clone(),
        group: key.group.clone(),
        mode: key.mode,
        public_key,
        address: public_key.address(),
        state: KeyState::Active,
        created_at: key.at,
    })
}
