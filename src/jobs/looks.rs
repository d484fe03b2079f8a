//! Looks at the accounts of a chain, each in a task of its own: what holds one account up (a node or an HSM
//! that does not answer) holds up no other.

use crate::app::lane::Idle;
use crate::app::{App, AppError, ChainRuntime, follow, lane, lease};
use crate::ports::store::look;
use alloy::primitives::Address;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many accounts of a chain are looked at at once.
const AT_ONCE: usize = 16;

/// The accounts that are being looked at now.
type Running = Arc<Mutex<HashSet<Address>>>;

/// The looks at one chain's accounts. Dropped, it ends those that run.
pub struct Looks {
    app: Arc<App>,
    chain: Arc<ChainRuntime>,
    running: Running,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

/// An account's turn; given back however its look ends.
struct Turn {
    running: Running,
    address: Address,
}

impl Turn {
    fn take(running: &Running, address: Address) -> Option<Self> {
        let mut taken = running.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(address).then(|| Self { running: Arc::clone(running), address })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address);
    }
}

impl Looks {
    /// None yet.
    #[must_use]
    pub fn new(app: Arc<App>, chain: Arc<ChainRuntime>) -> Self {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self { app, chain, running: Running::default(), room, tasks: JoinSet::new() }
    }

    /// Starts a look at every account that has work and is not being looked at. Waits while as many run as
    /// may, so that each account comes to its turn before any comes again.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn start(&mut self) -> Result<(), AppError> {
        while let Some(ended) = self.tasks.try_join_next() {
            told(ended);
        }
        let id = self.chain.settings.id;
        let busy = look(&*self.app.store, "busy_accounts", move |unit| {
            Box::pin(async move { unit.busy_accounts(id).await })
        })
        .await?;
        for address in busy {
            let permit = Arc::clone(&self.room).acquire_owned().await;
            let permit = permit.map_err(AppError::internal)?;
            let Some(turn) = Turn::take(&self.running, address) else {
                continue;
            };
            let (app, chain) = (Arc::clone(&self.app), Arc::clone(&self.chain));
            self.tasks.spawn(async move {
                account(&app, &chain, address).await;
                drop((turn, permit));
            });
        }
        Ok(())
    }

    /// Waits until no look runs.
    pub async fn drained(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            told(ended);
        }
    }
}

fn told(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a look at an account ended by itself");
    }
}

/// One look at an account: follow what is out, then give nonces to what waits. Nothing, while another
/// process holds the lane.
async fn account(app: &App, chain: &ChainRuntime, address: Address) {
    let name = &chain.settings.name;
    let lease = match lease::hold(app, chain, address).await {
        Ok(Some(lease)) => lease,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(chain = %name, %address, %error, "the lane's lease is not known");
            return;
        }
    };
    // One part that fails must not keep the other waiting.
    if let Err(error) = follow::follow(app, chain, &lease).await {
        tracing::warn!(chain = %name, %address, %error, "could not follow");
    }
    match lane::work(app, chain, address).await {
        Ok(Idle::Unfunded) => tracing::warn!(%address, "the account needs a top-up"),
        Ok(Idle::AboveCap) => tracing::warn!(%address, "the base fee is above the cap"),
        Ok(Idle::Halted(reason)) => tracing::warn!(%address, reason, "the lane is halted"),
        Ok(Idle::Unsettled) => {
            tracing::warn!(%address, "the nodes do not say whether a source event still stands");
        }
        Ok(Idle::Empty | Idle::Full | Idle::Contended | Idle::Elsewhere) => {}
        Err(error) => {
            tracing::warn!(%address, %error, "the lane will be worked again");
            // Another server's HSM may answer.
            if lease::is_unable(&error)
                && let Err(error) = lease::leave(app, &lease).await
            {
                tracing::warn!(%address, %error, "the lane could not be left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_one_turn_at_a_time() {
        let running = Running::default();
        let turn = Turn::take(&running, Address::ZERO);
        assert!(turn.is_some());
        assert!(Turn::take(&running, Address::ZERO).is_none());
        assert!(Turn::take(&running, Address::ZERO).is_none(), "the first still has it");
        assert!(Turn::take(&running, Address::repeat_byte(1)).is_some());
        drop(turn);
        assert!(Turn::take(&running, Address::ZERO).is_some());
    }
}
