//! A site: a service, its bounds, and the tasks that accept for it. Reads no byte of a client; `connection` does.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Bounds, Deadlines, Peer, Places, Service, connection};

/// Pause after a failed accept: EMFILE does not go away by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A bound, listening, nonblocking socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// What the connections of one site share; outlives its listener when that is replaced.
pub struct Site<V> {
    /// What the log calls it.
    pub name: &'static str,
    pub service: Arc<V>,
    pub bounds: Bounds,
    pub deadlines: Deadlines,
    pub places: Arc<Places>,
    /// Says when to end. The sender knows by its receivers whether anybody is left.
    pub stopping: watch::Receiver<bool>,
}

impl<V> Clone for Site<V> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            places: Arc::clone(&self.places),
            stopping: self.stopping.clone(),
            ..*self
        }
    }
}

impl<V: Service> Site<V> {
    /// A site without a listener.
    pub fn new(
        name: &'static str,
        service: V,
        bounds: Bounds,
        deadlines: Deadlines,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let places = Places::new(bounds.connections);
        Self { name, service: Arc::new(service), bounds, deadlines, places, stopping }
    }

    /// Serves `client`, or tells it that nobody can be spared a place.
    fn welcome(&self, client: Client) {
        let Some(place) = self.places.take() else { return client.turn_away(&self.full()) };
        let site = self.clone();
        tokio::spawn(async move {
            let peer = client.peer(site.name);
            match client {
                Client::Tcp(stream) => connection::serve(stream, peer, place, site).await,
                Client::Unix(stream) => connection::serve(stream, peer, place, site).await,
            }
        });
    }

    fn full(&self) -> Vec<u8> {
        let response = self.service.refuse(503, "too many connections; try again".to_owned());
        let body = response.into_body().into_inner().unwrap_or_default();
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close";
        let mut answer = format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(&body);
        answer
    }
}

impl Listener {
    /// The listener that `socket` is, whoever bound it.
    ///
    /// # Errors
    /// It is of another family, or cannot be made nonblocking.
    pub fn from_descriptor(socket: OwnedFd) -> io::Result<Self> {
        let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
        match name.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Some(AddressFamily::Unix) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// The task that accepts on one listener, or none.
pub struct Accepting(Option<JoinHandle<()>>);

impl Accepting {
    /// Accepts on `listener` for `site`; to be called within a runtime.
    ///
    /// # Errors
    /// The runtime does not take the listener.
    pub fn start<V: Service>(listener: Option<Listener>, site: &Site<V>) -> io::Result<Self> {
        let listener = match listener {
            None => return Ok(Self(None)),
            Some(Listener::Tcp(listener)) => Accepter::Tcp(TcpListener::from_std(listener)?),
            Some(Listener::Unix(listener)) => Accepter::Unix(UnixListener::from_std(listener)?),
        };
        Ok(Self(Some(tokio::spawn(accept(listener, site.clone())))))
    }

    /// Closes the listener; returns when it is closed.
    pub async fn end(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
            // The error says that it was aborted.
            let _ = task.await;
        }
    }
}

async fn accept<V: Service>(listener: Accepter, site: Site<V>) {
    loop {
        match listener.accept().await {
            Ok(client) => site.welcome(client),
            // Another listener takes this one's place.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                log::warn!("cannot accept on {}: {error}", site.name);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A listener in the runtime.
enum Accepter {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepter {
    async fn accept(&self) -> io::Result<Client> {
        Ok(match self {
            Self::Tcp(listener) => Client::Tcp(listener.accept().await?.0),
            Self::Unix(listener) => Client::Unix(listener.accept().await?.0),
        })
    }
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Client {
    fn peer(&self, site: &str) -> Peer {
        match self {
            Self::Tcp(stream) => {
                // An answer in two parts would wait for the acknowledgment of the first; without it it is only later.
                let _ = stream.set_nodelay(true);
                Peer::Address
            }
            Self::Unix(stream) => match stream.peer_cred() {
                Ok(peer) => Peer::Process { uid: peer.uid(), pid: peer.pid() },
                Err(error) => {
                    log::warn!("{site}: cannot tell who has connected: {error}");
                    Peer::Unknown
                }
            },
        }
    }

    /// Sends `answer` as far as the kernel takes it at once, and closes. A failure leaves the client with a closed
    /// connection, which says nearly as much.
    fn turn_away(self, answer: &[u8]) {
        let _ = match self {
            Self::Tcp(stream) => stream.into_std().and_then(|mut stream| stream.write_all(answer)),
            Self::Unix(stream) => stream.into_std().and_then(|mut stream| stream.write_all(answer)),
        };
    }
}
