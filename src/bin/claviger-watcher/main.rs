//! The watcher: follows chains and asks the signing server for what events trigger. It holds no keys,
//! and cannot link the code that does.

mod backfill;
mod compose;
mod show;

use backfill::Wanted;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use claviger::config::file;
use claviger::ports::clock::Clock;
use claviger::ports::watch_store::{Seen, WatchStore};
use claviger::system::SystemClock;
use claviger::watch::config::Config;
use claviger::watch::plan::{Plan, TriggerPlan};
use claviger::watch::server::Server;
use claviger::watch::store::{self, OpenMode};
use claviger::watch::trigger::check;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

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
    /// that runs takes it up with its next block, and goes on where it was if it is stopped meanwhile.
    #[command(
        after_help = "Example:\n  claviger-watcher backfill --config watcher.toml --source charges \
                      --from-block 19000000 --to-block 19010000 --wait"
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
        /// The last block to read again, not below the first; without it, all up to where the source is.
        #[arg(long)]
        to_block: Option<u64>,
        /// Stay until it is done, with a line a second about how far it is. Ending this command ends
        /// nothing else.
        #[arg(long)]
        wait: bool,
    },
    /// Let a chain that is halted go on, once you know which nodes are right.
    ///
    /// The nodes' final block, on which they must agree, is the new beginning. What was found stands up to
    /// the newest block that is on the nodes' chain too. Everything above that is retracted as in a reorg:
    /// deliveries that were not tried are cancelled, whoever was told is told of the retraction, and the
    /// sources read those blocks again. Nothing that the server signed is reversed. It is refused while the
    /// nodes contradict each other or are of another chain, and changes nothing then. A watcher that runs
    /// takes it up within half a minute.
    #[command(
        after_help = "Example:\n  claviger-watcher resume --config watcher.toml --chain mainnet \
                      --reason \"node 2 was on a dead fork; removed\""
    )]
    Resume {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The chain.
        #[arg(long)]
        chain: String,
        /// Why it may go on; kept in the database.
        #[arg(long)]
        reason: String,
    },
    /// Deliver parked messages again, with the same idempotency keys; and without --id, decode again what
    /// did not decode, after its signature was corrected (the words `indexed`, for example).
    #[command(after_help = "Example:\n  claviger-watcher retry --config watcher.toml --id 17")]
    Retry {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The delivery, as `status` shows it; all parked ones without it.
        #[arg(long)]
        id: Option<i64>,
    },
    /// Publish events to the broker again, after it has lost what it had: those of a source that stand, were
    /// published, and that no trigger of this watcher has taken. Whoever else is bound gets them twice.
    #[command(
        after_help = "Example:\n  claviger-watcher republish --config watcher.toml --source charges \
                      --from-block 19000000"
    )]
    Republish {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The source.
        #[arg(long)]
        source: String,
        /// The first block whose events are looked at.
        #[arg(long, default_value_t = 0)]
        from_block: u64,
    },
    /// Take things off the list of what needs attention, in `status`. Nothing else changes: what is parked
    /// stays parked.
    #[command(
        after_help = "Example:\n  claviger-watcher acknowledge --config watcher.toml --id 17\n  \
                      claviger-watcher acknowledge --config watcher.toml --event sha256:3f…"
    )]
    Acknowledge {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The delivery, as `status` shows it.
        #[arg(long, required_unless_present_any = ["event", "all"], conflicts_with_all = ["event", "all"])]
        id: Option<i64>,
        /// The event of a log that does not decode, or `sha256:…` of a message that could not be read.
        #[arg(long, conflicts_with = "all")]
        event: Option<String>,
        /// All that is on the list.
        #[arg(long)]
        all: bool,
    },
    /// Print what is parked, one JSON object a line: deliveries with their documents, logs that do not
    /// decode with their topics and data, and messages from the broker that could not be read, with their
    /// bytes.
    #[command(
        after_help = "Example:\n  claviger-watcher parked --config watcher.toml | jq .reason"
    )]
    Parked {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// JSON is what it prints; taken so that every command that prints data takes it.
        #[arg(long)]
        json: bool,
    },
    /// Look at a configuration.
    #[command(
        subcommand,
        after_help = "Example:\n  claviger-watcher config check --server watcher.toml"
    )]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a file: its keys, addresses, ABI signatures, and that triggers fit their events. What is only
    /// doubtful is a warning.
    #[command(after_help = "Example:\n  claviger-watcher config check --server watcher.toml")]
    Check {
        /// The configuration file.
        file: PathBuf,
        /// Ask the server, too, whether its policy knows what the triggers call.
        #[arg(long)]
        server: bool,
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
        Command::Run { config } => compose::watch(plan(&config)?).await,
        Command::Status { config, json } => show::status(plan(&config)?, json).await,
        Command::Init { config } => {
            let plan = plan(&config)?;
            open(&plan, OpenMode::Create).await?;
            print("created the watcher's database")
        }
        Command::Backfill { config, source, from_block, to_block, wait } => {
            if to_block.is_some_and(|to| to < from_block) {
                let text = "--to-block is below --from-block";
                Arguments::command().error(ErrorKind::ValueValidation, text).exit();
            }
            let wanted = Wanted { source, from_block, to_block, wait };
            backfill::run(&plan(&config)?, &wanted).await
        }
        // `all` is what is left: one of the three is there.
        Command::Acknowledge { config, id, event, all: _ } => {
            let seen = match (id, event) {
                (Some(id), _) => Seen::Delivery(id),
                (_, Some(event)) => Seen::Event(event),
                _ => Seen::All,
            };
            let store = open(&plan(&config)?, OpenMode::Existing).await?;
            let count = store.acknowledge(&seen, SystemClock.now()).await?;
            print(&format!("{count} acknowledged"))
        }
        Command::Retry { config, id } => {
            let plan = plan(&config)?;
            let store = open(&plan, OpenMode::Existing).await?;
            let count = store.unpark(id, SystemClock.now()).await?;
            let sources = plan.chains.iter().flat_map(|chain| &chain.sources);
            let sources: Vec<String> = sources.map(|source| source.name.clone()).collect();
            let marked = if id.is_none() { store.mark_undecodable(&sources).await? } else { 0 };
            print(&format!(
                "{count} deliveries will be tried again, {marked} logs or calls decoded again"
            ))
        }
        Command::Resume { config, chain, reason } => {
            print(&compose::resume(&plan(&config)?, &chain, &reason).await?)
        }
        Command::Republish { config, source, from_block } => {
            let plan = plan(&config)?;
            let mut sources = plan.chains.iter().flat_map(|chain| &chain.sources);
            if !sources.any(|of| of.name == source) {
                return Err(format!("there is no source {source}").into());
            }
            let store = open(&plan, OpenMode::Existing).await?;
            let count = store.publish_again(&source, from_block, SystemClock.now()).await?;
            print(&format!("{count} events will be published again"))
        }
        Command::Parked { config, json: _ } => show::parked(&plan(&config)?).await,
        Command::Config(ConfigCommand::Check { file, server: asks }) => {
            let plan = plan(&file)?;
            compose::broker(&plan.bus).map(|(settings, _)| settings.check()).transpose()?;
            let server = plan.server.as_ref().map(Server::new).transpose()?;
            for warning in plan.triggers.iter().filter_map(TriggerPlan::warning) {
                print(&format!("warning: {warning}"))?;
            }
            if let (true, Some(server)) = (asks, &server) {
                for warning in check::check(&plan.triggers, server).await {
                    print(&format!("warning: {warning}"))?;
                }
            }
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

/// The watcher's database.
async fn open(plan: &Plan, mode: OpenMode) -> Outcome<Arc<dyn WatchStore>> {
    let url = plan.store.read_url().map_err(|error| format!("[store]: {error}"))?;
    Ok(store::open(&url, mode).await?)
}

fn print(text: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
