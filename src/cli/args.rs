//! The command line of `claviger`.

use crate::cli::approval::ApprovalCommand;
use crate::cli::audit::AuditCommand;
use crate::cli::ceremony::{CeremonyArgs, CeremonyVerifyArgs};
use crate::cli::delivery::DeliveryCommand;
use crate::cli::reconcile::ReconcileArgs;
use crate::core::id::DEFAULT_HSM;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Claviger: a custodial signing server.
#[derive(Debug, Parser)]
#[command(
    name = "claviger",
    version,
    about = "A custodial signing server: keys in an HSM, every request judged by policy",
    after_help = "Example:\n  claviger init --dir ./dev\n  claviger serve --config ./dev/claviger.toml"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a working development set-up in a new folder.
    #[command(after_help = "Example:\n  claviger init --dir ./dev")]
    Init(InitArgs),
    /// Run the server.
    #[command(after_help = "Example:\n  claviger serve --config ./dev/claviger.toml")]
    Serve(ConfigArg),
    /// Check HSM, keys, database, chains, clock and file permissions; one line each.
    #[command(after_help = "Example:\n  claviger doctor --config ./dev/claviger.toml")]
    Doctor(ReportArgs),
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Tokens of the development issuer.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Operator keys, over the admin API; and key ceremonies.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Transactions, over the client API.
    #[command(subcommand)]
    Tx(TxCommand),
    /// Requests that wait for time or people, over the admin API.
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// Policy bundles.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// The audit log: export it, verify it.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Compare the database with the chains after a restore or a halt, and put it right on your word.
    #[command(
        after_help = "Without --apply nothing is changed. Exit code 0 if all agrees and nothing is halted, else 1.\n\n\
                      Example:\n  claviger reconcile --config ./dev/claviger.toml\n  \
                      claviger reconcile --config ./dev/claviger.toml --apply --reason 'backup of 09:00 restored'"
    )]
    Reconcile(ReconcileArgs),
    /// The server's clock, after it has jumped.
    #[command(subcommand)]
    Clock(ClockCommand),
    /// Events that are owed to webhooks and the bus, over the admin API.
    #[command(subcommand)]
    Delivery(DeliveryCommand),
    /// Initialises a token; a step of `init`.
    #[command(hide = true)]
    InitToken(InitTokenArgs),
}

/// `--config`
#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
}

/// `--config --json`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder to make. Must not exist, or be empty.
    #[arg(long)]
    pub dir: PathBuf,
    /// The PKCS#11 module; SoftHSM's usual places if not given.
    #[arg(long)]
    pub module: Option<PathBuf>,
    /// A node of the development chain.
    #[arg(long, default_value = "http://127.0.0.1:8545")]
    pub rpc: url::Url,
    /// The development chain's id.
    #[arg(long, default_value_t = 31337)]
    pub chain_id: u64,
    /// Where clients call.
    #[arg(long, default_value = "127.0.0.1:8700")]
    pub listen: std::net::SocketAddr,
    /// Where administrators call.
    #[arg(long, default_value = "127.0.0.1:8701")]
    pub admin_listen: std::net::SocketAddr,
    /// Where Prometheus reads.
    #[arg(long, default_value = "127.0.0.1:8702")]
    pub metrics_listen: std::net::SocketAddr,
    /// The database; a new SQLite file in the folder if not given. A PostgreSQL database must exist.
    #[arg(long)]
    pub store_url: Option<String>,
}

/// The hidden step of `init`.
#[derive(Debug, Args)]
pub struct InitTokenArgs {
    /// The module.
    #[arg(long)]
    pub module: PathBuf,
    /// The token's label.
    #[arg(long)]
    pub label: String,
    /// The security officer's PIN.
    #[arg(long)]
    pub so_pin_file: PathBuf,
    /// The user's PIN.
    #[arg(long)]
    pub pin_file: PathBuf,
    /// The `CKA_ID`, in hex, of a wrapping key to make in it.
    #[arg(long)]
    pub wrapping_key: Option<String>,
}

/// `claviger config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read a configuration and its bundle, and say what is wrong.
    #[command(after_help = "Example:\n  claviger config check ./dev/claviger.toml")]
    Check {
        /// The server's configuration file.
        file: PathBuf,
    },
}

/// `claviger token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Issue a token (development issuer only).
    #[command(
        after_help = "Example:\n  claviger token issue --config ./dev/claviger.toml --sub svc:payouts --role client"
    )]
    Issue(TokenArgs),
}

/// `claviger token issue`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// Whose token.
    #[arg(long)]
    pub sub: String,
    /// What it may do; may be given several times.
    #[arg(long = "role", required = true)]
    pub roles: Vec<String>,
    /// How long it lives.
    #[arg(long, default_value = "15m")]
    pub ttl: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How a command reaches the server.
#[derive(Debug, Clone, Args)]
pub struct RemoteArgs {
    /// The server's configuration file, for its addresses and its development issuer.
    #[arg(long)]
    pub config: PathBuf,
    /// A file with the token to call with; without it the development issuer makes one.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger key`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key pair inside the HSM, or many.
    #[command(
        after_help = "With --count N the labels are LABEL-1 to LABEL-N; those that exist already are left as they are, so \
                      that a run that was interrupted is finished by the same command. Run one at a time.\n\n\
                      Example:\n  claviger key create --config ./dev/claviger.toml --label op-1 --group payments\n  \
                      claviger key create --config ./dev/claviger.toml --label deposit --group deposits \
                      --custody wrapped --count 20000"
    )]
    Create(KeyCreateArgs),
    /// Take over a key pair that the HSM has already, by its CKA_ID.
    #[command(
        after_help = "The pair must be one of secp256k1 whose private half is sensitive, never was and never will be \
                      extractable, and only signs; `[[hsm.exception]]` in the configuration lets in another one, with \
                      the reason. The server looks at it, has it sign a proof, and pins its public key.\n\n\
                      Nobody else may send transactions from a managed account from then on: the server gives its \
                      nonces, beginning at the chain's count when it is first used, and stops the account when it \
                      sees a stranger's. Where somebody else goes on using it, import it as external.\n\n\
                      Example:\n  claviger key import --config ./dev/claviger.toml --cka-id 0a0b0c0d --label treasury"
    )]
    Import {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// The key's CKA_ID, in hex.
        #[arg(long)]
        cka_id: String,
        /// What people call it.
        #[arg(long)]
        label: String,
        /// The group that will use it.
        #[arg(long)]
        group: Option<String>,
        /// Who gives its nonces, for ever: managed or external.
        #[arg(long, default_value = "managed")]
        mode: String,
        /// The configured token that it is in.
        #[arg(long, default_value = DEFAULT_HSM)]
        hsm: String,
    },
    /// Make the keys of a reviewed plan, directly on HSM and database, and sign a record of it.
    Ceremony(CeremonyArgs),
    /// Check the record of a ceremony, offline.
    CeremonyVerify(CeremonyVerifyArgs),
    /// List keys, oldest first.
    #[command(
        after_help = "Example:\n  claviger key list --config ./dev/claviger.toml --group payments --custody wrapped"
    )]
    List(KeyListArgs),
}

/// `claviger key create`
#[derive(Debug, Args)]
pub struct KeyCreateArgs {
    /// How to reach the server.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// What people call it.
    #[arg(long)]
    pub label: String,
    /// The group that will use it.
    #[arg(long)]
    pub group: Option<String>,
    /// Who gives its nonces, for ever: managed or external.
    #[arg(long, default_value = "managed")]
    pub mode: String,
    /// The configured token that it is to be in.
    #[arg(long, default_value = DEFAULT_HSM)]
    pub hsm: String,
    /// Where its private half is kept: token (an object of it), or wrapped (by the token, in the database).
    #[arg(long, default_value = "token")]
    pub custody: String,
    /// Make so many, named LABEL-1, LABEL-2 and so on.
    #[arg(long)]
    pub count: Option<u32>,
    /// With --count, how many are asked for at once.
    #[arg(long, default_value_t = 8)]
    pub at_once: usize,
}

/// `claviger key list`
#[derive(Debug, Args)]
pub struct KeyListArgs {
    /// How to reach the server.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Only of this group.
    #[arg(long)]
    pub group: Option<String>,
    /// Only of this token.
    #[arg(long)]
    pub hsm: Option<String>,
    /// Only of this custody: token or wrapped.
    #[arg(long)]
    pub custody: Option<String>,
    /// Only in this state.
    #[arg(long)]
    pub state: Option<String>,
    /// At most so many.
    #[arg(long)]
    pub limit: Option<usize>,
}

/// `claviger tx`
#[derive(Debug, Subcommand)]
pub enum TxCommand {
    /// Show a transaction with its attempts.
    #[command(after_help = "Example:\n  claviger tx get --config ./dev/claviger.toml ID")]
    Get {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// Its id.
        id: String,
    },
    /// Cancel a transaction: at once if it has no nonce, else by a no-op of the same nonce.
    #[command(
        after_help = "Example:\n  claviger tx cancel --config ./dev/claviger.toml ID --reason 'wrong payee'"
    )]
    Cancel(InterveneArgs),
    /// Offer the next higher fees for a transaction now, within its caps.
    #[command(after_help = "Example:\n  claviger tx speed-up --config ./dev/claviger.toml ID")]
    SpeedUp(InterveneArgs),
    /// List transactions, newest first.
    #[command(
        after_help = "Example:\n  claviger tx list --config ./dev/claviger.toml --status mined"
    )]
    List {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// Only in this status.
        #[arg(long)]
        status: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
    },
}

/// `claviger tx cancel`, `claviger tx speed-up`
#[derive(Debug, Args)]
pub struct InterveneArgs {
    /// How to reach the server.
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// The transaction's id.
    pub id: String,
    /// Why, for the audit log.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `claviger clock`
#[derive(Debug, Subcommand)]
pub enum ClockCommand {
    /// Say that the server's clock is right: windows go by it again. Look at it first: a clock that is ahead
    /// frees what was spent.
    #[command(
        after_help = "Example:\n  claviger clock confirm --config ./dev/claviger.toml --reason 'NTP was down, the time is right now'"
    )]
    Confirm {
        /// How to reach the server.
        #[command(flatten)]
        remote: RemoteArgs,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

/// `claviger policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Load a bundle, run its cases, print its hash and grants.
    #[command(after_help = "Example:\n  claviger policy check ./dev/policies")]
    Check {
        /// The bundle's folder.
        dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a bundle's cases and print each with what the bundle decides; fails if one does not hold,
    /// or there is none.
    #[command(after_help = "Example:\n  claviger policy test ./dev/policies")]
    Test {
        /// The bundle's folder.
        dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what a bundle newly permits and newly refuses, computed from the grants of both.
    #[command(
        after_help = "What cannot be shown to tighten counts as loosening. The exit code is 0 whatever is different.\n\n\
                      Example:\n  claviger policy diff ./policies-now ./policies-next"
    )]
    Diff {
        /// The folder of the bundle that there is.
        old: PathBuf,
        /// The folder of the bundle that may replace it.
        new: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what a bundle decides about a request, and why.
    #[command(
        after_help = "FILE is JSON: {\"principal\":{\"iss\",\"sub\"}, \"request\":BODY, \"facts\":{\"address\",\"group\",\"chain_id\",\"now\",\n\
                      \"codes\":{ADDRESS: \"none\"|\"some\"|HEX},\"event\",\"known_destinations\",\"waiting_since\"}}, where BODY is that\n\
                      of POST /v1/transactions or POST /v1/signatures; or the `decision` of a DECIDED or DENIED leaf.\n\n\
                      Example:\n  echo '{\"principal\":{\"iss\":\"claviger-dev\",\"sub\":\"svc:payouts\"},\n    \
                      \"request\":{\"chain\":\"local\",\"signer\":\"payments\",\"to\":\"0x70997970c51812dc3a010c7d01b50e0d17dc79c8\",\"value\":\"1\"},\n    \
                      \"facts\":{\"address\":\"0x90f79bf6eb2c4f870365e785982e1f101e93b906\",\"group\":\"payments\",\"chain_id\":31337,\n    \
                      \"now\":\"2026-12-01T12:00:00Z\",\"codes\":{\"0x70997970c51812dc3a010c7d01b50e0d17dc79c8\":\"none\"}}}' > ask.json\n  \
                      claviger policy explain ./dev/policies --request ask.json --all"
    )]
    Explain {
        /// The bundle's folder.
        dir: PathBuf,
        /// The request with its facts.
        #[arg(long)]
        request: PathBuf,
        /// List every grant that does not cover it, and not only the nearest (JSON always has all).
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Judge the recorded decisions of a database by another bundle; fails if one would come out differently.
    #[command(
        after_help = "Each DECIDED and DENIED leaf holds all that its decision looked at. How full the windows were is not \
                      among it: what fits a window alone is taken to fit it.\n\n\
                      Example:\n  claviger policy replay ./policies-next --config ./dev/claviger.toml --from 2026-12-01"
    )]
    Replay(ReplayArgs),
}

/// `claviger policy replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The bundle's folder.
    pub dir: PathBuf,
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// Only decisions of this time or later: a day, or RFC 3339.
    #[arg(long)]
    pub from: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
