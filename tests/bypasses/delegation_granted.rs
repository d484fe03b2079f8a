//! EIP-7702 where a grant allows it: the signature is the account's, the chain takes it, and the nonce that it
//! uses up is shared with the transactions of that nonce.

use crate::delegation::authorization;
use crate::stage::*;
use crate::support::server::LIMIT;
use crate::support::services::poll_until;
use alloy::consensus::{SignableTransaction as _, TxEip7702, TxEnvelope};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::eips::eip7702::{Authorization, SignedAuthorization};
use alloy::primitives::{Address, U256};
use ethers_core::k256::ecdsa::SigningKey;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The second account of every anvil, which pays for the transaction that carries the authorization. (The first
/// one deploys: its nonces are addresses.)
const SPONSOR: &str = "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";

fn signed(it: &Actor, answer: &Value, nonce: u64) -> SignedAuthorization {
    let inner =
        Authorization { chain_id: U256::from(31337), address: GATE.parse().unwrap(), nonce };
    let digest = inner.signature_hash();
    let signer = authority(&answer["signature"], digest.0);
    assert_eq!(format!("{signer:#x}"), it.external, "the authority is the account");
    let part = |name: &str| answer["signature"][name].as_str().unwrap().parse::<U256>().unwrap();
    let y_parity = u8::try_from(answer["signature"]["y_parity"].as_u64().unwrap()).unwrap();
    let signed = SignedAuthorization::new_unchecked(inner, y_parity, part("r"), part("s"));
    assert!(
        answer["raw"].is_null() && answer["hash"].is_null(),
        "no transaction of ours: {answer:#}"
    );
    signed
}

/// A type-4 transaction by a test account that carries these authorizations.
async fn carry(it: &Actor, list: Vec<SignedAuthorization>) {
    let key = SigningKey::from_slice(&hex::decode(SPONSOR).unwrap()).unwrap();
    let from = &it.anvil().accounts()[1];
    let tx = TxEip7702 {
        chain_id: 31337,
        nonce: it.anvil().nonce(from).await,
        gas_limit: 200_000,
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to: Address::repeat_byte(0x77),
        authorization_list: list,
        ..TxEip7702::default()
    };
    let (signature, id) = key.sign_prehash_recoverable(tx.signature_hash().as_slice()).unwrap();
    let bytes = signature.to_bytes();
    let signature = alloy::primitives::Signature::new(
        U256::from_be_slice(&bytes[..32]),
        U256::from_be_slice(&bytes[32..]),
        id.is_y_odd(),
    );
    let raw = TxEnvelope::from(tx.into_signed(signature)).encoded_2718();
    let sent =
        it.anvil().rpc("eth_sendRawTransaction", json!([format!("0x{}", hex::encode(raw))])).await;
    let receipt = it.anvil().wait_for_receipt(sent.as_str().unwrap(), LIMIT).await;
    assert_eq!(receipt["status"], "0x1", "{receipt:#}");
}

/// What was settled, by whose it was.
async fn settled(it: &Actor) -> BTreeSet<String> {
    let rows = it.stage.leaves().await.rows.into_iter();
    rows.filter(|(kind, ..)| kind == "SETTLED").map(|(_, subject, _)| subject).collect()
}

/// The address of a signature's maker, by another implementation.
fn authority(signature: &Value, digest: [u8; 32]) -> Address {
    let bytes = signature["bytes"].as_str().unwrap().trim_start_matches("0x");
    let bytes = hex::decode(bytes).unwrap();
    let signature = alloy_primitives::Signature::from_raw(&bytes).unwrap();
    signature.recover_address_from_prehash(&digest.into()).unwrap()
}

async fn code(it: &Actor) -> Value {
    it.anvil().rpc("eth_getCode", json!([it.external, "latest"])).await
}

#[test]
fn bypass_17_a_granted_delegation_is_the_accounts_own_and_uses_up_its_nonce() {
    row("b17-granted", async |it: Actor| {
        // Value and delegation are versions of one nonce: they hold what the larger holds.
        let pay = |nonce: u64, wei: u128| it.external_body(nonce, &call(PAYEE, wei, "0x"));
        const ETHER: u128 = 1_000_000_000_000_000_000;
        it.allows_signature("a payout at nonce 0", &pay(0, ETHER)).await;
        let answer =
            it.allows_signature("a delegation at nonce 0", &authorization(&it, GATE, "0")).await;
        assert_eq!(answer["kind"], "authorization");
        it.allows_signature("a payout at nonce 1", &pay(1, ETHER)).await;
        it.has_no_room("a third ether", &pay(2, ETHER)).await;
        it.refuses_signature("to another contract", &authorization(&it, UNNAMED, "0")).await;
        // One delegation a day, and each nonce is counted once.
        it.allows_signature("the same again", &authorization(&it, GATE, "0")).await;
        it.has_no_room("at another nonce", &authorization(&it, GATE, "1")).await;
        let would = it.evaluate(&authorization(&it, GATE, "0")).await.ok();
        assert_eq!(would["outcome"], "allow", "{would:#}");

        assert_eq!(code(&it).await, "0x");
        carry(&it, vec![signed(&it, &answer, 0)]).await;
        let delegated = format!("0xef0100{}", GATE.trim_start_matches("0x"));
        assert_eq!(code(&it).await, delegated);
        assert_eq!(it.anvil().nonce(&it.external).await, 1, "it has used up the nonce");
        it.anvil().mine(4).await;
        // It is settled, by no transaction of ours, and nothing that was held for that nonce comes back.
        poll_until(LIMIT, "the nonce is settled", async || {
            it.anvil().mine(1).await;
            settled(&it).await.contains(&format!("31337:{}:0", it.external)).then_some(())
        })
        .await;
        it.has_no_room("a third ether, later", &pay(2, ETHER)).await;
        let doors = [Door::Signatures, Door::Evaluate];
        it.rejects("the payout that it has displaced", &pay(0, ETHER), &doors, (409, "conflict"))
            .await;
    });
}
