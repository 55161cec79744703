//! `holdfast probe`: how a supervisor asks another program, before it makes way for it, whether it would start with
//! this configuration, and which formats it reads. Starts nothing. What is answered here is read by older and
//! by newer programs: add to it, never rename.

use std::io::{self, Write};
use std::process::ExitCode;

use holdfast_shared::config::{self, Inputs};
use holdfast_shared::format::Format;
use holdfast_shared::ipc::codec::LINK_FORMAT;
use holdfast_shared::ipc::settings_memory::SETTINGS_FORMAT;
use holdfast_shared::session::SESSION_FORMAT;
use holdfast_shared::table::TABLE_FORMAT;
use holdfast_worker::Program;
use holdfast_worker::connection::saved::SAVED_FORMAT;
use holdfast_worker::keeper::KEEPER_FORMAT;
use serde::{Deserialize, Serialize};

use super::{capacity, kernel, settings};

/// Bad configuration, as for bad usage.
const BAD_CONFIGURATION: u8 = 2;

/// What a program is, as far as another has to know that hands its slots over to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As it calls itself.
    pub version: String,
    /// What it writes and reads.
    pub formats: Vec<Format<String>>,
}

impl Identity {
    /// What `program` is.
    #[must_use]
    pub fn of(program: Program) -> Self {
        let formats =
            [LINK_FORMAT, SETTINGS_FORMAT, TABLE_FORMAT, SAVED_FORMAT, KEEPER_FORMAT, SESSION_FORMAT];
        let owned = |Format { name, version, reads_since }: Format| Format {
            name: name.to_owned(),
            version,
            reads_since,
        };
        Self { version: program.version.to_owned(), formats: formats.map(owned).to_vec() }
    }

    /// The formats of which one program cannot read what the other writes, as `other` has them and as this one
    /// does. One that is not named has grown since, or is not used any more.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(Format<String>, Format<String>)> {
        let differs = |ours: &Format<String>| {
            let theirs = other.formats.iter().find(|theirs| theirs.name == ours.name)?;
            (!ours.fits(theirs)).then(|| (theirs.clone(), ours.clone()))
        };
        self.formats.iter().filter_map(differs).collect()
    }
}

/// Prints what `program` is as one line of JSON, if it would start.
///
/// Exits with 0, or 2 with every error if it would not, or 1 if it could not be said.
#[must_use]
pub fn run(program: Program, inputs: &Inputs) -> ExitCode {
    if let Err(complaint) = would_start(inputs) {
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
    settings::check(config).map_err(|error| error.to_string())?;
    let descriptors = kernel::raise_descriptor_limit().map_err(|error| error.to_string())?;
    let descriptors = u32::try_from(descriptors).unwrap_or(u32::MAX);
    let demand = capacity::Demand::of(config, capacity::workers(config.workers), descriptors);
    capacity::plan(demand).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use holdfast_shared::config::{FlagValue, Value};

    use super::*;

    #[test]
    fn formats_are_compared_as_ranges_and_versions_are_not() {
        let ours = Identity::of(Program::echo("1.0.0"));
        assert_eq!(ours.differences(&Identity::of(Program::echo("2.0.0"))), []);
        let mut grown = ours.clone();
        grown.formats[2].version += 1;
        grown.formats.pop();
        assert_eq!(ours.differences(&grown), []);
        let mut other = grown;
        other.formats[2].reads_since = ours.formats[2].version + 1;
        assert_eq!(ours.differences(&other), [(other.formats[2].clone(), ours.formats[2].clone())]);
        assert_eq!(other.differences(&ours).len(), 1);
    }

    #[test]
    fn sessions_that_another_program_cannot_read_are_a_difference() {
        let ours = Identity::of(Program::echo("1.0.0"));
        let mut other = ours.clone();
        let sessions = other.formats.iter_mut().find(|format| format.name == SESSION_FORMAT.name).unwrap();
        sessions.version = SESSION_FORMAT.version + 1;
        sessions.reads_since = sessions.version;
        assert_eq!(ours.differences(&other).len(), 1);
    }

    #[test]
    fn a_newer_answer_is_understood() {
        let answer = r#"{"version":"9","colour":"green","formats":[
            {"name":"connection table","version":4,"reads_since":3,"smell":"sweet"},
            {"name":"dreams","version":1,"reads_since":1}]}"#;
        let identity: Identity = serde_json::from_str(answer).unwrap();
        assert_eq!(Identity::of(Program::echo("1.0.0")).differences(&identity), []);
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
