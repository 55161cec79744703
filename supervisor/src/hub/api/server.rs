//! The thread of the API: its two sites, the listener and the keys that it can get anew, its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http::StatusCode;
use mio::Waker;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

use super::call::{Inbox, Line};
use super::data::MAX_DATA;
use super::keys::Keys;
use super::routes::{Guard, Routes};
use crate::host::http::{Accepting, Bounds, Deadlines, Listener, Site};

/// What clients of the API address may take. A message of the greatest length fits, in base64 too.
pub const BOUNDS: Bounds = Bounds { connections: 1024, head: 16 * 1024, body: 2 * MAX_DATA };

/// What those of the local socket may.
const LOCAL_BOUNDS: Bounds = Bounds { connections: 64, ..BOUNDS };

/// Each connection asks one thing at a time.
const QUEUE: usize = BOUNDS.connections + LOCAL_BOUNDS.connections;

/// How long answers on their way may take to be read once the thread is to end.
const GRACE: Duration = Duration::from_secs(1);

/// What the hub tells the thread.
#[derive(Debug)]
enum Message {
    /// Serve this listener instead of the present one.
    Listen(Option<Listener>),
    /// The same, for the own user.
    ListenLocal(Listener),
    /// Finish what is being answered and end.
    Stop,
}

/// Requests since the start, by what became of them.
#[derive(Debug, Default)]
pub struct Counts {
    succeeded: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    pub(super) fn add(&self, status: StatusCode) {
        let count = match status.as_u16() {
            ..400 => &self.succeeded,
            400..500 => &self.refused,
            500.. => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Each with its name in metrics.
    #[must_use]
    pub fn read(&self) -> [(&'static str, u64); 3] {
        [("succeeded", &self.succeeded), ("refused", &self.refused), ("failed", &self.failed)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

/// The hub's handle on the API. Only [`Server::stop`] waits for the thread.
#[derive(Debug)]
pub struct Server {
    messages: UnboundedSender<Message>,
    keys: watch::Sender<Keys>,
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts serving: on `local` whoever is of our user, on `public`, if there is one, whoever shows one of `keys`.
    /// Calls arrive at the inbox; `waker` wakes the loop that reads it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        local: Listener,
        public: Option<Listener>,
        keys: Keys,
        waker: Arc<Waker>,
    ) -> io::Result<(Self, Inbox)> {
        Self::start_with(local, public, keys, waker, Deadlines::default())
    }

    pub(super) fn start_with(
        local: Listener,
        public: Option<Listener>,
        keys: Keys,
        waker: Arc<Waker>,
        deadlines: Deadlines,
    ) -> io::Result<(Self, Inbox)> {
        let (line, inbox) = Line::new(QUEUE, waker, deadlines.answer);
        let (keys, current_keys) = watch::channel(keys);
        let (messages, received) = tokio::sync::mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let routes = |guard| Routes { guard, line: line.clone(), counts: Arc::clone(&counts) };
        let (local_routes, public_routes) = (routes(Guard::OwnUser), routes(Guard::Keys(current_keys)));
        let sites = Sites::new((local, local_routes), (public, public_routes), deadlines)?;
        let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || sites.run(received))?;
        Ok((Self { messages, keys, counts, thread }, inbox))
    }

    /// From now on these keys are the right ones, on open connections too.
    pub fn set_keys(&self, keys: Keys) {
        self.keys.send_replace(keys);
    }

    /// Serves `listener` instead of the present one; connections that are open stay.
    pub fn set_listener(&self, listener: Option<Listener>) {
        if self.messages.send(Message::Listen(listener)).is_err() {
            log::warn!("the thread of the API had already ended");
        }
    }

    /// Serves the own user on `listener` instead of the present one, which the next supervisor has replaced.
    pub fn set_local_listener(&self, listener: Listener) {
        if self.messages.send(Message::ListenLocal(listener)).is_err() {
            log::warn!("the thread of the API had already ended");
        }
    }

    /// What became of requests so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes nothing new, lets answers on their way be read for at most a second, and ends the thread. Whoever calls it
    /// answers before, or drops, the calls it has.
    pub fn stop(self) {
        let _ = self.messages.send(Message::Stop);
        if self.thread.join().is_err() {
            log::warn!("the thread of the API had panicked");
        }
    }
}

/// The thread's state.
struct Sites {
    runtime: Runtime,
    local: Accepting,
    public: Accepting,
    local_site: Site<Routes>,
    public_site: Site<Routes>,
    stopping: watch::Sender<bool>,
}

impl Sites {
    fn new(
        (local, local_routes): (Listener, Routes),
        (public, public_routes): (Option<Listener>, Routes),
        deadlines: Deadlines,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stopping, watcher) = watch::channel(false);
        let local_site =
            Site::new("the socket of the API", local_routes, LOCAL_BOUNDS, deadlines, watcher.clone());
        let public_site = Site::new("the API address", public_routes, BOUNDS, deadlines, watcher);
        let (local, public) = {
            let _context = runtime.enter();
            (Accepting::start(Some(local), &local_site)?, Accepting::start(public, &public_site)?)
        };
        Ok(Self { runtime, local, public, local_site, public_site, stopping })
    }

    /// Serves until told to stop, or until the hub's handle is dropped.
    fn run(self, mut received: UnboundedReceiver<Message>) {
        let Self { runtime, mut local, mut public, local_site, public_site, stopping } = self;
        runtime.block_on(async move {
            loop {
                let (accepting, listener, site) = match received.recv().await {
                    Some(Message::Listen(listener)) => (&mut public, listener, &public_site),
                    Some(Message::ListenLocal(listener)) => (&mut local, Some(listener), &local_site),
                    Some(Message::Stop) | None => break,
                };
                accepting.end().await;
                match Accepting::start(listener, site) {
                    Ok(started) => *accepting = started,
                    Err(error) => log::error!("cannot serve {} anew: {error}", site.name),
                }
            }
            local.end().await;
            public.end().await;
            drop((local_site, public_site));
            // Only fails without connections to tell.
            let _ = stopping.send(true);
            let _ = tokio::time::timeout(GRACE, stopping.closed()).await;
        });
    }
}
