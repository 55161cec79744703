//! The `holdfast` command.

use std::process::ExitCode;

use holdfast_supervisor::Program;

fn main() -> ExitCode {
    holdfast_supervisor::main(Program::echo(env!("CARGO_PKG_VERSION")))
}
