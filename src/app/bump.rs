//! What policy lets a transaction offer that has its nonce and is not mined: where another bundle is in force
//! than the one that gave the nonce, each higher version is judged by that one.

use crate::app::chains::Offer;
use crate::app::{App, AppError, ChainRuntime, rejudge};
use crate::core::intent::Fees;
use crate::core::time::Timestamp;
use crate::ports::store::{AttemptRow, TransactionRow};

/// The most that the next version may offer: `cap`, or less. What policy would not sign now goes on with the
/// bytes that are out; where that keeps others waiting for too long, its nonce is filled as for any other that
/// can offer no more. What cannot be judged is not raised meanwhile.
pub(crate) async fn cap(
    app: &App,
    chain: &ChainRuntime,
    (row, attempts): (&TransactionRow, &[AttemptRow]),
    cap: Fees,
    now: Timestamp,
) -> Fees {
    let Some(last) = attempts.last().filter(|_| row.ending.is_none() && row.mined.is_none()) else {
        return cap;
    };
    let resend_ms = chain.settings.pace.resend_after_ms;
    let is_due = last.signed_at.is_some_and(|at| now.since(at) >= resend_ms);
    if !is_due || !rejudge::is_foreign(app, row) {
        return cap;
    }
    match most(app, chain, row, now).await {
        Ok(most) => most.unwrap_or(last.fees).at_most(cap),
        Err(error) => {
            tracing::warn!(request = %row.new.id, %error, "its fees are not raised: it cannot be judged");
            last.fees.at_most(cap)
        }
    }
}

async fn most(
    app: &App,
    chain: &ChainRuntime,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<Option<Fees>, AppError> {
    let (id, bundle) = (row.new.id, app.bundle().hash());
    if let Some(offer) = chain.offer_of(id, bundle, now) {
        return Ok(offer.most);
    }
    let again = rejudge::rejudge(app, chain, row, now).await?;
    let most = again.most(row);
    if most.is_none() {
        let reasons = &again.verdict.reasons;
        tracing::warn!(request = %id, ?reasons, "its fees are not raised: the bundle in force would not sign it");
    }
    chain.keep_offer(id, Offer { bundle, at: now, most });
    Ok(most)
}
