//! What happened to the tokens, in the audit log.

use crate::app::{App, AppError, record};
use crate::core::audit::{EncodedLeaf, Leaf, LeafKind};
use crate::core::id::HolderId;
use crate::core::time::Timestamp;
use crate::ports::signer::{HsmEvent, HsmNews};
use crate::ports::store::{End, StoreError, look, unit};
use std::sync::Arc;
use std::time::Duration;

/// Records what the HSM room has to tell: one leaf for the beginning of an outage and one for its end, however
/// many requests failed, and one for each wrong signature. What cannot be written now stays for the next
/// call. After an outage the keys prove themselves anew.
///
/// # Errors
/// When the store does not answer.
pub async fn record(app: &App) -> Result<(), AppError> {
    if write(app, app.signer.events()).await? {
        enroll(app).await?;
    }
    Ok(())
}

/// As [`record`], at the end of the process: all that is not recorded yet, and no key has to prove itself any
/// more.
///
/// # Errors
/// When the store does not answer.
pub async fn record_last(app: &App) -> Result<(), AppError> {
    write(app, app.signer.last_events()).await.map(|_| ())
}

/// Answers whether an outage is over.
async fn write(app: &App, events: Vec<HsmEvent>) -> Result<bool, AppError> {
    let Some(last) = events.last().map(|event| event.number) else {
        return Ok(false);
    };
    let (now, holder) = (app.clock.now(), app.leases.holder());
    let leaves: Result<Vec<_>, _> = events.iter().map(|event| leaf(event, holder, now)).collect();
    let leaves = Arc::new(leaves?);
    unit(&*app.store, "record_hsm_events", move |unit| {
        let leaves = leaves.clone();
        Box::pin(async move {
            for leaf in &*leaves {
                unit.append_leaf(leaf).await?;
            }
            Ok(End::Commit(()))
        })
    })
    .await?;
    app.signer.events_recorded(last);
    Ok(events.iter().any(|event| matches!(event.news, HsmNews::Up { .. })))
}

/// Keys that could not be enrolled while their token, or one that stands by for it, was away.
async fn enroll(app: &App) -> Result<(), AppError> {
    let keys =
        look(&*app.store, "token_keys", |unit| Box::pin(async move { unit.token_keys().await }));
    for key in &keys.await? {
        if let Err(error) = app.signer.enroll(key).await {
            tracing::error!(key = %key.id, address = %key.address, %error, "a key cannot be used");
        }
    }
    Ok(())
}

fn leaf(event: &HsmEvent, holder: HolderId, now: Timestamp) -> Result<EncodedLeaf, StoreError> {
    let at = before(now, event.age);
    let begun = |kind| Leaf::new(kind, &event.hsm, now).with("holder", holder);
    let leaf = match &event.news {
        HsmNews::Down { reason } => begun(LeafKind::HsmDown)
            .with("reason", reason)
            .with("since", at)
            .with("times", event.times),
        HsmNews::Up { lasted } => {
            begun(LeafKind::HsmUp).with("since", before(at, *lasted)).with("until", at)
        }
        HsmNews::WrongSignature { key, request } => {
            let subject = request.map_or_else(|| key.to_string(), |request| request.to_string());
            let (hsm, times) = (&event.hsm, event.times);
            let what = format!(
                "the HSM {hsm} gave a wrong signature for key {key}, {times} times; it was discarded"
            );
            return record::alarm(subject, &what, now);
        }
    };
    leaf.encode().map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    now.plus_millis(span.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::{HsmName, KeyId};
    use uuid::Uuid;

    fn told(news: HsmNews, times: u64) -> String {
        let event = HsmEvent {
            number: 1,
            hsm: HsmName::new("main"),
            age: Duration::from_secs(2),
            times,
            news,
        };
        let holder = HolderId::new(Uuid::from_u128(7));
        let leaf = leaf(&event, holder, Timestamp::from_millis(10_000)).unwrap();
        String::from_utf8(leaf.bytes).unwrap()
    }

    #[test]
    fn an_outage_is_told_with_its_times() {
        let down = told(HsmNews::Down { reason: "C_Sign: CKR_DEVICE_ERROR".to_owned() }, 1);
        assert_eq!(
            down,
            r#"{"at":"1970-01-01T00:00:10.000Z","holder":"00000000-0000-0000-0000-000000000007","id":"main","kind":"HSM_DOWN","reason":"C_Sign: CKR_DEVICE_ERROR","since":"1970-01-01T00:00:08.000Z","times":"1","v":"1"}"#
        );
        let up = told(HsmNews::Up { lasted: Duration::from_secs(3) }, 1);
        assert_eq!(
            up,
            r#"{"at":"1970-01-01T00:00:10.000Z","holder":"00000000-0000-0000-0000-000000000007","id":"main","kind":"HSM_UP","since":"1970-01-01T00:00:05.000Z","until":"1970-01-01T00:00:08.000Z","v":"1"}"#
        );
        let key = KeyId::new(Uuid::from_u128(9));
        let wrong = told(HsmNews::WrongSignature { key, request: None }, 2);
        assert!(wrong.contains(&format!(r#""id":"{key}","kind":"ALARM""#)), "{wrong}");
        assert!(wrong.contains("the HSM main gave a wrong signature"), "{wrong}");
    }
}
