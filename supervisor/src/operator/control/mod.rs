//! The HTTP side of the supervisor: the control socket (everything, for the operator) and the admin address
//! (reads, for monitoring). One thread with its own runtime; it holds no state that matters and decides
//! nothing.
//!
//! ```text
//! client -> host::http -> routes -> Request -> bounded channel + Waker -> the supervisor's loop
//! client <- host::http <- routes <- oneshot <----------------- Reply::send -----------'
//! ```
//!
//! Whatever clients do here (stall, flood, send garbage, go away) costs this thread at most
//! what [`server::BOUNDS`] says for each listener and the loop at most [`QUEUE`] requests.

mod access;
mod bind;
mod routes;
mod server;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;

pub use bind::{Sockets, socket_path};

use holdfast_shared::ipc::reconnect::MAX_RUN_DIR_BYTES;

use crate::api::Request;
use crate::host::http::Deadlines;
use bind::bind_admin;
use routes::Loop;
use server::{Message, Server};

/// Requests that may wait for the loop; the next one is answered 503.
pub const QUEUE: usize = 64;

/// Why the HTTP side could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot make the control socket {}: {source}; run_dir must be writable and its path short (at most {MAX_RUN_DIR_BYTES} bytes)",
        path.display()
    )]
    BindControl { path: PathBuf, source: io::Error },
    #[error(
        "cannot listen on the admin address {address}: {source}; set admin.listen to a free address, or to \"\" for none"
    )]
    BindAdmin { address: SocketAddr, source: io::Error },
    #[error("cannot start the control thread: {0}")]
    Start(#[source] io::Error),
    #[error("the control thread cannot change the admin address: {0}")]
    Rebind(#[source] io::Error),
}

/// The supervisor's handle on the HTTP side. Only [`Control::stop`] waits for the thread.
#[derive(Debug)]
pub struct Control {
    sockets: Sockets,
    messages: tokio::sync::mpsc::UnboundedSender<Message>,
    thread: JoinHandle<()>,
    /// Said by the thread, just before it ends.
    has_left: Arc<AtomicBool>,
    /// As bound.
    admin: Option<SocketAddr>,
}

impl Control {
    /// Starts serving `sockets`. Requests arrive at the receiver; after each one `waker` wakes the loop that
    /// reads it. `version` is what visitors are told.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        sockets: Sockets,
        waker: Arc<Waker>,
        version: &'static str,
    ) -> Result<(Self, Receiver<Request>), Error> {
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
        Ok((Self::start_with(sockets, sender, waker, version, Deadlines::default())?, receiver))
    }

    fn start_with(
        sockets: Sockets,
        requests: Sender<Request>,
        waker: Arc<Waker>,
        version: &'static str,
        deadlines: Deadlines,
    ) -> Result<Self, Error> {
        let (control, listener) = sockets.copies().map_err(Error::Start)?;
        let bound = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(Error::Start)?;
        let (messages, inbox) = tokio::sync::mpsc::unbounded_channel();
        let has_left = Arc::new(AtomicBool::new(false));
        let (leaving, left) = (Arc::clone(&waker), Arc::clone(&has_left));
        let supervisor = Loop::new(requests, waker, version, deadlines.answer);
        let server = Server::new(control, listener, &supervisor, deadlines).map_err(Error::Start)?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                server.run(inbox);
                left.store(true, Ordering::Release);
                // Whoever waits looks again in time anyway.
                let _ = leaving.wake();
            })
            .map_err(Error::Start)?;
        Ok(Self { sockets, messages, thread, has_left, admin: bound })
    }

    /// Starts again after [`Control::leave`]; clients who came meanwhile are served.
    ///
    /// # Errors
    /// The thread cannot be started; nobody is served then.
    pub fn start_again(
        &mut self,
        waker: Arc<Waker>,
        version: &'static str,
    ) -> Result<Receiver<Request>, Error> {
        let (control, admin) = self.sockets.copies().map_err(Error::Start)?;
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
        let sockets = Sockets::of(control, admin, self.sockets.wanted());
        *self = Self::start_with(sockets, sender, waker, version, Deadlines::default())?;
        Ok(receiver)
    }

    /// The listening sockets.
    #[must_use]
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Where the admin side listens, with the real port.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Moves the admin side to another address, or turns it off. Returns where it listens now.
    /// The new listener is bound before the old one closes, except where both want the same port and so
    /// exclude each other (127.0.0.1:8404 to 0.0.0.0:8404); then the old one closes first and comes back
    /// if the new one fails. Waits for nobody.
    ///
    /// # Errors
    /// The new address cannot be bound; the old one stays.
    pub fn rebind(&mut self, wanted: Option<SocketAddr>) -> Result<Option<SocketAddr>, Error> {
        if wanted == self.sockets.wanted() {
            return Ok(self.admin);
        }
        let listener = match wanted {
            None => None,
            Some(address) => match bind_admin(address) {
                Err(Error::BindAdmin { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && self.holds_port(address.port()) =>
                {
                    Some(self.bind_instead(address)?)
                }
                bound => Some(bound?),
            },
        };
        self.serve_admin(listener)?;
        self.sockets.set_wanted(wanted);
        Ok(self.admin)
    }

    /// Tells the thread to take nothing new, and to end when answers on their way are read or a second has
    /// passed. The sockets go on listening: whoever comes waits.
    pub fn leave(&self) {
        if self.messages.send(Message::Stop).is_err() {
            log::warn!("the control thread had already ended");
        }
    }

    /// Whether the thread has ended, after [`Control::leave`]; the waker is woken when it does.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Acquire)
    }

    /// As [`Control::leave`], waits until the thread has ended, and closes the sockets.
    pub fn stop(self) {
        self.leave();
        if self.thread.join().is_err() {
            log::warn!("the control thread had panicked");
        }
    }

    fn holds_port(&self, port: u16) -> bool {
        self.admin.is_some_and(|old| old.port() == port)
    }

    fn bind_instead(&mut self, address: SocketAddr) -> Result<TcpListener, Error> {
        let old = self.admin;
        self.serve_admin(None)?;
        bind_admin(address).inspect_err(|_| {
            let restored = old.map(bind_admin).transpose().and_then(|listener| self.serve_admin(listener));
            if let Err(error) = restored {
                log::error!("the old admin address is lost too: {error}");
            }
        })
    }

    /// Serves `listener` instead of the present one, which listens no more when this returns, whenever the thread
    /// closes its copy.
    fn serve_admin(&mut self, listener: Option<TcpListener>) -> Result<(), Error> {
        let bound = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(Error::Rebind)?;
        let ours = listener.as_ref().map(TcpListener::try_clone).transpose().map_err(Error::Rebind)?;
        self.sockets.set_admin(ours);
        // A thread that has ended is started again with what the sockets are then.
        let _ = self.messages.send(Message::Admin(listener));
        self.admin = bound;
        Ok(())
    }
}
