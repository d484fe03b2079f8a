//! What an HSM does to its callers, through the HTTP door and under load: messages of two keys asked by many
//! callers, and payouts of their group at the same time. Each test reports how many requests were released,
//! retried and failed; every released signature was recovered, and the invariants hold at the end.

mod down;
mod lost;
mod missing;
mod shapes;
mod stuck;
mod tokens;
mod wrong;

use crate::stage::{Options, Stage, attempts};
use crate::support::pkcs11_faults::Pkcs11Faults;
use crate::support::report::report;
use crate::support::server::{LIMIT, PAYEE, Server, payout_grants};
use crate::support::services::poll_until;
use crate::support::signing_load::{Load, MESSAGE_GRANT, SMALL, Tally, sender_of};
use std::sync::atomic::{AtomicU64, Ordering};

/// A server over a module that fails when it is told to, two keys with money, and nobody who asks yet.
pub struct Rows {
    pub stage: Stage,
    pub faults: Pkcs11Faults,
    pub server: Server,
    /// The addresses of the keys.
    pub keys: [String; 2],
    payee_before: u128,
    /// How many payouts were settled.
    settled: AtomicU64,
}

impl Rows {
    pub async fn open(envs: &[(&str, &str)]) -> Self {
        let grants = format!("{}{MESSAGE_GRANT}", payout_grants("100.0"));
        let options = Options { mines_at_once: true, grants: Some(grants), ..Options::default() };
        let stage = Stage::with(options).await;
        let faults = Pkcs11Faults::new();
        let server = stage.setup.start(&[&faults.envs(), envs].concat()).await;
        let first = server.funded_key(&stage.anvil, "op-1").await;
        let second = server.funded_key(&stage.anvil, "op-2").await;
        let payee_before = stage.anvil.balance(PAYEE).await;
        let keys = [first, second];
        Self { stage, faults, server, keys, payee_before, settled: AtomicU64::new(0) }
    }

    /// Ends the server, and starts another one on the same set-up; in between something may be done to it.
    pub async fn restart(self, envs: &[(&str, &str)], meanwhile: impl FnOnce()) -> Self {
        self.server.stop().await;
        meanwhile();
        let server = self.stage.setup.start(&[&self.faults.envs(), envs].concat()).await;
        Self { server, ..self }
    }

    /// So many callers who ask both keys for messages until they are stopped.
    pub fn messages(&self, callers: usize) -> Load {
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        Load::messages(&self.server, &keys, callers, u64::MAX)
    }

    /// So many callers who ask the group for payouts until they are stopped.
    pub fn payouts(&self, callers: usize) -> Load {
        Load::payouts(&self.server, callers, u64::MAX)
    }

    /// How often the server has logged in.
    pub async fn logins(&self) -> f64 {
        self.server.metric("claviger_hsm_logins_total", &[("outcome", "ok")]).await
    }

    /// How many signatures the module gave of this shape: `high_s`, `low_s` or `wrong`.
    pub async fn signatures(&self, raw: &str) -> f64 {
        self.server.metric("claviger_hsm_signatures_total", &[("raw", raw)]).await
    }

    /// Every payout was executed exactly once, each signed version of it by the key of its address; and the
    /// invariants.
    pub async fn settle(&self, ids: &[String]) {
        for id in ids {
            self.stage.was_answered(id);
            poll_until(LIMIT, &format!("{id} is final"), async || {
                self.stage.make_final().await;
                let found = self.server.read(id).await;
                (found["status"] == "finalized").then_some(())
            })
            .await;
            let found = self.server.read(id).await;
            let signed = attempts(&found);
            assert!(!signed.is_empty(), "{found:#}");
            for attempt in signed {
                assert_eq!(found["address"], sender_of(attempt["raw"].as_str().unwrap()));
            }
        }
        let paid = self.stage.anvil.balance(PAYEE).await - self.payee_before;
        let all = self.settled.fetch_add(ids.len() as u64, Ordering::Relaxed) + ids.len() as u64;
        assert_eq!(paid, u128::from(all) * SMALL, "each payout once");
        self.stage.check().await;
    }

    /// Stops both loads, and tells how they went.
    pub async fn stop(&self, row: &str, messages: Load, payouts: Load) -> (Tally, Tally) {
        let (messages, _) = messages.stop().await;
        let (payouts, ids) = payouts.stop().await;
        report(&format!("{row}: messages: {messages}"));
        report(&format!("{row}: payouts: {payouts}"));
        self.settle(&ids).await;
        let overlap = self.faults.was_finalized_during_a_call();
        assert!(!overlap, "C_Finalize while another call was in the module");
        (messages, payouts)
    }

    /// Nothing failed, and nothing had to be asked again.
    pub fn assert_unnoticed(tally: &Tally) {
        assert_eq!((tally.failed, tally.retried, tally.pending), (0, 0, 0), "{tally}");
    }
}
