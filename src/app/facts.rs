//! What a decision looks at, read in one place: what the chain says, each fact with its block, and what we know
//! ourselves. No door can judge a request without it, nor leave a part of it out.
//!
//! What is not on the chain, or was not read, is no fact: whatever needs it denies. A node that does not
//! answer is an error, and nothing is decided; so are nodes that do not agree.

use crate::app::signers::Purpose;
use crate::app::{App, AppError, ChainRuntime, chains, destinations, finality};
use crate::core::evm::decode;
use crate::core::intent::{EventSource, Intent};
use crate::core::key::OperatorKey;
use crate::core::policy::{Bundle, CodeFact, EventFact, Facts, PolicyRequest};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use crate::ports::chain::{ChainError, Claim, Codes};
use alloy::primitives::Address;
use std::collections::BTreeSet;

/// So many accounts of one request are looked at. What a request does with more of them is not understood.
const CODES_MAX: usize = 128;

/// A request before anything was read for it.
pub(crate) struct Unread<'a> {
    /// Who asks.
    pub(crate) principal: &'a Principal,
    /// The key that would sign.
    pub(crate) key: &'a OperatorKey,
    /// What is asked.
    pub(crate) intent: Intent,
    /// Since when it has been waiting; `None` if it is judged for the first time.
    pub(crate) waiting_since: Option<Timestamp>,
}

/// Reads everything that a decision over this request looks at.
///
/// # Errors
/// When the nodes or the store do not answer, the nodes do not agree, or are of another chain.
pub(crate) async fn gather(
    app: &App,
    bundle: &Bundle,
    unread: Unread<'_>,
    purpose: Purpose,
) -> Result<PolicyRequest, AppError> {
    let Unread { principal, key, intent, waiting_since } = unread;
    let facts = of_chain(app, bundle, (&intent, key.address), purpose).await?;
    let mut request = PolicyRequest {
        principal: principal.clone(),
        group: key.group.clone(),
        key: key.id,
        address: key.address,
        intent,
        facts: Facts { waiting_since, ..facts },
    };
    request.facts.known_destinations = destinations::known(app, bundle, &request).await?;
    Ok(request)
}

/// What the chain says. Most typed data concerns no account whose code matters, and then no node is asked.
async fn of_chain(
    app: &App,
    bundle: &Bundle,
    (intent, from): (&Intent, Address),
    purpose: Purpose,
) -> Result<Facts, AppError> {
    let addresses = addresses(bundle, intent, from);
    let has_nonce = match intent {
        Intent::Transaction(_) | Intent::Authorization { .. } => true,
        Intent::Message { .. } | Intent::TypedData { .. } => false,
    };
    if !has_nonce && addresses.is_empty() {
        return Ok(Facts::default());
    }
    let chain = intent
        .chain()
        .and_then(|chain| app.chain_of(chain.id))
        .ok_or_else(|| AppError::invalid("chain", "is not configured here"))?;
    match purpose {
        Purpose::Accept => chains::verify(app, chain).await?,
        Purpose::Tell => chains::compare(app, chain).await?,
    }
    let source = match intent {
        Intent::Transaction(tx) => tx.source,
        Intent::Message { .. } | Intent::TypedData { .. } | Intent::Authorization { .. } => None,
    };
    let event = match source {
        Some(source) => event(app, chain, source).await?,
        None => None,
    };
    Ok(Facts { codes: codes(app, chain, addresses).await?, event, ..Facts::default() })
}

/// Whose code the decision looks at; each once, and no more of them than are read.
fn addresses(bundle: &Bundle, intent: &Intent, from: Address) -> Vec<Address> {
    let mut seen = BTreeSet::new();
    let all = decode::addresses(bundle, intent, from).into_iter();
    all.filter(|address| seen.insert(*address)).take(CODES_MAX).collect()
}

/// The code of each, in one block: as one node has it, and as many others as `agree` says, or more than half of
/// all. Whoever hides or invents code would otherwise choose what a call is taken for. A node that the others
/// contradict is asked last from then on, so the second look is at another one.
async fn codes(
    app: &App,
    chain: &ChainRuntime,
    addresses: Vec<Address>,
) -> Result<Vec<CodeFact>, ChainError> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    for _ in 0..2 {
        let Codes { node, block, codes } = chain.port.codes(&addresses).await?;
        if codes.len() != addresses.len() {
            let what = "another number of codes than was asked";
            return Err(ChainError::Unavailable(what.to_owned()));
        }
        let codes = addresses.iter().copied().zip(codes).collect();
        let claim = Claim::Codes { block, codes };
        let said = finality::heard(app, chain, &claim, node).await;
        if let (true, Claim::Codes { codes, .. }) = (said.is_enough(chain.settings.agree), claim) {
            let fact = |(address, code)| CodeFact { address, block, code };
            return Ok(codes.into_iter().map(fact).collect());
        }
        if !said.is_outvoted() {
            break;
        }
    }
    let what = "the nodes do not agree about the code of an account that the request concerns";
    Err(ChainError::Unavailable(what.to_owned()))
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
