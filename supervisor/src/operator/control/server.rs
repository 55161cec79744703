//! The thread's runtime: accepts on both listeners, bounds the connections of each, swaps the admin listener,
//! ends. Reads no byte of a client; `connection` does.

use std::future::Future;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::connection::{self, Access};
use super::routes::{Loop, Routes};

/// Open connections per listener; one more gets 503 and is closed.
pub const MAX_CONNECTIONS: u32 = 64;

/// How long answers on their way may take to be read once the thread is to end.
const GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed accept: EMFILE does not go away by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    content-length: 43\r\nconnection: close\r\n\r\n{\"error\":\"too many connections; try again\"}";

/// How long a client may take over each part of an exchange, and the loop over an answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the connection, or the end of the last answer, to the end of a request head.
    pub head: Duration,
    /// From the head to the end of the body.
    pub body: Duration,
    /// Without reading anything of an answer.
    pub write: Duration,
    /// For the loop instead of [`crate::api::Command::deadline`].
    pub answer: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        let patience = Duration::from_secs(10);
        Self { head: patience, body: patience, write: patience, answer: None }
    }
}

/// What the supervisor tells the thread.
#[derive(Debug)]
pub enum Message {
    /// Serve this admin listener instead of the present one, which listens no more.
    Admin(Option<std::net::TcpListener>),
    /// Finish what is being answered and end.
    Stop,
}

/// The thread's state.
pub struct Server {
    runtime: Runtime,
    control: UnixListener,
    admin: Option<TcpListener>,
    control_site: Site,
    admin_site: Site,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Takes over bound, nonblocking listeners; to be run in a thread of its own.
    pub fn new(
        control: std::os::unix::net::UnixListener,
        admin: Option<std::net::TcpListener>,
        supervisor: &Loop,
        deadlines: Deadlines,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (control, admin) = {
            let _context = runtime.enter();
            (UnixListener::from_std(control)?, admin.map(TcpListener::from_std).transpose()?)
        };
        let (stopping, watcher) = watch::channel(false);
        let site = |routes| Site {
            routes: Arc::new(routes),
            deadlines,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS as usize)),
            stopping: watcher.clone(),
        };
        let control_site = site(Routes::control(supervisor.clone()));
        let admin_site = site(Routes::admin(supervisor.clone()));
        Ok(Self { runtime, control, admin, control_site, admin_site, stopping })
    }

    /// Serves until told to stop, or until the supervisor's handle is dropped.
    pub fn run(self, mut inbox: UnboundedReceiver<Message>) {
        let Self { runtime, control, admin, control_site, admin_site, stopping } = self;
        runtime.block_on(async move {
            let mut accepting_control = Accepting::start(Some(control), &control_site);
            let mut accepting_admin = Accepting::start(admin, &admin_site);
            while let Some(Message::Admin(listener)) = inbox.recv().await {
                accepting_admin.end().await;
                match listener.map(TcpListener::from_std).transpose() {
                    Ok(listener) => accepting_admin = Accepting::start(listener, &admin_site),
                    Err(error) => log::error!("cannot serve the new admin address: {error}"),
                }
            }
            accepting_control.end().await;
            accepting_admin.end().await;
            // Only fails without connections to tell.
            let _ = stopping.send(true);
            // Whoever has not read their answer by then will not get it.
            let _ = tokio::time::timeout(GRACE, async {
                control_site.empty().await;
                admin_site.empty().await;
            })
            .await;
        });
    }
}

/// What the connections of one listener share; outlives the listener when that is replaced.
#[derive(Clone)]
struct Site {
    routes: Arc<Routes>,
    deadlines: Deadlines,
    places: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl Site {
    fn welcome<C: Client>(&self, client: C) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return client.turn_away(TOO_MANY);
        };
        let access = client.access();
        let Self { routes, deadlines, stopping, .. } = self.clone();
        tokio::spawn(async move {
            connection::serve(client, access, routes, deadlines, stopping).await;
            drop(place);
        });
    }

    /// Waits until every connection has ended.
    async fn empty(&self) {
        // Only fails if the semaphore is closed, which nobody does.
        let _ = self.places.acquire_many(MAX_CONNECTIONS).await;
    }
}

/// The task that accepts on one listener, or none.
struct Accepting(Option<JoinHandle<()>>);

impl Accepting {
    fn start<L: Listener>(listener: Option<L>, site: &Site) -> Self {
        Self(listener.map(|listener| tokio::spawn(accept(listener, site.clone()))))
    }

    /// Closes the listener; returns when it is closed.
    async fn end(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
            // The error says that it was aborted.
            let _ = task.await;
        }
    }
}

async fn accept<L: Listener>(listener: L, site: Site) {
    loop {
        match listener.accept().await {
            Ok(client) => site.welcome(client),
            // Another listener takes this one's place.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                log::warn!("cannot accept on {}: {error}", L::NAME);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

trait Listener: Send + Sync + 'static {
    const NAME: &'static str;
    type Client: Client;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Client>> + Send;
}

impl Listener for UnixListener {
    const NAME: &'static str = "the control socket";
    type Client = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    const NAME: &'static str = "the admin address";
    type Client = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

trait Client: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What this client may do here.
    fn access(&self) -> Access;
    /// Sends `answer` as far as the kernel takes it at once, and closes.
    fn turn_away(self, answer: &[u8]);
}

impl Client for UnixStream {
    fn access(&self) -> Access {
        // SO_PEERCRED: the credentials of connect(2), which the peer cannot forge.
        match self.peer_cred() {
            Ok(peer) => Access::of_peer(peer.uid(), peer.pid(), nix::unistd::geteuid().as_raw()),
            Err(error) => {
                log::warn!("control socket: cannot tell who has connected, so they are refused: {error}");
                Access::Nothing
            }
        }
    }

    fn turn_away(self, answer: &[u8]) {
        // A failure leaves the client with a closed connection, which says nearly as much.
        let _ = self.into_std().and_then(|mut stream| stream.write_all(answer));
    }
}

impl Client for TcpStream {
    fn access(&self) -> Access {
        Access::Reads
    }

    fn turn_away(self, answer: &[u8]) {
        let _ = self.into_std().and_then(|mut stream| stream.write_all(answer));
    }
}
