//! Signals as readiness. Handlers only note; the loop acts.

use std::io;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals as Pending;

const TAKEN: [i32; 6] = [SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2];

/// The signals this process takes.
pub struct Signals(Pending);

impl Signals {
    /// Takes them over from their defaults.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install() -> io::Result<Self> {
        let signals = Self(Pending::new(TAKEN)?);
        // Whoever executed this program in its own place has blocked them until here.
        taken().thread_unblock()?;
        Ok(signals)
    }

    /// Those that have come since the last call.
    pub(crate) fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

/// Keeps back all signals this process takes: for those that come while there is no handler to note them. A
/// blocked signal stays pending across exec.
///
/// # Errors
/// What the kernel says.
pub fn block() -> io::Result<()> {
    Ok(taken().thread_block()?)
}

/// Lets those through that were kept back.
///
/// # Errors
/// What the kernel says.
pub fn unblock() -> io::Result<()> {
    Ok(taken().thread_unblock()?)
}

fn taken() -> SigSet {
    TAKEN.into_iter().filter_map(|signal| Signal::try_from(signal).ok()).collect()
}

impl Source for Signals {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}
