//! The business id of an event, and the idempotency key made of it.
//!
//! The key is what makes "one event, one signing request" true across restarts, repeated deliveries,
//! reorgs that mine a transaction again, and a second watcher. So it is made only of what stays the
//! same when the transaction is mined again: not of block hashes or log indices.

use super::TriggerError;
use super::event::{DecodedLog, Parameters, text};
use alloy::primitives::{Address, B256, hex};
use sha2::{Digest, Sha256};

/// Keys of one kind of preimage are never keys of another.
const DOMAIN: &[u8] = b"claviger/trigger/1";

/// A part of a business id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusinessField {
    /// `{chain}`: the name of the chain that the event is on.
    Chain,
    /// `{contract}`: the emitter's address, lower case.
    Contract,
    /// `{transaction_hash}`.
    TransactionHash,
    /// A parameter of the event, by name.
    Argument(String),
}

/// What a trigger takes for the identity of the business that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusinessId {
    fields: Vec<BusinessField>,
}

impl BusinessId {
    /// Reads a list of fields and checks each against the event.
    ///
    /// # Errors
    /// If the list is empty, or a field is unknown, or would change when the transaction is mined again.
    pub fn parse(fields: &[String], event: &impl Parameters) -> Result<Self, TriggerError> {
        if fields.is_empty() {
            return Err(business("", "at least one field is needed"));
        }
        let fields = fields.iter().map(|field| parse_field(field, event));
        Ok(Self { fields: fields.collect::<Result<_, _>>()? })
    }

    /// The fields' values for one log, in order. `None` if the log lacks one, which `parse` excludes.
    #[must_use]
    pub fn values(
        &self,
        chain: &str,
        contract: Address,
        transaction_hash: B256,
        log: &DecodedLog,
    ) -> Option<Vec<String>> {
        let value = |field: &BusinessField| match field {
            BusinessField::Chain => Some(chain.to_owned()),
            BusinessField::Contract => Some(hex::encode_prefixed(contract)),
            BusinessField::TransactionHash => Some(transaction_hash.to_string()),
            BusinessField::Argument(name) => log.get(name).map(text),
        };
        self.fields.iter().map(value).collect()
    }
}

fn business(field: &str, reason: &str) -> TriggerError {
    TriggerError::Business { field: field.to_owned(), reason: reason.to_owned() }
}

fn parse_field(field: &str, event: &impl Parameters) -> Result<BusinessField, TriggerError> {
    match field {
        "{chain}" => Ok(BusinessField::Chain),
        "{contract}" => Ok(BusinessField::Contract),
        "{transaction_hash}" => Ok(BusinessField::TransactionHash),
        "{block_hash}" | "{block_number}" | "{log_index}" => Err(business(
            field,
            "it changes when the transaction is mined again, which would sign twice",
        )),
        name if name.starts_with('{') => Err(business(
            field,
            "known are {chain}, {contract}, {transaction_hash} and the event's parameters",
        )),
        name => event
            .usable(name)
            .map(|_| BusinessField::Argument(name.to_owned()))
            .map_err(|reason| business(field, &reason)),
    }
}

/// Hex SHA-256 over the trigger's name and the fields, each after its length in eight bytes, and their
/// number before them: no two different lists have the same preimage.
#[must_use]
pub fn idempotency_key(trigger: &str, fields: &[String]) -> String {
    let mut hasher = Sha256::new();
    let mut take = |bytes: &[u8]| {
        hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(bytes);
    };
    take(DOMAIN);
    take(trigger.as_bytes());
    for field in fields {
        take(field.as_bytes());
    }
    hasher.update(u64::try_from(fields.len()).unwrap_or(u64::MAX).to_be_bytes());
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::super::EventAbi;
    use super::*;
    use proptest::prelude::*;

    fn event() -> EventAbi {
        EventAbi::parse("Paid(uint256 indexed id, string indexed note, address payer)").unwrap()
    }

    fn list(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|&field| field.to_owned()).collect()
    }

    #[test]
    fn the_key_is_pinned() {
        // Keys of before an upgrade must be those of after it, or a repeat would sign twice.
        assert_eq!(
            idempotency_key("charge", &list(&["local", "0xaa", "7"])),
            hex::encode(Sha256::digest(
                [
                    &18_u64.to_be_bytes()[..],
                    b"claviger/trigger/1",
                    &6_u64.to_be_bytes(),
                    b"charge",
                    &5_u64.to_be_bytes(),
                    b"local",
                    &4_u64.to_be_bytes(),
                    b"0xaa",
                    &1_u64.to_be_bytes(),
                    b"7",
                    &3_u64.to_be_bytes(),
                ]
                .concat()
            ))
        );
    }

    #[test]
    fn fields_that_change_with_the_block_are_refused() {
        for field in ["{block_hash}", "{log_index}", "{block_number}", "{other}", "missing", "note"]
        {
            assert!(BusinessId::parse(&list(&[field]), &event()).is_err(), "{field}");
        }
        assert!(BusinessId::parse(&[], &event()).is_err());
        assert!(BusinessId::parse(&list(&["{chain}", "{contract}", "id"]), &event()).is_ok());
    }

    proptest! {
        #[test]
        fn different_lists_have_different_keys(
            a in prop::collection::vec("[a-c:]{0,3}", 0..4),
            b in prop::collection::vec("[a-c:]{0,3}", 0..4),
            one in "[ab]{0,2}", other in "[ab]{0,2}",
        ) {
            let same = a == b && one == other;
            prop_assert_eq!(idempotency_key(&one, &a) == idempotency_key(&other, &b), same);
        }
    }
}
