//! `holdfast probe`: how a supervisor asks another program, before it makes way for it, whether it would start with
//! this configuration, and which formats it reads. Starts nothing. What is answered here is read by older and
//! by newer programs: add to it, never rename.

use std::io::{self, Write};
use std::process::ExitCode;

use holdfast_shared::config::{self, Inputs, Workers};
use holdfast_shared::ipc::codec::LINK_FORMAT;
use holdfast_shared::table::LAYOUT_VERSION;
use holdfast_worker::Program;
use holdfast_worker::connection::saved::SAVED_VERSION;
use serde::{Deserialize, Serialize};

use crate::host::capacity;
use crate::host::kernel;
use crate::operations::reload;
use crate::operator::cli::{self, RunArguments};
use crate::start;

/// Bad configuration, as for bad usage.
const BAD_CONFIGURATION: u8 = 2;

/// What a program is, as far as another has to know that hands its slots over to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As it calls itself.
    pub version: String,
    /// Of the messages on a link, of the settings memory, and of what a keeper is started with.
    pub protocol: u32,
    /// Of connection tables.
    pub layout: u32,
    /// Of saved halves.
    pub saved: u32,
}

impl Identity {
    /// What `program` is.
    #[must_use]
    pub fn of(program: Program) -> Self {
        Self {
            version: program.version.to_owned(),
            protocol: LINK_FORMAT.version,
            layout: LAYOUT_VERSION,
            saved: SAVED_VERSION,
        }
    }

    /// The first of the formats that `other` reads in another version: its name, that version, ours.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<(&'static str, u32, u32)> {
        [
            ("link protocol", other.protocol, self.protocol),
            ("connection table layout", other.layout, self.layout),
            ("format of saved connections", other.saved, self.saved),
        ]
        .into_iter()
        .find(|(_, theirs, ours)| theirs != ours)
    }
}

/// Prints what `program` is as one line of JSON, if it would start.
///
/// Exits with 0, or 2 with every error if it would not, or 1 if it could not be said.
#[must_use]
pub fn run(program: Program, arguments: &RunArguments) -> ExitCode {
    if let Err(complaint) = would_start(&cli::inputs(program, arguments)) {
        eprintln!("{complaint}");
        return ExitCode::from(BAD_CONFIGURATION);
    }
    let said = serde_json::to_string(&Identity::of(program))
        .map_err(io::Error::other)
        .and_then(|identity| writeln!(io::stdout().lock(), "{identity}"));
    match said {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: cannot answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Would a start with this configuration get as far as the run directory?
fn would_start(inputs: &Inputs) -> Result<(), String> {
    let effective = config::load(inputs).map_err(|errors| errors.to_string())?;
    let config = &effective.config;
    let workers: Workers = config.workers;
    let descriptors = kernel::raise_descriptor_limit().map_err(|error| error.to_string())?;
    let descriptors = u32::try_from(descriptors).unwrap_or(u32::MAX);
    let demand = reload::demand(config, start::workers(workers).into(), descriptors);
    capacity::plan(demand).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use holdfast_shared::config::{FlagValue, Value};

    use super::*;

    #[test]
    fn formats_are_compared_and_versions_are_not() {
        let ours = Identity::of(Program::echo("1.0.0"));
        assert_eq!(ours.difference(&Identity::of(Program::echo("2.0.0"))), None);
        let other = Identity { layout: ours.layout + 1, ..ours.clone() };
        assert_eq!(ours.difference(&other), Some(("connection table layout", ours.layout + 1, ours.layout)));
    }

    #[test]
    fn a_newer_answer_is_understood() {
        let answer = r#"{"version":"9","protocol":1,"layout":2,"saved":3,"colour":"green"}"#;
        let identity: Identity = serde_json::from_str(answer).unwrap();
        assert_eq!((identity.protocol, identity.layout, identity.saved), (1, 2, 3));
    }

    #[test]
    fn what_would_not_start_says_why() {
        let set = |key: &str, value: &str| Inputs {
            flags: vec![FlagValue {
                key: key.to_owned(),
                value: Value::parse(value),
                flag: "--set".to_owned(),
            }],
            ..Inputs::default()
        };
        assert_eq!(would_start(&set("workers", "2")), Ok(()));
        assert!(would_start(&set("workerz", "2")).unwrap_err().contains("workerz"));
        let complaint = would_start(&set("limits.max_connections", "90000000")).unwrap_err();
        assert!(complaint.contains("descriptors"), "{complaint}");
    }
}
