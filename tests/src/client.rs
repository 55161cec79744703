//! Blocking clients for one connection: raw bytes for everything that is wrong, tungstenite for everything
//! that is right.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::JoinHandle;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tungstenite::WebSocket;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::WebSocketConfig;

use crate::PATIENCE;
use crate::frame::{self, Frame};
use crate::handshake;
pub use crate::handshake::ACCEPT;
use crate::http::Response;

const PING_FRAME: u8 = frame::FIN | frame::PING;
const TEXT_MESSAGE: u8 = frame::FIN | frame::TEXT;
const BINARY_MESSAGE: u8 = frame::FIN | frame::BINARY;

/// An upgrade request for `/` with `extra` header lines, each ended by CRLF.
#[must_use]
pub fn upgrade_request(extra: &str) -> Vec<u8> {
    handshake::request("holdfast.test", "/", extra)
}

/// The `n`-th loopback address from 127.0.0.2 on: as many client addresses as a test wants.
#[must_use]
pub fn loopback(n: u16) -> IpAddr {
    let [high, low] = (n + 2).to_be_bytes();
    IpAddr::from([127, 0, high, low])
}

/// A blocking, unconnected socket for `server`. One bound to `source` leaves the choice of a port to connect time:
/// otherwise bind takes one of its own at once, and all destinations share 28,232 of them (ip(7)).
///
/// # Errors
/// When the descriptors run out or the address is not ours.
pub(crate) fn socket_from(source: Option<IpAddr>, server: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source {
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// How a server ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// End of file, after these bytes.
    Closed(Vec<u8>),
    /// A reset, after these bytes.
    Reset(Vec<u8>),
}

/// One TCP connection and what it has read ahead.
pub struct RawClient {
    stream: TcpStream,
    buffered: Vec<u8>,
}

impl RawClient {
    /// Connects to `server` from 127.0.0.1.
    ///
    /// # Panics
    /// When nobody accepts.
    #[must_use]
    pub fn connect(server: SocketAddr) -> Self {
        Self::connect_from(IpAddr::from([127, 0, 0, 1]), server)
    }

    /// Connects to `server` from `source`.
    ///
    /// # Panics
    /// When nobody accepts.
    #[must_use]
    pub fn connect_from(source: IpAddr, server: SocketAddr) -> Self {
        let socket = socket_from(Some(source), server).expect("a socket");
        socket.connect(&server.into()).unwrap_or_else(|error| panic!("connect to {server}: {error}"));
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("set a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("set a write timeout");
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        Self { stream, buffered: Vec::new() }
    }

    /// Connects and upgrades.
    ///
    /// # Panics
    /// When the answer is not 101.
    #[must_use]
    pub fn open(server: SocketAddr) -> Self {
        Self::open_from(IpAddr::from([127, 0, 0, 1]), server)
    }

    /// Connects from `source` and upgrades.
    ///
    /// # Panics
    /// When the answer is not 101.
    #[must_use]
    pub fn open_from(source: IpAddr, server: SocketAddr) -> Self {
        let mut client = Self::connect_from(source, server);
        assert_eq!(client.upgrade("").status, 101);
        client
    }

    /// Sends an upgrade request with `extra` header lines and returns the answer.
    ///
    /// # Panics
    /// When the connection ends before a complete answer.
    pub fn upgrade(&mut self, extra: &str) -> Response {
        self.send(&upgrade_request(extra)).expect("send the upgrade request");
        self.response()
    }

    /// The client's end of the connection.
    ///
    /// # Panics
    /// When the socket has none any more.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// When the server has closed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends `message` again and again from another thread, until the server closes.
    ///
    /// # Panics
    /// When there is no descriptor for the second handle.
    pub fn keep_sending(&self, message: Vec<u8>) -> JoinHandle<()> {
        self.send_all(std::iter::repeat(message))
    }

    /// Sends these messages from another thread, or those until the server closes.
    ///
    /// # Panics
    /// When there is no descriptor for the second handle.
    pub fn send_all(&self, mut messages: impl Iterator<Item = Vec<u8>> + Send + 'static) -> JoinHandle<()> {
        let mut stream = self.stream.try_clone().expect("a second handle of the socket");
        std::thread::spawn(move || {
            let _ = messages.all(|message| stream.write_all(&message).is_ok());
        })
    }

    /// No more will be sent: the server sees end of file.
    pub fn finish_sending(&self) {
        // The server may have reset the connection, which ends it just as well.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads one HTTP response.
    ///
    /// # Panics
    /// When the connection ends before it is complete.
    pub fn response(&mut self) -> Response {
        self.read_one("an HTTP response", Response::parse)
    }

    /// Reads one frame.
    ///
    /// # Panics
    /// When the connection ends before it is complete.
    pub fn frame(&mut self) -> Frame {
        self.read_one("a frame", Frame::parse)
    }

    /// As [`frame`](Self::frame), from a server that may end the connection: `None` then.
    ///
    /// # Panics
    /// When neither comes, as long as patience lasts.
    pub fn frame_or_end(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, length)) = Frame::parse(&self.buffered) {
                self.buffered.drain(..length);
                return Some(frame);
            }
            match self.fill() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error} before a frame"),
            }
        }
    }

    /// Reads one unfragmented data message and returns its payload, answering pings on the way: the server
    /// may ping at any time.
    ///
    /// # Panics
    /// When something else comes, or the connection ends before it.
    pub fn message(&mut self) -> Vec<u8> {
        loop {
            let frame = self.frame();
            match frame.first {
                PING_FRAME => self.pong(&frame.payload),
                TEXT_MESSAGE | BINARY_MESSAGE => return frame.payload,
                _ => panic!("no message, but {frame:?}"),
            }
        }
    }

    /// Sends a text message and checks that it comes back.
    ///
    /// # Panics
    /// When something else comes, or the connection ends before it.
    pub fn assert_echoes(&mut self, text: &[u8]) {
        self.send(&frame::masked(TEXT_MESSAGE, text)).expect("send a message");
        assert_eq!(self.message(), text);
    }

    /// Reads frames up to and including the close frame, answering pings, and returns the close code and
    /// reason.
    ///
    /// # Panics
    /// When the connection ends without one.
    pub fn close_frame(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame();
            match frame.opcode() {
                frame::CLOSE => {
                    let reason = frame.payload.get(2..).unwrap_or_default();
                    return (frame.close_code(), String::from_utf8_lossy(reason).into_owned());
                }
                frame::PING => self.pong(&frame.payload),
                _ => {}
            }
        }
    }

    /// Reads until the server ends the connection.
    ///
    /// # Panics
    /// When it does not, as long as patience lasts.
    pub fn ending(&mut self) -> Ending {
        loop {
            match self.fill() {
                Ok(0) => return Ending::Closed(std::mem::take(&mut self.buffered)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ending::Reset(std::mem::take(&mut self.buffered));
                }
                Err(error) => panic!("the server neither answers nor closes: {error}"),
            }
        }
    }

    fn pong(&mut self, payload: &[u8]) {
        // The server may be gone already; the next read says so.
        let _ = self.send(&frame::masked(frame::FIN | frame::PONG, payload));
    }

    fn read_one<T>(&mut self, what: &str, parse: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        loop {
            if let Some((value, length)) = parse(&self.buffered) {
                self.buffered.drain(..length);
                return value;
            }
            match self.fill() {
                Ok(0) => panic!("closed before {what}, after {:?}", String::from_utf8_lossy(&self.buffered)),
                Ok(_) => {}
                Err(error) => {
                    panic!("{error} before {what}, after {:?}", String::from_utf8_lossy(&self.buffered))
                }
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let length = self.stream.read(&mut chunk)?;
        self.buffered.extend_from_slice(&chunk[..length]);
        Ok(length)
    }
}

/// A tungstenite client of `server` that takes messages of any size.
///
/// # Panics
/// When it does not get in.
#[must_use]
pub fn websocket(server: SocketAddr) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(server).unwrap_or_else(|error| panic!("connect to {server}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("set a read timeout");
    let request = format!("ws://{server}/").into_client_request().expect("a valid URL");
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let (socket, _) =
        tungstenite::client::client_with_config(request, stream, Some(config)).expect("an upgrade");
    socket
}
