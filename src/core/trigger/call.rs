//! The call that an event asks for: a function's signature, and which of its arguments is which
//! parameter of the event.

use super::event::{DecodedLog, Parameters};
use super::{TriggerError, argument, signature};
use alloy::dyn_abi::{DynSolType, DynSolValue, JsonAbiExt, Specifier, Word};
use alloy::json_abi::Function;
use alloy::primitives::{Address, Bytes, Function as Function24, I256, U256};
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
        event: &impl Parameters,
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

    /// Calldata as some log might ask for: every number is one, everything else as small as its type lets it be.
    ///
    /// # Errors
    /// If the function cannot be encoded, which `parse` excludes.
    pub fn example(&self) -> Result<Bytes, TriggerError> {
        let values: Vec<DynSolValue> =
            self.arguments.iter().map(|argument| example(&argument.ty)).collect();
        let encoded = self.function.abi_encode_input(&values);
        encoded.map(Bytes::from).map_err(|error| TriggerError::Log(error.to_string()))
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

fn example(ty: &DynSolType) -> DynSolValue {
    match ty {
        DynSolType::Bool => DynSolValue::Bool(false),
        DynSolType::Int(bits) => DynSolValue::Int(I256::ONE, *bits),
        DynSolType::Uint(bits) => DynSolValue::Uint(U256::ONE, *bits),
        DynSolType::FixedBytes(size) => DynSolValue::FixedBytes(Word::ZERO, *size),
        DynSolType::Address => DynSolValue::Address(Address::with_last_byte(1)),
        DynSolType::Function => DynSolValue::Function(Function24::ZERO),
        DynSolType::Bytes => DynSolValue::Bytes(Vec::new()),
        DynSolType::String => DynSolValue::String(String::new()),
        DynSolType::Array(_) => DynSolValue::Array(Vec::new()),
        DynSolType::FixedArray(of, size) => {
            DynSolValue::FixedArray((0..*size).map(|_| example(of)).collect())
        }
        DynSolType::Tuple(of) | DynSolType::CustomStruct { tuple: of, .. } => {
            DynSolValue::Tuple(of.iter().map(example).collect())
        }
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
    use super::super::EventAbi;
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
    fn an_example_is_calldata_of_the_function() {
        let text = "Asked(uint64 indexed id, address[] who, bytes4 tag, (bool,int8) pair)";
        let event = EventAbi::parse(text);
        let function = "run(uint256 orderId)";
        let trigger = Trigger::parse(function, &args(&[("orderId", "id")]), &super::tests::event());
        let example = trigger.unwrap().example().unwrap();
        let selector = alloy::primitives::keccak256("run(uint256)");
        assert_eq!(example.get(..4), selector.get(..4));
        assert_eq!(hex::encode(example.get(4..).unwrap()), format!("{:064x}", 1));
        // Whatever types there are have one.
        let all = [("to", "who"), ("kind", "tag")];
        let function = "run(address[] to, bytes4 kind)";
        let trigger = Trigger::parse(function, &args(&all), &event.unwrap()).unwrap();
        assert!(trigger.example().unwrap().len() > 4);
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
