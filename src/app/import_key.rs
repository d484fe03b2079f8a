//! Take over a key that the HSM has already: looked at, proved, then pinned.

use crate::app::create_key::check_asked;
use crate::app::key_leaf::PinnedKey;
use crate::app::{App, AppError};
use crate::core::audit::LeafKind;
use crate::core::id::{GroupName, HsmName, KeyId};
use crate::core::key::{CkaId, Custody, KeyPlace, KeyState, NonceMode, OperatorKey};
use crate::core::key_report::KeyReport;
use crate::core::principal::Principal;
use crate::ports::signer::SignerError;
use crate::ports::store::{End, look, unit};
use std::sync::Arc;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct ImportKey {
    /// Who asks.
    pub principal: Principal,
    /// The key's id in its token.
    pub cka_id: CkaId,
    /// What people call it: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub label: String,
    /// The group that will use it.
    pub group: Option<GroupName>,
    /// Who gives its nonces, for ever.
    pub mode: NonceMode,
    /// The token that it is in.
    pub hsm: HsmName,
}

/// Pins a key pair that is in the token. Nothing in the token is changed. A lane of a managed one begins at
/// the chain's count of its transactions.
///
/// # Errors
/// A key that is not there, is not one pair of the right curve, or has attributes that no exception allows;
/// one whose id or address is known already; or the HSM or the store not answering.
pub async fn import(app: &App, command: ImportKey) -> Result<OperatorKey, AppError> {
    check_asked(app, command.group.as_ref(), &command.hsm, &command.label)?;
    let place = KeyPlace { hsm: command.hsm, cka_id: command.cka_id };
    let report = described(app, &place).await?;
    let key = OperatorKey {
        id: KeyId::new(app.entropy.uuid()),
        hsm: place.hsm.clone(),
        cka_id: place.cka_id.clone(),
        custody: Custody::Token,
        label: command.label,
        group: command.group,
        mode: command.mode,
        public_key: report.public_key,
        address: report.public_key.address(),
        state: KeyState::Active,
        created_at: app.clock.now(),
    };
    must_be_new(app, &key).await?;
    // The proof of possession. It may sign from here on, but what signs reads the key from the database.
    app.signer.enroll(&key).await.map_err(refused)?;
    let pinned = PinnedKey {
        id: key.id,
        place: &place,
        label: &key.label,
        group: key.group.as_ref(),
        mode: key.mode,
        principal: &command.principal,
        public_key: key.public_key,
        custody: &Custody::Token,
        report: Some(&report),
    };
    let leaf = pinned.leaf(LeafKind::KeyImported, key.created_at).map_err(AppError::internal)?;
    let event = pinned.event("imported", app.entropy.uuid().to_string(), key.created_at);
    let all = Arc::new((key.clone(), command.principal, leaf, event));
    let is_new = unit(&*app.store, "import_key", move |unit| {
        let all = all.clone();
        Box::pin(async move {
            let (key, principal, leaf, event) = &*all;
            if !unit.import_key(key, principal).await? {
                return Ok(End::Rollback(false));
            }
            unit.append_leaf(leaf).await?;
            unit.append_event(event).await?;
            Ok(End::Commit(true))
        })
    })
    .await?;
    if !is_new {
        return Err(known("its id or its address"));
    }
    tracing::info!(key = %key.id, address = %key.address, "a key was imported");
    Ok(key)
}

async fn described(app: &App, place: &KeyPlace) -> Result<KeyReport, AppError> {
    let report = app.signer.describe_key(place).await.map_err(refused)?;
    let Some(report) = report else {
        return Err(AppError::invalid("cka_id", "the token has no object with this id"));
    };
    let refused = report.refused();
    if refused.is_empty() {
        return Ok(report);
    }
    Err(AppError::invalid(
        "cka_id",
        format!(
            "its attributes are wrong: {}. Make a new key in its place; or say in `[[hsm.exception]]` \
             why this one may be used, and start the server again",
            report.tell(&refused)
        ),
    ))
}

async fn must_be_new(app: &App, key: &OperatorKey) -> Result<(), AppError> {
    let (address, id) = (key.address, key.cka_id.clone());
    let (same, holder) = look(&*app.store, "known_key", move |unit| {
        let id = id.clone();
        Box::pin(async move { Ok((unit.key_at(address).await?, unit.key_with(&id).await?)) })
    })
    .await?;
    if same.is_some() {
        return Err(known(&format!("{address:#x}")));
    }
    match holder {
        None => Ok(()),
        Some((hsm, label)) if hsm == key.hsm => Err(known(&format!("its CKA_ID (key `{label}`)"))),
        Some((hsm, label)) => Err(known(&format!(
            "its CKA_ID (key `{label}` in token `{hsm}`; ids must differ in all tokens, so give it another)"
        ))),
    }
}

fn known(what: &str) -> AppError {
    let detail = format!("{what} is that of a key which is known already; see `claviger key list`");
    AppError::Conflict { detail, request: None }
}

/// What is wrong with the key is the operator's to know: they named it.
fn refused(error: SignerError) -> AppError {
    match error {
        SignerError::KeyUnusable(why) => AppError::invalid("cka_id", why),
        other => other.into(),
    }
}
