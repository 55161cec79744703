//! What two programs must agree on when one goes on with what the other has written, as a range of versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One format, as a program writes and reads it.
///
/// `version` goes up with every change. `reads_since` is the oldest version with which this one understands
/// itself, in both directions: it goes up only with a change that growth cannot express, and ends live upgrades
/// from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format<Name = &'static str> {
    /// What it is of, for people.
    pub name: Name,
    /// The version that is written.
    pub version: u32,
    /// The oldest version that reads it, and the oldest that is read.
    pub reads_since: u32,
}

impl<Name> Format<Name> {
    /// Does each of the two read what the other writes?
    #[must_use]
    pub fn fits<Other>(&self, other: &Format<Other>) -> bool {
        self.version >= other.reads_since && other.version >= self.reads_since
    }
}

impl<Name> fmt::Display for Format<Name> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}, which fits to versions since {}", self.version, self.reads_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_must_read_the_other() {
        let format = |version, reads_since| Format { name: "", version, reads_since };
        assert!(format(3, 2).fits(&format(2, 2)) && format(2, 2).fits(&format(3, 2)));
        assert!(format(9, 5).fits(&format(5, 1)));
        assert!(!format(9, 5).fits(&format(4, 1)) && !format(4, 1).fits(&format(9, 5)));
    }
}
