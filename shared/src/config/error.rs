//! Where a value came from and what can be wrong with it. Errors name the place, the key and what is allowed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use thiserror::Error;

/// Where a value came from. Displays, and serialises, as a person would say it: `default`,
/// `holdfast.toml:12`, `environment MAX_CONNECTIONS`, `flag --workers`, `operator`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A line of the file, counted from 1.
    File {
        /// As it was named to us.
        path: PathBuf,
        /// Of the key.
        line: usize,
    },
    /// An environment variable, by its name.
    Environment(&'static str),
    /// A flag, by its name.
    Flag(String),
    /// An operator, while the service runs.
    Operator,
}

impl Source {
    pub(super) fn file(path: &Path, line: usize) -> Self {
        Self::File { path: path.to_owned(), line }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("{}: cannot read the configuration: {source}; name a readable file with --config, or leave it out for the defaults", path.display())]
    ReadFile {
        /// As it was named to us.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: not TOML: {message}")]
    Syntax {
        /// The line where reading stopped making sense.
        place: Source,
        /// What the TOML parser said.
        message: String,
    },
    /// A key that means nothing.
    #[error("{place}: {key}: unknown key{}", suggest(*.suggestion))]
    UnknownKey {
        /// Where it stands.
        place: Source,
        /// With its section.
        key: String,
        /// The known key that looks most like it.
        suggestion: Option<&'static str>,
    },
    /// A value that its key does not take, alone or beside the other values.
    #[error("{place}: {key}: {problem}; allowed: {allowed}")]
    Value {
        /// Where it stands.
        place: Source,
        /// With its section.
        key: String,
        /// What is wrong.
        problem: String,
        /// What would be right.
        allowed: String,
    },
}

impl ConfigError {
    /// The place to look at, unless the whole file is the problem.
    #[must_use]
    pub fn place(&self) -> Option<&Source> {
        match self {
            Self::ReadFile { .. } => None,
            Self::Syntax { place, .. } | Self::UnknownKey { place, .. } | Self::Value { place, .. } => {
                Some(place)
            }
        }
    }
}

fn suggest(suggestion: Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |key| format!("; did you mean {key}?"))
}

/// Everything wrong with the configuration, in the order of the file, then environment, then flags. Never
/// empty. Displays as one line each.
#[derive(Debug, Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by(|a, b| a.place().cmp(&b.place()));
        Self(errors)
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn lines(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
