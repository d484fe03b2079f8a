//! What every test stands on: a chain, the fault proxy in front of it, a set-up of the server, and the
//! invariants at the end.

use crate::support::fault_proxy::FaultProxy;
use crate::support::invariants::Invariants;
use crate::support::server::{ETHER, LIMIT, PAYEE, STRANGER, Server, SetUp, payout, payout_grants};
use crate::support::services::{Anvil, AnvilOptions, Mining, poll_until};
use claviger::ports::store::look;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;
use serde_json::{Value, json};
use std::sync::Mutex;

pub const SUB: &str = "svc:payouts";
pub const GWEI: u128 = 1_000_000_000;
/// In a block, final or not.
pub const MINED: &[&str] = &["mined", "finalized"];
/// A replacement is due after a second instead of half a minute.
pub const RESEND_SOON: (&str, &str) = ("CLAVIGER__CHAIN__0__RESEND_AFTER", "1s");
pub const FAILPOINT: &str = "CLAVIGER_FAILPOINT";

/// How a stage differs from: a chain that mines only when told, final two blocks below its head, and SQLite.
#[derive(Default)]
pub struct Options {
    pub mines_at_once: bool,
    /// The default epoch, where finality is 64 blocks below the head: for reorganisations deeper than one.
    pub long_epochs: bool,
    pub store_url: Option<String>,
    /// Instead of payouts of one ether at most, a hundred a day.
    pub grants: Option<String>,
    pub anvil_args: Vec<String>,
}

pub struct Stage {
    pub anvil: Anvil,
    pub proxy: FaultProxy,
    pub setup: SetUp,
    long_epochs: bool,
    answered: Mutex<Vec<String>>,
    payee_before: u128,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let mining = if options.mines_at_once { Mining::Auto } else { Mining::Manual };
        let anvil = Anvil::start(AnvilOptions {
            mining,
            slots_in_an_epoch: (!options.long_epochs).then_some(1),
            args: options.anvil_args,
            ..AnvilOptions::default()
        })
        .await;
        let proxy = FaultProxy::start(&anvil.url()).await;
        let grants = options.grants.unwrap_or_else(|| payout_grants("100.0"));
        let setup = SetUp::new(&proxy.url(), options.store_url.as_deref(), &grants);
        let payee_before = anvil.balance(PAYEE).await;
        let (answered, long_epochs) = (Mutex::default(), options.long_epochs);
        Self { anvil, proxy, setup, long_epochs, answered, payee_before }
    }

    /// A server that looks at its chain through the proxy, and one key with money.
    pub async fn open(&self, envs: &[(&str, &str)]) -> (Server, String) {
        let server = self.setup.start(envs).await;
        let address = server.funded_key(&self.anvil, "op-1").await;
        (server, address)
    }

    /// Asks for a payout of an ether, and waits until it is signed: the answer usually does, but not on a
    /// machine that has much else to do.
    pub async fn pay(&self, server: &Server, key: &str) -> Value {
        self.pay_as(server, key, &payout(ETHER)).await
    }

    /// As [`Self::pay`], with another body.
    pub async fn pay_as(&self, server: &Server, key: &str, body: &Value) -> Value {
        let asked = self.ask(server, key, body).await;
        poll_until(LIMIT, "it is signed", async || {
            let found = server.read(&id(&asked)).await;
            (!attempts(&found).is_empty()).then_some(found)
        })
        .await
    }

    /// Asks for a transaction. What is answered 2xx is remembered for the invariants.
    pub async fn ask(&self, server: &Server, key: &str, body: &Value) -> Value {
        // A node that has just failed is left alone for a moment: callers are told, and ask again.
        let answer = poll_until(LIMIT, "its nodes are asked again", async || {
            let answer = server.ask(SUB, key, body).await;
            (answer.status != 503 || answer.code() != "chain-unavailable").then_some(answer)
        })
        .await;
        assert!((200..300).contains(&answer.status), "{} {:#}", answer.status, answer.body);
        self.was_answered(&answer.id());
        answer.body
    }

    /// A request was answered 2xx: it may not be lost.
    pub fn was_answered(&self, id: &str) {
        self.answered.lock().unwrap().push(id.to_owned());
    }

    /// As [`Self::pay`], of a server that may die meanwhile; `None` if it did not answer.
    pub async fn try_pay(&self, server: &Server, key: &str) -> Option<Value> {
        let answer = server.try_ask(SUB, key, &payout(ETHER)).await?;
        if (200..300).contains(&answer.status) {
            self.was_answered(&answer.id());
        }
        Some(answer.body)
    }

    /// Mines one block, again and again, until the transaction is in one.
    pub async fn mine_until_mined(&self, server: &Server, id: &str) -> Value {
        poll_until(LIMIT, &format!("{id} is mined"), async || {
            self.anvil.mine(1).await;
            let found = server.read(id).await;
            is(&found, MINED).then_some(found)
        })
        .await
    }

    /// Makes everything that is mined now final.
    pub async fn make_final(&self) {
        self.anvil.mine(if self.long_epochs { 70 } else { 4 }).await;
    }

    /// Waits until the transaction is mined, and makes its block final.
    pub async fn finish(&self, server: &Server, id: &str) -> Value {
        server.wait_for(id, MINED).await;
        self.make_final().await;
        server.wait_for(id, &["finalized"]).await
    }

    /// A block is final by its depth, from the next start of a server on.
    pub fn final_by_depth(&self, depth: u64) {
        let config = std::fs::read_to_string(self.setup.config()).unwrap();
        let by_tag = "finality = \"finalized\"";
        assert!(config.contains(by_tag));
        let by_depth = config.replace(by_tag, &format!("finality = {{ depth = {depth} }}"));
        std::fs::write(self.setup.config(), by_depth).unwrap();
    }

    /// The invariants of this stage.
    pub fn invariants(&self) -> Invariants {
        Invariants::new(&self.anvil.url(), self.setup.store_url())
            .answered(self.answered.lock().unwrap().clone())
            .sent(self.proxy.sent())
            .chain_cap(150 * GWEI)
    }

    /// Panics with every invariant that does not hold.
    pub async fn check(&self) {
        self.invariants().check().await;
    }

    /// How often one ether reached the payee.
    pub async fn paid(&self) -> u128 {
        let more = self.anvil.balance(PAYEE).await - self.payee_before;
        assert_eq!(more % ETHER, 0, "a payout of another amount");
        more / ETHER
    }

    /// The kinds of the events about a request, in order, without their common beginning.
    pub async fn events(&self, id: &str) -> Vec<String> {
        let store = self.setup.store().await;
        let subject = id.to_owned();
        let events = look(&*store, "events", move |unit| {
            let subject = subject.clone();
            Box::pin(async move { unit.events_of(&subject).await })
        });
        let events = events.await.unwrap().into_iter();
        events.map(|event| event.kind.replace("claviger.transaction.", "")).collect()
    }

    /// Sends from an account of ours without our signature, as somebody with a copy of the key would.
    pub async fn stranger_sends(&self, address: &str) -> String {
        self.anvil.rpc("anvil_impersonateAccount", json!([address])).await;
        let hash = self.anvil.send(address, STRANGER, "0x", 1).await;
        self.anvil.mine(1).await;
        self.anvil.wait_for_receipt(&hash, LIMIT).await;
        hash
    }

    /// Whether the node has the transaction, mined or not.
    pub async fn has(&self, hash: &str) -> bool {
        self.anvil.rpc("eth_getTransactionByHash", json!([hash])).await.is_object()
    }

    /// Hands signed bytes to the node itself, behind the proxy's back.
    pub async fn hand_over(&self, raw: &str) {
        self.anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    }
}

pub fn is(transaction: &Value, statuses: &[&str]) -> bool {
    statuses.contains(&transaction["status"].as_str().unwrap_or_default())
}

pub fn id(transaction: &Value) -> String {
    transaction["id"].as_str().unwrap().to_owned()
}

/// The attempts that are signed.
pub fn attempts(transaction: &Value) -> Vec<Value> {
    let all = transaction["attempts"].as_array().unwrap().iter();
    all.filter(|attempt| attempt["hash"].is_string()).cloned().collect()
}

/// The text of a field of a signed attempt, from 0.
pub fn of_attempt(transaction: &Value, at: usize, field: &str) -> String {
    attempts(transaction)[at][field].as_str().unwrap().to_owned()
}

/// Fee and tip of signed bytes, in wei, by an implementation that is not ours.
pub fn prices(raw: &str) -> (u128, u128) {
    match decoded(raw) {
        TypedTransaction::Eip1559(tx) => {
            (tx.max_fee_per_gas.unwrap().as_u128(), tx.max_priority_fee_per_gas.unwrap().as_u128())
        }
        other => (other.gas_price().unwrap().as_u128(), other.gas_price().unwrap().as_u128()),
    }
}

pub fn decoded(raw: &str) -> TypedTransaction {
    let bytes = hex::decode(raw.trim_start_matches("0x")).unwrap();
    TypedTransaction::decode_signed(&Rlp::new(&bytes)).unwrap().0
}
