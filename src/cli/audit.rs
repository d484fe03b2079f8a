//! `claviger audit`: its arguments, and what it prints. The program puts the log and the database to it.

use crate::cli::print;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::path::PathBuf;

/// `claviger audit`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Write the log to files, up to its newest signed checkpoint; beside a running server too.
    #[command(
        after_help = "The folder is complete once it has a file `checkpoint`. docs/AUDIT.md has its form.\n\n\
                      Example:\n  claviger audit export --config ./dev/claviger.toml --out ./log-2027-01"
    )]
    Export(ExportArgs),
    /// Check an export, offline, and name the first leaf that is wrong.
    #[command(
        after_help = "Checked are every leaf's encoding and hash, every tile, every checkpoint, every long \
                      text, and that nothing was signed before it was decided. Exit code 1 if anything is \
                      wrong, or cannot be checked.\n\n\
                      Keep what --keep writes somewhere that the log's operators cannot reach, and give it \
                      back with --against the next time: then a leaf that was changed is named exactly. A \
                      checkpoint kept alone shows that something was changed, and between which leaves.\n\n\
                      Example:\n  claviger audit verify --export ./log-2027-01 --key ./audit.vkey \\\n    \
                      --against ./kept-2026-12 --keep ./kept-2027-01"
    )]
    Verify(VerifyArgs),
    /// Make the key that signs the log, for a set-up that has none.
    #[command(
        after_help = "`init` makes one in new set-ups. Set `[audit] key_file` first; existing files are refused.\n\n\
                      Example:\n  claviger audit init-key --config ./dev/claviger.toml --origin audit.example.com/claviger"
    )]
    InitKey(InitKeyArgs),
}

/// `claviger audit export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// The folder to write. Must not exist, or be empty.
    #[arg(long)]
    pub out: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger audit verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The folder that `audit export` wrote.
    #[arg(long)]
    pub export: PathBuf,
    /// The log's public key (C2SP verifier key), from where you trust it: not from the export.
    #[arg(long)]
    pub key: PathBuf,
    /// A checkpoint that you kept from before; may be given several times.
    #[arg(long = "checkpoint")]
    pub checkpoints: Vec<PathBuf>,
    /// A file that `--keep` wrote before: the log is compared with it leaf by leaf.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Where to write what to keep from now on: the checkpoint and each leaf's hash, 32 bytes a leaf.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger audit init-key`
#[derive(Debug, Args)]
pub struct InitKeyArgs {
    /// The server's configuration file.
    #[arg(long)]
    pub config: PathBuf,
    /// The log's name, for ever: a name of yours, without spaces and `+`. A random one if not given.
    #[arg(long)]
    pub origin: Option<String>,
}

/// A bar on standard error, if that is a terminal; otherwise nothing.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar that counts leaves.
    #[must_use]
    pub fn leaves(what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} leaves {eta}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self(bar)
    }

    /// So many of so many are done.
    pub fn at(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a summary: as JSON, or each pair as a line.
pub fn summary(as_json: bool, json: &Value, lines: &[(&str, String)]) {
    if as_json {
        print::json(json);
        return;
    }
    let rows: Vec<Vec<String>> =
        lines.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect();
    print::table(&rows);
}
