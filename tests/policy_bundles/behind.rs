//! Processes that do not know the bundle in force: behind it for a moment, or of a version that cannot read it;
//! and one that learns it between reading and writing.

use super::*;
use alloy::primitives::{Address, B256};
use claviger::core::id::ChainId;
use claviger::core::key::NonceMode;
use claviger::core::principal::Principal;
use claviger::ports::clock::Clock;
use claviger::ports::store::{Activation, BundleRow, End, LaneKey, Store, unit};
use claviger::system::SystemClock;
use sqlx::{Connection as _, PgConnection};
use support::fault_proxy::{Fault, FaultProxy, Times};
use support::server::ETHER;
use support::services::Anvil;
use tokio::sync::Barrier;

const MINED: &[&str] = &["mined", "finalized", "failed"];

/// A payout by this account.
fn by(address: &str, wei: u128) -> Value {
    let mut body = payout(wei);
    body["signer"] = json!(address);
    body
}

fn up_to(ether: u32) -> String {
    payout_grants("1000").replace("per_tx = \"1.0\"", &format!("per_tx = \"{ether}.0\""))
}

#[tokio::test]
async fn what_a_newer_bundle_accepted_elsewhere_does_not_fail_where_that_is_not_known_yet() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &up_to(1));
    let dir = setup.dir().join("policies");
    let one = setup.start(&[]).await;
    let address = one.funded_key(&anvil, "op-1").await;
    let two = setup.start_beside("two.record", &[]).await;
    for n in 2..5_u32 {
        // The other one works the account, and looks for the bundle in force once a second.
        let small = two.ask(SUB, &format!("small-{n}"), &by(&address, 1)).await.ok();
        two.wait_for(small["id"].as_str().unwrap(), MINED).await;
        let parent = in_force(&one).await;
        let next = files(&dir, &format!("v{n}"), &parent, &up_to(n));
        let hash = text(&propose(&one, AUTHOR, &next).await.ok()["hash"]);
        assert_eq!(activate(&one, OTHER, &hash).await.status, 200);
        let large = by(&address, u128::from(n) * ETHER);
        let asked = one.ask(SUB, &format!("large-{n}"), &large).await;
        assert_eq!(asked.status, 201, "{:#}", asked.body);
        let ended = one.wait_for(&asked.id(), MINED).await;
        assert_ne!(ended["status"], "failed", "{ended:#}");
        assert_eq!(ended["decision"]["bundle"], hash.as_str());
    }
    one.stop().await;
    two.stop().await;
}

async fn activation(store: &Arc<dyn Store>, serial: i64, bundle: &BundleRow) {
    let row = Arc::new((bundle.clone(), serial));
    let done = unit(&**store, "test", move |unit| {
        let row = Arc::clone(&row);
        Box::pin(async move {
            let (row, serial) = &*row;
            unit.keep_bundle(row).await?;
            let (bundle, way) = (row.hash, "people".to_owned());
            let activation = Activation { serial: *serial, bundle, way, at: row.at };
            Ok(End::Commit(unit.activate_bundle(&activation).await?))
        })
    });
    assert!(done.await.unwrap());
}

fn approve_above_half() -> String {
    payout_grants("1000")
        + "approval = { above = \"0.5\", quorum = { people = 1 }, ttl = \"30m\" }\n"
}

async fn approval(server: &Server, id: &str, more: &str, body: Option<&Value>) -> Answer {
    let url = format!("{}/admin/v1/approvals/{id}{more}", server.admin_url());
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let token = server.token("dev:bob", Role::Approver);
    server.try_call(method, url, &token, None, body).await.unwrap()
}

#[tokio::test]
async fn while_the_bundle_in_force_cannot_be_read_nothing_is_decided_and_nothing_ends() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &approve_above_half());
    let head = setup.dir().join("policies/bundle.toml");
    let text_of = std::fs::read_to_string(&head).unwrap();
    let people = "\n[[quorum]]\nname = \"people\"\nmembers = [\"dev:bob\"]\n";
    std::fs::write(&head, text_of + people).unwrap();
    let server = setup.start(&[]).await;
    let rich = server.funded_key(&anvil, "op-1").await;
    let poor = server.key("op-2", Some("payments"), "managed").await;
    let waits = server.ask(SUB, "waits", &by(&rich, ETHER)).await;
    assert_eq!(waits.status, 202, "{:#}", waits.body);
    let queued = server.ask(SUB, "queued", &by(&poor, 1)).await.ok();
    let queued = text(&queued["id"]);
    let other = server.ask(SUB, "other", &by(&poor, 2)).await.id();
    let shown = approval(&server, &waits.id(), "", None).await.ok();

    // A bundle that a newer version of the program wrote.
    let store = setup.store().await;
    let first: B256 = in_force(&server).await.parse().unwrap();
    let nobody = Principal { iss: String::new(), sub: String::new() };
    let unreadable = BundleRow {
        hash: B256::repeat_byte(9),
        version: "newer".to_owned(),
        files_json: json!({ "bundle.toml": "schema = 99\n" }).to_string(),
        author: nobody,
        at: SystemClock.now(),
    };
    activation(&store, 2, &unreadable).await;
    poll_until(LIMIT, "it is known not to be readable", async || {
        let asked = sign(&server, "hello you").await;
        (asked.status == 503).then(|| assert_eq!(asked.code(), "store-unavailable"))
    })
    .await;
    assert_eq!(server.ask(SUB, "new", &by(&rich, 1)).await.code(), "store-unavailable");
    let evaluate = format!("{}/v1/policy/evaluate", server.client_url());
    let token = server.token(SUB, Role::Client);
    let body = by(&rich, 1);
    let would = server.try_call(Method::POST, evaluate, &token, None, Some(&body)).await.unwrap();
    assert_eq!(would.code(), "store-unavailable", "{:#}", would.body);
    // It is approved, and its account has money: still neither goes on.
    let said = json!({ "hash": shown["hash"], "reason": "a test" });
    assert_eq!(approval(&server, &waits.id(), "/approve", Some(&said)).await.status, 200);
    anvil.set_balance(&poor, 10 * ETHER).await;
    let told = |server: &Server| server.program.stderr().matches("cannot be read here").count();
    let before = told(&server);
    poll_until(LIMIT, "both were looked at", async || (told(&server) > before + 4).then_some(()))
        .await;
    assert_eq!(server.read(&waits.id()).await["status"], "awaiting_approval");
    assert_eq!(server.read(&queued).await["status"], "queued");
    assert_eq!(anvil.nonce(&poor).await, 0);
    // To give up needs no policy.
    assert_eq!(server.intervene(&other, "cancel").await.ok()["status"], "cancelled");

    activation(&store, 3, &BundleRow { hash: first, ..unreadable }).await;
    for id in [&queued, &waits.id()] {
        let ended = server.wait_for(id, MINED).await;
        assert_ne!(ended["status"], "failed", "{ended:#}");
    }
    assert_eq!(server.ask(SUB, "new", &by(&rich, 1)).await.status, 201);
    server.stop().await;
}

/// A lane of this test's own account, held by the test.
struct HeldLane {
    turns: Arc<Barrier>,
    held: tokio::task::JoinHandle<()>,
}

impl HeldLane {
    async fn take(setup: &SetUp, server: &Server, address: &str, mode: NonceMode) -> Self {
        let token = server.token("dev:op", Role::Operator);
        let url = format!("{}/admin/v1/keys", server.admin_url());
        let listed = server.try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
        let keys = listed["keys"].as_array().unwrap();
        let key = keys.iter().find(|key| key["address"] == address).unwrap()["id"].clone();
        let key = text(&key).parse().unwrap();
        let address: Address = address.parse().unwrap();
        let lane = LaneKey { chain: ChainId::new(31_337), address, key, mode };
        let (store, turns) = (setup.store().await, Arc::new(Barrier::new(2)));
        let held = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                let done = unit(&*store, "test", move |unit| {
                    let (turns, lane) = (Arc::clone(&turns), lane.clone());
                    Box::pin(async move {
                        unit.lock_lane(&lane).await?;
                        turns.wait().await;
                        turns.wait().await;
                        Ok(End::Rollback(()))
                    })
                });
                done.await.unwrap();
            }
        });
        turns.wait().await;
        Self { turns, held }
    }

    /// Until the server stands at it.
    async fn is_waited_for(&self, url: &str) {
        let mut db = PgConnection::connect(url).await.unwrap();
        let query = "SELECT count(*) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let mut waiting: i64 = 0;
        poll_until(LIMIT, "somebody waits for the lane", async || {
            waiting = sqlx::query_scalar(query).fetch_one(&mut db).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
    }

    async fn release(self) {
        self.turns.wait().await;
        self.held.await.unwrap();
    }
}

#[tokio::test]
async fn no_nonce_is_given_under_a_bundle_that_was_replaced_while_the_lane_was_waited_for() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &up_to(1));
    let dir = setup.dir().join("policies");
    let server = setup.start(&[]).await;
    let address = server.funded_key(&anvil, "op-1").await;
    let first = server.ask(SUB, "first", &by(&address, 1)).await.ok();
    server.wait_for(first["id"].as_str().unwrap(), MINED).await;
    let parent = in_force(&server).await;
    let next = files(&dir, "v2", &parent, &up_to(1).replace("svc:payouts", "svc:watcher"));
    let hash = text(&propose(&server, AUTHOR, &next).await.ok()["hash"]);

    let lane = HeldLane::take(&setup, &server, &address, NonceMode::Managed).await;
    let asked = server.ask(SUB, "second", &by(&address, ETHER)).await;
    assert_eq!((asked.status, asked.body["status"].as_str()), (201, Some("queued")));
    lane.is_waited_for(&url).await;
    assert_eq!(activate(&server, OTHER, &hash).await.status, 200);
    lane.release().await;
    let ended = server.wait_for(&asked.id(), MINED).await;
    assert_eq!((&ended["status"], &ended["nonce"]), (&json!("failed"), &Value::Null), "{ended:#}");
    assert_eq!(ended["failure"]["code"], "policy-denied");
    assert_eq!(anvil.nonce(&address).await, 1);
    server.stop().await;
    let of_it = leaves(&setup).await.into_iter().filter(|leaf| leaf.subject == asked.id());
    assert!(of_it.map(|leaf| leaf.kind).all(|kind| kind == "DENIED"));
}

#[tokio::test]
async fn a_second_verdict_counts_only_under_the_bundle_that_is_in_force_when_all_was_read() {
    let anvil = chain().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let setup = SetUp::new(&proxy.url(), None, &up_to(1));
    let dir = setup.dir().join("policies");
    let server = setup.start(&[]).await;
    let poor = server.key("op-1", Some("payments"), "managed").await;
    let asked = server.ask(SUB, "waits", &by(&poor, ETHER)).await.id();
    let change = async |version: &str, grants: &str| {
        let next = files(&dir, version, &in_force(&server).await, grants);
        let hash = text(&propose(&server, AUTHOR, &next).await.ok()["hash"]);
        assert_eq!(activate(&server, OTHER, &hash).await.status, 200);
    };
    // It is judged again by a second bundle, which lets it go; and while its balance is read a third one comes,
    // which does not.
    change("v2", &up_to(2)).await;
    let held = proxy.inject_about("eth_getBalance", &poor, Times::UntilLifted, Fault::Hold);
    proxy.wait_for_held(held, LIMIT).await;
    anvil.set_balance(&poor, 10 * ETHER).await;
    change("v3", &up_to(2).replace("svc:payouts", "svc:watcher")).await;
    proxy.lift(held);
    let ended = server.wait_for(&asked, MINED).await;
    assert_eq!((&ended["status"], &ended["nonce"]), (&json!("failed"), &Value::Null), "{ended:#}");
    assert_eq!(anvil.nonce(&poor).await, 0);
    server.stop().await;
}

/// An external account's window, in wei: held and spent.
async fn window(server: &Server) -> (u128, u128) {
    let url = format!("{}/v1/limits", server.client_url());
    let token = server.token("dev:op", Role::Operator);
    let shown = server.try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
    let wei = |field: &str| text(&shown["limits"][0][field]).parse().unwrap();
    (wei("held"), wei("spent"))
}

async fn mined(anvil: &Anvil, raw: &Value) {
    let hash = anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
    anvil.wait_for_receipt(hash.as_str().unwrap(), LIMIT).await;
    anvil.mine(4).await;
}

#[tokio::test]
async fn what_an_external_account_holds_is_settled_under_its_lane() {
    let anvil = chain().await;
    let url = Postgres::shared().await.create_database();
    let setup = SetUp::new(&anvil.url(), Some(&url), &up_to(1));
    let server = setup.start(&[]).await;
    let address = server.key("ext-1", Some("payments"), "external").await;
    anvil.set_balance(&address, 10 * ETHER).await;
    let body = json!({ "chain": "local", "signer": address, "transaction": {
        "nonce": "0", "gas": "21000", "to": PAYEE, "value": "1000", "gas_price": "4000000000",
    }});
    let signed = server.sign(SUB, None, &body).await.ok();
    let held = window(&server).await;
    assert!(held.0 > 1000 && held.1 == 0, "{held:?}");
    // Whoever signs another version for the nonce has the lane: it is not settled meanwhile.
    let lane = HeldLane::take(&setup, &server, &address, NonceMode::External).await;
    mined(&anvil, &signed["raw"]).await;
    lane.is_waited_for(&url).await;
    assert_eq!(window(&server).await, held);
    lane.release().await;
    poll_until(LIMIT, "it is settled", async || (window(&server).await.0 == 0).then_some(())).await;
    server.stop().await;
}
