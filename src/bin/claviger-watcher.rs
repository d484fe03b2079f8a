//! The watcher: follows chains and asks the signing server for what events trigger. It holds no keys,
//! and cannot link the code that does.

use clap::{Parser, Subcommand};
use claviger::bus::embedded::{lanes, subscribers};
use claviger::chain::evm::{self, EvmChain, EvmConfig};
use claviger::config::file;
use claviger::ports::block_logs::BlockLogs;
use claviger::ports::bus::Consumer;
use claviger::ports::chain::{BlockAt, Chain};
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::WatchStore;
use claviger::system::SystemClock;
use claviger::watch::config::{Config, Finality};
use claviger::watch::plan::{ChainPlan, Plan};
use claviger::watch::poller::{Parts, Poller};
use claviger::watch::server::Server;
use claviger::watch::store::{self, OpenMode};
use claviger::watch::trigger::TriggerConsumer;
use claviger::watch::{run, status};
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
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
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
        Command::Config(ConfigCommand::Check { file }) => {
            let plan = plan(&file)?;
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

/// Composes the watcher and runs it until a signal.
async fn watch(plan: Plan) -> Outcome<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let store: Arc<dyn WatchStore> = store::open(&plan.store_url, OpenMode::Existing).await?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut consumers: Vec<Arc<dyn Consumer>> = Vec::new();
    if let Some(section) = &plan.server {
        let server = Arc::new(Server::new(section)?);
        for trigger in plan.triggers {
            consumers.push(Arc::new(TriggerConsumer::new(trigger, Arc::clone(&server))));
        }
    }
    store.forget_claims(clock.now()).await?;
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    for lane in lanes(&store, &clock, &consumers) {
        tasks.spawn(run::deliver(lane, stop.clone()));
    }
    for chain in plan.chains.into_iter().filter(|chain| !chain.sources.is_empty()) {
        let reader: Arc<dyn BlockLogs> = Arc::new(edge(&chain, chain.chain.finality)?);
        let poll = Duration::from_millis(chain.chain.poll_ms);
        let of = |source: &str| (source.to_owned(), subscribers(&consumers, source));
        let poller = Poller::new(Parts {
            chain: reader,
            finals: other_finalities(&chain)?,
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            subscribers: chain.sources.iter().map(|source| of(&source.name)).collect(),
            plan: chain,
        });
        tasks.spawn(run::follow(poller, poll, stop.clone()));
    }
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

async fn show_status(plan: Plan, json: bool) -> Outcome<()> {
    let store = store::open(&plan.store_url, OpenMode::Existing).await?;
    let mut heads = status::Heads::new();
    for chain in &plan.chains {
        if let Ok(Some(head)) = edge(chain, chain.chain.finality)?.block(BlockAt::Latest).await {
            heads.insert(chain.chain.name.clone(), head.number);
        }
    }
    let found = store.status().await?;
    if json {
        return print(&status::to_json(&found, &heads).to_string());
    }
    print(&status::to_text(&found, &heads))
}
