//! What a transaction waits for: found while it is worked on, noted on its row for whoever asks.

use crate::app::{App, AppError, ChainRuntime};
use crate::core::amount::Amount;
use crate::core::time::Timestamp;
use crate::core::tx::step::{TransactionView, is_outpriced, may_block};
use crate::ports::store::{End, TransactionRow, Wait, look, unit};

/// Of the lane's transactions without a nonce, the one that has waited longest among those that can be mined
/// at this base fee; the others are passed over, and wait for the market. `first` is the one that has waited
/// longest of all.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn payable(
    app: &App,
    chain: &ChainRuntime,
    first: TransactionRow,
    base_fee: u128,
    now: Timestamp,
) -> Result<Option<TransactionRow>, AppError> {
    let (id, address) = (chain.settings.id, first.new.address);
    let cap = chain.settings.cap;
    let least = least_cap(chain, base_fee);
    let noted = first.waits.as_ref().filter(|wait| wait.code == Wait::BASE_FEE);
    let is_payable = first.new.fee_cap.at_most(cap).max_fee >= base_fee;
    if is_payable && noted.is_none() {
        return Ok(Some(first));
    }
    if is_payable || noted.is_none() {
        let detail = format!("the base fee was {base_fee} wei per gas when it was looked at");
        let wait = Wait { code: Wait::BASE_FEE.to_owned(), detail, since: now };
        unit(&*app.store, "note_unpayable", move |unit| {
            let wait = wait.clone();
            Box::pin(async move {
                unit.note_unpayable(id, address, least, &wait).await?;
                Ok(End::Commit(()))
            })
        })
        .await?;
    }
    Ok(look(&*app.store, "next_payable", move |unit| {
        Box::pin(async move { unit.next_payable(id, address, least, now).await })
    })
    .await?)
}

/// The fee cap that a transaction must have to be mined at this base fee: none is high enough where the
/// chain's own cap is below it.
pub(crate) fn least_cap(chain: &ChainRuntime, base_fee: u128) -> u128 {
    if chain.settings.cap.max_fee < base_fee { u128::MAX } else { base_fee }
}

/// Notes that the account cannot pay for a transaction that is next.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn unfunded(
    app: &App,
    row: &TransactionRow,
    detail: String,
    now: Timestamp,
) -> Result<(), AppError> {
    if row.waits.as_ref().is_some_and(|it| it.code == Wait::UNFUNDED && it.detail == detail) {
        return Ok(());
    }
    let wait = Wait { code: Wait::UNFUNDED.to_owned(), detail, since: now };
    note(app, row, Some(wait)).await
}

/// What the account would need, and what it has.
pub(crate) fn shortage(needed: Option<Amount>, has: Amount) -> String {
    let needed = needed.map_or_else(|| "more than there is".to_owned(), |it| format!("{it} wei"));
    format!("with what is in flight it needs {needed}, and the account has {has} wei")
}

/// Notes what a row waits for, or that it does not wait any more.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn note(
    app: &App,
    row: &TransactionRow,
    wait: Option<Wait>,
) -> Result<(), AppError> {
    let (id, version) = (row.new.id, row.version);
    unit(&*app.store, "note_wait", move |unit| {
        let wait = wait.clone();
        Box::pin(async move {
            unit.note_wait(id, version, wait.as_ref()).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("waiting.after_noted");
    Ok(())
}

/// Looks whether a head that can offer no more keeps others of its lane waiting, and notes since when.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn behind(
    app: &App,
    row: &TransactionRow,
    view: TransactionView,
    nonce_latest: u64,
    chain: &ChainRuntime,
) -> Result<TransactionView, AppError> {
    if nonce_latest < view.nonce {
        // It is not the head, or the node is behind: what was found before is neither so nor not so.
        return Ok(view);
    }
    let (now, pace) = (app.clock.now(), chain.settings.pace);
    let mut blocks_others = may_block(now, &view, nonce_latest, pace);
    if blocks_others {
        // Without a market it is not known now, and the rest of the look goes on.
        let Ok(market) = chain.market(now).await else {
            return Ok(view);
        };
        blocks_others = is_outpriced(&view, &market) && others_wait(app, row).await?;
    }
    let capped_since = match (blocks_others, view.capped_since) {
        (true, None) => {
            let detail = format!("at its fee cap of {} wei per gas", view.cap.max_fee);
            let wait = Wait { code: Wait::AT_CAP.to_owned(), detail, since: now };
            note(app, row, Some(wait)).await?;
            Some(now)
        }
        (false, Some(_)) => {
            note(app, row, None).await?;
            None
        }
        (_, since) => since,
    };
    Ok(TransactionView { blocks_others, capped_since, ..view })
}

async fn others_wait(app: &App, row: &TransactionRow) -> Result<bool, AppError> {
    let (chain, address) = (row.new.intent.chain.id, row.new.address);
    Ok(look(&*app.store, "others_wait", move |unit| {
        Box::pin(async move {
            let flying = unit.in_flight(chain, address).await?;
            Ok(flying > 1 || unit.next_queued(chain, address).await?.is_some())
        })
    })
    .await?)
}
