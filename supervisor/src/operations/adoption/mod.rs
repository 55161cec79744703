//! Taking over the slots of a supervisor that is dead or was replaced. Their workers come to the reconnect
//! socket by themselves; here they are received, looked at, and waited for until every process that holds the
//! slots is accounted for. Kills nobody, and changes nothing: when it fails, the slots go on without a
//! supervisor.

mod examine;
mod gather;
mod hub;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::config::{Balance, Config};
use holdfast_shared::ipc::reconnect::ReconnectError;

use crate::cluster::Adopted;
use crate::cluster::listeners::{ListenError, Listeners};
use crate::cluster::state::State;
use crate::host::run_dir::RunDirError;
pub(crate) use gather::gather;
pub(crate) use hub::gather_hub;

/// How long the processes that hold slots may take to give them to us.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why slots could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The socket they come to.
    #[error(transparent)]
    Reconnect(#[from] ReconnectError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Some who hold slots did not come.
    #[error(
        "processes {holders} hold slots of {} and did not give them to this supervisor within {PATIENCE:?}: they \
         are stopped, keep dying, or are no workers of Holdfast. The log says what came instead, if anything. Look at \
         them with `ps -fp {holders}`; `kill -CONT {holders}` continues those that are stopped, `kill -9 {holders}` \
         ends them and cuts their clients. Then start again. Nothing was changed, the other slots go on serving",
        path.display()
    )]
    Missing {
        /// The run directory.
        path: PathBuf,
        /// Who they are.
        holders: String,
    },
    /// The lock is held, and by nobody who can be seen.
    #[error(
        "the slots of {} are held by processes that cannot be seen from here, in another container for example: \
         end those, or set another run_dir (--run-dir) and listen address",
        path.display()
    )]
    Hidden {
        /// The run directory.
        path: PathBuf,
    },
}

/// How many slots there are: those `wanted`, and more if more were adopted, which retire then.
pub(crate) fn slots(wanted: u16, adopted: &[Adopted]) -> u16 {
    let living = adopted.iter().map(|adopted| adopted.slot.0.saturating_add(1)).max().unwrap_or_default();
    living.max(wanted)
}

/// The listeners of the adopted slots, and new ones for those that are missing. They listen where they did,
/// whatever the configuration says now.
///
/// # Errors
/// When a new one cannot be made.
pub(crate) fn listeners(
    config: &Config,
    slots: u16,
    adopted: &mut [Adopted],
    state: &State,
) -> Result<Listeners, ListenError> {
    let addresses = adopted.first().map(|adopted| adopted.addresses.clone()).unwrap_or_default();
    let stands = |(wanted, is): (&SocketAddr, &SocketAddr)| {
        wanted.ip() == is.ip() && (wanted.port() == 0 || wanted.port() == is.port())
    };
    if config.listen.len() != addresses.len() || !config.listen.iter().zip(&addresses).all(stands) {
        log::warn!(
            "the adopted slots listen on {}, and go on doing so: listen = {} takes effect with the next clean start",
            list(&addresses),
            list(&config.listen)
        );
    }
    let sockets = adopted
        .iter_mut()
        .map(|adopted| (usize::from(adopted.slot.0), std::mem::take(&mut adopted.listeners)))
        .collect();
    let listeners = Listeners::adopt(&addresses, sockets, slots.into(), config.backlog, state.places())?;
    if listeners.places().is_none() && config.balance != Balance::Kernel {
        log::warn!(
            "several slots died while there was no supervisor, so which listener is whose cannot be told: the \
             kernel's hash chooses the workers of new clients until the next clean start"
        );
    }
    Ok(listeners)
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
