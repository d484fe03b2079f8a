//! A configured chain at run time: its settings, its nodes, and short-lived readings of them.

use crate::app::App;
use crate::app::error::AppError;
use crate::app::finality::FinalityKept;
use crate::core::id::{ChainId, ChainName, RequestId};
use crate::core::intent::{ChainRef, Fees, TxType};
use crate::core::time::Timestamp;
use crate::core::tx::fee::Market;
use crate::core::tx::step::Pace;
use crate::ports::chain::{BlockAt, Chain, ChainError};
use crate::ports::store::{End, unit};
use alloy::primitives::{Address, B256, U256};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the code of a delegated account begins with (EIP-7702).
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];
/// How long it is believed that an account is delegated, or is not, in milliseconds.
const DELEGATED_MS: i64 = 60_000;
/// How long it is believed what policy lets a transaction offer.
const OFFER_MS: i64 = 60_000;

/// What the configuration says about a chain.
#[derive(Debug, Clone)]
pub struct ChainSettings {
    /// The configured name.
    pub name: ChainName,
    /// The pinned id.
    pub id: ChainId,
    /// The envelope when the caller names none.
    pub tx_type: TxType,
    /// The most that may be offered, in wei per gas.
    pub cap: Fees,
    /// When to replace and when to send again.
    pub pace: Pace,
    /// How many transactions of a lane may have a nonce and not be mined.
    pub in_flight_max: i64,
    /// How many nodes must say the same, where none contradicts, before an end is told.
    pub agree: usize,
    /// Whether a request that its account cannot pay for now is refused instead of parked.
    pub refuses_over_balance: bool,
}

/// A chain, its nodes, and readings of them that are kept for a moment.
pub struct ChainRuntime {
    /// Settings.
    pub settings: ChainSettings,
    /// Nodes.
    pub port: Arc<dyn Chain>,
    /// How long a reading is used, in milliseconds.
    pub reading_ms: i64,
    verified: AtomicBool,
    market: Mutex<Option<(Timestamp, Market)>>,
    balances: Mutex<HashMap<Address, (Timestamp, U256)>>,
    checked_lanes: Mutex<HashMap<Address, bool>>,
    delegated: Mutex<HashMap<Address, (Timestamp, bool)>>,
    foreign: Mutex<HashMap<RequestId, Timestamp>>,
    offers: Mutex<HashMap<RequestId, Offer>>,
    /// What was found out lately about its final blocks.
    pub(crate) finality: FinalityKept,
    final_seen: Mutex<Option<u64>>,
}

/// What policy in force lets a transaction offer that has its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The bundle that was asked.
    pub bundle: B256,
    /// When.
    pub at: Timestamp,
    /// The most; `None` where it would not be signed any more.
    pub most: Option<Fees>,
}

impl std::fmt::Debug for ChainRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChainRuntime").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl ChainRuntime {
    /// A chain that has not been verified yet.
    #[must_use]
    pub fn new(settings: ChainSettings, port: Arc<dyn Chain>, reading_ms: i64) -> Self {
        Self {
            settings,
            port,
            reading_ms,
            verified: AtomicBool::new(false),
            market: Mutex::default(),
            balances: Mutex::default(),
            checked_lanes: Mutex::default(),
            delegated: Mutex::default(),
            foreign: Mutex::default(),
            offers: Mutex::default(),
            finality: FinalityKept::default(),
            final_seen: Mutex::default(),
        }
    }

    /// The chain's two names.
    #[must_use]
    pub fn reference(&self) -> ChainRef {
        ChainRef { name: self.settings.name.clone(), id: self.settings.id }
    }

    /// Whether the nodes were found to be of the pinned chain.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    /// The fee market, at most `reading_ms` old.
    ///
    /// # Errors
    /// When it is older and no node answers.
    pub async fn market(&self, now: Timestamp) -> Result<Market, ChainError> {
        let kept = self.market.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, market)) = kept.filter(|(at, _)| fresh(*at, now, self.reading_ms)) {
            return Ok(market);
        }
        let read = self.port.fee_market().await?;
        let market = Market { base_fee: read.base_fee, tips: read.tips };
        *self.market.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, market.clone()));
        Ok(market)
    }

    /// The account's balance in wei, at most `reading_ms` old.
    ///
    /// # Errors
    /// When it is older and no node answers.
    pub async fn balance(&self, address: Address, now: Timestamp) -> Result<U256, ChainError> {
        let kept = {
            let balances = self.balances.lock().unwrap_or_else(PoisonError::into_inner);
            balances.get(&address).copied()
        };
        if let Some((_, balance)) = kept.filter(|(at, _)| fresh(*at, now, self.reading_ms)) {
            return Ok(balance);
        }
        let balance = self.port.balance(address).await?;
        let mut balances = self.balances.lock().unwrap_or_else(PoisonError::into_inner);
        balances.insert(address, (now, balance));
        Ok(balance)
    }

    /// How many transactions of this account may have a nonce and not be mined. One, where the account is
    /// delegated (EIP-7702): pools hold no more of it.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn in_flight_max(&self, address: Address, now: Timestamp) -> Result<i64, ChainError> {
        let is_delegated = match self.is_delegated(address, now) {
            Some(known) => known,
            None => {
                let head = self.port.block(BlockAt::Latest).await?;
                let head = head.ok_or(ChainError::UnknownBlock)?;
                let code = self.port.code(address, head.hash).await?;
                let found = code.starts_with(&DELEGATION);
                let mut delegated = self.delegated.lock().unwrap_or_else(PoisonError::into_inner);
                delegated.insert(address, (now, found));
                found
            }
        };
        Ok(if is_delegated { 1 } else { self.settings.in_flight_max })
    }

    /// As [`Self::in_flight_max`], without asking a node: an account of which this process has not lately found
    /// out that it is delegated is taken for one that is not.
    #[must_use]
    pub fn known_in_flight_max(&self, address: Address, now: Timestamp) -> i64 {
        let is_delegated = self.is_delegated(address, now).unwrap_or(false);
        if is_delegated { 1 } else { self.settings.in_flight_max }
    }

    /// Whether it is, as far as that was found out lately.
    fn is_delegated(&self, address: Address, now: Timestamp) -> Option<bool> {
        let delegated = self.delegated.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = delegated.get(&address).filter(|(at, _)| fresh(*at, now, DELEGATED_MS));
        kept.map(|(_, found)| *found)
    }

    /// Whether this process has compared the lane with the chain.
    #[must_use]
    pub fn lane_is_checked(&self, address: Address) -> bool {
        let lanes = self.checked_lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.contains_key(&address)
    }

    /// Since when, without a break, the chain says that somebody else used this request's nonce.
    #[must_use]
    pub fn foreign_since(&self, request: RequestId, now: Timestamp) -> Timestamp {
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        *foreign.entry(request).or_insert(now)
    }

    /// It does not say so (any more).
    pub fn not_foreign(&self, request: RequestId) {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
    }

    /// What policy was found to let a transaction offer that has its nonce, if this bundle was asked lately.
    #[must_use]
    pub fn offer_of(&self, request: RequestId, bundle: B256, now: Timestamp) -> Option<Offer> {
        let offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let offer = offers.get(&request).copied()?;
        (offer.bundle == bundle && now.since(offer.at) < OFFER_MS).then_some(offer)
    }

    /// Remembers it.
    pub fn keep_offer(&self, request: RequestId, offer: Offer) {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.retain(|_, kept| offer.at.since(kept.at) < OFFER_MS);
        offers.insert(request, offer);
    }

    /// The newest final block that this process has been told of. Only for people.
    #[must_use]
    pub fn final_seen(&self) -> Option<u64> {
        *self.final_seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers it.
    pub fn saw_final(&self, number: Option<u64>) {
        let mut seen = self.final_seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = number.or(*seen);
    }

    /// Remembers that it has.
    pub fn lane_was_checked(&self, address: Address) {
        let mut lanes = self.checked_lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.insert(address, true);
    }
}

pub(crate) fn fresh(at: Timestamp, now: Timestamp, for_ms: i64) -> bool {
    (0..for_ms).contains(&now.since(at))
}

/// Asks the nodes of a chain who they are, and compares with the configuration and with what was pinned
/// when the chain was first seen. Until this has succeeded nothing is signed for the chain.
///
/// # Errors
/// When no node answers, or they are of another chain.
pub async fn verify(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    if chain.is_verified() {
        return Ok(());
    }
    identify(app, chain, true).await?;
    chain.verified.store(true, Ordering::Release);
    Ok(())
}

/// The same comparison, for what must leave no trace: a chain that is seen for the first time is not
/// pinned.
///
/// # Errors
/// As [`verify`].
pub async fn compare(app: &App, chain: &ChainRuntime) -> Result<(), AppError> {
    if chain.is_verified() {
        return Ok(());
    }
    identify(app, chain, false).await
}

async fn identify(app: &App, chain: &ChainRuntime, pin: bool) -> Result<(), AppError> {
    let (id, genesis) = chain.port.identity().await?;
    let (name, expected) = (&chain.settings.name, chain.settings.id);
    if id != expected {
        return Err(AppError::Internal(format!(
            "the nodes of `{name}` say chain id {id}, the configuration says {expected}"
        )));
    }
    let pinned = unit(&*app.store, "pin_chain", move |unit| {
        Box::pin(async move {
            let pinned = unit.pin_chain(id, genesis).await?;
            Ok(if pin { End::Commit(pinned) } else { End::Rollback(pinned) })
        })
    })
    .await?;
    crate::failpoint!("chains.after_pinned");
    if pinned != genesis {
        return Err(AppError::Internal(format!(
            "the nodes of `{name}` say genesis {genesis}, pinned is {pinned}"
        )));
    }
    Ok(())
}
