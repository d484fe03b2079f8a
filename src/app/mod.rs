//! Use cases, one file per verb: the only code that orders steps.
//!
//! The order of the commits is the safety (see `docs/ARCHITECTURE.md`): accept and reserve; decide and
//! allocate the nonce; sign; store the signature; send. A crash between any two of them is continued by
//! the same functions.

pub mod accept;
pub mod adopt;
pub mod approve;
mod ask;
mod bump;
pub mod cancel;
pub mod ceremony;
pub mod chains;
pub mod clock_watch;
pub mod create_key;
mod create_wrapped;
mod destinations;
pub mod error;
pub mod evaluate;
pub mod exposures;
mod facts;
pub mod finality;
pub mod follow;
pub mod hsm_events;
pub mod import_key;
pub mod in_force;
pub mod inclusion;
pub mod key_leaf;
pub mod key_scopes;
pub mod lane;
pub mod lease;
pub mod outbid;
pub mod policies;
pub mod read;
pub mod read_limits;
pub mod reconcile;
pub mod record;
pub mod recover;
pub mod rejudge;
pub mod release;
pub mod send;
pub mod settle_external;
pub mod sign;
pub mod sign_request;
pub mod signers;
pub mod source_gone;
pub mod speed_up;
pub mod story;
pub mod suspension;
pub mod tell;
pub mod waiting;

pub use chains::{ChainRuntime, ChainSettings};
pub use error::AppError;
pub use in_force::PolicyInForce;

use crate::core::id::{ChainId, ChainName, GroupName, RequestId};
use crate::core::policy::Bundle;
use crate::ports::clock::{Clock, Entropy};
use crate::ports::signer::Signer;
use crate::ports::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Everything a use case may reach: ports, the policy in force, and what the configuration says.
pub struct App {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The HSM.
    pub signer: Arc<dyn Signer>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub entropy: Arc<dyn Entropy>,
    /// The chains, by configured name.
    pub chains: BTreeMap<ChainName, Arc<ChainRuntime>>,
    /// The configured groups.
    pub groups: BTreeSet<GroupName>,
    /// The policy in force.
    pub policy: Arc<PolicyInForce>,
    /// Attempts that this process is signing now. Only saves work: the database decides who wins.
    pub signing: Mutex<HashSet<(RequestId, i64)>>,
    /// Whose turn it is among equally busy keys.
    pub turn: AtomicUsize,
    /// Told after each change of a transaction in this process, for callers that wait.
    pub changes: tokio::sync::broadcast::Sender<RequestId>,
    /// Which lanes this process works.
    pub leases: lease::Leases,
    /// Whether our clock may be believed.
    pub clock_watch: clock_watch::ClockWatch,
    /// How many requests of one principal may wait for time or people.
    pub max_waiting: i64,
    /// Until when, on the steady clock, the log need not be told that no more of a principal may wait. Only saves
    /// units: the database decides.
    pub crowded: Mutex<HashMap<String, i64>>,
    /// What those who are told of events share.
    pub telling: tell::Telling,
    /// Who shares idempotency keys.
    pub key_scopes: key_scopes::KeyScopes,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("chains", &self.chains.keys()).finish_non_exhaustive()
    }
}

impl App {
    /// The bundle in force now. A decision asks once, and names what it was given.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        self.policy.bundle()
    }

    /// Wakes the callers that wait for a change of this one.
    pub fn changed_one(&self, request: RequestId) {
        // Nobody may be waiting.
        let _ = self.changes.send(request);
    }

    /// Waits for a change that may be of this request. Who hears of every one would read as often as all
    /// others change.
    pub async fn change_of(changes: &mut Receiver<RequestId>, request: RequestId) {
        loop {
            match changes.recv().await {
                Ok(other) if other != request => {}
                // This one, or some were missed.
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    /// A chain by its pinned id: names may change, what was asked for a chain stays of that chain.
    #[must_use]
    pub fn chain_of(&self, id: ChainId) -> Option<&Arc<ChainRuntime>> {
        self.chains.values().find(|chain| chain.settings.id == id)
    }

    /// A chain by its configured name or its CAIP-2 id (`eip155:1`).
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&Arc<ChainRuntime>> {
        self.chains.get(&ChainName::new(name)).or_else(|| {
            let id = name.strip_prefix("eip155:")?;
            self.chains.values().find(|chain| chain.settings.id.get().to_string() == id)
        })
    }
}
