//! `holdfast-floor`: the cost of the system calls alone, which no WebSocket server can go below.
//!
//! Processes with a listener each (SO_REUSEPORT) and edge-triggered epoll. The first bytes of a connection
//! are taken for an upgrade request and answered with a constant; all later bytes are sent back as they came,
//! frames unread. Only `holdfast-load` talks to it: the constant fits its one Sec-WebSocket-Key, and `echo
//! --raw` expects masked frames back.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

const EVENTS_PER_TURN: usize = 1024;
const BACKLOG: i32 = 65_535;
/// The epoll data of the listener; connections have their descriptor.
const LISTENER: u64 = u64::MAX;

/// Echoes bytes at the cost of the system calls alone; only for benchmarks.
#[derive(Parser)]
#[command(name = "holdfast-floor", version)]
struct Options {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Processes that serve
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    processes: u16,
    /// Bytes read at most in one system call
    #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
    buffer: usize,
    /// Serve in this process
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = if options.serve { serve(&options) } else { supervise(&options) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "holdfast-floor: {}: {error}", options.listen);
            ExitCode::FAILURE
        }
    }
}

/// Starts the processes, says where they listen, and waits for them.
fn supervise(options: &Options) -> io::Result<()> {
    // Holds the port: bound but not listening, it gets no connection.
    let holder = reuseport_socket(options.listen)?;
    let address = holder.local_addr()?.as_socket().unwrap_or(options.listen);
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..options.processes {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--serve", "--listen", &address.to_string(), "--buffer", &options.buffer.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        // It writes a byte when it listens.
        child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut [0])?;
        children.push(child);
    }
    writeln!(io::stdout(), "listening on {address}")?;
    io::stdout().flush()?;
    for child in &mut children {
        child.wait()?;
    }
    Ok(())
}

fn reuseport_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn serve(options: &Options) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let socket = reuseport_socket(options.listen)?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into());
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(&listener, EpollEvent::new(readable, LISTENER))?;
    io::stdout().write_all(b"\n")?;
    let mut connections = Connections::default();
    let mut events = vec![EpollEvent::empty(); EVENTS_PER_TURN];
    let mut buffer = vec![0; options.buffer.max(1)];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        for event in &events[..count] {
            match usize::try_from(event.data()) {
                Ok(descriptor) if event.data() != LISTENER => connections.ready(descriptor, &mut buffer),
                _ => connections.accept(&listener, &epoll)?,
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    upgraded: bool,
    /// What the socket did not take; nothing is read until it has.
    unsent: Vec<u8>,
}

/// By descriptor.
#[derive(Default)]
struct Connections(Vec<Option<Connection>>);

impl Connections {
    fn accept(&mut self, listener: &TcpListener, epoll: &Epoll) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let descriptor = usize::try_from(stream.as_raw_fd()).unwrap_or_default();
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            epoll.add(&stream, EpollEvent::new(interest, descriptor as u64))?;
            if self.0.len() <= descriptor {
                self.0.resize_with(descriptor + 1, || None);
            }
            self.0[descriptor] = Some(Connection { stream, upgraded: false, unsent: Vec::new() });
        }
    }

    fn ready(&mut self, descriptor: usize, buffer: &mut [u8]) {
        if let Some(place) = self.0.get_mut(descriptor) {
            let open = place.as_mut().is_some_and(|connection| connection.turn(buffer).unwrap_or(false));
            if !open {
                *place = None;
            }
        }
    }
}

impl Connection {
    /// One receive and one send, more only while the receive fills the buffer. Whether the connection is
    /// still open.
    fn turn(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        while self.flush()? {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let reply = if self.upgraded { &buffer[..count] } else { UPGRADED };
            self.upgraded = true;
            let sent = match self.stream.write(reply) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            self.unsent.extend_from_slice(&reply[sent..]);
            if count < buffer.len() && self.unsent.is_empty() {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Whether everything has gone.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
