//! The bundle of the targets, in `fuzz/bundle`: it binds every wrapper and has an asset of each standard.

use alloy::primitives::{Address, B256, Bytes};
use claviger::core::amount::Amount;
use claviger::core::id::{ChainId, ChainName, GroupName, KeyId};
use claviger::core::intent::{ChainRef, FeeAsk, Fees, Intent, TransactionIntent, TxType};
use claviger::core::policy::{Bundle, CodeFact, Facts, PolicyRequest};
use claviger::core::principal::Principal;
use std::collections::BTreeMap;
use std::sync::LazyLock;

pub type Files = BTreeMap<String, Vec<u8>>;

/// The address whose bytes are all the same is what the bundle has there; see `fuzz/bundle/book.toml`.
pub const ADDRESSES: [u8; 14] =
    [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0x10, 0x12, 0x13, 0x14, 0x15];
/// The one without code.
pub const PAYEE: u8 = 0x13;

pub const SIGNER: Address =
    alloy::primitives::address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");

pub fn files() -> Files {
    [
        ("bundle.toml", &include_bytes!("../bundle/bundle.toml")[..]),
        ("book.toml", include_bytes!("../bundle/book.toml")),
        ("assets.toml", include_bytes!("../bundle/assets.toml")),
        ("grants.toml", include_bytes!("../bundle/grants.toml")),
        ("abi/all.json", include_bytes!("../bundle/abi/all.json")),
    ]
    .into_iter()
    .map(|(path, bytes)| (path.to_owned(), bytes.to_vec()))
    .collect()
}

pub static BUNDLE: LazyLock<Bundle> =
    LazyLock::new(|| Bundle::load(&files()).expect("the bundle of the targets loads"));

static FACTS: LazyLock<Facts> = LazyLock::new(|| {
    let code = |byte: u8| CodeFact {
        address: Address::repeat_byte(byte),
        block: B256::ZERO,
        code: if byte == PAYEE { Bytes::new() } else { Bytes::from_static(&[0x60]) },
    };
    Facts { codes: ADDRESSES.map(code).to_vec(), ..Facts::default() }
});

pub fn chain() -> ChainRef {
    ChainRef { name: ChainName::new("local"), id: ChainId::new(31337) }
}

pub fn request(intent: Intent) -> PolicyRequest {
    PolicyRequest {
        principal: Principal { iss: "dev".into(), sub: "svc:payouts".into() },
        group: Some(GroupName::new("payments")),
        key: KeyId::new(Default::default()),
        address: SIGNER,
        intent,
        facts: FACTS.clone(),
    }
}

pub fn transaction(to: Address, value: u8, data: &[u8]) -> PolicyRequest {
    let fees = Fees { max_fee: 1_000_000_000, max_priority_fee: 1 };
    request(Intent::Transaction(Box::new(TransactionIntent {
        chain: chain(),
        tx_type: TxType::Eip1559,
        to: Some(to),
        value: Amount::from(u64::from(value)),
        data: data.to_vec().into(),
        gas: 50_000,
        fees: FeeAsk::UpTo(fees),
        access_list: vec![],
        nonce: None,
        not_after: None,
        source: None,
    })))
}
