//! A key that another member of a set has bound, for whoever repeats it. Nothing of a lane is written here.

use crate::app::{App, AppError};
use crate::core::principal::Principal;
use crate::ports::store::{End, KeyBinding, unit};

/// Binds a key for the principal itself that another member of its set has bound, to the same: it stays bound for
/// both when the set is changed. Changes nothing that is bound.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn make_own(
    app: &App,
    principal: &Principal,
    found: &KeyBinding,
) -> Result<(), AppError> {
    let scope = principal.scope();
    if found.scope == scope {
        return Ok(());
    }
    let found = found.clone();
    Ok(unit(&*app.store, "own_key", move |unit| {
        let (found, own) = (found.clone(), KeyBinding { scope: scope.clone(), ..found.clone() });
        Box::pin(async move {
            // Bound anew meanwhile: then its own was bound by that, or is by the next repeat.
            let stands = unit.bound_key(&found.scope, &found.key).await?;
            if stands.is_none_or(|stands| stands.request != found.request) {
                return Ok(End::Rollback(()));
            }
            unit.bind_key(&own).await?;
            Ok(End::Commit(()))
        })
    })
    .await?)
}
