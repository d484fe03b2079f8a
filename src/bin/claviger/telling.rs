//! Who is told of events, from the configuration.

use claviger::app::App;
use claviger::app::tell::operate;
use claviger::bus::rabbitmq::{Address, EventSink, Settings, Topology, Unroutable};
use claviger::bus::webhook::{Network, Reach, Webhook, WebhookConfig, system_lookup};
use claviger::cli::Failure;
use claviger::config::server::ServerConfig;
use claviger::config::telling::{BusSection, Unbound, WebhookSection, network};
use claviger::jobs::telling::Tellers;
use claviger::ports::bus::Sink;
use claviger::ports::store::{KindFilter, Store, Subscription, look};
use claviger::system::{SystemClock, SystemEntropy};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What deliveries to the broker are listed under.
const BUS: &str = "bus";

/// The sinks, and what each wants; the one that a connection is to be kept for.
///
/// # Errors
/// When a section, or a file that it names, cannot be used.
pub fn tellers(config: &ServerConfig) -> Result<(Tellers, Option<Arc<EventSink>>), Failure> {
    let (mut subscriptions, mut sinks) = (Vec::new(), Vec::new());
    let mut add = |sink: Arc<dyn Sink>, events: &[String]| {
        let kinds = events.iter().filter_map(|text| KindFilter::parse(text)).collect();
        subscriptions.push(Subscription { consumer: sink.name().to_owned(), kinds });
        sinks.push(sink);
    };
    let mut broker = None;
    if let Some(section) = &config.bus {
        let sink = Arc::new(bus(section)?);
        add(Arc::clone(&sink) as Arc<dyn Sink>, &section.events);
        broker = Some(sink);
    }
    for section in &config.webhooks {
        add(Arc::new(webhook(section)?), &section.events);
    }
    Ok((Tellers { subscriptions, sinks }, broker))
}

fn settings(section: &BusSection) -> Settings {
    let file = || Address::File(section.url_file.clone().unwrap_or_default());
    Settings { address: section.url.clone().map_or_else(file, Address::Url) }
}

/// The broker, which is not connected to yet.
///
/// # Errors
/// When its address cannot be used.
fn bus(section: &BusSection) -> Result<EventSink, Failure> {
    let settings = settings(section);
    settings.check().map_err(|error| Failure::new(error.to_string()))?;
    let unroutable = match section.unroutable {
        Unbound::Keep => Unroutable::Keep,
        Unbound::Drop => Unroutable::Drop,
    };
    Ok(EventSink::new(BUS, settings, &section.exchange, unroutable))
}

/// Whether the broker can be reached, for `doctor`.
///
/// # Errors
/// Why not.
pub async fn look_at_bus(section: &BusSection) -> Result<String, String> {
    let asked = settings(section).look(&Topology::of_exchange(&section.exchange)).await;
    asked.map(|_| format!("{} is reached", section.kind)).map_err(|error| error.to_string())
}

/// One webhook.
///
/// # Errors
/// When the section, or a file that it names, cannot be used.
pub fn webhook(section: &WebhookSection) -> Result<Webhook, Failure> {
    let networks = section.allow.iter().filter_map(|text| network(text));
    let networks = networks.map(|(address, bits)| Network { address, bits }).collect();
    let config = WebhookConfig {
        name: section.name.clone(),
        url: section.url.clone(),
        secret_file: section.secret_file.clone(),
        reach: Reach { private: section.allow_private, networks },
        ca_file: section.ca_file.clone(),
    };
    Webhook::new(config, Arc::new(SystemClock), Arc::new(SystemEntropy), system_lookup())
        .map_err(|error| Failure::new(error.to_string()))
}

/// Writes down who is told what, and says what is owed to whom that is not configured.
///
/// # Errors
/// When the store does not answer.
pub async fn begin(app: &App, tellers: &Tellers) -> Result<(), Failure> {
    let begun = operate::begin(app, &tellers.subscriptions).await;
    begun.map_err(|error| Failure::of("events", error))
}

/// What is owed, for `doctor`: wrong if anything was given up, or somebody is told or owed events who is not
/// configured.
///
/// # Errors
/// What an operator should look at.
pub async fn owed(config: &ServerConfig, store: &dyn Store) -> Result<String, String> {
    let bus = config.bus.as_ref().map(|_| BUS.to_owned());
    let webhooks = config.webhooks.iter().map(|it| format!("webhook:{}", it.name));
    let configured: BTreeSet<String> = bus.into_iter().chain(webhooks).collect();
    let found = look(store, "backlogs", |unit| {
        Box::pin(async move { Ok((unit.consumers().await?, unit.backlogs().await?)) })
    });
    let (consumers, backlogs) = found.await.map_err(|error| error.to_string())?;
    let (mut wrong, mut open) = (Vec::new(), 0_i64);
    let mut strange: BTreeMap<String, i64> =
        consumers.into_iter().map(|it| (it.consumer, 0)).collect();
    strange.retain(|consumer, _| !configured.contains(consumer));
    for owed in backlogs {
        let (consumer, count, since) = (&owed.consumer, owed.count, owed.since);
        if !configured.contains(consumer) {
            let sum = strange.entry(consumer.clone()).or_insert(0);
            *sum = sum.saturating_add(count);
        } else if owed.is_dead {
            wrong.push(format!(
                "{count} for `{consumer}` given up, the oldest of {since}: `claviger delivery list --state dead`"
            ));
        } else {
            open = open.saturating_add(count);
        }
    }
    wrong.extend(strange.iter().map(|(consumer, count)| {
        format!(
            "`{consumer}` is told events ({count} owed) and is not configured here: another server over the database \
             must have it, or `claviger delivery forget --consumer {consumer}` takes it out"
        )
    }));
    if wrong.is_empty() { Ok(format!("{open} on their way")) } else { Err(wrong.join("; ")) }
}
