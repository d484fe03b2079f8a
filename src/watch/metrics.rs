//! The watcher's metrics: its listener, and the gauges that are read from the database.

use crate::core::time::Timestamp;
use crate::ports::watch_store::{WatchStore, WatchStoreError};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// How far open deliveries are counted.
const COUNTED_MAX: u64 = 100_000;

/// Installs the process's recorder and serves it. Once per process, within a runtime. Whoever reaches the
/// listener reads it without a token: it belongs on the loopback interface, or in a network of its own.
///
/// # Errors
/// If the address cannot be listened on, or there is a recorder already.
pub fn listen(address: SocketAddr) -> Result<(), BuildError> {
    if !address.ip().is_loopback() {
        tracing::warn!(
            listener = "metrics",
            addr = %address,
            "plain HTTP outside the loopback interface"
        );
    }
    PrometheusBuilder::new().with_http_listener(address).install()
}

/// The gauges of the outbox. What is empty is told as 0: a name that is missing says nothing.
#[derive(Debug, Default)]
pub struct Gauges(BTreeSet<(String, String)>);

impl Gauges {
    /// Of these consumers, and of whoever else has deliveries.
    #[must_use]
    pub fn of(consumers: Vec<String>) -> Self {
        let states = ["held", "ready", "parked"];
        let all = |consumer: String| states.map(|state| (consumer.clone(), state.to_owned()));
        Self(consumers.into_iter().flat_map(all).collect())
    }

    /// Reads and sets them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set(
        &mut self,
        store: &dyn WatchStore,
        now: Timestamp,
    ) -> Result<(), WatchStoreError> {
        let mut counts: BTreeMap<(String, String), u64> =
            self.0.iter().map(|told| (told.clone(), 0)).collect();
        let mut ages: BTreeMap<String, u64> =
            self.0.iter().map(|(consumer, _)| (consumer.clone(), 0)).collect();
        for row in store.counts(COUNTED_MAX, false).await? {
            counts.insert((row.consumer, row.state), row.count);
        }
        for row in store.oldest_open().await? {
            let ms = u64::try_from(now.since(row.since)).unwrap_or(0);
            ages.insert(row.consumer, ms / 1000);
        }
        for ((consumer, state), count) in counts {
            let labels = [("consumer", consumer.clone()), ("state", state.clone())];
            metrics::gauge!("claviger_watcher_outbox", &labels).set(float(count));
            self.0.insert((consumer, state));
        }
        for (consumer, age) in ages {
            metrics::gauge!("claviger_watcher_oldest_open_seconds", "consumer" => consumer)
                .set(float(age));
        }
        Ok(())
    }
}

fn float(number: u64) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    const RULES: &str = include_str!("../../deploy/alerts/watcher.yml");
    const DOCS: &str = include_str!("../../docs/OPERATIONS.md");

    /// What a rule of the file has: its keys and values, in the one shape that the file uses.
    fn rules() -> Vec<Vec<(String, String)>> {
        let mut rules: Vec<Vec<(String, String)>> = Vec::new();
        for line in RULES.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let text = line.trim();
            if text.is_empty() {
                continue;
            }
            let (key, value) = text.trim_start_matches("- ").split_once(':').unwrap_or_else(|| {
                panic!("a line is `key: value`: {line}");
            });
            if text.starts_with("- alert:") {
                rules.push(Vec::new());
            }
            if let Some(rule) = rules.last_mut() {
                rule.push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        rules
    }

    /// Words of a text that are names of our metrics.
    fn metrics_in(text: &str) -> BTreeSet<String> {
        let other = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let words = text.split(other).filter(|word| word.starts_with("claviger_"));
        words.map(str::to_owned).collect()
    }

    fn read_all(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_all(&path, into);
            } else {
                into.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_alert_is_complete_and_names_metrics_that_are_documented() {
        let table = DOCS.lines().filter(|line| line.starts_with("| `claviger_"));
        let documented: BTreeSet<String> =
            table.filter_map(|line| line.split('|').nth(1).map(metrics_in)).flatten().collect();
        assert!(RULES.lines().any(|line| line == "groups:"), "a file of Prometheus rules");
        let rules = rules();
        assert!(rules.len() >= 8, "{} rules", rules.len());
        for rule in &rules {
            let value = |key: &str| rule.iter().find(|(known, _)| known == key).map(|(_, v)| v);
            for key in ["alert", "expr", "for", "severity", "summary", "description"] {
                assert!(value(key).is_some_and(|v| !v.is_empty()), "{key} in {rule:?}");
            }
            let named = metrics_in(value("expr").map_or("", String::as_str));
            assert!(!named.is_empty(), "{rule:?}");
            for name in &named {
                assert!(documented.contains(name), "{name} is not in the table of OPERATIONS.md");
            }
        }
    }

    /// The table is of what is told, and what is told is in the table.
    #[test]
    fn every_metric_of_the_watcher_is_documented() {
        let mut sources = Vec::new();
        for folder in ["src/watch", "src/bus/rabbitmq"] {
            read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut sources);
        }
        sources.push(include_str!("../bus/embedded.rs").to_owned());
        let quoted = |text: &str| {
            let names = text.split('"').filter(|word| word.starts_with("claviger_"));
            let whole = names.filter(|word| metrics_in(word).contains(*word));
            whole.filter(|word| *word != "claviger_").map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let told: BTreeSet<String> = sources.iter().flat_map(|text| quoted(text)).collect();
        assert!(told.len() > 10, "{told:?}");
        for name in told {
            assert!(DOCS.contains(&format!("`{name}")), "{name} is not in OPERATIONS.md");
        }
    }
}
