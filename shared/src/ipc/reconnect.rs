//! How a slot without a supervisor finds the next one: a SEQPACKET socket in the run directory, there only
//! while a supervisor adopts. Both ends make sure that the other belongs to the same user. What is said on it
//! is a link's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Pid, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

/// Name of the socket in the run directory.
pub const SOCKET_NAME: &str = "supervisor.sock";

/// The longest path of a run directory. A socket's path has at most 107 bytes and a terminating zero (unix(7),
/// `sun_path`), and this socket's name is the longest there.
pub const MAX_RUN_DIR_BYTES: usize = 107 - 1 - SOCKET_NAME.len();

/// Slots that may wait to be accepted; more try again.
const BACKLOG: i32 = 64;

/// Why the two did not find each other.
#[derive(Debug, thiserror::Error)]
pub enum ReconnectError {
    #[error(
        "cannot make {}: {source}; run_dir must be writable and its path short (at most {MAX_RUN_DIR_BYTES} bytes)",
        path.display()
    )]
    Bind { path: PathBuf, source: io::Error },
    #[error("cannot connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("cannot accept on {SOCKET_NAME}: {0}")]
    Accept(#[source] io::Error),
    #[error("process {pid} at the other end of {SOCKET_NAME} belongs to user {user}, not to ours")]
    Stranger { pid: Pid, user: u32 },
}

/// The supervisor's side.
#[derive(Debug)]
pub struct ReconnectListener {
    socket: Socket,
    path: PathBuf,
}

impl ReconnectListener {
    /// Makes the socket in `run_dir`, in place of one that a dead supervisor may have left. The caller holds
    /// the directory's lock.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, ReconnectError> {
        Self::open_named(run_dir, SOCKET_NAME)
    }

    /// As [`open`](Self::open), by another name, which is no longer.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open_named(run_dir: &Path, name: &str) -> Result<Self, ReconnectError> {
        let path = run_dir.join(name);
        match bind(&path) {
            Ok(socket) => Ok(Self { socket, path }),
            Err(source) => Err(ReconnectError::Bind { path, source }),
        }
    }

    /// The socket that an earlier program in this process has opened in `run_dir`.
    #[must_use]
    pub fn inherit(socket: OwnedFd, run_dir: &Path) -> Self {
        Self { socket: socket.into(), path: run_dir.join(SOCKET_NAME) }
    }

    /// The next one that connected, if any, and its process.
    ///
    /// # Errors
    /// When it is another user's, or cannot be accepted.
    pub fn accept(&self) -> Result<Option<(OwnedFd, Pid)>, ReconnectError> {
        match self.socket.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true).map_err(ReconnectError::Accept)?;
                let pid = known(socket.as_fd(), ReconnectError::Accept)?;
                Ok(Some((socket.into(), pid)))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(ReconnectError::Accept(error)),
        }
    }
}

impl AsFd for ReconnectListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ReconnectListener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The slot's side: connects at once or not at all, never waits.
///
/// # Errors
/// When nobody is there, or somebody else's process.
pub fn connect(path: &Path) -> Result<OwnedFd, ReconnectError> {
    let cannot = |source| ReconnectError::Connect { path: path.to_owned(), source };
    let attempt = || {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    let socket = attempt().map_err(cannot)?;
    known(socket.as_fd(), cannot)?;
    Ok(socket.into())
}

fn bind(path: &Path) -> io::Result<Socket> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before it listens, so nobody can in between.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The process at the other end, if it is our own user's.
fn known(
    socket: BorrowedFd<'_>,
    cannot: impl Fn(io::Error) -> ReconnectError,
) -> Result<Pid, ReconnectError> {
    let peer = getsockopt(&socket, PeerCredentials).map_err(|error: Errno| cannot(error.into()))?;
    let pid = Pid::from_raw(peer.pid());
    if peer.uid() == geteuid().as_raw() {
        Ok(pid)
    } else {
        Err(ReconnectError::Stranger { pid, user: peer.uid() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_connect_while_it_is_open_and_only_then() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(SOCKET_NAME);
        fs::write(&path, "left by somebody").unwrap();
        assert!(matches!(connect(&path), Err(ReconnectError::Connect { .. })));
        let listener = ReconnectListener::open(place.path()).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let _slot = connect(&path).unwrap();
        let (_, pid) = listener.accept().unwrap().unwrap();
        assert_eq!(pid, nix::unistd::getpid());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(connect(&path).unwrap_err().to_string().contains(SOCKET_NAME));
        assert!(!path.exists());
    }
}
