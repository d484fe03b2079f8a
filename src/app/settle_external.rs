//! Settle what external accounts hold, once their nonce is final.

use crate::app::inclusion::{self, RowLook};
use crate::app::{App, AppError, ChainRuntime, chains, finality, record};
use crate::core::id::KeyId;
use crate::core::key::NonceMode;
use crate::ports::chain::{BlockId, Claim, Found, Sought};
use crate::ports::store::{End, LaneKey, Settlement, SignatureRow, look, unit};
use alloy::primitives::Address;
use std::collections::BTreeMap;
use std::sync::Arc;

/// All versions signed for one nonce, which share one reservation.
struct Versions {
    owner: String,
    key: KeyId,
    sought: Sought,
}

/// Looks at every external transaction whose reservation is open. All versions signed for one nonce share
/// one reservation.
///
/// # Errors
/// When the store or the nodes do not answer. The next look goes on.
pub async fn settle(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    let id = chain.settings.id;
    let open = look(&*app.store, "unsettled_signatures", move |unit| {
        Box::pin(async move { unit.unsettled_signatures(id).await })
    })
    .await?;
    if open.is_empty() {
        return Ok(());
    }
    chains::verify(app, chain).await?;
    for (address, versions) in by_account(open) {
        let sought: Vec<Sought> = versions.iter().map(|it| it.sought.clone()).collect();
        let looks = match inclusion::of_account(chain, address, &sought, 0).await {
            Ok(looks) => looks,
            Err(error) => {
                // One account that cannot be read now must not keep the others waiting.
                tracing::warn!(chain = %chain.settings.name, %address, %error, "could not settle");
                continue;
            }
        };
        for (versions, look) in versions.iter().zip(looks) {
            if let Err(error) = settle_one(app, chain, address, versions, &look).await {
                tracing::warn!(owner = versions.owner, %error, "could not settle");
            }
        }
    }
    Ok(())
}

fn by_account(open: Vec<SignatureRow>) -> BTreeMap<Address, Vec<Versions>> {
    let mut by_owner: BTreeMap<String, Vec<SignatureRow>> = BTreeMap::new();
    for row in open {
        if let Some(owner) = row.new.owner.clone() {
            by_owner.entry(owner).or_default().push(row);
        }
    }
    let mut by_account: BTreeMap<Address, Vec<Versions>> = BTreeMap::new();
    for (owner, rows) in by_owner {
        let place =
            rows.first().and_then(|row| Some((row.new.address, row.new.nonce?, row.new.key)));
        if let Some((address, nonce, key)) = place {
            let hashes = rows.iter().filter_map(|row| row.attempt.hash).collect();
            let sought = Sought { nonce, hashes, seen: None };
            by_account.entry(address).or_default().push(Versions { owner, key, sought });
        }
    }
    by_account
}

/// Where the nonce was used, once that is final and enough nodes agree; `None` if it is too early. Inside:
/// nothing if somebody else's bytes used it.
async fn ended(
    app: &App,
    chain: &ChainRuntime,
    address: Address,
    sought: &Sought,
    look: &RowLook,
) -> Result<Option<Option<BlockId>>, AppError> {
    let Some(last_final) = look.last_final else {
        return Ok(None);
    };
    match &look.found {
        Found::Mined(receipt) if receipt.block_number <= last_final.number => {
            let may_end = finality::may_end(app, chain, receipt, look.node).await?;
            Ok(may_end.then(|| Some(receipt.block())))
        }
        Found::Nothing if look.nonce_final.is_some_and(|used| used > sought.nonce) => {
            let final_number = last_final.number;
            let claim = Claim::Foreign { address, sought: sought.clone(), final_number };
            let agreed = finality::is_agreed(app, chain, &claim, look.node).await;
            Ok(agreed.then_some(None))
        }
        _ => Ok(None),
    }
}

async fn settle_one(
    app: &App,
    chain: &ChainRuntime,
    address: Address,
    versions: &Versions,
    look: &RowLook,
) -> Result<(), AppError> {
    let Some(block) = ended(app, chain, address, &versions.sought, look).await? else {
        return Ok(());
    };
    let (owner, mined, id) = (versions.owner.clone(), look.receipt(), chain.settings.id);
    // A nonce that none of our transactions used was used by an authorization, which somebody else's
    // transaction carries, or by somebody else's bytes: nothing that was held is given back.
    let (settlement, status, hash, block_hash) = match mined {
        None => (
            Settlement { value_moved: true, fee_paid: None, fee_from_value: false },
            "unknown",
            String::new(),
            String::new(),
        ),
        Some(receipt) => (
            Settlement {
                value_moved: receipt.success,
                fee_paid: receipt.fee_paid(),
                fee_from_value: false,
            },
            if receipt.success { "finalized" } else { "reverted" },
            format!("{:#x}", receipt.transaction_hash),
            format!("{:#x}", receipt.block_hash),
        ),
    };
    let seen_at = look.last_final.map_or(0, |block| block.number);
    let now = app.clock.now();
    let fee = settlement.fee_paid.map_or_else(String::new, |fee| fee.to_string());
    let leaf = record::settled(&owner, status, &hash, &block_hash, &fee, now)?;
    let lane = LaneKey { chain: id, address, key: versions.key, mode: NonceMode::External };
    let work = Arc::new((lane, owner, leaf));
    unit(&*app.store, "settle_external", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (lane, owner, leaf) = &*work;
            // Whoever signs another version for this nonce holds the lane: it adds to what is held before
            // all of that is settled, or after, when it is settled by itself.
            unit.lock_lane(lane).await?;
            if !finality::anchor_end(unit, id, block).await? {
                return Ok(End::Rollback(()));
            }
            unit.settle(owner, settlement, now).await?;
            // Before the block that shows the nonce used, the chain says nothing about what is open now.
            unit.expose_from(owner, seen_at).await?;
            if !unit.mark_settled(owner).await? {
                // Another process was faster.
                return Ok(End::Rollback(()));
            }
            unit.append_leaf(leaf).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("settle_external.after_settled");
    Ok(())
}
