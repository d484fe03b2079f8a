//! A bundle and requests for the tests of policy and decoding.

use crate::core::amount::Amount;
use crate::core::id::{ChainId, ChainName, GroupName, KeyId};
use crate::core::intent::{ChainRef, EventSource, FeeAsk, Fees, Intent, TransactionIntent, TxType};
use crate::core::policy::{Bundle, BundleError, CodeFact, EventFact, Facts, PolicyRequest};
use crate::core::principal::Principal;
use crate::core::time::Timestamp;
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::{Address, B256, Bytes, U256, address, keccak256};
use std::collections::BTreeMap;
use uuid::Uuid;

pub(crate) const PAYEE: Address = address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
pub(crate) const STRANGER: Address = address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906");
pub(crate) const PROCESSOR: Address = address!("0x5FbDB2315678afecb367f032d93F642f64180aa3");
pub(crate) const TUSD: Address = address!("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512");
pub(crate) const GWEI: u128 = 1_000_000_000;
const SIGNATURE: &str =
    "ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)";

const CHARGE_ARGS: &str = r#"{ orderId = "orderId", amount = "amount" }"#;

const BUNDLE: &str = r#"
schema = 1
version = "test"
[[issuer]]
iss = "dev"
roles = ["client"]
subjects = ["svc:*"]
"#;
const BOOK: &str = r#"
[[contract]]
name = "processor"
chain = "local"
address = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
abi = "abi/processor.json"
[[list]]
name = "payees"
chain = "local"
addresses = ["0x70997970C51812dc3A010C7d01b50e0d17dc79C8"]
"#;
const ASSETS: &str = r#"
[[asset]]
name = "tusd"
chain = "local"
address = "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512"
decimals = 6
"#;

/// Functions of the processor, as signatures with names.
const FUNCTIONS: [&str; 10] = [
    "function executeCharge(uint256 orderId, uint256 amount)",
    "function setFlag(bool flag, int8 level)",
    "function note(uint256 id, bytes memo, string title)",
    "function many(uint256[] ids, bytes[] blobs, (address,bytes)[] pairs)",
    "function pay(uint256 id) payable",
    "function approve(address spender, uint256 amount)",
    "function multicall(bytes[] data)",
    "function upgradeTo(address implementation)",
    "function grid(uint8[][] cells, address[2] pair)",
    "function pairs((address,uint256)[] pairs)",
];
const EVENTS: [&str; 1] =
    ["event ChargeRequested(uint256 indexed orderId, address indexed payer, uint256 amount)"];

pub(crate) const HEAD: &str = r#"owner = "o"
reason = "r"
expires = "2027-03-31"
signers = ["payments"]
"#;
pub(crate) const FEE: &str =
    r#"fee = { max_fee_gwei = "100", max_tip_gwei = "5", max_gas = 100000 }"#;

/// A grant for `svc:payouts` on `local`.
pub(crate) fn grant(id: &str, rest: &str) -> String {
    format!(
        "[[grant]]\nid = \"{id}\"\n{HEAD}principals = [\"svc:payouts\"]\n\
         chains = [\"local\"]\n{rest}\n"
    )
}

pub(crate) fn native_grant(id: &str, per_tx: &str, windows: &str) -> String {
    let windows = if windows.is_empty() { String::new() } else { format!("windows = {windows}") };
    grant(
        id,
        &format!(
            "action = \"native.transfer\"\nto = {{ book = \"payees\" }}\n\
             per_tx = \"{per_tx}\"\n{FEE}\n{windows}"
        ),
    )
}

pub(crate) fn token_grant(id: &str, per_tx: &str) -> String {
    grant(
        id,
        &format!(
            "action = \"erc20.transfer\"\nasset = \"tusd\"\nto = {{ book = \"payees\" }}\n\
             per_tx = \"{per_tx}\"\n{FEE}\n\
             windows = [{{ span = \"24h\", max = \"500\", scope = \"group\" }}]"
        ),
    )
}

pub(crate) fn call_grant(id: &str, function: &str, rest: &str) -> String {
    grant(
        id,
        &format!(
            "action = \"call\"\ncontract = \"processor\"\nfunction = \"{function}\"\n{FEE}\n{rest}"
        ),
    )
}

pub(crate) fn charge_grant() -> String {
    let event = format!(
        r#"event = {{ contract = "processor", signature = "{SIGNATURE}", args = {CHARGE_ARGS} }}
args = {{ amount = {{ max = "1000" }} }}
windows = [{{ span = "24h", count = 3, scope = "group" }}]"#
    );
    call_grant("charge", "executeCharge(uint256,uint256)", &event)
}

pub(crate) fn files(grants: &str) -> BTreeMap<String, Vec<u8>> {
    let abi = alloy::json_abi::JsonAbi::parse(FUNCTIONS.into_iter().chain(EVENTS)).unwrap();
    BTreeMap::from([
        ("bundle.toml".to_owned(), BUNDLE.into()),
        ("book.toml".to_owned(), BOOK.into()),
        ("assets.toml".to_owned(), ASSETS.into()),
        ("abi/processor.json".to_owned(), serde_json::to_vec(&abi).unwrap()),
        ("grants.toml".to_owned(), grants.into()),
    ])
}

pub(crate) fn try_bundle(grants: &str) -> Result<Bundle, BundleError> {
    Bundle::load(&files(grants))
}

pub(crate) fn bundle(grants: &[String]) -> Bundle {
    try_bundle(&grants.concat()).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn now() -> Timestamp {
    Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap()
}

pub(crate) fn local() -> ChainRef {
    ChainRef { name: ChainName::new("local"), id: ChainId::new(31337) }
}

pub(crate) fn request(intent: Intent, facts: Facts) -> PolicyRequest {
    PolicyRequest {
        principal: Principal { iss: "dev".into(), sub: "svc:payouts".into() },
        group: Some(GroupName::new("payments")),
        key: KeyId::new(Uuid::from_u128(7)),
        address: STRANGER,
        intent,
        facts,
    }
}

pub(crate) fn code(address: Address, code: &[u8]) -> Facts {
    let code = Bytes::copy_from_slice(code);
    Facts { codes: vec![CodeFact { address, block: B256::ZERO, code }], ..Facts::default() }
}

pub(crate) fn transaction(to: Address, value: u128, data: Vec<u8>) -> TransactionIntent {
    TransactionIntent {
        chain: local(),
        tx_type: TxType::Eip1559,
        to: Some(to),
        value: Amount::from(value),
        data: data.into(),
        gas: 50_000,
        fees: FeeAsk::UpTo(Fees { max_fee: 200 * GWEI, max_priority_fee: 10 * GWEI }),
        access_list: vec![],
        nonce: None,
        not_after: None,
        source: None,
    }
}

/// A transaction with the code that belongs there.
pub(crate) fn asks(to: Address, value: u128, data: Vec<u8>) -> PolicyRequest {
    let facts = code(to, if data.is_empty() { &[] } else { &[0x60] });
    request(Intent::Transaction(Box::new(transaction(to, value, data))), facts)
}

pub(crate) fn tx_of(request: &mut PolicyRequest) -> &mut TransactionIntent {
    match &mut request.intent {
        Intent::Transaction(tx) => tx,
        _ => panic!("not a transaction"),
    }
}

pub(crate) fn calldata(signature: &str, values: Vec<DynSolValue>) -> Vec<u8> {
    let encoded = DynSolValue::Tuple(values).abi_encode_params();
    [&keccak256(signature.as_bytes())[..4], encoded.as_slice()].concat()
}

pub(crate) fn uint(value: u64) -> DynSolValue {
    DynSolValue::Uint(U256::from(value), 256)
}

pub(crate) fn transfer(to: Address, amount: u64) -> Vec<u8> {
    calldata("transfer(address,uint256)", vec![DynSolValue::Address(to), uint(amount)])
}

pub(crate) fn execute_charge(order: u64, amount: u64) -> Vec<u8> {
    calldata("executeCharge(uint256,uint256)", vec![uint(order), uint(amount)])
}

/// A charge of order 7 over 500, with the event that asks for it.
pub(crate) fn charge() -> PolicyRequest {
    let mut request = asks(PROCESSOR, 0, execute_charge(7, 500));
    let source = EventSource {
        block_hash: B256::repeat_byte(1),
        transaction_hash: B256::repeat_byte(2),
        log_index: 3,
    };
    tx_of(&mut request).source = Some(source);
    request.facts.event = Some(EventFact {
        source,
        block_number: 9,
        canonical: true,
        finalized: true,
        emitter: PROCESSOR,
        topics: vec![
            keccak256("ChargeRequested(uint256,address,uint256)"),
            B256::from(U256::from(7)),
            STRANGER.into_word(),
        ],
        data: B256::from(U256::from(500)).to_vec().into(),
    });
    request
}

/// Typed data of any kind, for requests whose effects are given.
pub(crate) fn any_typed_data() -> Intent {
    let json = serde_json::json!({
        "types": { "EIP712Domain": [], "Note": [{ "name": "text", "type": "string" }] },
        "primaryType": "Note",
        "domain": {},
        "message": { "text": "hello" }
    });
    let data = serde_json::from_value(json).unwrap();
    Intent::TypedData { chain: local(), data: Box::new(data) }
}
