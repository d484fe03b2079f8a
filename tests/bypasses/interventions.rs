//! What was accepted and is then cancelled or sped up: neither is a way to another payment, to a higher fee, out
//! of a window, or past people. On a chain that mines when the test says so.

use crate::approvals::{decide, waiting};
use crate::stage::*;
use crate::support::server::{Answer, LIMIT};
use crate::support::services::poll_until;
use claviger::core::access::Role;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::utils::rlp::Rlp;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

const ETHER: u128 = 1_000_000_000_000_000_000;
const GWEI: u128 = 1_000_000_000;
const VERBS: [&str; 2] = ["cancel", "speed-up"];

fn pay(wei: u128) -> Call {
    call(PAYEE, wei, "0x")
}

async fn intervene(it: &Actor, token: &str, id: &str, verb: &str, body: &Value) -> Answer {
    let url = format!("{}/v1/transactions/{id}/{verb}", it.server().client_url());
    it.server().try_call(Method::POST, url, token, None, Some(body)).await.expect("an answer")
}

/// An operator's word.
async fn said(it: &Actor, id: &str, verb: &str) -> Answer {
    it.server().intervene(id, verb).await
}

/// The versions that are signed.
fn versions(tx: &Value) -> Vec<Value> {
    let all = tx["attempts"].as_array().unwrap().iter();
    all.filter(|one| one["hash"].is_string()).cloned().collect()
}

/// Signed bytes, as another implementation reads them.
fn decoded(version: &Value) -> TypedTransaction {
    let raw = version["raw"].as_str().unwrap().trim_start_matches("0x");
    TypedTransaction::decode_signed(&Rlp::new(&hex::decode(raw).unwrap())).unwrap().0
}

fn fee(version: &Value) -> u128 {
    version["max_fee_per_gas"].as_str().unwrap().parse().unwrap()
}

/// So many versions, the newest with the node.
async fn sent(it: &Actor, id: &str, count: usize) -> Vec<Value> {
    poll_until(LIMIT, &format!("{count} version(s), the last one sent"), async || {
        let all = versions(&it.server().read(id).await);
        let is_sent = all.last().is_some_and(|last| last["sent_at"].is_string());
        (all.len() >= count && is_sent).then_some(all)
    })
    .await
}

/// Accepted and with the node, not mined.
async fn open(it: &Actor, call: &Call) -> String {
    let answer = it.ask(&it.managed_body(call)).await;
    assert_eq!(answer.status, 201, "{:#}", answer.body);
    sent(it, &answer.id(), 1).await;
    answer.id()
}

async fn is_refused_by_windows(it: &Actor, call: &Call, when: &str) {
    let answer = it.ask(&it.managed_body(call)).await;
    assert_eq!(answer.status, 403, "{when}: {:#}", answer.body);
    assert_eq!(answer.body["reasons"], json!([{ "field": "windows" }]), "{when}");
}

async fn until_final(it: &Actor, id: &str, status: &str) -> Value {
    poll_until(LIMIT, &format!("{id} is {status}"), async || {
        it.anvil().mine(1).await;
        let found = it.server().read(id).await;
        (found["status"] == status).then_some(found)
    })
    .await
}

/// The id of its managed key.
async fn key_id(it: &Actor) -> String {
    let token = it.server().token("dev:op", Role::Operator);
    let url = format!("{}/admin/v1/keys?limit=200", it.server().admin_url());
    let listed = it.server().try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
    let all = listed["keys"].as_array().unwrap();
    let key = all.iter().find(|key| key["address"] == it.managed.as_str()).unwrap();
    key["id"].as_str().unwrap().to_owned()
}

/// What its managed key holds and has spent of the windows of a grant, in wei.
async fn of_windows(it: &Actor, grant: &str, key: &str) -> (u128, u128) {
    let token = it.server().token("dev:op", Role::Operator);
    let url = format!("{}/v1/limits", it.server().client_url());
    let shown = it.server().try_call(Method::GET, url, &token, None, None).await.unwrap().ok();
    let all = shown["limits"].as_array().unwrap().iter();
    let is_its = |one: &&Value| one["grant"] == grant && one["instance"] == key;
    let found: Vec<&Value> = all.filter(is_its).collect();
    assert_eq!(found.len(), 1, "{grant} of {key}: {shown:#}");
    let wei = |field: &str| found[0][field].as_str().unwrap().parse().unwrap();
    (wei("held"), wei("spent"))
}

/// What the account of a mined transaction paid for gas, as the chain says.
async fn gas_paid(it: &Actor, receipt: &Value) -> u128 {
    let hash = receipt["transaction_hash"].as_str().unwrap();
    let receipt = it.anvil().receipt(hash).await.unwrap();
    let number = |field: &str| {
        u128::from_str_radix(receipt[field].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    number("gasUsed") * number("effectiveGasPrice")
}

#[test]
fn bypass_09_a_change_of_what_is_open_takes_no_word_but_a_reason() {
    open_row("b09-open", async |it: Actor| {
        let id = open(&it, &pay(1)).await;
        let operator = it.server().token("dev:op", Role::Operator);
        let (before, told) = (it.server().read(&id).await["attempts"].clone(), it.told().await);
        // Amounts, chain, nonce, event: rows 13, 16, 23 and 24 have nothing to hold on to here.
        for (field, value) in [
            ("to", json!(STRANGER)),
            ("value", json!("1")),
            ("value", json!(1)),
            ("data", json!("0x")),
            ("gas", json!("21000")),
            ("max_fee_per_gas", json!((100 * GWEI).to_string())),
            ("max_priority_fee_per_gas", json!(1e30)),
            ("chain", json!("local")),
            ("chain", json!("eip155:1")),
            ("nonce", json!("0")),
            ("signer", json!(it.external)),
            ("source", json!({ "log_index": 0 })),
            ("not_after", json!("2099-01-01T00:00:00Z")),
            ("principal", json!("svc:asks")),
            ("Reason", json!("a test")),
            ("reason", json!(7)),
            ("reason", json!(["a test"])),
            ("reason", json!("x".repeat(501))),
        ] {
            let mut body = json!({ "reason": "a test" });
            body[field] = value;
            for verb in VERBS {
                let answer = intervene(&it, &operator, &id, verb, &body).await;
                let found = (answer.status, answer.code());
                assert_eq!(found, (400, "invalid-request"), "{verb} {body}: {:#}", answer.body);
            }
        }
        assert_eq!(it.server().read(&id).await["attempts"], before);
        assert_eq!(it.told().await, told);
    });
}

#[test]
fn bypass_15_what_is_open_is_named_by_its_id_and_by_nothing_else() {
    open_row("b15-open", async |it: Actor| {
        let id = open(&it, &pay(1)).await;
        let before = it.server().read(&id).await["attempts"].clone();
        let hash = before[0]["hash"].as_str().unwrap().to_owned();
        for name in [
            it.managed.clone(),
            hash,
            "payments".to_owned(),
            "0".to_owned(),
            format!("{id}%20"),
            format!("%20{id}"),
            format!("{id}%00"),
            format!("{id},{id}"),
            format!("0x{}", id.replace('-', "")),
            id.replace('0', "%EF%BC%90").replace('1', "%EF%BC%91"),
            id[..35].to_owned(),
        ] {
            for verb in VERBS {
                let answer = said(&it, &name, verb).await;
                assert!(matches!(answer.status, 400 | 404), "{verb} {name}: {:#}", answer.body);
            }
        }
        assert_eq!(it.server().read(&id).await["attempts"], before);
        assert_eq!(said(&it, &id, "cancel").await.status, 200);
    });
}

#[test]
fn bypass_16_every_version_is_for_the_one_chain_and_at_the_one_nonce() {
    open_row("b16-open", async |it: Actor| {
        let units = uint(5_000_000);
        let transfer = function(USD, "transfer(address,uint256)", &[&address(PAYEE), &units]);
        let id = open(&it, &transfer).await;
        for _ in 0..2 {
            assert_eq!(said(&it, &id, "speed-up").await.status, 200);
        }
        assert_eq!(said(&it, &id, "cancel").await.status, 200);
        sent(&it, &id, 4).await;
        assert_eq!(said(&it, &id, "speed-up").await.status, 200);
        let all = sent(&it, &id, 5).await;
        let kinds: Vec<&Value> = all.iter().map(|one| &one["kind"]).collect();
        assert_eq!(kinds, ["payload", "payload", "payload", "no_op", "no_op"]);
        for version in &all {
            let tx = decoded(version);
            assert_eq!(tx.chain_id().unwrap().as_u64(), 31337, "{version:#}");
            assert_eq!(tx.nonce().unwrap().as_u64(), 0, "{version:#}");
            let (to, data) = (format!("{:?}", tx.to_addr().unwrap()), tx.data());
            let data = format!("0x{}", data.map_or_else(String::new, hex::encode));
            assert!(tx.value().is_none_or(|value| value.is_zero()), "{version:#}");
            if version["kind"] == "payload" {
                assert_eq!((to.as_str(), &data), (USD, &transfer.data));
                assert_eq!(tx.gas().unwrap().as_u64(), transfer.gas);
            } else {
                assert_eq!((&to, data.len()), (&it.managed, 2), "nothing, to itself");
            }
        }
        // The nonce is that request's for ever (row 23): the next one gets the next.
        let next = open(&it, &pay(1)).await;
        assert_eq!(it.server().read(&next).await["nonce"], "1");
    });
}

#[test]
fn bypass_11_a_version_more_holds_nothing_more_and_a_cancellation_frees_nothing_early() {
    open_row("b11-open", async |it: Actor| {
        let key = key_id(&it).await;
        let first = open(&it, &pay(ETHER)).await;
        let held = of_windows(&it, "native", &key).await;
        assert!(held.0 > ETHER && held.1 == 0, "{held:?}");
        for count in 2..5 {
            assert_eq!(said(&it, &first, "speed-up").await.status, 200);
            sent(&it, &first, count).await;
        }
        assert_eq!(of_windows(&it, "native", &key).await, held, "not once for each version");
        let second = open(&it, &pay(ETHER)).await;
        is_refused_by_windows(&it, &pay(ETHER), "nor not at all").await;
        let both = of_windows(&it, "native", &key).await;
        for _ in 0..2 {
            assert_eq!(said(&it, &first, "cancel").await.ok()["status"], "cancelling");
        }
        sent(&it, &first, 5).await;
        assert_eq!(said(&it, &first, "speed-up").await.status, 200);
        sent(&it, &first, 6).await;
        assert_eq!(of_windows(&it, "native", &key).await, both, "the payload may still win");
        is_refused_by_windows(&it, &pay(ETHER), "while a no-op is out").await;
        it.anvil().mine(1).await;
        poll_until(LIMIT, "the no-op is seen mined", async || {
            it.server().read(&first).await["no_op_receipt"].is_object().then_some(())
        })
        .await;
        is_refused_by_windows(&it, &pay(ETHER), "before its block is final").await;
        let ended = until_final(&it, &first, "cancelled").await;
        let paid = until_final(&it, &second, "finalized").await;
        let mut spent = gas_paid(&it, &ended["no_op_receipt"]).await
            + gas_paid(&it, &paid["receipt"]).await
            + ETHER;
        assert_eq!(of_windows(&it, "native", &key).await, (0, spent), "a no-op keeps its fee");

        // What is cancelled and mined all the same is charged in full.
        let third = open(&it, &pay(ETHER)).await;
        assert_eq!(said(&it, &third, "cancel").await.status, 200);
        let all = sent(&it, &third, 2).await;
        let no_op = json!([all[1]["hash"]]);
        poll_until(LIMIT, "the payload is in the pool in its place", async || {
            it.anvil().try_rpc("anvil_dropTransaction", no_op.clone()).await.ok();
            it.anvil().try_rpc("eth_sendRawTransaction", json!([all[0]["raw"]])).await.ok()?;
            it.anvil().mine(1).await;
            let receipt = it.anvil().receipt(all[0]["hash"].as_str().unwrap()).await;
            receipt.map(|_| ())
        })
        .await;
        let won = until_final(&it, &third, "finalized").await;
        spent += ETHER + gas_paid(&it, &won["receipt"]).await;
        assert_eq!(of_windows(&it, "native", &key).await, (0, spent));
        is_refused_by_windows(&it, &pay(ETHER / 2), "two are spent").await;
    });
}

#[test]
fn bypass_08_versions_of_an_allowance_are_one_and_it_is_free_when_a_no_op_is_final() {
    open_row("b08-open", async |it: Actor| {
        let it = it.stage.actor("b08-open-allows", "svc:allows").await;
        let key = key_id(&it).await;
        let approve = |millions: u128| {
            let units = uint(millions * 1_000_000);
            function(USD, "approve(address,uint256)", &[&address(PAYEE), &units])
        };
        let first = open(&it, &approve(1000)).await;
        let second = open(&it, &approve(1000)).await;
        for _ in 0..2 {
            assert_eq!(said(&it, &first, "speed-up").await.status, 200);
        }
        let held = of_windows(&it, "allowances", &key).await;
        assert_eq!(held, (2_000_000_000, 0), "once for each request");
        is_refused_by_windows(&it, &approve(600), "a third").await;
        assert_eq!(said(&it, &first, "cancel").await.status, 200);
        assert_eq!(of_windows(&it, "allowances", &key).await, held, "it may still be mined");
        until_final(&it, &first, "cancelled").await;
        until_final(&it, &second, "finalized").await;
        assert!(of_windows(&it, "allowances", &key).await.0 <= 1_000_000_000);
        assert_eq!(it.ask(&it.managed_body(&approve(600))).await.status, 201);
    });
}

#[test]
fn bypass_12_words_at_once_are_counted_one_by_one() {
    open_row("b12-open", async |it: Actor| {
        let key = key_id(&it).await;
        let id = open(&it, &pay(ETHER)).await;
        let held = of_windows(&it, "native", &key).await;
        let words = (0..16).map(|n| said(&it, &id, VERBS[usize::from(n % 4 != 3)]));
        for answer in join_all(words).await {
            assert!(matches!(answer.status, 200 | 409 | 503), "{:#}", answer.body);
        }
        let all = poll_until(LIMIT, "a no-op is out", async || {
            let all = versions(&it.server().read(&id).await);
            all.last().is_some_and(|last| last["kind"] == "no_op").then_some(all)
        })
        .await;
        // Once one no-op is decided, no payment is signed any more; each version outbids the one before.
        let first = all.iter().position(|one| one["kind"] == "no_op").unwrap();
        assert!(all[first..].iter().all(|one| one["kind"] == "no_op"), "{all:#?}");
        for pair in all.windows(2) {
            assert!(fee(&pair[1]) * 10 >= fee(&pair[0]) * 11, "{pair:#?}");
        }
        assert_eq!(of_windows(&it, "native", &key).await, held);
        until_final(&it, &id, "cancelled").await;
        assert_eq!(it.anvil().nonce(&it.managed).await, 1);

        // What waits without a nonce is freed once, however many say so.
        let poor = it.server().key("b12-poor", Some("payments"), "managed").await;
        let it = Actor { managed: poor, ..it };
        let body = it.managed_body(&pay(ETHER));
        let (one, two) = (it.ask(&body).await, it.ask(&body).await);
        assert_eq!((one.status, two.status), (201, 201));
        is_refused_by_windows(&it, &pay(ETHER), "two wait").await;
        assert_eq!(said(&it, &one.id(), "speed-up").await.code(), "conflict");
        let words = join_all((0..8).map(|_| {
            let id = one.id();
            let it = &it;
            async move { said(it, &id, "cancel").await }
        }))
        .await;
        assert!(words.iter().all(|answer| answer.status == 200), "{words:#?}");
        let answers = join_all((0..10).map(|_| it.ask(&body))).await;
        let passed = answers.iter().filter(|answer| answer.status == 201).count();
        assert_eq!(passed, 1, "{answers:#?}");
    });
}

/// Speeds up until there is no more to offer.
async fn to_the_cap(it: &Actor, id: &str) -> Vec<Value> {
    for _ in 0..100 {
        let answer = said(it, id, "speed-up").await;
        if answer.status != 200 {
            assert_eq!((answer.status, answer.code()), (409, "conflict"), "{:#}", answer.body);
            break;
        }
    }
    versions(&it.server().read(id).await)
}

/// The base fee is so much from now on, and the server knows: by the answer to a payment with this cap.
async fn market(it: &Actor, base_fee: u128, cap: u128, status: u16) {
    poll_until(LIMIT, "the market is another", async || {
        let wei = u64::try_from(base_fee).unwrap();
        it.anvil().rpc("anvil_setNextBlockBaseFeePerGas", json!([wei])).await;
        it.anvil().mine(1).await;
        let would = it.evaluate(&it.managed_body(&Call { max_fee: cap, ..pay(1) })).await;
        (would.status == status).then_some(())
    })
    .await;
}

#[test]
fn bypass_18_no_version_offers_more_than_was_granted_and_held() {
    open_row("b18-open", async |it: Actor| {
        let key = key_id(&it).await;
        // The caller's own cap is held to.
        let cheap = open(&it, &Call { max_fee: 5 * GWEI, tip: GWEI, ..pay(1) }).await;
        let held = 60_000 * 5 * GWEI + 1;
        assert_eq!(of_windows(&it, "native", &key).await, (held, 0));
        let all = to_the_cap(&it, &cheap).await;
        assert!(all.len() > 1 && all.iter().all(|one| fee(one) <= 5 * GWEI), "{all:#?}");
        // So are the grant's caps, whatever the chain admits; and its window for fees holds two at the cap.
        market(&it, 30 * GWEI, 10 * GWEI, 400).await;
        let ping = |max_fee: u128| Call { max_fee, tip: 5 * GWEI, ..function(GATE, "ping()", &[]) };
        let dear = open(&it, &ping(149 * GWEI)).await;
        let each = 60_000 * 100 * GWEI;
        assert_eq!(of_windows(&it, "gate-ping", &key).await, (each, 0));
        let all = to_the_cap(&it, &dear).await;
        assert!(all.len() > 3, "{all:#?}");
        for version in &all {
            let tip: u128 = version["max_priority_fee_per_gas"].as_str().unwrap().parse().unwrap();
            assert!(fee(version) <= 100 * GWEI && tip <= 5 * GWEI, "{version:#}");
        }
        assert_eq!(of_windows(&it, "gate-ping", &key).await, (each, 0));
        let other = open(&it, &ping(100 * GWEI)).await;
        is_refused_by_windows(&it, &ping(100 * GWEI), "a third").await;
        assert_eq!(said(&it, &dear, "cancel").await.status, 200);
        is_refused_by_windows(&it, &ping(100 * GWEI), "a no-op frees no fee").await;
        // A no-op must be mined in any market: what that costs is spent, up to all that was held.
        assert_eq!(of_windows(&it, "native", &key).await, (held + 2 * each, 0), "fees count, too");
        assert_eq!(said(&it, &cheap, "cancel").await.status, 200);
        let ended = until_final(&it, &cheap, "cancelled").await;
        assert!(gas_paid(&it, &ended["no_op_receipt"]).await > held);
        let (dear, other) = (
            until_final(&it, &dear, "cancelled").await["no_op_receipt"].clone(),
            until_final(&it, &other, "finalized").await["receipt"].clone(),
        );
        let paid = gas_paid(&it, &dear).await + gas_paid(&it, &other).await;
        assert_eq!(of_windows(&it, "native", &key).await, (0, held + paid));
        market(&it, GWEI, 2 * GWEI, 200).await;
    });
}

#[test]
fn bypass_20_what_waits_for_people_is_neither_hurried_nor_ended_by_others() {
    open_row("b20-open", async |it: Actor| {
        let it = it.stage.actor("b20-open-asks", "svc:asks").await;
        let asks = async || {
            let answer = it.ask(&it.managed_body(&Call { max_fee: 9 * GWEI, ..pay(ETHER) })).await;
            assert_eq!(answer.status, 202, "{:#}", answer.body);
            answer.id()
        };
        let first = asks().await;
        let plain = json!({ "reason": "a test" });
        for (sub, role) in [
            ("svc:asks", Role::Client),
            (SUB, Role::Client),
            ("dev:alice", Role::Approver),
            ("dev:policy", Role::PolicyAdmin),
            ("dev:audit", Role::Auditor),
        ] {
            let token = it.server().token(sub, role);
            for verb in VERBS {
                let answer = intervene(&it, &token, &first, verb, &plain).await;
                assert_eq!((answer.status, answer.code()), (403, "forbidden"), "{sub} {verb}");
            }
        }
        // An operator cannot send it off before it is approved; and an approval does not bring it back.
        assert_eq!(said(&it, &first, "speed-up").await.code(), "conflict");
        let (alice, bob) = (("dev:alice", Role::Approver), ("dev:bob", Role::Approver));
        let hash = waiting(&it, &first).await["hash"].clone();
        assert_eq!(decide(&it, alice, &first, "approve", &hash).await.0, 200);
        assert_eq!(said(&it, &first, "speed-up").await.code(), "conflict", "one is not two");
        assert_eq!(said(&it, &first, "cancel").await.ok()["status"], "cancelled");
        for who in [alice, bob] {
            let late = decide(&it, who, &first, "approve", &hash).await;
            assert_eq!(late, (409, "conflict".to_owned()));
        }
        assert_eq!(said(&it, &first, "speed-up").await.code(), "conflict");
        assert_eq!(it.server().read(&first).await["status"], "cancelled");
        assert_eq!(it.told().await.decided, 0);

        // What was approved is the payment and its highest fee, in every version.
        let second = asks().await;
        let other = waiting(&it, &second).await["hash"].clone();
        assert_ne!(hash, other);
        let old = decide(&it, alice, &second, "approve", &hash).await;
        assert_eq!(old, (409, "conflict".to_owned()), "the same payment, another request");
        for who in [alice, bob] {
            assert_eq!(decide(&it, who, &second, "approve", &other).await.0, 200);
        }
        sent(&it, &second, 1).await;
        for version in to_the_cap(&it, &second).await {
            let tx = decoded(&version);
            assert_eq!(format!("{:?}", tx.to_addr().unwrap()), PAYEE);
            assert_eq!(tx.value().unwrap().as_u128(), ETHER);
            assert!(fee(&version) <= 9 * GWEI, "{version:#}");
        }
        // Used once: cancelled or not, the next one is asked for anew.
        assert_eq!(said(&it, &second, "cancel").await.status, 200);
        until_final(&it, &second, "cancelled").await;
        assert_eq!(decide(&it, bob, &second, "approve", &other).await.0, 409);
        let third = asks().await;
        assert_eq!(it.server().read(&third).await["status"], "awaiting_approval");
    });
}

/// Puts a bundle in force whose grants differ so from what is in the folder.
async fn change_grants(it: &Actor, version: &str, change: impl Fn(&str) -> String) {
    let dir = it.stage.setup.dir().join("policies");
    let url = format!("{}/admin/v1/policies", it.server().admin_url());
    let token = it.server().token("dev:audit", Role::Auditor);
    let shown = it.server().try_call(Method::GET, url.clone(), &token, None, None).await;
    let parent = shown.unwrap().ok()["active"]["hash"].as_str().unwrap().to_owned();
    let mut files = serde_json::Map::new();
    for folder in ["", "abi"] {
        for file in std::fs::read_dir(dir.join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(&dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read_to_string(path).unwrap().into());
            }
        }
    }
    let edit = |files: &mut serde_json::Map<String, Value>, name: &str, text: String| {
        assert_ne!(files[name], text.as_str(), "{name} is another now");
        files.insert(name.to_owned(), text.into());
    };
    let head = files["bundle.toml"].as_str().unwrap();
    let named = format!("version = \"{version}\"\nparent = \"{parent}\"");
    let head = head.replacen("version = \"2026-11-22\"", &named, 1);
    edit(&mut files, "bundle.toml", head);
    let grants = change(files["grants.toml"].as_str().unwrap());
    edit(&mut files, "grants.toml", grants);
    let token = it.server().token("dev:policy", Role::PolicyAdmin);
    let body = json!({ "files": files });
    let proposed = it.server().try_call(Method::POST, url.clone(), &token, None, Some(&body)).await;
    let hash = proposed.unwrap().ok()["hash"].as_str().unwrap().to_owned();
    let token = it.server().token("dev:other", Role::PolicyAdmin);
    let (url, body) = (format!("{url}/{hash}/activate"), json!({ "reason": "a test" }));
    let done = it.server().try_call(Method::POST, url, &token, None, Some(&body)).await.unwrap();
    assert_eq!(done.status, 200, "{:#}", done.body);
}

#[test]
fn bypass_21_nobody_hurries_what_the_policy_in_force_would_not_sign() {
    open_row("b21-open", async |it: Actor| {
        let it = it.stage.actor("b21-leaves", "svc:leaves").await;
        let dear = Call { max_fee: 90 * GWEI, ..pay(ETHER) };
        let (first, second) = (open(&it, &dear).await, open(&it, &dear).await);
        assert_eq!(said(&it, &first, "speed-up").await.status, 200);
        // A lower cap for the same payment: no version goes above it.
        let leaving = |grants: &str, text: &str| {
            let (others, its) = grants.split_at(grants.find("id = \"leaving\"").unwrap());
            let more = its.find("[[grant]]").unwrap_or(its.len());
            format!("{others}{}{}", text, &its[more..])
        };
        let its = |grants: &str| {
            let its = &grants[grants.find("id = \"leaving\"").unwrap()..];
            its[..its.find("[[grant]]").unwrap_or(its.len())].to_owned()
        };
        change_grants(&it, "lower", |grants| {
            let lower = its(grants).replace("max_fee_gwei = \"100\"", "max_fee_gwei = \"6\"");
            leaving(grants, &lower)
        })
        .await;
        let all = to_the_cap(&it, &first).await;
        assert!(all.len() > 2 && all.iter().all(|one| fee(one) <= 6 * GWEI), "{all:#?}");
        // Without its grant, none more: the refusal is told, and in the log.
        change_grants(&it, "gone", |grants| {
            let other = its(grants).replace("svc:leaves", "svc:nobody");
            leaving(grants, &other)
        })
        .await;
        let told = it.told().await;
        for id in [&first, &second] {
            let answer = said(&it, id, "speed-up").await;
            assert_eq!((answer.status, answer.code()), (403, "policy-denied"), "{:#}", answer.body);
            assert!(answer.body["reasons"][0]["expected"].is_string(), "{:#}", answer.body);
        }
        let after = it.told().await;
        assert_eq!(after.denied, told.denied + 2);
        assert_eq!((after.decided, after.signed), (told.decided, told.signed));
        assert_eq!(versions(&it.server().read(&first).await).len(), all.len());
        assert_eq!(it.ask(&it.managed_body(&dear)).await.code(), "policy-denied");
        // To give up is always allowed, and to hurry that. What was signed before may be mined.
        assert_eq!(said(&it, &second, "cancel").await.ok()["status"], "cancelling");
        sent(&it, &second, 2).await;
        assert_eq!(said(&it, &second, "speed-up").await.status, 200);
        until_final(&it, &first, "finalized").await;
        until_final(&it, &second, "cancelled").await;
    });
}

#[test]
fn bypass_25_no_issuer_makes_an_operator_of_its_callers() {
    open_row("b25-open", async |it: Actor| {
        let id = open(&it, &pay(1)).await;
        let (before, told) = (it.server().read(&id).await["attempts"].clone(), it.told().await);
        let key = it.server().issuer_key();
        let forged = |iss: &str, aud: &str, sub: &str, roles: &[Role]| {
            crate::callers::forged(&key, (iss, aud), sub, roles, &format!("open-{iss}-{aud}-{sub}"))
        };
        let every = Role::ALL;
        let others = [Role::Approver, Role::PolicyAdmin, Role::Auditor];
        for (what, token, status) in [
            ("a client's subject", forged("claviger-dev", "claviger", SUB, &[Role::Operator]), 403),
            ("with every role", forged("claviger-dev", "claviger", "svc:x", &every), 403),
            ("nobody's subject", forged("claviger-dev", "claviger", "op", &[Role::Operator]), 403),
            ("every other role", forged("claviger-dev", "claviger", "dev:all", &others), 403),
            ("another issuer", forged("elsewhere", "claviger", "dev:op", &[Role::Operator]), 401),
            (
                "another audience",
                forged("claviger-dev", "others", "dev:op", &[Role::Operator]),
                401,
            ),
        ] {
            for verb in VERBS {
                let answer =
                    intervene(&it, &token, &id, verb, &json!({ "reason": "a test" })).await;
                assert_eq!(answer.status, status, "{what} {verb}: {:#}", answer.body);
            }
        }
        assert_eq!(it.server().read(&id).await["attempts"], before);
        assert_eq!(it.told().await, told);
    });
}
