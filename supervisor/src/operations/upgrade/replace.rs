//! Executing another program in this process: same pid, same children, same arguments. exec closes what is not to
//! be inherited only when it succeeds, so up to that moment everything can go on as it was; what must stay open
//! across it (sockets that clients and slots come to, the run directory's lock) is left by number.

use std::env;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use holdfast_shared::clock::milliseconds;
use holdfast_shared::ipc::reconnect::ReconnectError;
use holdfast_shared::sys::descriptor;
use nix::errno::Errno;
use nix::unistd::fexecve;

use super::handoff::Failed;
pub(crate) use super::handoff::{Handoff, ReceivedHandoff};
use crate::host::launch::{HANDOFF_VARIABLE, Launch};

/// Why another program was not executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    /// The slots would have nowhere to come to.
    #[error(transparent)]
    Reconnect(#[from] ReconnectError),
    /// The service is to end, rather than to go on with another program.
    #[error("the service began to shut down")]
    Ending,
    /// Signals, descriptors.
    #[error("cannot {doing}: {source}")]
    Prepare { doing: &'static str, source: io::Error },
    /// A path or a variable with a zero byte in it.
    #[error("what it is given has a zero byte in it")]
    Zero(#[from] NulError),
    /// The handoff cannot be written.
    #[error("cannot write what it is left: {0}")]
    Handoff(#[from] serde_json::Error),
    /// The kernel does not.
    #[error(transparent)]
    Exec(#[from] Errno),
}

/// What an earlier program in this process has left, and how the process was started. To be called before
/// anything is opened.
pub(crate) fn receive() -> (Launch, Option<ReceivedHandoff>) {
    let handoff = env::var_os(HANDOFF_VARIABLE).and_then(|value| Handoff::read(&value));
    let launch = Launch::find(handoff.as_ref().map(|handoff| handoff.path.as_path()));
    let handoff = handoff.as_ref().map(Handoff::receive);
    (launch, handoff)
}

/// Lets the program that this one, of `version`, was executed in place of come back, since this one cannot start.
/// Returns if it cannot either.
pub(crate) fn go_back(launch: &Launch, handoff: ReceivedHandoff, version: &str, reason: String) {
    let ReceivedHandoff { from, run_dir, started_at, began, left, previous, .. } = handoff;
    let Some(previous) = previous else { return };
    log::error!("going back to version {from}: {reason}");
    let handoff = Handoff {
        from,
        path: launch.path.clone(),
        run_dir,
        started_at,
        began_ms: milliseconds(began),
        left_ms: milliseconds(left),
        failed: Some(Failed { to: version.to_owned(), reason }),
        ..Handoff::default()
    };
    let error = execute(&previous, launch, &handoff);
    log::error!("cannot go back to the program before: {error}");
}

/// Executes `program` with our arguments and `handoff`.
pub(crate) fn execute(program: &File, launch: &Launch, handoff: &Handoff) -> ExecuteError {
    match arguments(launch).and_then(|arguments| Ok((arguments, environment(handoff)?))) {
        Ok((arguments, environment)) => {
            let inherit = |inherited| {
                handoff.descriptors().try_for_each(|number| {
                    descriptor::with(number, |descriptor| descriptor::set_inherited(descriptor, inherited))?
                })
            };
            let doing = "leave descriptors open";
            if let Err(source) = inherit(true) {
                return ExecuteError::Prepare { doing, source };
            }
            let error = match fexecve(program, &arguments, &environment) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            match inherit(false) {
                Ok(()) => error.into(),
                Err(source) => ExecuteError::Prepare { doing, source },
            }
        }
        Err(error) => error,
    }
}

fn arguments(launch: &Launch) -> Result<Vec<CString>, ExecuteError> {
    let name = launch.path.as_os_str();
    let all = std::iter::once(name).chain(launch.arguments.iter().map(OsString::as_os_str));
    Ok(all.map(|argument| CString::new(argument.as_bytes())).collect::<Result<_, _>>()?)
}

fn environment(handoff: &Handoff) -> Result<Vec<CString>, ExecuteError> {
    let others = env::vars_os().filter(|(name, _)| name != HANDOFF_VARIABLE);
    let handoff = (OsString::from(HANDOFF_VARIABLE), OsString::from(serde_json::to_string(handoff)?));
    let entry = |(name, value): (OsString, OsString)| {
        CString::new([name.into_vec(), OsStr::new("=").as_bytes().to_vec(), value.into_vec()].concat())
    };
    Ok(others.chain([handoff]).map(entry).collect::<Result<_, _>>()?)
}
