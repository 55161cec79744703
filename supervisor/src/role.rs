//! Which role a process of the command plays, and what its end is called.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use holdfast_shared::config;
use holdfast_shared::sys::title;
use holdfast_worker::Program;
use holdfast_worker::keeper;

use crate::host::{probe, run_dir};
use crate::hub::{self, HubStart};
use crate::logging;
use crate::operations::upgrade;
use crate::operator::check;
use crate::operator::cli::{self, Command, CtlArguments, KeeperArguments, RunArguments};
use crate::operator::ctl;
use crate::start;

/// Bad usage or configuration.
const BAD_CONFIGURATION: u8 = 2;

/// The whole of a server program: does what the command line asks for, as whichever of the roles it names.
#[must_use]
pub fn main(program: Program) -> ExitCode {
    match cli::parse(program.version) {
        Command::Run(arguments) => run(program, &arguments),
        Command::Probe(arguments) => probe::run(program, &cli::inputs(program, &arguments)),
        Command::Keeper(arguments) => keep(program, arguments),
        Command::Hub(arguments) => serve_channels(program, arguments.start),
        Command::Check(arguments) => check::run(program, &arguments),
        Command::Ctl(arguments) => ask(&arguments),
    }
}

fn run(program: Program, arguments: &RunArguments) -> ExitCode {
    logging::start("supervisor");
    let (launch, mut handoff) = upgrade::receive();
    let program_name = launch.path.file_name().unwrap_or_default().to_string_lossy();
    show_as("holdfast: supervisor", &launch.arguments, &program_name);
    let inputs = cli::inputs(program, arguments);
    let go_back = |handoff: Option<upgrade::ReceivedHandoff>, reason: &str| {
        if let Some(handoff) = handoff {
            upgrade::go_back(&launch, handoff, program.version, reason.to_owned());
        }
    };
    let effective = match config::load(&inputs) {
        Ok(effective) => effective,
        Err(errors) => {
            // Whoever does not read it must not make this panic.
            let _ = writeln!(io::stderr(), "{errors}");
            go_back(handoff, &errors.to_string());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    for warning in &effective.config.secrets.warnings {
        log::warn!("{warning}");
    }
    let supervisor = match start::prepare(program, inputs, effective, launch.clone(), handoff.as_mut()) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            let reason = start::explain(&error);
            log::error!("{reason}");
            go_back(handoff, &reason);
            return ExitCode::FAILURE;
        }
    };
    // From here on there is no way back to an earlier program.
    drop(handoff);
    match supervisor.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", start::explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn show_as(title: &str, arguments: &[OsString], short: &str) {
    if let Err(error) = title::set(title, arguments, short) {
        log::info!("ps does not show this process as {title}: {error}");
    }
}

fn keep(program: Program, arguments: KeeperArguments) -> ExitCode {
    logging::start("worker");
    let slot = arguments.start.slot;
    show_as(&format!("holdfast: keeper {slot}"), &[], &format!("holdfast-k{slot}"));
    match keeper::run(program, arguments.start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_channels(program: Program, start: HubStart) -> ExitCode {
    logging::start("hub");
    show_as("holdfast: hub", &[], "holdfast-hub");
    match hub::run(program, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(arguments: &CtlArguments) -> ExitCode {
    let found = || run_dir::find(run_dir::CONTROL_SOCKET);
    let place = arguments.run_dir.clone().unwrap_or_else(found);
    let place: &Path = &place;
    match ctl::run(place, arguments.json, &arguments.request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error}");
            ExitCode::FAILURE
        }
    }
}
