//! `holdfast-load`: load for a WebSocket echo server, and what it costs the server.

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use holdfast_tests::load::cli::{Cli, Command};
use holdfast_tests::load::{self, LoadError, Report};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = match command {
        Command::ClientProcess => load::serve_parent().map(|()| true),
        command => match command.job() {
            Ok(job) => load::run(&job).and_then(|report| print(&report, job.common.json)),
            Err(problem) => Cli::command().error(ErrorKind::ArgumentConflict, problem).exit(),
        },
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "holdfast-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Text for people unless only JSON is wanted, then the JSON line. Whether all went well.
fn print(report: &Report, only_json: bool) -> Result<bool, LoadError> {
    let mut out = std::io::stdout().lock();
    let text = if only_json { String::new() } else { report.to_string() };
    let written = serde_json::to_string(report)
        .map_err(std::io::Error::from)
        .and_then(|json| writeln!(out, "{text}{json}").and_then(|()| out.flush()));
    written.map_err(|source| LoadError::EventLoop { doing: "write the report", source })?;
    Ok(report.ok)
}
