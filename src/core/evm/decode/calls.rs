//! From a call to its effects, through all wrappers that the bundle binds.
//!
//! For each call: what code stands there, then the functions of a registered asset, of a bound wrapper, of the
//! ABI. Who calls changes with each wrapper, and with it whose tokens move.

use super::wrappers::{Call, Unwrapped};
use super::{abi, assets, known::Known, opaque, wrappers};
use crate::core::id::ChainName;
use crate::core::policy::bundle::abi::{AbiFunction, FunctionClass};
use crate::core::policy::bundle::registry::{Contract, Registry, Wrapper};
use crate::core::policy::effect::{CallArgument, CallEffect, Effect, OpaqueCall};
use crate::core::policy::{Bundle, Facts};
use alloy::dyn_abi::DynSolValue;
use alloy::primitives::Address;

/// Calls are inside calls no deeper than this, …
pub(super) const DEPTH_MAX: usize = 6;
/// … there are no more of them in all, …
pub(super) const CALLS_MAX: usize = 64;
/// … and what they do is no more than this.
pub(super) const EFFECTS_MAX: usize = 64;

/// The first bytes of a delegated account's code (EIP-7702).
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];

/// What is known of code.
enum Codes<'a> {
    /// What was read from the chain.
    Known(&'a Facts),
    /// Nothing yet: whose code would be asked for.
    Wanted(Vec<Address>),
}

/// Reads calls one after the other.
pub(super) struct Reader<'a> {
    registry: &'a Registry,
    chain: &'a ChainName,
    codes: Codes<'a>,
    effects: Vec<Effect>,
    calls: usize,
    /// A cap was reached: nothing more is read.
    full: bool,
}

/// Why a call is not understood, and whether a grant may name it as opaque.
enum Miss {
    No(String),
    Grantable(String),
}

impl From<String> for Miss {
    fn from(why: String) -> Self {
        Self::No(why)
    }
}

impl<'a> Reader<'a> {
    /// A reader that knows the code at each address as far as the facts say.
    pub(super) fn new(bundle: &'a Bundle, chain: &'a ChainName, facts: &'a Facts) -> Self {
        Self::with(bundle, chain, Codes::Known(facts))
    }

    /// A reader before any fact was read, to learn which are needed.
    pub(super) fn without_facts(bundle: &'a Bundle, chain: &'a ChainName) -> Self {
        Self::with(bundle, chain, Codes::Wanted(Vec::new()))
    }

    fn with(bundle: &'a Bundle, chain: &'a ChainName, codes: Codes<'a>) -> Self {
        let registry = bundle.registry();
        Self { registry, chain, codes, effects: Vec::new(), calls: 0, full: false }
    }

    /// Everything that was read; never empty after a call.
    pub(super) fn effects(self) -> Vec<Effect> {
        self.effects
    }

    /// Whose code was asked for, each once, in order of the calls.
    pub(super) fn addresses(self) -> Vec<Address> {
        match self.codes {
            Codes::Known(_) => Vec::new(),
            Codes::Wanted(addresses) => addresses,
        }
    }

    /// Reads a call that stands by itself.
    pub(super) fn read(&mut self, call: &Call) {
        self.call(call, 0);
    }

    fn call(&mut self, call: &Call, depth: usize) {
        self.calls = self.calls.saturating_add(1);
        if depth > DEPTH_MAX {
            return self.stop(format!("calls are nested deeper than {DEPTH_MAX}"));
        }
        if self.calls > CALLS_MAX {
            return self.stop(format!("it has more than {CALLS_MAX} calls"));
        }
        let (why, call_effect) = match self.understand(call, depth) {
            Ok(()) => return,
            Err(Miss::No(why)) => (why, None),
            Err(Miss::Grantable(why)) => (why, Some(self.opaque_call(call))),
        };
        let why = if depth == 0 { why } else { format!("in a call to {}: {why}", call.to) };
        self.push(Effect::Opaque { why, call: call_effect });
    }

    fn understand(&mut self, call: &Call, depth: usize) -> Result<(), Miss> {
        let has_code = self.has_code(call.to, !call.data.is_empty())?;
        let (registry, chain) = (self.registry, self.chain);
        let contract = registry.contract_at(chain, call.to);
        if call.data.is_empty() {
            if has_code {
                let why = "no data, but the recipient has code that would run".to_owned();
                return Err(grantable(contract, why));
            }
            let (from, to, amount) = (call.actor, call.to, call.value);
            self.push(Effect::NativeOut { from, to, amount });
            return Ok(());
        }
        if !has_code {
            return Err(Miss::No("data, but the recipient has no code".to_owned()));
        }
        let Some((selector, data)) = call.data.split_first_chunk::<4>() else {
            return Err(Miss::No("data is too short for a selector".to_owned()));
        };
        let known = Known::find(*selector);
        let wraps = contract.and_then(|contract| contract.wraps);
        if let Some(effects) = known.and_then(|known| self.own(wraps, known, call, data)) {
            let effects = effects?;
            effects.into_iter().for_each(|effect| self.push(effect));
            // What a token or Permit2 is paid beside has nothing to do with the tokens.
            self.paid(call);
            return Ok(());
        }
        if let (Some(wraps), Some(known)) = (wraps, known)
            && let Some(unwrapped) = wrappers::unwrap(registry, chain, (wraps, known), call, data)
        {
            let unwrapped = unwrapped?;
            if unwrapped.keeps_value {
                self.paid(call);
            }
            return self.inside(&unwrapped, depth).map_err(Miss::No);
        }
        let effect = self.by_abi(contract, call, *selector, data)?;
        self.push(effect);
        Ok(())
    }

    /// What an asset or Permit2 does by itself; `None` if it is neither, or has no such function.
    fn own(
        &self,
        wraps: Option<Wrapper>,
        known: Known,
        call: &Call,
        data: &[u8],
    ) -> Option<Result<Vec<Effect>, String>> {
        let asset = self.registry.asset_at(self.chain, call.to);
        let effects = asset.and_then(|asset| assets::effects(asset, known, call.actor, data));
        if effects.is_some() || wraps != Some(Wrapper::Permit2) {
            return effects;
        }
        let permit2 = assets::Permit2Call { contract: call.to, actor: call.actor };
        assets::permit2(self.registry, self.chain, known, permit2, data)
    }

    fn inside(&mut self, unwrapped: &Unwrapped, depth: usize) -> Result<(), String> {
        if let Some(library) = unwrapped.runs
            && !self.has_code(library, true)?
        {
            return Err("delegatecall to an address without code".to_owned());
        }
        for inner in &unwrapped.calls {
            if self.full {
                break;
            }
            self.call(inner, depth.saturating_add(1));
        }
        Ok(())
    }

    /// Native value that the recipient keeps.
    fn paid(&mut self, call: &Call) {
        if !call.value.is_zero() {
            let (from, to, amount) = (call.actor, call.to, call.value);
            self.push(Effect::NativeOut { from, to, amount });
        }
    }

    fn by_abi(
        &self,
        contract: Option<&Contract>,
        call: &Call,
        selector: [u8; 4],
        data: &[u8],
    ) -> Result<Effect, Miss> {
        let Some(contract) = contract else {
            let asset = self.registry.asset_at(self.chain, call.to);
            return Err(Miss::No(asset.map_or_else(
                || "the recipient is not a contract of the book".to_owned(),
                |asset| {
                    let (selector, name) = (hex::encode(selector), &asset.name);
                    format!("function 0x{selector} of the asset `{name}` is not understood")
                },
            )));
        };
        let function = contract.abi.as_ref().and_then(|abi| abi.functions.get(&selector[..]));
        let Some(function) = function else {
            let selector = hex::encode(selector);
            let why = format!("`{}` has no known function 0x{selector}", contract.name);
            return Err(Miss::Grantable(why));
        };
        let admin = match function.class {
            FunctionClass::Plain => false,
            FunctionClass::Admin => true,
            FunctionClass::Refused => {
                let why = function.refused.clone().unwrap_or_default();
                return Err(Miss::Grantable(why));
            }
        };
        let values = abi::decode_exact(&function.types(), data).ok_or_else(|| {
            format!("data is not the canonical encoding of `{}`", function.signature)
        })?;
        let effect = CallEffect {
            from: call.actor,
            contract: contract.name.clone(),
            to: call.to,
            function: function.signature.clone(),
            args: arguments(function, &values),
            value: call.value,
        };
        Ok(if admin { Effect::AdminOp(effect) } else { Effect::Call(effect) })
    }

    /// Whether there is code at an address. Where nothing was read yet, it is as the data has it.
    fn has_code(&mut self, address: Address, expected: bool) -> Result<bool, String> {
        let facts = match &mut self.codes {
            Codes::Known(facts) => facts,
            Codes::Wanted(addresses) => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
                return Ok(expected);
            }
        };
        let fact = facts.code_at(address).ok_or("the code at the recipient is not known")?;
        if fact.code.starts_with(&DELEGATION) {
            return Err("the recipient is an account with delegated code (EIP-7702)".to_owned());
        }
        Ok(!fact.code.is_empty())
    }

    fn opaque_call(&self, call: &Call) -> OpaqueCall {
        let code_hash = match &self.codes {
            Codes::Known(facts) => facts.code_hash_at(call.to),
            Codes::Wanted(_) => None,
        };
        OpaqueCall {
            from: call.actor,
            to: call.to,
            selector: call.data.first_chunk::<4>().copied(),
            value: call.value,
            code_hash,
        }
    }

    fn push(&mut self, effect: Effect) {
        if self.full {
            return;
        }
        if self.effects.len() >= EFFECTS_MAX {
            return self.stop(format!("it has more than {EFFECTS_MAX} effects"));
        }
        self.effects.push(effect);
    }

    fn stop(&mut self, why: String) {
        if !self.full {
            self.full = true;
            self.effects.push(opaque(&why));
        }
    }
}

/// Only what stands at a contract of the book has a name that a grant could say.
fn grantable(contract: Option<&Contract>, why: String) -> Miss {
    if contract.is_some() { Miss::Grantable(why) } else { Miss::No(why) }
}

fn arguments(function: &AbiFunction, values: &[DynSolValue]) -> Vec<CallArgument> {
    let pairs = function.inputs.iter().zip(values);
    pairs
        .map(|(input, value)| CallArgument {
            name: input.name.clone(),
            kind: input.kind.clone(),
            value: abi::show(value),
            encoded: value.abi_encode().into(),
        })
        .collect()
}
