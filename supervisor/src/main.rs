//! The `holdfast` command: which role this process plays, and what its end is called.

use std::path::Path;
use std::process::ExitCode;

use holdfast_shared::config;
use holdfast_supervisor::cli::{self, Command, CtlArguments, KeeperArguments, RunArguments};
use holdfast_supervisor::control::SOCKET_NAME;
use holdfast_supervisor::{check, ctl, logging, run_dir, start};
use holdfast_worker::keeper::{self, Handover};

/// Bad usage or configuration.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    match cli::parse() {
        Command::Run(arguments) => run(&arguments),
        Command::Keeper(arguments) => keep(arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Ctl(arguments) => ask(&arguments),
    }
}

fn run(arguments: &RunArguments) -> ExitCode {
    logging::start("supervisor");
    let inputs = cli::inputs(arguments);
    let effective = match config::load(&inputs) {
        Ok(effective) => effective,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match start::prepare(inputs, effective).and_then(|supervisor| supervisor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", start::explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn keep(arguments: KeeperArguments) -> ExitCode {
    logging::start("worker");
    let KeeperArguments { slot, last_incarnation, link, table, lock, listeners } = arguments;
    match keeper::run(&Handover { slot, last_incarnation, link, table, lock, listeners }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(arguments: &CtlArguments) -> ExitCode {
    let found = || run_dir::find(SOCKET_NAME);
    let place = arguments.run_dir.clone().unwrap_or_else(found);
    let place: &Path = &place;
    match ctl::run(place, arguments.json, arguments.request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error}");
            ExitCode::FAILURE
        }
    }
}
