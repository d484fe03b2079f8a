//! The watcher: follows chains and asks the signing server for what events trigger. It holds no keys,
//! and cannot link the code that does.

use clap::{Parser, Subcommand};
use claviger::bus::embedded::{lanes, subscribers};
use claviger::bus::rabbitmq::{Address, Publisher, Routes, Settings, Subscriber, Topology};
use claviger::chain::evm::{self, EvmChain, EvmConfig};
use claviger::config::file;
use claviger::ports::block_logs::BlockLogs;
use claviger::ports::bus::{Consumer, Inbox, PUBLISHER};
use claviger::ports::chain::{BlockAt, Chain};
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::WatchStore;
use claviger::system::SystemClock;
use claviger::watch::config::{Config, Finality};
use claviger::watch::inbox::TriggerInbox;
use claviger::watch::plan::{BusPlan, ChainPlan, Plan};
use claviger::watch::poller::{Parts, Poller};
use claviger::watch::server::Server;
use claviger::watch::store::{self, OpenMode};
use claviger::watch::trigger::TriggerConsumer;
use claviger::watch::{cloudevent, run, status};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug, Parser)]
#[command(
    name = "claviger-watcher",
    version,
    about = "Follows chains and asks the Claviger server for the transactions that events trigger",
    after_help = "Example:\n  claviger-watcher init --config watcher.toml\n  \
                  claviger-watcher run --config watcher.toml"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the chains and deliver events until SIGTERM or SIGINT.
    #[command(after_help = "Example:\n  claviger-watcher run --config watcher.toml")]
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show where each chain and source stands, the outbox, and what needs an operator.
    #[command(after_help = "Example:\n  claviger-watcher status --config watcher.toml --json")]
    Status {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Create the database; refuses one that is there.
    #[command(after_help = "Example:\n  claviger-watcher init --config watcher.toml")]
    Init {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Read a source's blocks again from an older one; events that stand are not told twice. A watcher
    /// that runs takes it up with its next block.
    #[command(
        after_help = "Example:\n  claviger-watcher backfill --config watcher.toml --source charges \
                      --from-block 19000000"
    )]
    Backfill {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The source.
        #[arg(long)]
        source: String,
        /// The first block to read again.
        #[arg(long)]
        from_block: u64,
    },
    /// Deliver parked messages again, with the same idempotency keys.
    #[command(after_help = "Example:\n  claviger-watcher retry --config watcher.toml --id 17")]
    Retry {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The delivery, as `status` shows it; all parked ones without it.
        #[arg(long)]
        id: Option<i64>,
    },
    /// Print what is parked, one JSON object a line: deliveries with their documents, and messages from
    /// the broker that could not be read, with their bytes.
    #[command(
        after_help = "Example:\n  claviger-watcher parked --config watcher.toml | jq .reason"
    )]
    Parked {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Look at a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a file: its keys, addresses, ABI signatures, and that triggers fit their events.
    #[command(after_help = "Example:\n  claviger-watcher config check watcher.toml")]
    Check {
        /// The configuration file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    // Bad usage ends here, with code 2.
    let arguments = Arguments::parse();
    let logs = tracing_subscriber::EnvFilter::try_from_env("CLAVIGER_LOG")
        // What the AMQP library meets reaches us as errors, and is told once, where it is handled.
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,lapin=off"));
    tracing_subscriber::fmt().json().with_env_filter(logs).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(execute(arguments.command)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "claviger-watcher: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> Outcome<()> {
    match command {
        Command::Run { config } => watch(plan(&config)?).await,
        Command::Status { config, json } => show_status(plan(&config)?, json).await,
        Command::Init { config } => {
            let plan = plan(&config)?;
            store::open(&plan.store_url, OpenMode::Create).await?;
            print("created the watcher's database")
        }
        Command::Backfill { config, source, from_block } => {
            let store = store::open(&plan(&config)?.store_url, OpenMode::Existing).await?;
            if !store.rewind(&source, from_block).await? {
                let text = "is not known, or has not read so far: nothing to read again";
                return Err(format!("source {source} {text}").into());
            }
            print(&format!("source {source} is read again from block {from_block}"))
        }
        Command::Retry { config, id } => {
            let store = store::open(&plan(&config)?.store_url, OpenMode::Existing).await?;
            let count = store.unpark(id, SystemClock.now()).await?;
            print(&format!("{count} deliveries will be tried again"))
        }
        Command::Parked { config } => {
            let store = store::open(&plan(&config)?.store_url, OpenMode::Existing).await?;
            let lines = status::parked_to_lines(&store.parked().await?);
            Ok(std::io::stdout().lock().write_all(lines.as_bytes())?)
        }
        Command::Config(ConfigCommand::Check { file }) => {
            let plan = plan(&file)?;
            broker(&plan.bus).map(|(settings, _)| settings.check()).transpose()?;
            let server = plan.server.as_ref().map(Server::new).transpose()?;
            let sources: usize = plan.chains.iter().map(|chain| chain.sources.len()).sum();
            let (chains, triggers) = (plan.chains.len(), plan.triggers.len());
            let server = if server.is_some() { "" } else { ", no server" };
            print(&format!("ok: {chains} chains, {sources} sources, {triggers} triggers{server}"))
        }
    }
}

fn plan(path: &Path) -> Outcome<Plan> {
    let config: Config = file::read(path)?;
    Ok(Plan::new(config).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn print(text: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

const fn edge_finality(finality: Finality) -> evm::Finality {
    match finality {
        Finality::Finalized => evm::Finality::Finalized,
        Finality::Safe => evm::Finality::Safe,
        Finality::Depth(depth) => evm::Finality::Depth(depth),
    }
}

fn edge(plan: &ChainPlan, finality: Finality) -> Outcome<EvmChain> {
    let config = EvmConfig {
        chain_id: plan.chain.chain_id,
        rpc: plan.chain.rpc.clone(),
        finality: edge_finality(finality),
    };
    Ok(EvmChain::new(config).map_err(|error| format!("[[chain]] {}: {error}", plan.chain.name))?)
}

/// The chain by every other finality that its sources use.
fn other_finalities(plan: &ChainPlan) -> Outcome<Vec<(Finality, Arc<dyn Chain>)>> {
    let mut finals: Vec<(Finality, Arc<dyn Chain>)> = Vec::new();
    for source in &plan.sources {
        let known = finals.iter().any(|(finality, _)| *finality == source.finality);
        if source.finality != plan.chain.finality && !known {
            finals.push((source.finality, Arc::new(edge(plan, source.finality)?)));
        }
    }
    Ok(finals)
}

/// How to reach the broker, and its exchange; `None` for the embedded bus.
fn broker(bus: &BusPlan) -> Option<(Settings, &str)> {
    match bus {
        BusPlan::Embedded => None,
        BusPlan::RabbitMq { url, url_file, ca_file, exchange } => {
            let file = || Address::File(url_file.clone().unwrap_or_default());
            let address = url.clone().map_or_else(file, Address::Url);
            Some((Settings { address, ca_file: ca_file.clone() }, exchange))
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
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Loops {
    /// The lanes of the outbox to these consumers.
    fn deliver_to(&mut self, consumers: &[Arc<dyn Consumer>]) {
        for lane in lanes(&self.store, &self.clock, consumers) {
            self.tasks.spawn(run::deliver(lane, self.stop.clone()));
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
            for trigger in &plan.triggers {
                let consumer: Arc<dyn Consumer> =
                    Arc::new(TriggerConsumer::new(trigger.clone(), Arc::clone(&server)));
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

    fn follow(&mut self, chain: ChainPlan, consumers: &[Arc<dyn Consumer>]) -> Outcome<()> {
        let reader: Arc<dyn BlockLogs> = Arc::new(edge(&chain, chain.chain.finality)?);
        let poll = Duration::from_millis(chain.chain.poll_ms);
        let of = |source: &str| (source.to_owned(), subscribers(consumers, source));
        let poller = Poller::new(Parts {
            chain: reader,
            finals: other_finalities(&chain)?,
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            subscribers: chain.sources.iter().map(|source| of(&source.name)).collect(),
            plan: chain,
        });
        self.tasks.spawn(run::follow(poller, poll, self.stop.clone()));
        Ok(())
    }
}

/// Deliveries that nobody takes as the watcher is configured now, such as those to a broker that it no
/// longer has. They stay, and are told.
async fn tell_orphans(store: &dyn WatchStore, plan: &Plan) -> Outcome<()> {
    let trigger =
        |name: &str| plan.triggers.iter().any(|of| format!("trigger:{}", of.name) == name);
    let publishes = plan.bus != BusPlan::Embedded;
    for row in store.status().await?.outbox {
        let open = ["held", "ready", "taken"].contains(&row.state.as_str());
        if open && !trigger(&row.consumer) && !(publishes && row.consumer == PUBLISHER) {
            let (consumer, count) = (row.consumer, row.count);
            tracing::error!(
                consumer,
                count,
                "deliveries wait for a consumer that is not configured"
            );
        }
    }
    Ok(())
}

/// Composes the watcher and runs it until a signal.
async fn watch(plan: Plan) -> Outcome<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let store: Arc<dyn WatchStore> = store::open(&plan.store_url, OpenMode::Existing).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    store.forget_claims(clock.now()).await?;
    tell_orphans(store.as_ref(), &plan).await?;
    let mut loops = Loops { store, clock, stop: CancellationToken::new(), tasks: JoinSet::new() };
    let consumers = loops.start_consumers(&plan)?;
    for chain in plan.chains.into_iter().filter(|chain| !chain.sources.is_empty()) {
        loops.follow(chain, &consumers)?;
    }
    let Loops { stop, mut tasks, .. } = loops;
    tracing::info!("the watcher runs");
    let ended_early = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        // Loops end only when told to: this one panicked.
        Some(_) = tasks.join_next() => true,
    };
    tracing::info!("stopping: every step under way is finished first");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    if ended_early { Err("a loop of the watcher ended by itself".into()) } else { Ok(()) }
}

/// The broker's queues, as it says now; `None` for the embedded bus.
async fn look_at_broker(plan: &Plan) -> Option<status::Broker> {
    let (settings, exchange) = broker(&plan.bus)?;
    let names = plan.triggers.iter().map(|trigger| format!("trigger:{}", trigger.name));
    let topology = Topology::of_names(exchange, names);
    Some(settings.look(&topology).await.map_err(|error| error.to_string()))
}

async fn show_status(plan: Plan, json: bool) -> Outcome<()> {
    let store = store::open(&plan.store_url, OpenMode::Existing).await?;
    let mut heads = status::Heads::new();
    for chain in &plan.chains {
        if let Ok(Some(head)) = edge(chain, chain.chain.finality)?.block(BlockAt::Latest).await {
            heads.insert(chain.chain.name.clone(), head.number);
        }
    }
    let broker = look_at_broker(&plan).await;
    let found = store.status().await?;
    if json {
        return print(&status::to_json(&found, &heads, broker.as_ref()).to_string());
    }
    print(&status::to_text(&found, &heads, broker.as_ref()))
}
