//! ABIs that are bound to contracts of the book, and what is known of functions whatever the contract.

use crate::core::evm::decode::abi::is_supported;
use crate::core::evm::decode::known::signatures;
use alloy::dyn_abi::{DynSolType, Specifier as _};
use alloy::json_abi::{Event, EventParam, Function, JsonAbi, Param};
use alloy::primitives::{Selector, keccak256};
use std::collections::{BTreeMap, BTreeSet};

/// A function of a contract.
#[derive(Clone, Debug)]
pub struct AbiFunction {
    /// Canonical signature, such as `executeCharge(uint256,uint256)`.
    pub signature: String,
    /// The first four bytes of the signature's hash.
    pub selector: Selector,
    /// The arguments in order.
    pub inputs: Vec<AbiInput>,
    /// What is known of it whatever the contract.
    pub class: FunctionClass,
    /// Why no grant of action "call" may name it, if so: all that is not plain.
    pub refused: Option<String>,
}

/// What is known of a function by its name or its selector, whatever the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionClass {
    /// Nothing: a grant of action "call" may name it.
    Plain,
    /// It changes who rules the contract, or its code: only a grant of action "admin" may name it.
    Admin,
    /// It moves tokens, approves, or carries other calls. What that means is in its effects, where the asset or
    /// the wrapper is bound; no grant may name it as a function.
    Refused,
}

/// An argument of a function.
#[derive(Clone, Debug)]
pub struct AbiInput {
    /// Its name; empty if it has none.
    pub name: String,
    /// Its type, such as `uint256`.
    pub kind: String,
    /// The same, parsed.
    pub ty: DynSolType,
}

impl AbiFunction {
    /// The types of the arguments.
    #[must_use]
    pub fn types(&self) -> Vec<DynSolType> {
        self.inputs.iter().map(|input| input.ty.clone()).collect()
    }
}

/// What is known of a contract's interface.
#[derive(Clone, Debug, Default)]
pub struct ContractAbi {
    /// Functions by selector.
    pub functions: BTreeMap<Selector, AbiFunction>,
    /// Events as `signature` plus which arguments are indexed.
    pub events: BTreeSet<(String, Vec<bool>)>,
}

impl ContractAbi {
    /// Reads a plain ABI array, or an artefact with an `abi` field.
    ///
    /// # Errors
    /// When the JSON is neither, two functions share a selector, or a type cannot be decoded here.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let array = match &value {
            serde_json::Value::Array(_) => &value,
            serde_json::Value::Object(artefact) => {
                artefact.get("abi").ok_or("neither an ABI array nor an object with `abi`")?
            }
            _ => return Err("neither an ABI array nor an object with `abi`".to_owned()),
        };
        let abi: JsonAbi =
            serde_json::from_value(array.clone()).map_err(|error| error.to_string())?;
        let mut read = Self::default();
        for function in abi.functions() {
            let function = read_function(function)?;
            let signature = function.signature.clone();
            if let Some(other) = read.functions.insert(function.selector, function) {
                return Err(format!(
                    "`{signature}` and `{}` have the same selector",
                    other.signature
                ));
            }
        }
        for event in abi.events() {
            let indexed = event.inputs.iter().map(|input| input.indexed).collect();
            read.events.insert((event.signature(), indexed));
        }
        Ok(read)
    }

    /// The function with this canonical signature.
    #[must_use]
    pub fn function(&self, signature: &str) -> Option<&AbiFunction> {
        self.functions.values().find(|function| function.signature == signature)
    }
}

fn read_function(function: &Function) -> Result<AbiFunction, String> {
    let inputs = function
        .inputs
        .iter()
        .map(|input| read_input(input, &function.name))
        .collect::<Result<Vec<_>, _>>()?;
    let signature = function.signature();
    let selector = function.selector();
    let (class, refused) = classify(&function.name, selector);
    Ok(AbiFunction { signature, selector, inputs, class, refused })
}

fn read_input(input: &Param, function: &str) -> Result<AbiInput, String> {
    let ty = input
        .resolve()
        .map_err(|error| format!("`{function}`, argument `{}`: {error}", input.name))?;
    let kind = input.selector_type().into_owned();
    check_type(&ty, &kind)?;
    Ok(AbiInput { name: input.name.clone(), kind, ty })
}

/// Reads an event from its human-readable signature. Returns it with the type of each argument.
///
/// # Errors
/// When the text is no event, the event is anonymous, or a type is not canonical.
pub fn read_event(signature: &str) -> Result<(Event, Vec<DynSolType>), String> {
    let event = Event::parse(signature).map_err(|error| format!("`{signature}`: {error}"))?;
    if event.anonymous {
        return Err("an anonymous event cannot be recognised".to_owned());
    }
    let types = event
        .inputs
        .iter()
        .map(|input: &EventParam| {
            let ty = input.resolve().map_err(|error| error.to_string())?;
            check_type(&ty, &input.selector_type())?;
            Ok(ty)
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok((event, types))
}

/// The type must be written canonically (`uint256`, never `uint`: the selector is a hash of the
/// text), and be one that can be decoded strictly.
fn check_type(ty: &DynSolType, written: &str) -> Result<(), String> {
    if ty.sol_type_name() != written {
        return Err(format!("type `{written}` must be written `{}`", ty.sol_type_name()));
    }
    if !is_supported(ty) {
        return Err(format!("type `{written}` is empty or nested too deeply"));
    }
    Ok(())
}

/// What is not judged by its arguments alone. Each: class, why, signatures (compared by selector), names
/// (whatever the arguments).
const CLASSES: [(FunctionClass, &str, &[&str], &str); 5] = [
    (
        FunctionClass::Refused,
        "it moves registered value or approvals",
        &[
            "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)",
            "permit(address,address,uint256,uint256,bool,uint8,bytes32,bytes32)",
        ],
        "transfer transferFrom safeTransfer safeTransferFrom safeBatchTransferFrom send \
         operatorSend approve safeApprove increaseAllowance decreaseAllowance increaseApproval \
         decreaseApproval permit permitForAll permitTransferFrom permitWitnessTransferFrom \
         approveDelegation delegationWithSig setApprovalForAll setOperator authorizeOperator \
         revokeOperator transferWithAuthorization receiveWithAuthorization cancelAuthorization \
         lockdown invalidateNonces burnFrom operatorBurn",
    ),
    (
        FunctionClass::Refused,
        "it calls somebody with the moved tokens (ERC-1363, ERC-677)",
        &[],
        "transferAndCall transferFromAndCall approveAndCall",
    ),
    (
        FunctionClass::Refused,
        "it wraps other calls, or consents to some that only a hash names",
        &["execute(bytes32,bytes)", "approveHash(bytes32)"],
        "multicall tryMulticall aggregate aggregate3 aggregate3Value tryAggregate \
         blockAndAggregate tryBlockAndAggregate multiSend batch batchCall execute executeBatch \
         executeCall executeUserOp executeFromExecutor execTransaction \
         execTransactionFromModule exec execTransactionFromModuleReturnData call functionCall \
         doCall proxyCall delegatecall delegateCall functionDelegateCall executeDelegateCall \
         forward relay relayCall invoke handleOps handleAggregatedOps simulate \
         simulateAndRevert schedule scheduleBatch cook performOperations approveHash signMessage \
         setPreSignature",
    ),
    (
        FunctionClass::Admin,
        "it changes who rules the contract",
        &["grantRole(bytes32,address)", "transferOwnership(address)", "enableModule(address)"],
        "grantRole revokeRole renounceRole setRoleAdmin transferOwnership acceptOwnership \
         renounceOwnership beginDefaultAdminTransfer acceptDefaultAdminTransfer setOwner \
         changeOwner addOwner addOwnerWithThreshold removeOwner swapOwner changeThreshold \
         enableModule disableModule setGuard setModuleGuard setFallbackHandler setPendingAdmin \
         acceptAdmin setAuthority setUserRole rely deny setMinter addMinter configureMinter",
    ),
    (
        FunctionClass::Admin,
        "it changes the code of the contract",
        &["upgradeTo(address)", "upgradeToAndCall(address,bytes)"],
        "upgradeTo upgradeToAndCall upgrade upgradeAndCall upgradeBeaconToAndCall changeAdmin \
         changeProxyAdmin setImplementation setBeacon diamondCut initialize reinitialize \
         setCode destroy kill selfdestruct",
    ),
];

/// By name whatever the arguments, and by selector whatever the name: an ABI file cannot call `approve` by
/// another name. The selectors of all functions that the decoder knows are among them. What is refused is
/// looked for first: a function of both kinds is not an admin's.
fn classify(name: &str, selector: Selector) -> (FunctionClass, Option<String>) {
    let same =
        |signature: &str| keccak256(signature.as_bytes()).get(..4) == Some(selector.as_slice());
    let named = |names: &str| names.split_whitespace().any(|listed| listed == name);
    let mut listed = CLASSES.iter().filter(|(_, _, signatures, names)| {
        named(names) || signatures.iter().any(|signature| same(signature))
    });
    let listed = listed.next().map(|(class, why, ..)| (*class, *why));
    match listed {
        Some(listed @ (FunctionClass::Refused, _)) => refused(name, listed),
        _ if signatures().any(same) => {
            refused(name, (FunctionClass::Refused, "it moves tokens or wraps other calls"))
        }
        Some(listed) => refused(name, listed),
        None => (FunctionClass::Plain, None),
    }
}

fn refused(name: &str, (class, why): (FunctionClass, &str)) -> (FunctionClass, Option<String>) {
    let hint = if class == FunctionClass::Admin { " (action \"admin\" can)" } else { "" };
    (class, Some(format!("action \"call\" cannot name `{name}`: {why}{hint}")))
}
