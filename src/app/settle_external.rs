//! Settle what external accounts hold, once their nonce is final.

use crate::app::{App, AppError, ChainRuntime, chains, follow, record};
use crate::core::amount::Amount;
use crate::ports::chain::{BlockAt, ChainError};
use crate::ports::store::{End, Settlement, SignatureRow, look, unit};
use alloy::primitives::Address;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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
    let Some(last_final) = chain.port.block(BlockAt::Final).await? else {
        return Ok(());
    };
    let mut by_owner: BTreeMap<String, Vec<SignatureRow>> = BTreeMap::new();
    for row in open {
        if let Some(owner) = row.new.owner.clone() {
            by_owner.entry(owner).or_default().push(row);
        }
    }
    let mut used: HashMap<Address, u64> = HashMap::new();
    for (owner, rows) in by_owner {
        let Some((address, nonce)) =
            rows.first().and_then(|row| Some((row.new.address, row.new.nonce?)))
        else {
            continue;
        };
        let latest = match used.get(&address) {
            Some(latest) => *latest,
            None => chain.port.nonce(address, BlockAt::Latest).await?,
        };
        used.insert(address, latest);
        if latest > nonce {
            settle_one(app, chain, owner, &rows, last_final.number).await?;
        }
    }
    Ok(())
}

async fn settle_one(
    app: &App,
    chain: &ChainRuntime,
    owner: String,
    rows: &[SignatureRow],
    final_number: u64,
) -> Result<(), AppError> {
    let mined = mined_version(chain, rows).await?;
    match &mined {
        Some(receipt) if receipt.block_number > final_number => return Ok(()),
        Some(_) => {}
        None => {
            // Whoever used the nonce, it must be final before anything is settled.
            let Some((address, nonce)) =
                rows.first().and_then(|row| Some((row.new.address, row.new.nonce?)))
            else {
                return Ok(());
            };
            if chain.port.nonce(address, BlockAt::Number(final_number)).await? <= nonce {
                return Ok(());
            }
        }
    }
    // A version that we cannot find was used by somebody else's bytes, or its node is behind: nothing
    // that was held is given back.
    let (settlement, status, hash, block) = match &mined {
        None => (
            Settlement { value_moved: true, fee_paid: None, fee_from_value: false },
            "unknown",
            String::new(),
            String::new(),
        ),
        Some(receipt) => (
            Settlement {
                value_moved: receipt.success,
                fee_paid: Amount::from(receipt.gas_used)
                    .checked_mul(Amount::from(receipt.effective_gas_price)),
                fee_from_value: false,
            },
            if receipt.success { "finalized" } else { "reverted" },
            format!("{:#x}", receipt.transaction_hash),
            format!("{:#x}", receipt.block_hash),
        ),
    };
    let now = app.clock.now();
    let fee = settlement.fee_paid.map_or_else(String::new, |fee| fee.to_string());
    let leaf = record::settled(&owner, status, &hash, &block, &fee, now)?;
    let work = Arc::new((owner, leaf));
    unit(&*app.store, "settle_external", move |unit| {
        let work = work.clone();
        Box::pin(async move {
            let (owner, leaf) = &*work;
            unit.settle(owner, settlement, now).await?;
            unit.mark_settled(owner).await?;
            unit.append_leaf(leaf).await?;
            Ok(End::Commit(()))
        })
    })
    .await?;
    crate::failpoint!("settle_external.after_settled");
    Ok(())
}

async fn mined_version(
    chain: &ChainRuntime,
    rows: &[SignatureRow],
) -> Result<Option<crate::ports::chain::Receipt>, ChainError> {
    for hash in rows.iter().filter_map(|row| row.attempt.hash) {
        if let Some(receipt) = follow::canonical_receipt(chain, hash).await? {
            return Ok(Some(receipt));
        }
    }
    Ok(None)
}
