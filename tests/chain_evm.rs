//! The EVM edge against a real node: what it reads, what it refuses, and what the node's own words mean.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod fault_proxy;
    pub mod services;
}

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use claviger::chain::evm::{EvmChain, EvmConfig, EvmError, Finality};
use claviger::core::id::ChainId;
use claviger::ports::chain::{
    BlockAt, BlockId, Broadcast, CallRequest, Chain, ChainError, Claim, Codes, Found, Receipt,
    Seen, Sought,
};
use ethers_core::k256::ecdsa::SigningKey;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{Eip1559TransactionRequest, Signature, U256 as EthersU256};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::fault_proxy::{Fault, FaultProxy, SEND, Times};
use support::services::{Anvil, AnvilOptions, Mining, poll_until};
use url::Url;

/// The published keys of anvil's first development account, and of an account without funds.
const FUNDED: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const EMPTY: &str = "0000000000000000000000000000000000000000000000000000000000000abc";
const GWEI: u64 = 1_000_000_000;

fn chain_of(urls: &[&str], finality: Finality) -> EvmChain {
    let rpc = urls.iter().map(|url| Url::parse(url).unwrap()).collect();
    EvmChain::new(EvmConfig { chain_id: ChainId::new(31337), rpc, finality }).unwrap()
}

async fn manual() -> Anvil {
    Anvil::start(AnvilOptions { mining: Mining::Manual, ..AnvilOptions::default() }).await
}

/// A transfer of one wei, signed by a second implementation.
fn signed(key: &str, nonce: u64, fee_gwei: u64) -> Bytes {
    let to: ethers_core::types::Address =
        "0x00000000000000000000000000000000000000aa".parse().unwrap();
    let request = Eip1559TransactionRequest::new()
        .chain_id(31337_u64)
        .to(to)
        .value(1_u64)
        .gas(21000_u64)
        .nonce(nonce)
        .max_priority_fee_per_gas(fee_gwei * GWEI)
        .max_fee_per_gas(fee_gwei * GWEI);
    let typed = TypedTransaction::Eip1559(request);
    let key = SigningKey::from_slice(&alloy::primitives::hex::decode(key).unwrap()).unwrap();
    let (signature, recovery) = key.sign_prehash_recoverable(typed.sighash().as_bytes()).unwrap();
    let bytes = signature.to_bytes();
    let signature = Signature {
        r: EthersU256::from_big_endian(&bytes[..32]),
        s: EthersU256::from_big_endian(&bytes[32..]),
        v: u64::from(recovery.to_byte()),
    };
    typed.rlp_signed(&signature).to_vec().into()
}

#[tokio::test]
async fn blocks_nonces_and_finality_are_read() {
    let anvil = manual().await;
    let chain = chain_of(&[&anvil.url()], Finality::Depth(2));
    let (id, genesis) = chain.identity().await.unwrap();
    assert_eq!(id, ChainId::new(31337));
    assert_eq!(chain.block(BlockAt::Final).await.unwrap(), None);
    let account: Address = anvil.accounts()[0].parse().unwrap();
    assert_eq!(chain.nonce(account, BlockAt::Final).await.unwrap(), 0);
    let sent = signed(FUNDED, 0, 5);
    assert_eq!(chain.broadcast(&sent).await, Broadcast::Accepted);
    anvil.mine(3).await;
    let head = chain.block(BlockAt::Latest).await.unwrap().unwrap();
    let final_ = chain.block(BlockAt::Final).await.unwrap().unwrap();
    assert_eq!((head.number, final_.number, final_.parent), (3, 1, genesis));
    assert_eq!(chain.block(BlockAt::Hash(final_.hash)).await.unwrap(), Some(final_.clone()));
    assert_eq!(chain.block(BlockAt::Number(99)).await.unwrap(), None);
    assert_eq!(chain.block(BlockAt::Hash(B256::repeat_byte(9))).await.unwrap(), None);
    assert_eq!(chain.nonce(account, BlockAt::Final).await.unwrap(), 1);
    assert_eq!(chain.nonce(account, BlockAt::Number(0)).await.unwrap(), 0);
    assert_eq!(chain.nonce(account, BlockAt::Hash(head.hash)).await.unwrap(), 1);
    let receipt = chain.receipt(keccak256(&sent)).await.unwrap().unwrap();
    assert_eq!((receipt.block_number, receipt.gas_used, receipt.success), (1, 21000, true));
    assert_eq!(chain.receipt(B256::repeat_byte(9)).await.unwrap(), None);
    assert_eq!(chain.balance(Address::repeat_byte(0x77)).await.unwrap(), U256::ZERO);
    assert!(chain.fee_market().await.unwrap().base_fee > 0);
}

#[tokio::test]
async fn an_unknown_block_is_never_empty() {
    let anvil = manual().await;
    let chain = chain_of(&[&anvil.url()], Finality::Finalized);
    let unknown = B256::repeat_byte(9);
    let logs = chain.logs(unknown, &[Address::ZERO]).await;
    assert!(matches!(logs, Err(ChainError::UnknownBlock)), "{logs:?}");
    let head = chain.block(BlockAt::Latest).await.unwrap().unwrap();
    assert_eq!(chain.logs(head.hash, &[Address::ZERO]).await.unwrap(), []);
    assert_eq!(chain.code(Address::ZERO, head.hash).await.unwrap(), Bytes::new());
    assert!(chain.code(Address::ZERO, unknown).await.is_err());
    assert!(chain.nonce(Address::ZERO, BlockAt::Hash(unknown)).await.is_err());
}

#[tokio::test]
async fn the_codes_of_many_accounts_are_of_one_block_in_the_order_asked() {
    let anvil = manual().await;
    let chain = chain_of(&[&anvil.url()], Finality::Finalized);
    let at = |byte: usize| Address::repeat_byte(u8::try_from(byte).unwrap());
    for byte in [3, 9, 40] {
        anvil.rpc("anvil_setCode", json!([at(byte), format!("0x{byte:02x}")])).await;
    }
    let addresses: Vec<Address> = (1..=50).map(at).collect();
    let Codes { node, block, codes } = chain.codes(&addresses).await.unwrap();
    assert_eq!(node, 1);
    assert_eq!(Some(block), chain.block(BlockAt::Latest).await.unwrap().map(|head| head.hash));
    for (byte, code) in (1..=50).zip(&codes) {
        let expected = if [3, 9, 40].contains(&byte) { vec![byte] } else { Vec::new() };
        assert_eq!(code.to_vec(), expected, "{byte}");
    }
    assert_eq!(codes.len(), 50);
    assert_eq!(chain.codes(&[]).await.unwrap(), Codes { node, block, codes: Vec::new() });
    // A node that fails in the midst of it has said nothing, and the next one is asked for all.
    let (first, second) =
        (FaultProxy::start(&anvil.url()).await, FaultProxy::start(&anvil.url()).await);
    first.inject_about(
        "eth_getCode",
        &format!("{:#x}", at(40)),
        Times::UntilLifted,
        Fault::DropReply,
    );
    let alone = chain_of(&[&first.url()], Finality::Finalized);
    assert!(alone.codes(&addresses).await.is_err());
    let both = chain_of(&[&first.url(), &second.url()], Finality::Finalized);
    let found = both.codes(&addresses).await.unwrap();
    assert_eq!(found, Codes { node: 2, block, codes: codes.clone() });
    assert_eq!(second.count("eth_getCode"), 50);
    // What others say to it: in that block, or at their own head if they do not have it.
    first.lift_all();
    let claimed: Vec<(Address, Bytes)> = addresses.into_iter().zip(codes).collect();
    let chain = chain_of(&[&second.url(), &first.url()], Finality::Finalized);
    for (block, at, agree) in [
        (block, None, true),
        (B256::repeat_byte(9), None, true),
        (block, Some(2), false),
        (B256::repeat_byte(9), Some(2), false),
        (block, Some(10), false),
    ] {
        let mut codes = claimed.clone();
        if let Some(at) = at {
            let other: &mut (Address, Bytes) = &mut codes[at];
            other.1 = if other.1.is_empty() { Bytes::from(vec![1]) } else { Bytes::new() };
        }
        let said = chain.agreement(&Claim::Codes { block, codes }, Some(1)).await;
        let (others, against) = if agree { (vec![1, 2], vec![]) } else { (vec![1], vec![2]) };
        assert_eq!((said.agree, said.contradict), (others, against), "{block} {at:?}");
    }
}

#[tokio::test]
async fn a_revert_is_told_with_its_reason() {
    let anvil = manual().await;
    let chain = chain_of(&[&anvil.url()], Finality::Finalized);
    let contract = Address::repeat_byte(0x42);
    // Reverts with Error("no"): the words of the ABI are in the code after the last instruction.
    let words = format!("08c379a0{:064x}{:064x}{:0<64}", 0x20, 2, "6e6f");
    let code = format!("0x6064600c60003960646000fd{words}");
    anvil.rpc("anvil_setCode", json!([contract, code])).await;
    let call = CallRequest {
        from: anvil.accounts()[0].parse().unwrap(),
        to: Some(contract),
        value: U256::ZERO,
        data: Bytes::new(),
    };
    match chain.estimate_gas(call.clone()).await {
        Err(ChainError::Reverted(reason)) => assert_eq!(reason, "no"),
        other => panic!("{other:?}"),
    }
    let plain = CallRequest { to: Some(Address::repeat_byte(1)), ..call };
    assert!(chain.estimate_gas(plain).await.unwrap() >= 21000);
}

#[tokio::test]
async fn the_nodes_words_about_signed_bytes_are_understood() {
    let anvil = manual().await;
    let chain = chain_of(&[&anvil.url()], Finality::Finalized);
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::Accepted);
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::Accepted, "known");
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 5)).await, Broadcast::Underpriced);
    assert_eq!(chain.broadcast(&signed(EMPTY, 0, 5)).await, Broadcast::InsufficientFunds);
    anvil.mine(1).await;
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::NonceTooLow);
    let garbage = chain.broadcast(&Bytes::from_static(&[2, 3])).await;
    assert!(matches!(garbage, Broadcast::Refused(_)), "{garbage:?}");
}

#[tokio::test]
async fn a_node_that_is_not_there_is_passed_over() {
    let anvil = manual().await;
    let dead = "http://127.0.0.1:1";
    let both = chain_of(&[dead, &anvil.url()], Finality::Finalized);
    assert!(both.block(BlockAt::Latest).await.unwrap().is_some());
    assert_eq!(both.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::Accepted);
    let none = chain_of(&[dead], Finality::Finalized);
    match none.block(BlockAt::Latest).await {
        Err(ChainError::Unavailable(text)) => assert!(!text.contains("127.0.0.1"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(none.broadcast(&signed(FUNDED, 1, 10)).await, Broadcast::Ambiguous(_)));
}

#[test]
fn urls_that_cannot_be_nodes_are_refused() {
    let with = |rpc: Vec<Url>| {
        EvmChain::new(EvmConfig { chain_id: ChainId::new(1), rpc, finality: Finality::Safe })
    };
    assert!(matches!(with(Vec::new()), Err(EvmError::NoNode)));
    let ftp = vec![Url::parse("ftp://node").unwrap()];
    assert!(matches!(with(ftp), Err(EvmError::Scheme(1))));
}

/// The first version of nonce 0 of the funded account.
fn first_version(seen: Option<Seen>) -> (Bytes, Sought) {
    let raw = signed(FUNDED, 0, 5);
    let hashes = vec![B256::repeat_byte(7), keccak256(&raw)];
    (raw, Sought { nonce: 0, hashes, seen })
}

async fn hash_of(anvil: &Anvil, number: u64) -> B256 {
    let block = anvil.rpc("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
    block["hash"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_look_tells_where_a_transaction_is_and_asks_no_more_than_it_needs() {
    let anvil = manual().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let chain = chain_of(&[&proxy.url()], Finality::Depth(2));
    let account: Address = anvil.accounts()[0].parse().unwrap();
    let look = async |sought: &Sought| {
        let before = proxy.count_all();
        let sought = std::slice::from_ref(sought);
        let mut found = chain.look(account, sought, &[]).await.unwrap().unwrap();
        (found.found.pop().unwrap(), found.nonce_final, proxy.count_all() - before)
    };
    let (raw, fresh) = first_version(None);
    chain.broadcast(&raw).await;
    assert_eq!(look(&fresh).await, (Found::Nothing, None, 1), "the count alone");
    anvil.mine(1).await;
    let (found, nonce_final, _) = look(&fresh).await;
    let Found::Mined(receipt) = found else { panic!("{found:?}") };
    assert_eq!((receipt.transaction_hash, receipt.block_number), (keccak256(&raw), 1));
    assert_eq!(nonce_final, None);
    let block = BlockId { number: 1, hash: hash_of(&anvil, 1).await };
    let transaction_hash = keccak256(&raw);
    let seen = |block, receipt_wanted| Seen { transaction_hash, block, receipt_wanted };
    let (_, mined) = first_version(Some(seen(block, false)));
    // Count, head, and the block; nothing is final yet.
    assert_eq!(look(&mined).await, (Found::Still, None, 3));
    let (_, wanted) = first_version(Some(seen(block, true)));
    assert!(matches!(look(&wanted).await.0, Found::Mined(_)));
    let elsewhere = BlockId { number: 1, hash: B256::repeat_byte(9) };
    let (_, moved) = first_version(Some(seen(elsewhere, false)));
    assert!(matches!(look(&moved).await.0, Found::Mined(_)), "in another block");
    let (_, above) = first_version(Some(seen(BlockId { number: 5, ..block }, false)));
    assert_eq!(look(&above).await.0, Found::Unknown, "it has not come there");
    anvil.mine(2).await;
    assert!(matches!(look(&mined).await.0, Found::Mined(_)), "final: the receipt is read");
    // Somebody else's bytes used the nonce.
    let strange = Sought { hashes: vec![B256::repeat_byte(7)], ..fresh };
    let (found, nonce_final, _) = look(&strange).await;
    assert_eq!((found, nonce_final), (Found::Nothing, Some(1)));
    anvil.rpc("anvil_reorg", json!([3, []])).await;
    assert_eq!(look(&mined).await.0, Found::Displaced);
}

#[tokio::test]
async fn a_look_that_fails_on_the_way_begins_again_on_the_next_node() {
    let anvil = manual().await;
    let (first, second) =
        (FaultProxy::start(&anvil.url()).await, FaultProxy::start(&anvil.url()).await);
    let chain = chain_of(&[&first.url(), &second.url()], Finality::Depth(2));
    let account: Address = anvil.accounts()[0].parse().unwrap();
    let (raw, sought) = first_version(None);
    chain.broadcast(&raw).await;
    anvil.mine(4).await;
    first.inject("eth_getTransactionReceipt", Times::Once, Fault::DropReply);
    let sought = [sought];
    let look = chain.look(account, &sought, &[]).await.unwrap().unwrap();
    assert_eq!(look.node, 2);
    assert!(matches!(look.found[0], Found::Mined(_)));
    let whole = ["eth_getTransactionCount", "eth_getTransactionReceipt"];
    assert!(whole.iter().all(|method| second.count(method) >= 1), "all of it from the second");
    assert_eq!(chain.look(account, &sought, &[1, 2]).await.unwrap(), None, "no node is left");
}

#[tokio::test]
async fn nodes_agree_are_silent_or_contradict() {
    let anvil = manual().await;
    // Another first block, so other blocks.
    let args = ["--timestamp", "1700000000"].map(str::to_owned).to_vec();
    let options = AnvilOptions { mining: Mining::Manual, args, ..AnvilOptions::default() };
    let other = Anvil::start(options).await;
    let lagging = FaultProxy::start(&anvil.url()).await;
    let urls = [anvil.url(), lagging.url(), other.url(), "http://127.0.0.1:1".to_owned()];
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let chain = chain_of(&urls, Finality::Depth(2));
    let (raw, sought) = first_version(None);
    chain_of(&[&anvil.url()], Finality::Depth(2)).broadcast(&raw).await;
    anvil.mine(5).await;
    other.mine(5).await;
    let receipt = Box::new(chain.receipt(sought.hashes[1]).await.unwrap().unwrap());
    let claim = Claim::Mined { receipt: receipt.clone(), must_be_final: true };
    let said = chain.agreement(&claim, None).await;
    assert_eq!((said.agree, said.silent, said.contradict), (vec![1, 2], vec![4], vec![3]));
    // The block is everybody's, and what is said of the transaction is one node's.
    let forged = Box::new(Receipt { success: !receipt.success, ..(*receipt).clone() });
    let claim_of_one = Claim::Mined { receipt: forged, must_be_final: true };
    let said = chain.agreement(&claim_of_one, Some(4)).await;
    assert_eq!((said.agree, said.silent, said.contradict), (vec![4], vec![], vec![1, 2, 3]));
    lagging.lag(Some(support::fault_proxy::Lag::all(4)));
    let said = chain.agreement(&claim, Some(1)).await;
    assert_eq!((said.agree, said.silent, said.contradict), (vec![1], vec![2, 4], vec![3]));
    let block = BlockId { number: 1, hash: hash_of(&anvil, 1).await };
    let said = chain.agreement(&Claim::Canonical(block), Some(1)).await;
    assert_eq!((said.agree, said.silent, said.contradict), (vec![1, 2], vec![4], vec![3]));
    let account: Address = anvil.accounts()[0].parse().unwrap();
    let sought = Sought { nonce: 0, hashes: vec![], seen: None };
    let claim = Claim::Foreign { address: account, sought, final_number: 3 };
    let said = chain.agreement(&claim, Some(1)).await;
    assert!(said.contradict.contains(&3) || said.silent.contains(&3), "{said:?}");
    assert!(!said.is_enough(2));
}

#[tokio::test]
async fn when_every_node_failed_lately_the_answer_is_at_once() {
    let anvil = manual().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let chain = chain_of(&[&proxy.url()], Finality::Finalized);
    let storm = proxy.throttle(Times::UntilLifted, Some(60));
    assert!(chain.block(BlockAt::Latest).await.is_err());
    let calls = proxy.count_all();
    for _ in 0..5 {
        match chain.block(BlockAt::Latest).await {
            Err(ChainError::Unavailable(why)) => assert!(why.contains("asked again in"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(proxy.count_all(), calls, "nobody asked it");
    proxy.lift(storm);
    // Bytes go out all the same: there is nobody else.
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::Accepted);
    assert!(chain.block(BlockAt::Latest).await.unwrap().is_some(), "it answered, and is well");
}

#[tokio::test]
async fn an_error_in_the_usual_body_under_an_error_status_is_the_nodes_word() {
    let anvil = manual().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let chain = chain_of(&[&proxy.url()], Finality::Finalized);
    let error = json!({ "code": -32603, "message": "Internal error: nonce too low" });
    proxy.inject(SEND, Times::Once, Fault::Say(error));
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::NonceTooLow);
    assert!(chain.block(BlockAt::Latest).await.is_ok(), "the node is not left alone for it");
}

#[tokio::test]
async fn a_broadcast_answers_with_the_first_that_took_it_and_reaches_the_others_all_the_same() {
    let anvil = manual().await;
    let (slow, fast) =
        (FaultProxy::start(&anvil.url()).await, FaultProxy::start(&anvil.url()).await);
    let chain = chain_of(&[&slow.url(), &fast.url()], Finality::Finalized);
    let held = slow.inject(SEND, Times::Once, Fault::Hold);
    let begun = Instant::now();
    assert_eq!(chain.broadcast(&signed(FUNDED, 0, 10)).await, Broadcast::Accepted);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    slow.wait_for_held(held, Duration::from_secs(30)).await;
    slow.lift(held);
    poll_until(Duration::from_secs(30), "the slow one has it too", async || {
        (slow.sent().len() == 1 && slow.held(held).is_empty()).then_some(())
    })
    .await;
    assert_eq!(anvil.rpc("txpool_status", json!([])).await["pending"], "0x1");
}

/// Rewrites the `transactions` of a block.
fn without_transactions() -> support::fault_proxy::Rewriter {
    Arc::new(|_: &Value, mut answer: Value| {
        if answer["result"]["transactions"].is_array() {
            answer["result"]["transactions"] = json!([]);
        }
        answer
    })
}

#[tokio::test]
async fn a_receipt_of_a_block_that_does_not_hold_it_is_not_believed() {
    let anvil = manual().await;
    let proxy = FaultProxy::start(&anvil.url()).await;
    let chain = chain_of(&[&proxy.url(), &anvil.url()], Finality::Depth(2));
    let account: Address = anvil.accounts()[0].parse().unwrap();
    let (raw, sought) = first_version(None);
    chain.broadcast(&raw).await;
    anvil.mine(1).await;
    let lie = Fault::Rewrite(without_transactions());
    proxy.inject("eth_getBlockByNumber", Times::UntilLifted, lie);
    let look = chain.look(account, &[sought], &[]).await.unwrap().unwrap();
    assert_eq!(look.node, 2);
    let mined = chain.mined(keccak256(&raw)).await.unwrap().unwrap();
    assert_eq!((mined.node, mined.is_canonical, mined.is_final), (2, true, false));
}
