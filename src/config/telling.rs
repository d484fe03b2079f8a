//! `[bus]`, `[[webhook]]` and `[events]` of the server: who is told of its events.

use crate::core::kinds;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use url::{Host, Url};

const NAME_CHARS_MAX: usize = 64;
/// AMQP's longest name.
const EXCHANGE_BYTES_MAX: usize = 255;
/// More streams of one principal help nobody.
const STREAMS_MAX: u32 = 256;

/// `[bus]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSection {
    /// `rabbitmq`.
    pub kind: String,
    /// The broker's URL, without a password.
    pub url: Option<String>,
    /// A file that holds the URL, for URLs with a password.
    pub url_file: Option<PathBuf>,
    /// The topic exchange.
    #[serde(default = "default_exchange")]
    pub exchange: String,
    /// Which events are told: types, or their beginnings such as `claviger.transaction.*`.
    #[serde(default = "every_event")]
    pub events: Vec<String>,
    /// What becomes of events that no queue is bound for.
    #[serde(default)]
    pub unroutable: Unbound,
}

/// What becomes of events that no queue of the broker is bound for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unbound {
    /// They are given up at once: listed, and told again when an operator says so.
    #[default]
    Keep,
    /// They are counted, and dropped.
    Drop,
}

/// `[[webhook]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSection {
    /// What deliveries to it are listed under; it must not change while it is owed any.
    pub name: String,
    /// Where events go: https. http to this machine only, with `allow_private`.
    pub url: Url,
    /// A file with `whsec_` and 24 to 64 bytes in base64; mode 600. Two lines sign twice, while a receiver changes
    /// over. Read for each attempt.
    pub secret_file: PathBuf,
    /// Which events are told: types, or their beginnings such as `claviger.transaction.*`.
    pub events: Vec<String>,
    /// Whether it may be in a private network or on this machine.
    #[serde(default)]
    pub allow_private: bool,
    /// Networks that it may be in besides the public ones, such as `10.1.0.0/16`.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Certificates that are trusted besides the usual ones, PEM.
    pub ca_file: Option<PathBuf>,
}

/// `[events]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsSection {
    /// How many streams one principal may have open at a server.
    #[serde(default = "default_streams")]
    pub streams_max: u32,
}

impl Default for EventsSection {
    fn default() -> Self {
        Self { streams_max: default_streams() }
    }
}

fn default_exchange() -> String {
    "claviger.events".to_owned()
}

fn every_event() -> Vec<String> {
    vec!["*".to_owned()]
}

fn default_streams() -> u32 {
    16
}

/// An address and how many of its first bits count: `10.0.0.0/8`, `fd00::/8`, `192.0.2.7`.
#[must_use]
pub fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let bits = match bits {
        None => most,
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= most)?,
    };
    Some((address, bits))
}

fn has_password(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.password().is_some())
}

impl BusSection {
    /// What is wrong with it.
    pub(super) fn findings(&self, say: &mut impl FnMut(String)) {
        if self.kind != "rabbitmq" {
            say("[bus] kind must be `rabbitmq`".to_owned());
        }
        if self.url.is_some() == self.url_file.is_some() {
            say("[bus] needs exactly one of `url` and `url_file`".to_owned());
        }
        if self.url.as_deref().is_some_and(has_password) {
            say("[bus] a URL with a password belongs in a file of its own: url_file".to_owned());
        }
        if !(1..=EXCHANGE_BYTES_MAX).contains(&self.exchange.len()) {
            say(format!("[bus] exchange has 1 to {EXCHANGE_BYTES_MAX} bytes"));
        }
        event_findings("[bus]", &self.events, say);
    }

    /// Makes relative paths relative to this folder.
    pub(super) fn resolve(&mut self, base: &Path) {
        self.url_file.iter_mut().for_each(|path| *path = base.join(&path));
    }
}

impl WebhookSection {
    fn findings(&self, say: &mut impl FnMut(String)) {
        let what = format!("[[webhook]] `{}`", self.name);
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if !(1..=NAME_CHARS_MAX).contains(&self.name.len()) || !self.name.chars().all(fits) {
            say(format!("{what}: a name is 1 to 64 of a-z 0-9 - _"));
        }
        event_findings(&what, &self.events, say);
        let is_here = match self.url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address == Ipv4Addr::LOCALHOST,
            Some(Host::Ipv6(address)) => address == Ipv6Addr::LOCALHOST,
            None => false,
        };
        match self.url.scheme() {
            "https" if self.url.host().is_some() => {}
            "http" if is_here && self.allow_private => {}
            _ => say(format!(
                "{what}: url must be https (http only to localhost, with allow_private, for development)"
            )),
        }
        if !self.url.username().is_empty() || self.url.password().is_some() {
            say(format!("{what}: url must not have a user or a password: events are signed"));
        }
        for text in self.allow.iter().filter(|text| network(text).is_none()) {
            say(format!("{what}: allow: `{text}` is not a network such as `10.1.0.0/16`"));
        }
    }
}

/// What is wrong with all webhooks.
pub(super) fn webhook_findings(webhooks: &[WebhookSection], say: &mut impl FnMut(String)) {
    let mut names = BTreeSet::new();
    for webhook in webhooks {
        if !names.insert(&webhook.name) {
            say(format!("[[webhook]] `{}` is there twice", webhook.name));
        }
        webhook.findings(say);
    }
}

/// Makes relative paths relative to this folder.
pub(super) fn resolve_webhooks(webhooks: &mut [WebhookSection], base: &Path) {
    for webhook in webhooks {
        webhook.secret_file = base.join(&webhook.secret_file);
        webhook.ca_file.iter_mut().for_each(|path| *path = base.join(&path));
    }
}

impl EventsSection {
    /// What is wrong with it.
    pub(super) fn findings(&self, say: &mut impl FnMut(String)) {
        if !(1..=STREAMS_MAX).contains(&self.streams_max) {
            say(format!("[events] streams_max must be 1 to {STREAMS_MAX}"));
        }
    }
}

fn event_findings(what: &str, events: &[String], say: &mut impl FnMut(String)) {
    if events.is_empty() {
        say(format!("{what}: events is empty: nothing would ever be told"));
    }
    for text in events.iter().filter(|text| kinds::known_filter(text).is_none()) {
        say(format!(
            "{what}: events: `{text}` is no type of docs/EVENTS.md, nor `claviger.transaction.*`, nor `*`"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(more: &str) -> Vec<String> {
        let text = format!(
            "name = \"hook\"\nsecret_file = \"s\"\nevents = [\"claviger.transaction.*\"]\n{more}"
        );
        let webhook: WebhookSection = toml::from_str(&text).unwrap();
        let mut found = Vec::new();
        webhook_findings(&[webhook], &mut |text| found.push(text));
        found
    }

    #[test]
    fn http_is_for_this_machine_and_development_only() {
        assert_eq!(wrong("url = \"https://example.com/hook\""), Vec::<String>::new());
        let here = "url = \"http://127.0.0.1:1/\"\n";
        assert_eq!(wrong(&format!("{here}allow_private = true")), Vec::<String>::new());
        for refused in [
            here,
            "url = \"http://example.com/\"\nallow_private = true",
            "url = \"ftp://localhost/\"\nallow_private = true",
            "url = \"https://user:word@example.com/\"",
            "url = \"https://example.com/\"\nallow = [\"10.0.0.0/33\"]",
            "url = \"https://example.com/\"\nallow = [\"ten\"]",
        ] {
            assert_eq!(wrong(refused).len(), 1, "{refused}");
        }
    }

    #[test]
    fn a_bus_has_its_password_in_a_file_and_an_exchange_that_can_be_named() {
        let found = |text: &str| {
            let bus: BusSection = toml::from_str(&format!("kind = \"rabbitmq\"\n{text}")).unwrap();
            let mut found = Vec::new();
            bus.findings(&mut |text| found.push(text));
            found
        };
        let url = "url = \"amqp://user@broker/\"\n";
        assert_eq!(found(url), Vec::<String>::new());
        assert_eq!(found("url_file = \"amqp\""), Vec::<String>::new());
        assert_eq!(found("url = \"amqp://user:word@broker/\"").len(), 1);
        assert_eq!(found(&format!("{url}exchange = \"{}\"", "x".repeat(255))).len(), 0);
        for exchange in [String::new(), "x".repeat(256)] {
            assert_eq!(found(&format!("{url}exchange = \"{exchange}\"")).len(), 1);
        }
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(network("10.0.0.0/8"), Some(("10.0.0.0".parse().unwrap(), 8)));
        assert_eq!(network("::1"), Some(("::1".parse().unwrap(), 128)));
        for text in ["", "/", "10.0.0.0/-1", "10.0.0.0/", "1.2.3/8", "::/129", "10.0.0.0/8/8"] {
            assert_eq!(network(text), None, "{text}");
        }
    }
}
