//! Follow what others may take later: at a final block of which enough nodes say the same, what has shrunk is
//! spend from that moment, and what nobody can take any more ends. Where anything is not known nothing is freed.

use crate::app::{App, AppError, ChainRuntime, chains, finality, record};
use crate::core::audit::EncodedLeaf;
use crate::core::exposure::{Answers, View, judge, reads};
use crate::ports::chain::{Block, BlockAt, BlockId, ChainError, Claim, StateRead};
use crate::ports::store::{End, ExposureChange, ExposureRow, look, unit};
use std::sync::Arc;

/// How many exposures are looked at in one run, with those beside them.
const MOST: i64 = 32;

/// Looks at the exposures of a chain that were not looked at since its newest final block.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub async fn follow(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    if due(app, chain, u64::try_from(i64::MAX).unwrap_or(0), 1).await?.is_empty()
        || finality::stands_still(app, chain).await?.is_some()
    {
        return Ok(());
    }
    chains::verify(app, chain).await?;
    let Some(block) = chain.port.block(BlockAt::Final).await? else {
        return Ok(());
    };
    let groups = due(app, chain, block.number, MOST).await?;
    take_turns(app, &groups).await?;
    for rows in groups {
        if let Err(error) = follow_one(app, chain, &block, rows).await {
            // One token that cannot be read now must not keep the others waiting.
            tracing::warn!(chain = %chain.settings.name, %error, "could not follow an exposure");
        }
    }
    Ok(())
}

/// Where there are more than one run looks at, those of this run are behind the others in the next one, also
/// if nothing comes of the look: what cannot be read must not keep its place before what can.
async fn take_turns(app: &App, groups: &[Vec<ExposureRow>]) -> Result<(), AppError> {
    let rows: Vec<ExposureRow> = groups.iter().flatten().cloned().collect();
    if i64::try_from(rows.len()).is_ok_and(|found| found < MOST) {
        return Ok(());
    }
    let (now, rows) = (app.clock.now(), Arc::new(rows));
    unit(&*app.store, "look_at_exposures", move |unit| {
        let rows = rows.clone();
        Box::pin(async move {
            unit.look_at_exposures(&rows, now).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    Ok(())
}

async fn due(
    app: &App,
    chain: &ChainRuntime,
    block: u64,
    most: i64,
) -> Result<Vec<Vec<ExposureRow>>, AppError> {
    let id = chain.settings.id;
    Ok(look(&*app.store, "open_exposures", move |unit| {
        Box::pin(async move { unit.open_exposures(id, block, most).await })
    })
    .await?)
}

fn view(row: &ExposureRow) -> View {
    View {
        token: row.token,
        account: row.account,
        spender: row.spender,
        form: row.form,
        remaining: row.remaining,
        permit: row.permit.clone(),
        submitted: row.submitted,
    }
}

/// All open exposures of one token, account and spender.
async fn follow_one(
    app: &App,
    chain: &ChainRuntime,
    block: &Block,
    rows: Vec<ExposureRow>,
) -> Result<(), AppError> {
    if rows.iter().any(|row| row.from_block > block.number || row.seen_block > block.number) {
        // Of one of them this block says nothing, and they share an allowance.
        return Ok(());
    }
    let views: Vec<View> = rows.iter().map(view).collect();
    let mut answers = Answers::new();
    for read in reads(&views) {
        match chain.port.call(read.to, read.data.clone(), block.hash).await {
            Ok(answer) => _ = answers.insert(read, answer),
            // The contract has no such function: nothing is known by it.
            Err(ChainError::Reverted(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut changes = judge(&views, &answers, block.timestamp_s);
    let is_news = views.iter().zip(&changes).any(|(view, change)| {
        !change.used.is_zero() || change.ended.is_some() || change.submitted != view.submitted
    });
    // By one node's word so far: nothing changes before enough of them have said the same.
    if is_news && !is_agreed(chain, block, answers).await {
        changes.clear();
    }
    if changes.is_empty() {
        return Ok(());
    }
    store(app, block, rows, changes).await
}

async fn is_agreed(chain: &ChainRuntime, block: &Block, answers: Answers) -> bool {
    let read = |(read, answer)| StateRead { read, answer };
    let claim = Claim::State {
        block: BlockId { number: block.number, hash: block.hash },
        timestamp_s: block.timestamp_s,
        reads: answers.into_iter().map(read).collect(),
    };
    let said = chain.port.agreement(&claim, None).await;
    let enough = said.is_enough(chain.settings.agree);
    if !enough {
        let name = &chain.settings.name;
        tracing::warn!(chain = %name, ?said, "the nodes do not agree what is left of an allowance");
    }
    enough
}

async fn store(
    app: &App,
    block: &Block,
    rows: Vec<ExposureRow>,
    changes: Vec<crate::core::exposure::Change>,
) -> Result<(), AppError> {
    let now = app.clock.now();
    let mut leaves: Vec<EncodedLeaf> = Vec::new();
    let mut all = Vec::new();
    for (row, change) in rows.into_iter().zip(changes) {
        if !change.used.is_zero() || change.ended.is_some() {
            leaves.push(record::exposure_seen(&row, &change, block, now)?);
        }
        let (used, freed) = (change.used, change.freed);
        let (submitted, ended) = (change.submitted, change.ended);
        all.push(ExposureChange { row, block: block.number, used, freed, submitted, ended });
    }
    let work = Arc::new((all, leaves));
    unit(&*app.store, "see_exposures", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (changes, leaves) = &*work;
            if !unit.see_exposures(changes, now).await? {
                // Another process was faster.
                return Ok(End::Rollback(()));
            }
            for leaf in leaves {
                unit.append_leaf(leaf).await?;
            }
            Ok(End::Commit(()))
        })
    })
    .await?;
    Ok(())
}
