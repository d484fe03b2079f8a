//! The call that an event asks for: a function's signature, and which of its arguments is which
//! parameter of the event.

use super::event::{DecodedLog, EventAbi};
use super::{TriggerError, argument, signature};
use alloy::dyn_abi::{DynSolType, DynSolValue, JsonAbiExt, Specifier};
use alloy::json_abi::Function;
use alloy::primitives::Bytes;
use std::collections::BTreeMap;

/// One argument of the function.
#[derive(Debug, Clone)]
struct Argument {
    from: String,
    ty: DynSolType,
}

/// A checked mapping from an event to calldata.
#[derive(Debug, Clone)]
pub struct Trigger {
    function: Function,
    arguments: Vec<Argument>,
}

impl Trigger {
    /// Checks that every argument of the function is given by a parameter of the event whose type fits:
    /// the same, or a shorter integer of the same sign.
    ///
    /// # Errors
    /// Names the argument that is missing, too many or of another type.
    pub fn parse(
        function: &str,
        args: &BTreeMap<String, String>,
        event: &EventAbi,
    ) -> Result<Self, TriggerError> {
        let parsed = Function::parse(function).map_err(|error| signature(function, error))?;
        let mut arguments = Vec::with_capacity(parsed.inputs.len());
        for input in &parsed.inputs {
            if input.name.is_empty() {
                return Err(signature(function, "every argument needs a name"));
            }
            let from =
                args.get(&input.name).ok_or_else(|| argument(&input.name, "is not given"))?;
            let ty: DynSolType = input.resolve().map_err(|error| signature(function, error))?;
            let given = event.usable(from).map_err(|reason| argument(&input.name, reason))?;
            if !fits(given, &ty) {
                let reason = format!("`{from}` is {given}, which does not fit {ty}");
                return Err(argument(&input.name, reason));
            }
            arguments.push(Argument { from: from.clone(), ty });
        }
        let named = |name: &String| parsed.inputs.iter().any(|input| input.name == *name);
        if let Some(surplus) = args.keys().find(|name| !named(name)) {
            return Err(argument(surplus, "the function has no such argument"));
        }
        if arguments.len() != args.len() {
            return Err(signature(function, "two arguments have the same name"));
        }
        Ok(Self { function: parsed, arguments })
    }

    /// The calldata for one log: selector and arguments.
    ///
    /// # Errors
    /// If the log lacks a parameter, which `parse` excludes for logs of the same event.
    pub fn calldata(&self, log: &DecodedLog) -> Result<Bytes, TriggerError> {
        let mut values = Vec::with_capacity(self.arguments.len());
        for wanted in &self.arguments {
            let value =
                log.get(&wanted.from).ok_or_else(|| argument(&wanted.from, "is missing"))?;
            values.push(widen(value.clone(), &wanted.ty));
        }
        let encoded = self.function.abi_encode_input(&values);
        encoded.map(Bytes::from).map_err(|error| TriggerError::Log(error.to_string()))
    }
}

fn fits(given: &DynSolType, wanted: &DynSolType) -> bool {
    match (given, wanted) {
        (DynSolType::Uint(given), DynSolType::Uint(wanted))
        | (DynSolType::Int(given), DynSolType::Int(wanted)) => given <= wanted,
        (given, wanted) => given == wanted,
    }
}

fn widen(value: DynSolValue, wanted: &DynSolType) -> DynSolValue {
    match (value, wanted) {
        (DynSolValue::Uint(value, _), DynSolType::Uint(bits)) => DynSolValue::Uint(value, *bits),
        (DynSolValue::Int(value, _), DynSolType::Int(bits)) => DynSolValue::Int(value, *bits),
        (value, _) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{B256, hex};

    fn event() -> EventAbi {
        EventAbi::parse("Asked(uint64 indexed id, address indexed who, uint256 amount)").unwrap()
    }

    fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, from)| (name.to_owned(), from.to_owned())).collect()
    }

    #[test]
    fn calldata_is_the_selector_and_the_arguments() {
        let function = "executeCharge(uint256 orderId, uint256 amount)";
        let given = args(&[("orderId", "id"), ("amount", "amount")]);
        let trigger = Trigger::parse(function, &given, &event()).unwrap();
        let topics = [event().topic0(), B256::with_last_byte(7), B256::with_last_byte(1)];
        let log = event().decode(&topics, B256::with_last_byte(9).as_slice()).unwrap();
        let selector = hex::encode(
            alloy::primitives::keccak256("executeCharge(uint256,uint256)").get(..4).unwrap(),
        );
        assert_eq!(
            hex::encode(trigger.calldata(&log).unwrap()),
            format!("{selector}{:064x}{:064x}", 7, 9)
        );
    }

    #[test]
    fn mappings_that_do_not_fit_are_refused_at_start() {
        let function = "run(uint256 id, address to)";
        for (given, why) in [
            (args(&[("id", "id")]), "an argument is missing"),
            (args(&[("id", "id"), ("to", "who"), ("more", "id")]), "one too many"),
            (args(&[("id", "id"), ("to", "amount")]), "another type"),
            (args(&[("id", "id"), ("to", "nobody")]), "no such parameter"),
        ] {
            assert!(Trigger::parse(function, &given, &event()).is_err(), "{why}");
        }
        let narrow = args(&[("id", "amount"), ("to", "who")]);
        assert!(Trigger::parse("run(uint64 id, address to)", &narrow, &event()).is_err());
        let unnamed = args(&[("id", "id")]);
        assert!(Trigger::parse("run(uint256)", &unnamed, &event()).is_err());
    }
}
