//! What policy may need to know of the chain, each fact with its block.
//!
//! What is not on the chain, or was not read, is no fact: whatever needs it denies. A node that does not
//! answer is an error, and nothing is decided.

use crate::app::signers::Purpose;
use crate::app::{App, AppError, ChainRuntime, chains, finality};
use crate::core::evm::decode;
use crate::core::intent::{EventSource, Intent};
use crate::core::policy::{Bundle, CodeFact, EventFact, Facts};
use crate::ports::chain::ChainError;
use alloy::primitives::Address;
use std::collections::BTreeSet;

/// So many accounts of one request are looked at. What a request does with more of them is not understood.
const CODES_MAX: usize = 128;

/// Reads what a decision over this intent, signed by this account, looks at.
///
/// # Errors
/// When the nodes do not answer, or are of another chain.
pub(crate) async fn read(
    app: &App,
    chain: &ChainRuntime,
    bundle: &Bundle,
    (intent, from): (&Intent, Address),
    purpose: Purpose,
) -> Result<Facts, AppError> {
    match purpose {
        Purpose::Accept => chains::verify(app, chain).await?,
        Purpose::Tell => chains::compare(app, chain).await?,
    }
    let event = match intent {
        Intent::Transaction(tx) => match tx.source {
            Some(source) => event(app, chain, source).await?,
            None => None,
        },
        Intent::Message { .. } | Intent::TypedData { .. } | Intent::Authorization { .. } => None,
    };
    Ok(Facts { codes: codes(chain, bundle, intent, from).await?, event, ..Facts::default() })
}

/// As [`read`], of what has neither a nonce nor gas. Most typed data concerns no account whose code matters,
/// and then no node is asked.
///
/// # Errors
/// As [`read`].
pub(crate) async fn of_typed_data(
    app: &App,
    bundle: &Bundle,
    (intent, from): (&Intent, Address),
    purpose: Purpose,
) -> Result<Facts, AppError> {
    let chain = intent.chain().and_then(|chain| app.chains.get(&chain.name));
    match chain {
        Some(chain) if !addresses(bundle, intent, from).is_empty() => {
            read(app, chain, bundle, (intent, from), purpose).await
        }
        _ => Ok(Facts::default()),
    }
}

/// Whose code the decision looks at; each once, and no more of them than are read.
fn addresses(bundle: &Bundle, intent: &Intent, from: Address) -> Vec<Address> {
    let mut seen = BTreeSet::new();
    let all = decode::addresses(bundle, intent, from).into_iter();
    all.filter(|address| seen.insert(*address)).take(CODES_MAX).collect()
}

/// The code of each, as one node has it in one block.
async fn codes(
    chain: &ChainRuntime,
    bundle: &Bundle,
    intent: &Intent,
    from: Address,
) -> Result<Vec<CodeFact>, ChainError> {
    let addresses = addresses(bundle, intent, from);
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let (block, codes) = chain.port.codes(&addresses).await?;
    if codes.len() != addresses.len() {
        return Err(ChainError::Unavailable("another number of codes than was asked".to_owned()));
    }
    let facts = addresses.into_iter().zip(codes);
    Ok(facts.map(|(address, code)| CodeFact { address, block, code }).collect())
}

/// The event by the word of one node, in one look. That its block is final is said only if enough nodes agree.
async fn event(
    app: &App,
    chain: &ChainRuntime,
    source: EventSource,
) -> Result<Option<EventFact>, ChainError> {
    let Some(mined) = chain.port.mined(source.transaction_hash).await? else {
        return Ok(None);
    };
    let receipt = mined.receipt;
    let found = receipt.logs.iter().find(|log| {
        log.log_index == source.log_index
            && log.transaction_hash == source.transaction_hash
            && log.block_hash == source.block_hash
    });
    let Some(log) = found.filter(|_| receipt.success && receipt.block_hash == source.block_hash)
    else {
        return Ok(None);
    };
    if mined.is_final && !finality::is_agreed_final(app, chain, &receipt, mined.node).await {
        let what = "the nodes do not agree about the event, or that its block is final";
        return Err(ChainError::Unavailable(what.to_owned()));
    }
    Ok(Some(EventFact {
        source,
        block_number: receipt.block_number,
        canonical: mined.is_canonical,
        finalized: mined.is_final,
        emitter: log.address,
        topics: log.topics.clone(),
        data: log.data.clone(),
    }))
}
