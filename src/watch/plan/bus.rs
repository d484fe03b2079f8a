//! The bus, as it is configured.

use super::{ChainPlan, PlanError, TriggerPlan, wrong};
use crate::watch::cloudevent;
use crate::watch::config::{BusKind, BusSection};
use alloy::primitives::Address;
use std::path::PathBuf;
use url::Url;

/// AMQP's longest routing key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// Which bus, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusPlan {
    /// The outbox is read in this process.
    Embedded,
    /// RabbitMQ.
    RabbitMq {
        /// The URL, if it is in the configuration: without a password.
        url: Option<String>,
        /// The file with the URL, else.
        url_file: Option<PathBuf>,
        /// The exchange that events are published to.
        exchange: String,
    },
}

fn fail(reason: &str) -> PlanError {
    PlanError { place: "[bus]".to_owned(), reason: reason.to_owned() }
}

impl BusPlan {
    pub(super) fn new(
        section: BusSection,
        chains: &[ChainPlan],
        triggers: &[TriggerPlan],
    ) -> Result<Self, PlanError> {
        let BusSection { kind, url, url_file, exchange } = section;
        if kind == BusKind::Embedded {
            if url.is_some() || url_file.is_some() || exchange.is_some() {
                return Err(fail("url, url_file and exchange are of kind = \"rabbitmq\""));
            }
            return Ok(Self::Embedded);
        }
        if url.is_some() == url_file.is_some() {
            return Err(fail("rabbitmq needs url_file, or for a broker without a password url"));
        }
        if url.as_ref().and_then(Url::password).is_some() {
            return Err(fail("a URL with a password belongs in a file of its own: url_file"));
        }
        let exchange = exchange.unwrap_or_else(|| "claviger.events".to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // `.dead` is added to it.
        if exchange.is_empty() || exchange.len() > 128 || !exchange.chars().all(plain) {
            return Err(fail("exchange is 1 to 128 of a-z, A-Z, 0-9, `-`, `_` and `.`"));
        }
        check_keys(chains)?;
        check_queues(triggers)?;
        Ok(Self::RabbitMq { url: url.map(String::from), url_file, exchange })
    }
}

/// What a queue gives up goes to one that has `.dead` added to its name.
fn check_queues(triggers: &[TriggerPlan]) -> Result<(), PlanError> {
    for name in triggers.iter().map(|trigger| trigger.name.as_str()) {
        let of = name.strip_suffix(".dead");
        if let Some(of) = of.filter(|of| triggers.iter().any(|other| other.name == *of)) {
            let reason = format!("over RabbitMQ this is the name of what trigger {of} gives up");
            return Err(wrong("trigger", name, reason));
        }
    }
    Ok(())
}

/// A routing key is words between dots.
fn check_keys(chains: &[ChainPlan]) -> Result<(), PlanError> {
    for plan in chains {
        let chain = plan.chain.name.as_str();
        if chain.contains('.') {
            let reason = "over RabbitMQ a chain's name has no `.`: it is a word of routing keys";
            return Err(wrong("chain", chain, reason));
        }
        for source in &plan.sources {
            let key = cloudevent::retraction_key(chain, source);
            // Where it has a wildcard, its messages have an address.
            let key = key.replace('*', &format!("{:#x}", Address::ZERO));
            if key.len() > KEY_BYTES_MAX {
                let reason = "its event's name is too long for a routing key";
                return Err(wrong("source", &source.name, reason));
            }
        }
    }
    Ok(())
}
