//! The EVM edge against a real node: what it reads, what it refuses, and what the node's own words mean.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support {
    pub mod services;
}

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use claviger::chain::evm::{EvmChain, EvmConfig, EvmError, Finality};
use claviger::core::id::ChainId;
use claviger::ports::chain::{BlockAt, Broadcast, CallRequest, Chain, ChainError};
use ethers_core::k256::ecdsa::SigningKey;
use ethers_core::types::transaction::eip2718::TypedTransaction;
use ethers_core::types::{Eip1559TransactionRequest, Signature, U256 as EthersU256};
use serde_json::json;
use support::services::{Anvil, AnvilOptions, Mining};
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
