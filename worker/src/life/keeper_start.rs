//! What a keeper is started with, as the command line that says it, and becoming one by exec. Descriptors are
//! handed over by number: whoever starts a keeper makes them survive.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use holdfast_shared::id::{Incarnation, SlotId};
use nix::unistd::fexecve;

/// The program that runs, even when its file was replaced meanwhile.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// What `ps` shows a keeper as, whatever its file is called.
pub const PROCESS_NAME: &str = "holdfast";

/// What a keeper is handed, by descriptor number, when it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperStart {
    /// The place it keeps.
    pub slot: SlotId,
    /// The last worker the slot had, under an earlier keeper.
    pub last_incarnation: Incarnation,
    /// The slot's end of the link.
    pub link: RawFd,
    /// The connection table's memory.
    pub table: RawFd,
    /// The memory of the settings last applied.
    pub settings: RawFd,
    /// The lock of the run directory's slots, held open so that no second cluster starts while this one's
    /// connections live.
    pub lock: RawFd,
    /// The socket of the next supervisor, when this one is gone.
    pub reconnect_socket: PathBuf,
    /// The slot's listening sockets.
    pub listeners: Vec<RawFd>,
    /// The program that kept the slot before this one, to go back to until this one's first worker is ready.
    pub previous: Option<RawFd>,
    /// Why a program that was to follow this one was given up, and this one is back.
    pub went_back: Option<String>,
}

impl KeeperStart {
    /// The command line of a keeper, without the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["keeper".into()];
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--slot", self.slot.to_string().into());
        option("--last-incarnation", self.last_incarnation.to_string().into());
        option("--link", self.link.to_string().into());
        option("--table", self.table.to_string().into());
        option("--settings", self.settings.to_string().into());
        option("--lock", self.lock.to_string().into());
        option("--rendezvous", self.reconnect_socket.clone().into());
        for listener in &self.listeners {
            option("--listener", listener.to_string().into());
        }
        if let Some(previous) = self.previous {
            option("--previous", previous.to_string().into());
        }
        if let Some(reason) = &self.went_back {
            option("--went-back", reason.into());
        }
        arguments
    }

    /// Executes `program` as this keeper, in place of this process: descriptors that are not close-on-exec
    /// stay, those of everybody who shared them too (execve(2) gives the process a table of its own).
    ///
    /// # Errors
    /// What execve(2) says; nothing has changed then.
    pub fn execute(&self, program: BorrowedFd<'_>) -> io::Result<Infallible> {
        let name = OsString::from(PROCESS_NAME);
        let arguments =
            [name].into_iter().chain(self.arguments()).map(OsString::into_vec).map(zero_terminated);
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
