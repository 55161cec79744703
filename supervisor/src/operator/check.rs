//! `holdfast check`: validates the configuration as a start in this environment would, and starts nothing.

use std::io::{self, Write};
use std::process::ExitCode;

use holdfast_shared::config::{Inputs, load};

use holdfast_worker::Program;

use crate::host::settings;
use crate::operator::cli::{RunArguments, inputs};

/// Bad configuration, as for bad usage.
const BAD_CONFIGURATION: u8 = 2;

/// Prints that the configuration is valid, or every error to standard error.
///
/// Exits with 0, or 2 if anything is wrong, or 1 if it could not be said.
#[must_use]
pub fn run(program: Program, arguments: &RunArguments) -> ExitCode {
    match report(&inputs(program, arguments), &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(BAD_CONFIGURATION),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Whether the configuration is valid.
fn report(inputs: &Inputs, output: &mut impl Write, complaints: &mut impl Write) -> io::Result<bool> {
    let complaint = match load(inputs) {
        Ok(effective) => {
            for warning in &effective.config.secrets.warnings {
                writeln!(complaints, "warning: {warning}")?;
            }
            settings::check(&effective.config).err().map(|error| error.to_string())
        }
        Err(errors) => Some(errors.to_string()),
    };
    match complaint {
        None => writeln!(output, "configuration is valid").map(|()| true),
        Some(complaint) => writeln!(complaints, "{complaint}").map(|()| false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check(text: &str) -> (bool, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("holdfast.toml");
        fs::write(&file, text).unwrap();
        let (mut output, mut complaints) = (Vec::new(), Vec::new());
        let inputs = Inputs { file: Some(file), ..Inputs::default() };
        let valid = report(&inputs, &mut output, &mut complaints).unwrap();
        let prefix = format!("{}/", directory.path().display());
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&prefix, "");
        (valid, text(output), text(complaints))
    }

    #[test]
    fn a_valid_file_is_said_to_be_valid() {
        assert_eq!(check("workers = 2"), (true, "configuration is valid\n".into(), String::new()));
    }

    #[test]
    fn more_than_workers_can_be_told_is_refused() {
        let origins = |count| {
            let all: Vec<String> =
                (0..count).map(|site| format!("\"https://site-{site}.example\"")).collect();
            check(&format!("[security]\nallowed_origins = [{}]", all.join(",")))
        };
        assert!(origins(3_000).0);
        let (valid, _, complaint) = origins(600_000);
        assert!(!valid && complaint.contains("at most 16777216"), "{complaint}");
    }

    #[test]
    fn every_error_is_a_line_of_its_own() {
        let (valid, output, complaints) = check("workerz = 2\n[drain]\nduration = 30");
        assert!(!valid);
        assert_eq!(output, "");
        let lines: Vec<_> = complaints.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "holdfast.toml:1: workerz: unknown key; did you mean workers?");
        assert!(
            lines[1].starts_with("holdfast.toml:3: drain.duration: 30 has no unit; allowed: "),
            "{}",
            lines[1]
        );
    }
}
