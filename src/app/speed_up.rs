//! Offer more now, without waiting until a replacement is due: an operator's word, within the caps that
//! were decided. Of a transaction that is being cancelled, the no-op is sped up.

use crate::app::cancel::conflict;
use crate::app::outbid::{Version, outbid};
use crate::app::record::Instruction;
use crate::app::{
    App, AppError, ChainRuntime, accept, ask, chains, follow, lease, read, record, rejudge,
    signers, suspension,
};
use crate::core::id::RequestId;
use crate::core::intent::Fees;
use crate::core::time::Timestamp;
use crate::core::tx::state::Status;
use crate::core::tx::step::sped_up;
use crate::ports::chain::BlockAt;
use crate::ports::store::{TransactionRow, look};

/// Signs and sends another version at the next higher fees.
///
/// # Errors
/// `NotFound`; `Conflict` where there is nothing to speed up: not sent yet, mined, over, or at its cap. A
/// denial where the bundle in force is another than the one that decided it, and would not sign it. When
/// store, nodes or HSM do not answer.
pub async fn speed_up(app: &App, id: RequestId, said: &Instruction) -> Result<(), AppError> {
    suspension::refuse(app).await?;
    let found = read::transaction(app, id, None).await?;
    let (row, attempts) = (&found.row, &found.attempts);
    if !matches!(row.status, Status::Submitted | Status::Cancelling) || row.mined.is_some() {
        return Err(conflict(row, "sped up"));
    }
    let busy = |detail: &str| AppError::Conflict { detail: detail.to_owned(), request: Some(id) };
    let chain = app.chain_of(row.new.intent.chain.id);
    let chain = chain.ok_or_else(|| busy("its chain is not configured any more"))?;
    chains::verify(app, chain).await?;
    let nonce = row.nonce.ok_or_else(|| AppError::internal("it is submitted without a nonce"))?;
    if chain.port.nonce(row.new.address, BlockAt::Latest).await? > nonce {
        return Err(busy("its nonce is used in the newest block"));
    }
    if attempts.last().is_none_or(|last| last.signature.is_none()) {
        return Err(busy("its newest attempt is not signed yet"));
    }
    // Nothing is decided, and no lane taken from another process, that could not be signed here now.
    let address = row.new.address;
    let key = look(&*app.store, "key_at", move |unit| {
        Box::pin(async move { unit.key_at(address).await })
    });
    if let Some(key) = key.await? {
        signers::must_be_up(app, &key)?;
    }
    let now = app.clock.now();
    let market = chain.market(now).await?;
    let mut view = follow::view(row, nonce, attempts, &chain.settings);
    if row.ending.is_none() && rejudge::is_foreign(app, row) {
        view.cap = judge_again(app, chain, row, now).await?.at_most(view.cap);
    }
    let Some(fees) = sped_up(now, &view, &market) else {
        return Err(busy("its fees are at their cap, or its time is over"));
    };
    let version = row.ending.map_or(Version::Asked("speed_up"), Version::NoOp);
    let leaf = record::instructed(id, "speed_up", said, now)?;
    // An operator's word is carried out where it arrives. If another process works the account, this one
    // takes the lane over, and what the other was about to write for it is rolled back.
    let lease = match lease::hold(app, chain, row.new.address).await? {
        Some(lease) => lease,
        None => lease::seize(app, chain, row.new.address).await?,
    };
    if outbid(app, chain, &lease, (row, attempts), version, fees, Some(leaf)).await? {
        Ok(())
    } else {
        Err(busy("it changed meanwhile"))
    }
}

/// Policy has changed since the transaction got its nonce. Its versions go on under the decision that gave it,
/// but nobody pushes what policy would not sign now: the highest fees that it would, or a recorded denial.
async fn judge_again(
    app: &App,
    chain: &ChainRuntime,
    row: &TransactionRow,
    now: Timestamp,
) -> Result<Fees, AppError> {
    let again = rejudge::rejudge(app, chain, row, now).await?;
    if let Some(most) = again.most(row) {
        return Ok(most);
    }
    let verdict = &again.verdict;
    let reasons = ask::cannot_wait(verdict);
    Err(accept::deny(app, row.new.id, again.request(), verdict, reasons, now).await)
}
