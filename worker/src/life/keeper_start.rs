//! What a keeper is started with, as the command line that says it, and becoming one by exec. Descriptors are
//! handed over by number: whoever starts a keeper makes them survive.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use holdfast_shared::format::Format;
use holdfast_shared::id::{Incarnation, SlotId};
use nix::unistd::fexecve;
use serde::{Deserialize, Serialize};

/// The program that runs, even when its file was replaced meanwhile.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// What `ps` shows a keeper as, whatever its file is called.
pub const PROCESS_NAME: &str = "holdfast";

/// What a keeper is started with, in place of arguments: fields are added with a default.
pub const KEEPER_FORMAT: Format = Format { name: "keeper's arguments", version: 2, reads_since: 2 };

/// What a keeper is handed, by descriptor number, when it is started. Names that a program does not know are
/// ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStart {
    /// The place it keeps.
    pub slot: SlotId,
    /// The last worker the slot had, under an earlier keeper.
    pub last_incarnation: Incarnation,
    /// The slot's end of the link.
    pub link: RawFd,
    /// The connection table's memory.
    pub table: RawFd,
    /// The lock of the run directory's slots, held open so that no second cluster starts while this one's
    /// connections live.
    pub lock: RawFd,
    /// The socket of the next supervisor, when this one is gone.
    pub reconnect_socket: PathBuf,
    /// The slot's listening sockets.
    pub listeners: Vec<RawFd>,
    /// The program that kept the slot before this one, to go back to until this one's first worker is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<RawFd>,
    /// Why a program that was to follow this one was given up, and this one is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub went_back: Option<String>,
}

impl KeeperStart {
    /// The command line of a keeper, without the program's name.
    ///
    /// # Errors
    /// When a path in it is not UTF-8.
    pub fn arguments(&self) -> io::Result<[String; 2]> {
        Ok(["keeper".to_owned(), serde_json::to_string(self)?])
    }

    /// Executes `program` as this keeper, in place of this process: descriptors that are not close-on-exec
    /// stay, those of everybody who shared them too (execve(2) gives the process a table of its own).
    ///
    /// # Errors
    /// What execve(2) says; nothing has changed then.
    pub fn execute(&self, program: BorrowedFd<'_>) -> io::Result<Infallible> {
        let name = [PROCESS_NAME.to_owned()];
        let arguments = name.into_iter().chain(self.arguments()?).map(zero_terminated);
        let arguments = arguments.collect::<io::Result<Vec<CString>>>()?;
        let assigned = |(name, value): (OsString, OsString)| {
            zero_terminated([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment = std::env::vars_os().map(assigned).collect::<io::Result<Vec<CString>>>()?;
        Ok(fexecve(program, &arguments, &environment)?)
    }
}

fn zero_terminated(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_keeper_may_be_told_more_and_an_older_one_tells_less() {
        let start = KeeperStart {
            slot: SlotId(3),
            last_incarnation: Incarnation(7),
            link: 10,
            table: 11,
            lock: 12,
            reconnect_socket: PathBuf::from("/x/s"),
            listeners: vec![13, 14],
            previous: None,
            went_back: None,
        };
        let [command, told] = start.arguments().unwrap();
        assert_eq!(command, "keeper");
        assert_eq!(serde_json::from_str::<KeeperStart>(&told).unwrap(), start);
        let told = told.replacen('{', r#"{"colour":"green","previous":16,"#, 1);
        let newer = KeeperStart { previous: Some(16), ..start };
        assert_eq!(serde_json::from_str::<KeeperStart>(&told).unwrap(), newer);
    }
}
