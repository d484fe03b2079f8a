//! The server and the operator commands. The only place that names concrete edges.

mod audit;
mod ceremony;
mod doctor;
mod init;
mod policy;
mod reconcile;
mod serve;
mod softhsm;
mod telling;
mod world;

use clap::Parser;
use claviger::cli::args::{Cli, Command, ConfigCommand, KeyCommand, PolicyCommand, TokenCommand};
use claviger::cli::{
    Failure, approval, clock, config_check, delivery, explain, key, policy as bundles, print,
    token, tx,
};
use claviger::system::{SystemClock, SystemEntropy};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Bad usage ends here, with code 2.
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print::note(&format!("claviger: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Init(args) => block_on(1, init::run(args)),
        Command::InitToken(args) => init::token(args),
        Command::Serve(args) => serve::run(&args.config),
        Command::Doctor(args) => doctor::run(args),
        Command::Config(ConfigCommand::Check { file }) => config_check::run(file),
        Command::Token(TokenCommand::Issue(args)) => token::run(args, &SystemClock, &SystemEntropy),
        Command::Key(KeyCommand::Ceremony(args)) => ceremony::run(args),
        Command::Key(KeyCommand::CeremonyVerify(args)) => ceremony::verify(args),
        Command::Key(command) => block_on(1, key::run(command, &SystemClock, &SystemEntropy)),
        Command::Clock(command) => block_on(1, clock::run(command, &SystemClock, &SystemEntropy)),
        Command::Delivery(command) => {
            block_on(1, delivery::run(command, &SystemClock, &SystemEntropy))
        }
        Command::Tx(command) => block_on(1, tx::run(command, &SystemClock, &SystemEntropy)),
        Command::Approval(command) => {
            block_on(1, approval::run(command, &SystemClock, &SystemEntropy))
        }
        Command::Audit(command) => block_on(1, audit::run(command)),
        Command::Reconcile(args) => block_on(1, reconcile::run(args)),
        Command::Policy(PolicyCommand::Check { dir, json }) => bundles::check(dir, *json),
        Command::Policy(PolicyCommand::Test { dir, json }) => bundles::test(dir, *json),
        Command::Policy(PolicyCommand::Diff { old, new, json }) => bundles::diff(old, new, *json),
        Command::Policy(PolicyCommand::Explain { dir, request, all, json }) => {
            explain::run(dir, request, *all, *json)
        }
        Command::Policy(PolicyCommand::Replay(args)) => block_on(1, policy::replay(args)),
    }
}

fn block_on(
    workers: usize,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|e| Failure::of("runtime", e))?
        .block_on(work)
}
