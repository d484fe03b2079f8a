//! The parts of a watcher that runs, put together.

use crate::{Outcome, open};
use claviger::bus::embedded::{lanes, subscribers};
use claviger::bus::rabbitmq::{Address, Publisher, Routes, Settings, Subscriber, Topology};
use claviger::chain::evm::{self, EvmChain, EvmConfig};
use claviger::ports::bus::{Consumer, Inbox, PUBLISHER, Wait};
use claviger::ports::chain_reader::ChainReader;
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{OpenLane, UPKEEP_DUTY, WatchStore, chain_duty};
use claviger::system::SystemClock;
use claviger::watch::config::Finality;
use claviger::watch::inbox::TriggerInbox;
use claviger::watch::lead::{self, Leads};
use claviger::watch::plan::{BusPlan, ChainPlan, Plan, TriggerPlan};
use claviger::watch::poller::{self, Parts, Poller};
use claviger::watch::server::Server;
use claviger::watch::status::Orphans;
use claviger::watch::store::OpenMode;
use claviger::watch::trigger::{Means, TriggerConsumer, check};
use claviger::watch::{cloudevent, metrics, run};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const fn edge_finality(finality: Finality) -> evm::Finality {
    match finality {
        Finality::Finalized => evm::Finality::Finalized,
        Finality::Safe => evm::Finality::Safe,
        Finality::Depth(depth) => evm::Finality::Depth(depth),
    }
}

pub(crate) fn edge(plan: &ChainPlan, finality: Finality) -> Outcome<EvmChain> {
    let config = EvmConfig {
        chain_id: plan.chain.chain_id,
        rpc: plan.chain.rpc.clone(),
        finality: edge_finality(finality),
    };
    Ok(EvmChain::new(config).map_err(|error| format!("[[chain]] {}: {error}", plan.chain.name))?)
}

/// How to reach the broker, and its exchange; `None` for the embedded bus.
pub(crate) fn broker(bus: &BusPlan) -> Option<(Settings, &str)> {
    match bus {
        BusPlan::Embedded => None,
        BusPlan::RabbitMq { url, url_file, exchange } => {
            let file = || Address::File(url_file.clone().unwrap_or_default());
            let address = url.clone().map_or_else(file, Address::Url);
            Some((Settings { address }, exchange))
        }
    }
}

fn publisher(settings: &Settings, topology: &Topology, chains: &[ChainPlan]) -> Publisher {
    let mut routes = BTreeMap::new();
    for plan in chains {
        for source in &plan.sources {
            let log = cloudevent::routing_key(&plan.chain.name, source);
            let retraction = cloudevent::retraction_key(&plan.chain.name, source);
            routes.insert(source.name.clone(), Routes { log, retraction });
        }
    }
    Publisher::new(settings.clone(), topology.clone(), routes)
}

/// The loops of the watcher, as they are started.
struct Loops {
    store: Arc<dyn WatchStore>,
    clock: Arc<dyn Clock>,
    leads: Arc<Leads>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Loops {
    /// The lanes of the outbox to these consumers.
    fn deliver_to(&mut self, consumers: &[Arc<dyn Consumer>]) {
        for lane in lanes(&self.store, &self.clock, consumers) {
            let seat = self.leads.seat(lane.duty());
            let (clock, stop) = (Arc::clone(&self.clock), self.stop.clone());
            self.tasks.spawn(run::deliver(lane, seat, clock, stop));
        }
    }

    /// The triggers, and who takes the events that are found: they, or the publisher to a broker that
    /// they read from. What stands in the outbox for a trigger itself is delivered in either case: it
    /// was parked and is tried again, or is from before there was a broker.
    fn start_consumers(&mut self, plan: &Plan) -> Outcome<Vec<Arc<dyn Consumer>>> {
        let mut triggers: Vec<Arc<dyn Consumer>> = Vec::new();
        let mut inboxes: Vec<Arc<dyn Inbox>> = Vec::new();
        if let Some(section) = &plan.server {
            let server = Arc::new(Server::new(section)?);
            self.check(plan, &server);
            for trigger in &plan.triggers {
                let means = self.means(plan, &trigger.source_chain, &server)?;
                let consumer: Arc<dyn Consumer> =
                    Arc::new(TriggerConsumer::new(trigger.clone(), means));
                let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
                let taker = Arc::clone(&consumer);
                let inbox = TriggerInbox::new(taker, trigger, &plan.chains, store, clock);
                inboxes.push(Arc::new(inbox));
                triggers.push(consumer);
            }
        }
        self.deliver_to(&triggers);
        let Some((settings, exchange)) = broker(&plan.bus) else { return Ok(triggers) };
        settings.check()?;
        let topology = Topology::new(exchange, &inboxes);
        for inbox in inboxes {
            let subscriber = Subscriber::new(settings.clone(), topology.clone(), inbox);
            let stop = self.stop.clone();
            self.tasks.spawn(async move { subscriber.run(stop).await });
        }
        let publisher = Arc::new(publisher(&settings, &topology, &plan.chains));
        let (keeping, stop) = (Arc::clone(&publisher), self.stop.clone());
        self.tasks.spawn(async move { keeping.run(stop).await });
        let consumers: Vec<Arc<dyn Consumer>> = vec![publisher];
        self.deliver_to(&consumers);
        Ok(consumers)
    }

    /// What a trigger stands on whose source is on this chain.
    fn means(&self, plan: &Plan, chain: &str, server: &Arc<Server>) -> Outcome<Means> {
        let of = plan.chains.iter().find(|of| of.chain.name == chain);
        let of = of.ok_or_else(|| format!("there is no chain {chain}"))?;
        Ok(Means {
            server: Arc::clone(server),
            chain: Arc::new(edge(of, of.chain.finality)?),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
        })
    }

    /// Tells what is doubtful about the triggers, once; the watcher runs all the same, also without a server.
    fn check(&mut self, plan: &Plan, server: &Arc<Server>) {
        let (triggers, server) = (plan.triggers.clone(), Arc::clone(server));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            for warning in triggers.iter().filter_map(TriggerPlan::warning) {
                tracing::warn!(warning, "a trigger");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                found = check::check(&triggers, &server) => {
                    for warning in found {
                        tracing::warn!(warning, "a trigger");
                    }
                }
            }
            // The other tasks end only when told to, and so does this one.
            stop.cancelled().await;
        });
    }

    fn follow(
        &mut self,
        chain: ChainPlan,
        consumers: &[Arc<dyn Consumer>],
        since_beginning: Subscribers,
    ) -> Outcome<()> {
        let reader: Arc<dyn ChainReader> = Arc::new(edge(&chain, chain.chain.finality)?);
        let poll = Duration::from_millis(chain.chain.poll_ms);
        let name = chain.chain.name.clone();
        let of = |source: &str| (source.to_owned(), subscribers(consumers, source));
        let subscribers: BTreeMap<_, _> =
            chain.sources.iter().map(|source| of(&source.name)).collect();
        let clock = Arc::clone(&self.clock);
        let poller = move |store: Arc<dyn WatchStore>| {
            Poller::new(Parts {
                chain: Arc::clone(&reader),
                store,
                clock: Arc::clone(&clock),
                subscribers: subscribers.clone(),
                since_beginning: since_beginning.clone(),
                plan: chain.clone(),
            })
        };
        let seat = self.leads.seat(chain_duty(&name));
        self.tasks.spawn(run::follow(name, seat, poller, poll, self.stop.clone()));
        Ok(())
    }

    fn keep_up(&mut self, plan: &Plan) {
        let publisher = (plan.bus != BusPlan::Embedded).then(|| PUBLISHER.to_owned());
        let triggers = plan.triggers.iter().map(|of| format!("trigger:{}", of.name));
        let parts = run::Upkeep {
            consumers: triggers.chain(publisher).collect(),
            seat: self.leads.seat(UPKEEP_DUTY.to_owned()),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            chains: plan.chains.iter().map(|chain| chain.chain.name.clone()).collect(),
            keep_ms: plan.process.keep_done_ms,
        };
        self.tasks.spawn(run::upkeep(parts, self.stop.clone()));
    }
}

/// Of each source, who takes its events and from when they are held.
type Subscribers = BTreeMap<String, Vec<(String, Wait)>>;

/// The triggers that take what their source found before they were there. It is delivered to them from
/// the outbox, also where there is a broker: to others on the exchange it would be old news.
fn since_beginning(chain: &ChainPlan, triggers: &[TriggerPlan]) -> Subscribers {
    let mut found = Subscribers::new();
    let here = |trigger: &&TriggerPlan| {
        trigger.since_beginning && trigger.source_chain == chain.chain.name
    };
    for trigger in triggers.iter().filter(here) {
        let consumers = found.entry(trigger.source.name.clone()).or_default();
        consumers.push((format!("trigger:{}", trigger.name), Wait::Final));
    }
    found
}

/// Who takes events over a broker, and of which source: what they have not taken yet is not pruned.
fn takers(plan: &Plan) -> Vec<(String, String)> {
    let taker = |of: &TriggerPlan| (format!("trigger:{}", of.name), of.source.name.clone());
    match plan.bus {
        BusPlan::Embedded => Vec::new(),
        BusPlan::RabbitMq { .. } => plan.triggers.iter().map(taker).collect(),
    }
}

/// How far they are counted.
const ORPHANS_COUNTED: u64 = 100_000;

/// Deliveries that nobody takes as the watcher is configured now, such as those to a broker that it no
/// longer has, or to a trigger that has another source now. They stay.
pub(crate) async fn orphans(store: &dyn WatchStore, plan: &Plan) -> Outcome<Vec<Orphans>> {
    let by_broker = plan.bus != BusPlan::Embedded;
    let trigger = |lane: &OpenLane| {
        plan.triggers.iter().any(|of| {
            format!("trigger:{}", of.name) == lane.consumer && of.source.name == lane.source
        })
    };
    let published = |lane: &OpenLane| {
        let mut sources = plan.chains.iter().flat_map(|chain| &chain.sources);
        by_broker && lane.consumer == PUBLISHER && sources.any(|of| of.name == lane.source)
    };
    let lanes = store.open_lanes(ORPHANS_COUNTED).await?.into_iter();
    let orphans = lanes.map(|lane| {
        let (trigger, published) = (trigger(&lane), published(&lane));
        let waiting = if trigger || published { 0 } else { lane.waiting };
        let taken = if trigger && by_broker { 0 } else { lane.taken };
        let count = waiting.saturating_add(taken);
        Orphans { consumer: lane.consumer, source: lane.source, count }
    });
    Ok(orphans.filter(|orphans| orphans.count > 0).collect())
}

async fn tell_orphans(store: &dyn WatchStore, plan: &Plan) -> Outcome<()> {
    for Orphans { consumer, source, count } in orphans(store, plan).await? {
        tracing::error!(
            consumer,
            source,
            count,
            "deliveries wait for a consumer that is not configured"
        );
    }
    Ok(())
}

/// Lets a halted chain go on; answers what was done.
pub(crate) async fn resume(plan: &Plan, name: &str, reason: &str) -> Outcome<String> {
    if reason.trim().is_empty() {
        return Err("--reason is empty: say why the chain may go on".into());
    }
    let chain = plan.chains.iter().find(|chain| chain.chain.name == name);
    let chain = chain.ok_or_else(|| format!("there is no chain {name} in the configuration"))?;
    let reader = edge(chain, chain.chain.finality)?;
    let store = open(plan, OpenMode::Existing).await?;
    let now = SystemClock.now();
    let done = poller::resume(chain, &reader, store.as_ref(), reason, now).await;
    let done = done.map_err(|error| format!("chain {name} stays as it is: {error}"))?;
    Ok(format!(
        "chain {name} goes on from its final block {}; what was found up to block {} stands, {} events \
         above it were retracted",
        done.anchor.number, done.ancestor, done.retracted
    ))
}

/// Composes the watcher and runs it until a signal.
pub(crate) async fn watch(plan: Plan) -> Outcome<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if let Some(address) = plan.process.metrics_listen {
        metrics::listen(address)
            .map_err(|error| format!("[watch] metrics_listen {address}: {error}"))?;
    }
    let store: Arc<dyn WatchStore> = open(&plan, OpenMode::Existing).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    tell_orphans(store.as_ref(), &plan).await?;
    store.set_takers(&takers(&plan)).await?;
    let holder = lead::holder_name();
    let lease_ms = plan.process.lease_ms;
    let leads =
        Arc::new(Leads::new(Arc::clone(&store), Arc::clone(&clock), holder.clone(), lease_ms));
    let (stop, tasks) = (CancellationToken::new(), JoinSet::new());
    let mut loops = Loops { store, clock, leads, stop, tasks };
    let consumers = loops.start_consumers(&plan)?;
    loops.keep_up(&plan);
    for chain in plan.chains.into_iter().filter(|chain| !chain.sources.is_empty()) {
        let backlog = since_beginning(&chain, &plan.triggers);
        loops.follow(chain, &consumers, backlog)?;
    }
    let Loops { leads, stop, mut tasks, .. } = loops;
    // Ends after the others: the steps under way are still to be written.
    let leases_end = CancellationToken::new();
    let leases = tokio::spawn(run::keep_leases(Arc::clone(&leads), leases_end.clone()));
    tracing::info!(holder, "the watcher runs");
    let ended_early = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        // Loops end only when told to: this one panicked.
        Some(_) = tasks.join_next() => true,
    };
    tracing::info!("stopping: every step under way is finished first");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    leases_end.cancel();
    let _ = leases.await;
    if let Err(error) = leads.give_back().await {
        tracing::warn!(%error, "duties were not given back: another process waits for the lease");
    }
    if ended_early { Err("a loop of the watcher ended by itself".into()) } else { Ok(()) }
}
