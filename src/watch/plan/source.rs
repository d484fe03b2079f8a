//! What a source watches: an event, native transfers to addresses, or calls of a contract.

use super::super::config::{Finality, SourceSection};
use super::address;
use crate::core::chain_view::completeness;
use crate::core::trigger::{CallAbi, EventAbi, NativeTransfer, Parameters};
use crate::ports::chain::Log;
use crate::ports::chain_reader::SeenTransaction;
use alloy::dyn_abi::DynSolType;
use alloy::primitives::{Address, Bloom, BloomInput};

/// A source that can be watched.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it watches.
    pub watches: Watches,
    /// The first block, if it is said.
    pub from_block: Option<u64>,
    /// When its events may sign.
    pub finality: Finality,
}

/// What a source watches.
#[derive(Debug, Clone)]
pub enum Watches {
    /// An event, of one contract or of all.
    Event {
        /// The contract; `None`: whichever emits it.
        address: Option<Address>,
        /// The event.
        event: EventAbi,
    },
    /// Transactions that succeeded and bring one of these addresses native value. In ascending order.
    NativeTo(Vec<Address>),
    /// Transactions that succeeded and call a contract.
    Calls {
        /// The contract.
        to: Address,
        /// The function; `None`: whatever it is called with.
        function: Option<CallAbi>,
    },
}

impl Watches {
    /// What a section says.
    ///
    /// # Errors
    /// If it says nothing, or more than one thing, or what it says cannot be read.
    pub(super) fn of(section: &SourceSection) -> Result<Self, String> {
        if section.address.is_some() && section.event.is_none() {
            return Err("`address` goes with `event`".to_owned());
        }
        if section.function.is_some() && section.calls_to.is_none() {
            return Err("`function` goes with `calls_to`".to_owned());
        }
        match (&section.event, &section.native_to, &section.calls_to) {
            (Some(event), None, None) => Ok(Self::Event {
                address: section.address.as_deref().map(address).transpose()?,
                event: EventAbi::parse(event).map_err(|error| error.to_string())?,
            }),
            (None, Some(recipients), None) => native_to(recipients),
            (None, None, Some(to)) => {
                let function = section.function.as_deref().map(CallAbi::parse).transpose();
                let function = function.map_err(|error| error.to_string())?;
                Ok(Self::Calls { to: address(to)?, function })
            }
            (None, None, None) => {
                Err("it says not what to watch: `event`, `native_to` or `calls_to`".to_owned())
            }
            _ => Err("a source has one of `event`, `native_to` and `calls_to`".to_owned()),
        }
    }
}

fn native_to(recipients: &[String]) -> Result<Watches, String> {
    let read = recipients.iter().map(|text| address(text));
    let mut addresses: Vec<Address> = read.collect::<Result<_, _>>()?;
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err("`native_to` has no address".to_owned());
    }
    if addresses.len() < recipients.len() {
        return Err("`native_to` has an address twice".to_owned());
    }
    Ok(Watches::NativeTo(addresses))
}

/// The parameters of the event or of the function; `from`, `to` and `value` of native transfers.
impl Parameters for Watches {
    fn usable(&self, name: &str) -> Result<&DynSolType, String> {
        match self {
            Self::Event { event, .. } => event.usable(name),
            Self::NativeTo(_) => NativeTransfer::usable(name),
            Self::Calls { function: Some(function), .. } => function.usable(name),
            Self::Calls { function: None, .. } => {
                Err(format!("without a `function`, its source has no `{name}`"))
            }
        }
    }
}

impl Source {
    /// What it watches, in canonical words: these may not change under one name.
    #[must_use]
    pub fn definition(&self) -> String {
        match &self.watches {
            Watches::Event { address: Some(address), event } => {
                format!("{} of {address:#x}", event.signature())
            }
            Watches::Event { address: None, event } => {
                format!("{} of any contract", event.signature())
            }
            Watches::NativeTo(addresses) => {
                let all: Vec<String> = addresses.iter().map(|to| format!("{to:#x}")).collect();
                format!("native transfers to {}", all.join(", "))
            }
            Watches::Calls { to, function: Some(function) } => {
                format!("calls of {} of {to:#x}", function.signature())
            }
            Watches::Calls { to, function: None } => format!("calls of {to:#x}"),
        }
    }

    /// The one contract that emits its events, if there is only one.
    #[must_use]
    pub const fn emitter(&self) -> Option<Address> {
        match &self.watches {
            Watches::Event { address, .. } => *address,
            Watches::NativeTo(_) | Watches::Calls { .. } => None,
        }
    }

    /// The one address that all its documents are about, if there is only one.
    #[must_use]
    pub fn subject(&self) -> Option<Address> {
        match &self.watches {
            Watches::Event { address, .. } => *address,
            Watches::NativeTo(addresses) => match addresses.as_slice() {
                [one] => Some(*one),
                _ => None,
            },
            Watches::Calls { to, .. } => Some(*to),
        }
    }

    /// The event, if it watches logs.
    #[must_use]
    pub const fn event(&self) -> Option<&EventAbi> {
        match &self.watches {
            Watches::Event { event, .. } => Some(event),
            Watches::NativeTo(_) | Watches::Calls { .. } => None,
        }
    }

    /// Whether it finds transactions rather than logs: no filter of a header tells of them.
    #[must_use]
    pub const fn reads_transactions(&self) -> bool {
        self.event().is_none()
    }

    /// Whether a block with this bloom filter may have logs for it. A filter that is not 256 bytes long
    /// excludes nothing.
    #[must_use]
    pub fn may_be_in(&self, logs_bloom: &[u8]) -> bool {
        match &self.watches {
            Watches::Event { address: Some(address), event } => {
                completeness::may_have(logs_bloom, *address, event.topic0())
            }
            Watches::Event { address: None, event } => {
                let topic = event.topic0();
                Bloom::try_from(logs_bloom)
                    .map_or(true, |bloom| bloom.contains_input(BloomInput::Raw(topic.as_slice())))
            }
            Watches::NativeTo(_) | Watches::Calls { .. } => false,
        }
    }

    /// Whether a log is one of its event.
    #[must_use]
    pub fn is_log(&self, log: &Log) -> bool {
        match &self.watches {
            Watches::Event { address, event } => {
                address.is_none_or(|address| address == log.address)
                    && log.topics.first() == Some(&event.topic0())
            }
            Watches::NativeTo(_) | Watches::Calls { .. } => false,
        }
    }

    /// Whether a transaction is one that it watches, if it succeeds.
    #[must_use]
    pub fn is_transaction(&self, transaction: &SeenTransaction) -> bool {
        let Some(recipient) = transaction.to else { return false };
        match &self.watches {
            Watches::Event { .. } => false,
            Watches::NativeTo(addresses) => {
                !transaction.value.is_zero() && addresses.contains(&recipient)
            }
            Watches::Calls { to, function } => {
                let called = |function: &CallAbi| function.is_called_by(&transaction.data);
                recipient == *to && function.as_ref().is_none_or(called)
            }
        }
    }
}
