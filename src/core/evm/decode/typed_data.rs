//! EIP-712 typed data, read strictly: everything that is shown is signed, and nothing else is.

use super::abi::{fits, show};
use crate::core::intent::ChainRef;
use crate::core::policy::effect::CallArgument;
use alloy::dyn_abi::eip712::parser::EncodeType;
use alloy::dyn_abi::{DynSolType, DynSolValue, TypedData};
use alloy::primitives::{Address, B256, U256};
use std::collections::{BTreeMap, BTreeSet};

const DOMAIN: &str = "EIP712Domain";
/// Struct types nest no deeper than this, …
const DEPTH_MAX: usize = 16;
/// … and all of them unrolled have no more fields than this.
const FIELDS_MAX: usize = 512;

/// Each declared type's fields: name, type.
type Types = BTreeMap<String, Vec<(String, String)>>;

/// What typed data says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadTypedData {
    /// keccak-256 of the full `encodeType`.
    pub type_hash: B256,
    /// The domain's contract.
    pub verifying_contract: Address,
    /// The top-level fields that are one word or plain text, or arrays of these.
    pub fields: Vec<CallArgument>,
}

/// Names of types that are known to move value: permits of ERC-2612, DAI and Permit2, authorisations
/// of ERC-3009, orders of Seaport and its like, Safe transactions, meta-transactions. Some are recognised, by
/// their type hash, and become effects; none is ever signed for its name.
#[must_use]
pub fn moves_value(primary_type: &str) -> bool {
    const EXACT: [&str; 16] = [
        "TransferWithAuthorization",
        "ReceiveWithAuthorization",
        "CancelAuthorization",
        "Order",
        "OrderComponents",
        "BulkOrder",
        "SafeTx",
        "SafeMessage",
        "ForwardRequest",
        "MetaTransaction",
        "Delegation",
        "DelegationWithSig",
        "AllowanceTransfer",
        "PackedUserOperation",
        "UserOperation",
        "SafeOp",
    ];
    primary_type.starts_with("Permit") || EXACT.contains(&primary_type)
}

/// Typed data that says exactly one thing.
pub(super) struct Strict {
    /// keccak-256 of the full `encodeType`.
    pub type_hash: B256,
    /// The domain's contract.
    pub verifying_contract: Address,
    /// The message.
    pub value: DynSolValue,
    /// The declared types.
    pub types: Types,
    /// Those of them that the message has.
    reached: BTreeSet<String>,
}

impl Strict {
    /// Why it is not just any message: one of its types is known to move value.
    pub(super) fn moved_by_name(&self) -> Option<String> {
        let name = self.reached.iter().find(|name| moves_value(name))?;
        Some(format!("`{name}` moves value, and is not one that is understood"))
    }
}

/// Reads typed data for a chain, where it moves nothing that is known.
///
/// # Errors
/// A sentence, when anything is missing, left over, of unknown size, or says another chain.
pub fn read(chain: &ChainRef, data: &TypedData) -> Result<ReadTypedData, String> {
    let strict = strict(chain, data)?;
    if let Some(why) = strict.moved_by_name() {
        return Err(why);
    }
    let Strict { type_hash, verifying_contract, value, .. } = strict;
    Ok(ReadTypedData { type_hash, verifying_contract, fields: top_fields(&value) })
}

/// Reads typed data for a chain, whatever it says.
pub(super) fn strict(chain: &ChainRef, data: &TypedData) -> Result<Strict, String> {
    if data.domain.chain_id.is_none() {
        return Err("the domain has no chainId".to_owned());
    }
    if data.domain.chain_id != Some(U256::from(chain.id.get())) {
        return Err("the domain's chainId is not the chain's".to_owned());
    }
    let verifying_contract =
        data.domain.verifying_contract.ok_or("the domain has no verifyingContract")?;
    let types = declared_types(data)?;
    let mut reached = BTreeSet::new();
    let mut budget = FIELDS_MAX;
    unroll(&types, &data.primary_type, DEPTH_MAX, &mut budget, &mut reached)
        .ok_or("the types are missing, circular, ambiguous or too many")?;
    if let Some(left) = types.keys().find(|name| *name != DOMAIN && !reached.contains(*name)) {
        return Err(format!("type `{left}` is declared and not used"));
    }
    if let Some(fields) = types.get(DOMAIN) {
        let declared: Vec<String> =
            fields.iter().map(|(name, kind)| format!("{kind} {name}")).collect();
        if format!("{DOMAIN}({})", declared.join(",")) != data.domain.encode_type() {
            return Err("the domain does not have the fields that its type declares".to_owned());
        }
    }
    let broken = |error: alloy::dyn_abi::Error| error.to_string();
    let value = data.coerce().map_err(broken)?;
    if !fits(&value) {
        return Err("a value is wider than its type".to_owned());
    }
    no_left_overs(&value, &data.message)?;
    data.hash_struct().map_err(broken)?;
    let type_hash = data.type_hash().map_err(broken)?;
    Ok(Strict { type_hash, verifying_contract, value, types, reached })
}

/// The declared types as (name, type) pairs. The resolver shows them only through serialisation.
fn declared_types(data: &TypedData) -> Result<Types, String> {
    #[derive(serde::Deserialize)]
    struct Field {
        name: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let value = serde_json::to_value(&data.resolver).map_err(|error| error.to_string())?;
    let types: BTreeMap<String, Vec<Field>> =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let pairs = |fields: Vec<Field>| fields.into_iter().map(|f| (f.name, f.kind)).collect();
    Ok(types.into_iter().map(|(name, fields)| (name, pairs(fields))).collect())
}

/// Walks a struct type with everything in it. `None` when it is missing, circular, has a field
/// twice, is named like a built-in type, or there is too much of it: resolving unrolls shared types
/// again and again, so this must be known before.
fn unroll(
    types: &Types,
    name: &str,
    depth: usize,
    budget: &mut usize,
    reached: &mut BTreeSet<String>,
) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let fields = types.get(name)?;
    if name == DOMAIN || fields.is_empty() || DynSolType::parse(name).is_ok() {
        return None;
    }
    reached.insert(name.to_owned());
    let names: BTreeSet<&String> = fields.iter().map(|(field, _)| field).collect();
    if names.len() != fields.len() || names.iter().any(|field| field.is_empty()) {
        return None;
    }
    for (_, kind) in fields {
        *budget = budget.checked_sub(1)?;
        let (root, arrays) = kind.split_once('[').unwrap_or((kind, ""));
        if arrays.matches('[').count() > 3 || kind.contains('(') {
            return None;
        }
        match DynSolType::parse(root) {
            // `uint` would be hashed as it is written, and mean what EIP-712 does not know.
            Ok(ty) if ty.sol_type_name() == root => {}
            Ok(_) => return None,
            Err(_) => unroll(types, root, depth, budget, reached)?,
        }
    }
    Some(())
}

/// Every field of the message is a field of its type, all the way down.
fn no_left_overs(value: &DynSolValue, json: &serde_json::Value) -> Result<(), String> {
    match value {
        DynSolValue::CustomStruct { prop_names, tuple, .. } => {
            let object = json.as_object().ok_or("the message does not fit its types")?;
            if let Some(extra) = object.keys().find(|key| !prop_names.contains(key)) {
                return Err(format!("the message has a field `{extra}` that its type has not"));
            }
            for (name, inner) in prop_names.iter().zip(tuple) {
                no_left_overs(inner, object.get(name).unwrap_or(&serde_json::Value::Null))?;
            }
            Ok(())
        }
        DynSolValue::Array(inner) | DynSolValue::FixedArray(inner) => {
            let array = json.as_array().ok_or("the message does not fit its types")?;
            inner.iter().zip(array).try_for_each(|(value, json)| no_left_overs(value, json))
        }
        _ => Ok(()),
    }
}

/// One word, plain text, or an array of these.
fn is_plain(value: &DynSolValue) -> bool {
    match value {
        DynSolValue::Array(inner) | DynSolValue::FixedArray(inner) => inner.iter().all(is_plain),
        DynSolValue::String(_) | DynSolValue::Bytes(_) => true,
        value => value.is_word(),
    }
}

fn top_fields(value: &DynSolValue) -> Vec<CallArgument> {
    let DynSolValue::CustomStruct { prop_names, tuple, .. } = value else {
        return Vec::new();
    };
    prop_names
        .iter()
        .zip(tuple)
        .filter(|(_, value)| is_plain(value))
        .map(|(name, value)| CallArgument {
            name: name.clone(),
            kind: value.sol_type_name().unwrap_or_default().into_owned(),
            value: show(value),
            encoded: value.abi_encode().into(),
        })
        .collect()
}

/// The scalar fields, and arrays of scalars, of the first type in an `encodeType` text; `None` if that is not
/// `primary_type`.
#[must_use]
pub fn primary_fields(primary_type: &str, text: &str) -> Option<Vec<(String, DynSolType)>> {
    if !text.starts_with(&format!("{primary_type}(")) || !text.ends_with(')') {
        return None;
    }
    let parsed = EncodeType::parse(text).ok()?;
    let first = parsed.types.first()?;
    let field = |name: &str, kind: &str| Some((name.to_owned(), DynSolType::parse(kind).ok()?));
    Some(first.props.iter().filter_map(|prop| field(prop.name, prop.ty.span())).collect())
}
