//! Builds the edges from the configuration.

use claviger::app::clock_watch::ClockWatch;
use claviger::app::key_scopes::KeyScopes;
use claviger::app::lease::Leases;
use claviger::app::tell::Telling;
use claviger::app::{App, ChainRuntime, ChainSettings, PolicyInForce};
use claviger::chain::evm::{EvmChain, EvmConfig, Finality};
use claviger::cli::Failure;
use claviger::config::hsm::HsmSection;
use claviger::config::server::{ChainSection, FinalitySetting, OverBalance, ServerConfig, gwei};
use claviger::core::id::{ChainId, ChainName, GroupName, HolderId};
use claviger::core::intent::{Fees, TxType};
use claviger::core::time::duration_ms;
use claviger::core::tx::step::Pace;
use claviger::hsm::{Hsm, HsmConfig, Limits, WrappingConfig};
use claviger::http::auth::{Authenticator, IssuerConfig};
use claviger::ports::chain::Chain;
use claviger::ports::clock::Entropy;
use claviger::ports::signer::{Signer, SignerError};
use claviger::ports::store::{Store, StoreError};
use claviger::store::{self, OpenMode};
use claviger::system::{SystemClock, SystemEntropy};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// How long a reading of fees and balances is used, in milliseconds.
const READING_MS: i64 = 1_000;

/// The database's URL, from the configuration or from its file.
///
/// # Errors
/// When the file cannot be read.
pub fn store_url(config: &ServerConfig) -> Result<String, Failure> {
    config.store.read_url().map_err(|error| Failure::of("[store]", error))
}

/// The database, which must be there.
///
/// # Errors
/// When it is not; `Held` when another server holds it.
pub async fn store(config: &ServerConfig) -> Result<Arc<dyn Store>, StoreError> {
    let url = store_url(config).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    store::open(&url, OpenMode::Existing).await
}

/// What the HSM room needs.
#[must_use]
pub fn hsm_configs(config: &ServerConfig) -> Vec<HsmConfig> {
    let read = |section: &HsmSection| HsmConfig {
        name: section.name.clone(),
        module: section.module.clone(),
        token_label: section.token_label.clone(),
        pin_file: section.pin_file.clone(),
        sessions: section.sessions,
        queue: section.queue,
        standby_for: section.standby_for.clone(),
        read_write_sessions: section.read_write_sessions,
        limits: Limits::default(),
        exceptions: section.key_exceptions(),
        wrapping: section
            .wrapping_id()
            .map(|key| WrappingConfig { key, exceptions: section.wrapping_exceptions() }),
        wrapped_cache: section.wrapped_cache,
    };
    config.hsm.iter().map(read).collect()
}

/// The HSMs, with their threads.
///
/// # Errors
/// When a module, a token or a PIN is not as configured.
pub async fn hsm(config: &ServerConfig) -> Result<Arc<Hsm>, Failure> {
    let configs = hsm_configs(config);
    tokio::task::spawn_blocking(move || Hsm::open(configs))
        .await
        .map_err(|e| Failure::of("hsm", e))?
        .map(Arc::new)
        .map_err(|e| match e {
            SignerError::Condemned(_) => Failure::for_good(e.to_string()),
            e => Failure::new(e.to_string()),
        })
}

/// One chain's nodes.
///
/// # Errors
/// When the configuration does not give usable ones.
pub fn nodes(section: &ChainSection) -> Result<Arc<dyn Chain>, Failure> {
    let finality = match section.finality {
        FinalitySetting::Finalized => Finality::Finalized,
        FinalitySetting::Safe => Finality::Safe,
        FinalitySetting::Depth(depth) => Finality::Depth(depth),
    };
    let config =
        EvmConfig { chain_id: ChainId::new(section.chain_id), rpc: section.rpc.clone(), finality };
    let chain = EvmChain::new(config).map_err(|e| Failure::of(&section.name, e))?;
    Ok(Arc::new(chain))
}

fn chain(section: &ChainSection) -> Result<ChainRuntime, Failure> {
    let wrong = |what: &str| Failure::new(format!("[[chain]] `{}`: {what}", section.name));
    let ms = |text: &str, what: &str| duration_ms(text).ok_or_else(|| wrong(what));
    let max_fee = gwei(&section.max_fee_gwei).ok_or_else(|| wrong("max_fee_gwei"))?;
    let tip = gwei(&section.max_tip_gwei).ok_or_else(|| wrong("max_tip_gwei"))?;
    let settings = ChainSettings {
        name: ChainName::new(section.name.clone()),
        id: ChainId::new(section.chain_id),
        tx_type: TxType::from_name(&section.transaction_type)
            .ok_or_else(|| wrong("transaction_type"))?,
        cap: Fees { max_fee, max_priority_fee: tip.min(max_fee) },
        pace: Pace {
            resend_after_ms: ms(&section.resend_after, "resend_after")?,
            rebroadcast_after_ms: ms(&section.rebroadcast_after, "rebroadcast_after")?,
            refused_patience_ms: ms(&section.refused_patience, "refused_patience")?,
            cap_patience_ms: ms(&section.cap_patience, "cap_patience")?,
        },
        in_flight_max: i64::from(section.max_in_flight),
        agree: section.agree(),
        refuses_over_balance: section.over_balance == OverBalance::Refuse,
    };
    Ok(ChainRuntime::new(settings, nodes(section)?, READING_MS))
}

/// The use cases' world.
///
/// # Errors
/// When a chain's configuration is not usable.
pub fn app(
    config: &ServerConfig,
    policy: Arc<PolicyInForce>,
    store: Arc<dyn Store>,
    signer: Arc<dyn Signer>,
) -> Result<Arc<App>, Failure> {
    let mut chains = BTreeMap::new();
    for section in &config.chains {
        chains.insert(ChainName::new(section.name.clone()), Arc::new(chain(section)?));
    }
    let lease_ms = duration_ms(&config.server.lease)
        .ok_or_else(|| Failure::new("[server] lease is not a duration such as `15s`"))?;
    let clock_jump_ms = duration_ms(&config.server.clock_jump)
        .ok_or_else(|| Failure::new("[server] clock_jump is not a duration such as `5m`"))?;
    Ok(Arc::new(App {
        store,
        signer,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        chains,
        groups: config.groups.iter().map(|group| GroupName::new(group.name.clone())).collect(),
        policy,
        signing: Mutex::default(),
        turn: AtomicUsize::new(0),
        changes: tokio::sync::broadcast::Sender::new(1_024),
        leases: Leases::new(HolderId::new(SystemEntropy.uuid()), lease_ms),
        clock_watch: ClockWatch::new(clock_jump_ms),
        max_waiting: i64::from(config.server.max_waiting),
        crowded: Mutex::default(),
        telling: Telling::new(streams_max(config), CancellationToken::new()),
        key_scopes: KeyScopes::new(&config.auth.shared_keys),
    }))
}

fn streams_max(config: &ServerConfig) -> usize {
    usize::try_from(config.events.streams_max).unwrap_or(usize::MAX)
}

/// Who may come in.
///
/// # Errors
/// When an issuer's configuration is not usable.
pub fn authenticator(
    config: &ServerConfig,
    policy: Arc<PolicyInForce>,
) -> Result<Arc<Authenticator>, Failure> {
    let issuers = config.auth.issuers.iter().map(|issuer| {
        Ok(IssuerConfig {
            iss: issuer.iss.clone(),
            audience: issuer.audience.clone(),
            jwks: issuer.jwks.parse().map_err(|e: String| Failure::new(e))?,
            algorithms: issuer.algorithms.clone(),
            max_ttl_s: i64::try_from(issuer.max_ttl_s).unwrap_or(i64::MAX),
        })
    });
    let issuers = issuers.collect::<Result<Vec<_>, Failure>>()?;
    let may_vouch =
        Arc::new(move |iss: &str, role, sub: &str| policy.bundle().issuer_allows(iss, role, sub));
    Authenticator::new(issuers, may_vouch, Arc::new(SystemClock))
        .map(Arc::new)
        .map_err(|e| Failure::of("auth", e))
}
