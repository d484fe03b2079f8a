//! What others may take is followed on a real chain, by the server's own job.

use super::{Anvil, AnvilOptions, LIMIT, Postgres, SetUp, chain, payout_grants, poll_until};
use crate::support::fault_proxy::{Fault, FaultProxy, Times};
use crate::support::invariants::Invariants;
use alloy::primitives::{Address, U256};
use claviger::core::amount::Amount;
use claviger::core::id::{ChainId, GrantId};
use claviger::core::policy::effect::{ApprovalForm, PermitTerms};
use claviger::core::policy::{Charge, ChargeKind, Exposure, LimitId, Period};
use claviger::core::time::Timestamp;
use claviger::ports::store::{
    End, ExposureRow, ExposureState, Hold, Settlement, Store, look, unit,
};
use claviger::store::{OpenMode, open};
use serde_json::{Value, json};
use std::sync::Arc;

const CHAIN: ChainId = ChainId::new(31337);
const OTHER: ChainId = ChainId::new(31338);
/// A token whose state no node tells.
const SEALED: Address = Address::repeat_byte(0x5e);

fn word(address: &str) -> String {
    format!("{:0>64}", address.trim_start_matches("0x"))
}

struct Token {
    anvil: Anvil,
    at: String,
}

impl Token {
    async fn deploy() -> Self {
        let anvil = chain().await;
        let artefact: Value =
            serde_json::from_str(include_str!("../../contracts/build/TestToken.json")).unwrap();
        let at = anvil.deploy(&artefact, "").await;
        Self { anvil, at }
    }

    fn account(&self, n: usize) -> &str {
        &self.anvil.accounts()[n]
    }

    async fn send(&self, from: usize, data: &str) {
        let hash = self.anvil.send(self.account(from), &self.at, data, 0).await;
        let receipt = self.anvil.wait_for_receipt(&hash, LIMIT).await;
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        self.anvil.mine(4).await;
    }

    async fn mint(&self, to: usize, amount: u64) {
        self.send(0, &format!("0x40c10f19{}{amount:064x}", word(self.account(to)))).await;
    }

    async fn approve(&self, owner: usize, spender: usize, amount: u64) {
        self.send(owner, &format!("0x095ea7b3{}{amount:064x}", word(self.account(spender)))).await;
    }

    async fn take(&self, spender: usize, owner: usize, amount: u64) {
        let (owner, to) = (word(self.account(owner)), word(self.account(spender)));
        self.send(spender, &format!("0x23b872dd{owner}{to}{amount:064x}")).await;
    }
}

fn charge(amount: u64) -> Charge {
    Charge {
        limit: LimitId([7; 32]),
        label: "approvals".to_owned(),
        grant: GrantId::new("approvals"),
        kind: ChargeKind::Amount { value: Amount::from(amount), fee: Amount::ZERO },
        max: Amount::from(1_000_u64),
        period: Period::Rolling(86_400_000),
    }
}

fn exposure(token: &Token, amount: u64, permit: Option<PermitTerms>) -> Exposure {
    Exposure {
        token: token.at.parse().unwrap(),
        owner: token.account(1).parse().unwrap(),
        spender: token.account(2).parse().unwrap(),
        amount: Amount::from(amount),
        form: if permit.is_some() { ApprovalForm::Permit } else { ApprovalForm::Approve },
        permit,
        charges: vec![charge(amount)],
    }
}

async fn held(store: &Arc<dyn Store>, owner: &str, exposure: Exposure) {
    all_held(store, owner, CHAIN, vec![exposure]).await;
}

async fn all_held(store: &Arc<dyn Store>, owner: &str, chain: ChainId, exposures: Vec<Exposure>) {
    let at_once = exposures[0].permit.is_some();
    let (owner, chain) = (owner.to_owned(), Some(chain));
    let hold = Hold { owner, chain, charges: Vec::new(), exposures, at_once };
    let done = unit(&**store, "hold", move |unit| {
        let hold = hold.clone();
        Box::pin(async move {
            let now = Timestamp::from_millis(1_700_000_000_000);
            assert_eq!(unit.hold(&hold, now).await?, None);
            if !at_once {
                let moved = Settlement { value_moved: true, fee_paid: None, fee_from_value: false };
                unit.settle(&hold.owner, moved, now).await?;
            }
            Ok(End::Commit(()))
        })
    });
    done.await.unwrap();
}

async fn exposures(store: &Arc<dyn Store>, owner: &str) -> Vec<ExposureRow> {
    let owner = owner.to_owned();
    let found = look(&**store, "rows", move |unit| {
        let owner = owner.clone();
        Box::pin(async move { unit.exposures_of(&owner).await })
    });
    found.await.unwrap()
}

async fn row(store: &Arc<dyn Store>, owner: &str) -> ExposureRow {
    exposures(store, owner).await.remove(0)
}

/// Held and spent of the limit.
async fn limit(store: &Arc<dyn Store>) -> (u64, u64) {
    let found = look(&**store, "limit", |unit| {
        Box::pin(async move { unit.limits_now(Timestamp::from_millis(0)).await })
    });
    let limit = found.await.unwrap().remove(0);
    (limit.held.units().to(), limit.spent.units().to())
}

async fn looked_at(store: &Arc<dyn Store>, owner: &str, left: u64) -> ExposureRow {
    poll_until(LIMIT, &format!("{left} left of {owner}"), async || {
        let row = row(store, owner).await;
        (row.seen_block > 0 && row.remaining == Amount::from(left)).then_some(row)
    })
    .await
}

#[tokio::test]
async fn what_an_allowance_loses_is_spent_and_what_cannot_be_read_is_held() {
    let token = Token::deploy().await;
    token.mint(1, 1_000).await;
    token.approve(1, 2, 100).await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&token.anvil.url(), Some(&url), &payout_grants("10"));
    let server = setup.start(&[]).await;
    let store = setup.store().await;
    held(&store, "a", exposure(&token, 100, None)).await;
    // The token has no permits: nothing will ever be known of this one.
    let terms = PermitTerms {
        verifying_contract: token.at.parse::<Address>().unwrap(),
        nonce: U256::ZERO,
        deadline: Some(1),
        expires: None,
    };
    held(&store, "b", exposure(&token, 50, Some(terms))).await;
    let seen = looked_at(&store, "a", 100).await;
    assert_eq!((seen.state, limit(&store).await), (ExposureState::Open, (150, 0)));
    token.take(2, 1, 60).await;
    looked_at(&store, "a", 40).await;
    assert_eq!(limit(&store).await, (90, 60));
    token.approve(1, 2, 0).await;
    let over = looked_at(&store, "a", 0).await;
    assert_eq!((over.state, limit(&store).await), (ExposureState::Ended, (50, 100)));
    let unknown = row(&store, "b").await;
    assert_eq!((unknown.state, unknown.submitted), (ExposureState::Open, false));
    let invariants = Invariants::new(&token.anvil.url(), setup.store_url());
    let told = invariants.leaves("SETTLED").await;
    let used: Vec<&str> = told.iter().filter_map(|leaf| leaf["used"].as_str()).collect();
    assert_eq!(used, ["60", "40"]);
    invariants.check().await;
    server.stop().await;
}

/// More than one run looks at, each of a group of its own.
fn sealed(token: &Token) -> Vec<Exposure> {
    let spender = |n: u64| Address::left_padding_from(&n.to_be_bytes());
    let one = |n| Exposure { token: SEALED, spender: spender(n), ..exposure(token, 1, None) };
    (1..=40).map(one).collect()
}

#[tokio::test]
async fn what_cannot_be_read_holds_up_no_other_and_a_silent_chain_no_other_chain() {
    let token = Token::deploy().await;
    token.mint(1, 1_000).await;
    token.approve(1, 2, 100).await;
    let other = AnvilOptions {
        chain_id: Some(OTHER.get()),
        slots_in_an_epoch: Some(1),
        ..AnvilOptions::default()
    };
    let other = Anvil::start(other).await;
    other.mine(4).await;
    let (node, silent) =
        (FaultProxy::start(&token.anvil.url()).await, FaultProxy::start(&other.url()).await);
    let refuse = Fault::Say(json!({ "code": -32603, "message": "internal error" }));
    let unread = node.inject_about("eth_call", &SEALED.to_string(), Times::UntilLifted, refuse);
    let setup = SetUp::new(&node.url(), None, &payout_grants("10"));
    let file = setup.dir().join("claviger.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let local = config.split_once("[[chain]]").unwrap().1;
    let local = local.split("\n[").next().unwrap();
    let more = local.replace("\"local\"", "\"other\"").replace("31337", "31338");
    let more = more.replace(&node.url(), &silent.url());
    std::fs::write(&file, format!("{config}\n[[chain]]{more}")).unwrap();

    // Nobody looks yet: those that nothing can be told about come first on both chains.
    let store = setup.store().await;
    all_held(&store, "a", CHAIN, sealed(&token)).await;
    all_held(&store, "b", OTHER, sealed(&token)).await;
    held(&store, "z", exposure(&token, 100, None)).await;
    drop(store);
    let muted = silent.inject("*", Times::UntilLifted, Fault::Hold);
    let server = setup.start(&[]).await;
    let store = open(setup.store_url(), OpenMode::Reading).await.unwrap();
    looked_at(&store, "z", 100).await;
    token.take(2, 1, 60).await;
    looked_at(&store, "z", 40).await;
    silent.wait_for_held(muted, LIMIT).await;
    assert!(node.hits(unread) > 32, "they had their turn too");
    let blind = exposures(&store, "a").await;
    assert!(blind.iter().all(|row| row.seen_block == 0 && row.remaining == row.amount));
    assert_eq!(limit(&store).await, (120, 60), "and nothing of them is free");

    // Once it can be read, all of them are.
    node.lift(unread);
    token.anvil.mine(4).await;
    poll_until(LIMIT, "all were looked at", async || {
        exposures(&store, "a").await.iter().all(|row| row.seen_block > 0).then_some(())
    })
    .await;
    assert!(exposures(&store, "b").await.iter().all(|row| row.seen_block == 0));
    silent.lift_all();
    drop(store);
    server.stop().await;
}
