//! Stop a proposed bundle: also one that has its people and waits out its delay.

use super::{check_reason, start};
use crate::app::{App, AppError, record};
use crate::core::principal::Principal;
use crate::ports::store::{BundleRejection, End, unit};
use alloy::primitives::B256;
use std::sync::Arc;

enum Done {
    Rejected,
    Unknown,
    InForce,
}

/// Somebody says that a bundle must not be put in force. People put it in force no more, whoever has said that
/// it may be; a later proposal must be another one.
///
/// # Errors
/// When there is none, it is in force, or the store does not answer.
pub async fn reject(app: &App, hash: B256, who: Principal, reason: String) -> Result<(), AppError> {
    check_reason(&reason)?;
    start::catch_up(app).await?;
    let it = Arc::new(BundleRejection { bundle: hash, who, reason, at: app.clock.now() });
    let done = unit(&*app.store, "reject_bundle", move |unit| {
        let it = Arc::clone(&it);
        Box::pin(async move {
            if unit.bundle(it.bundle).await?.is_none() {
                return Ok(End::Rollback(Done::Unknown));
            }
            if unit.active_bundle().await?.is_some_and(|active| active.bundle == it.bundle) {
                return Ok(End::Rollback(Done::InForce));
            }
            if unit.reject_bundle(&it).await? {
                unit.append_leaf(&record::bundle_rejected(&it)?).await?;
            }
            Ok(End::Commit(Done::Rejected))
        })
    })
    .await?;
    match done {
        Done::Rejected => Ok(()),
        Done::Unknown => Err(AppError::NotFound),
        Done::InForce => Err(AppError::Conflict {
            detail: "it is in force: propose another one in its place".to_owned(),
            request: None,
        }),
    }
}
