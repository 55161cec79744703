//! What a program leaves to the one that is executed in its place: an environment variable says by descriptor
//! number what stays open. Nobody else is to see that variable, and what it says is not believed before it is
//! looked at. Written and read by programs of different versions: add to it, never rename.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::sys::descriptor;
use serde::{Deserialize, Serialize};

use crate::host::launch::{HANDOFF_VARIABLE, InheritedSockets};

/// The handoff, as it stands in the environment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Handoff {
    /// The version of the program that wrote it.
    pub(crate) from: String,
    /// The path that upgrades come from.
    pub(crate) path: PathBuf,
    /// The run directory, whatever the configuration says by now.
    pub(crate) run_dir: PathBuf,
    /// When the upgrade began, in seconds since 1970.
    pub(crate) started_at: u64,
    /// The same, and when the old program left, in milliseconds of the monotonic clock.
    pub(crate) began_ms: u64,
    pub(crate) left_ms: u64,
    /// Why the new program went back to this one, if it did, and what version it was.
    pub(crate) failed: Option<Failed>,
    /// Descriptors.
    pub(crate) control: Option<RawFd>,
    pub(crate) admin: Option<RawFd>,
    #[serde(rename = "door")]
    pub(crate) reconnect: Option<RawFd>,
    pub(crate) lock: Option<RawFd>,
    /// The old program.
    pub(crate) previous: Option<RawFd>,
}

/// An upgrade that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Failed {
    /// The version that was to be.
    pub(crate) to: String,
    /// Why it is not.
    pub(crate) reason: String,
}

/// What this program was left.
#[derive(Debug, Default)]
pub(crate) struct ReceivedHandoff {
    pub(crate) from: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) started_at: u64,
    pub(crate) began: Duration,
    pub(crate) left: Duration,
    pub(crate) failed: Option<Failed>,
    /// The listening sockets of the control side.
    pub(crate) sockets: InheritedSockets,
    /// The socket that slots come to.
    pub(crate) reconnect: Option<OwnedFd>,
    /// The lock of the run directory.
    pub(crate) lock: Option<OwnedFd>,
    /// The old program.
    pub(crate) previous: Option<File>,
}

impl Handoff {
    /// Reads what `value`, of the variable, says.
    pub(crate) fn read(value: &OsStr) -> Option<Self> {
        let handoff = value.to_str().map(serde_json::from_str);
        match handoff {
            Some(Ok(handoff)) => Some(handoff),
            Some(Err(error)) => {
                log::warn!("{HANDOFF_VARIABLE} is not understood ({error}), and ignored");
                None
            }
            None => None,
        }
    }

    /// Takes over what it names. To be called once, before this process opens anything of its own.
    pub(crate) fn receive(&self) -> ReceivedHandoff {
        ReceivedHandoff {
            from: self.from.clone(),
            run_dir: self.run_dir.clone(),
            started_at: self.started_at,
            began: Duration::from_millis(self.began_ms),
            left: Duration::from_millis(self.left_ms),
            failed: self.failed.clone(),
            sockets: InheritedSockets { control: take(self.control), admin: take(self.admin) },
            reconnect: take(self.reconnect),
            lock: take(self.lock),
            previous: take(self.previous).map(File::from),
        }
    }

    /// The descriptors that it names, and that have to stay open.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        [self.control, self.admin, self.reconnect, self.lock, self.previous].into_iter().flatten()
    }
}

/// Takes over a descriptor, which the children of this process are not to have.
fn take(number: Option<RawFd>) -> Option<OwnedFd> {
    let owned =
        descriptor::claim(number?).inspect_err(|error| log::warn!("{HANDOFF_VARIABLE}: {error}")).ok()?;
    match descriptor::set_inherited(owned.as_fd(), false) {
        Ok(()) => Some(owned),
        Err(error) => {
            log::warn!("{HANDOFF_VARIABLE}: descriptor {}: {error}", owned.as_raw_fd());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_newer_words_are_passed_over() {
        let handoff = Handoff { from: "1".to_owned(), control: Some(7), left_ms: 5, ..Handoff::default() };
        let mut text: serde_json::Value = serde_json::to_value(&handoff).unwrap();
        text["colour"] = "green".into();
        assert_eq!(Handoff::read(OsStr::new(&text.to_string())), Some(handoff));
        assert_eq!(Handoff::read(OsStr::new("7")), None);
    }

    #[test]
    fn descriptors_that_are_not_there_are_not_had() {
        let handoff =
            Handoff { control: Some(-1), admin: Some(1), reconnect: Some(1_000_000), ..Handoff::default() };
        let handoff = handoff.receive();
        assert!(handoff.sockets.control.is_none() && handoff.sockets.admin.is_none());
        assert!(handoff.reconnect.is_none() && handoff.lock.is_none() && handoff.previous.is_none());
    }
}
