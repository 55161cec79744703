//! The sockets that the API listens on.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::{fs, io};

use holdfast_shared::config::ApiListen;
use socket2::{Domain, Socket, Type};

/// The local socket of the API, in the run directory.
pub const LOCAL_SOCKET: &str = "api.sock";

/// Applications that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Who may be at a place already where the API is to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Whoever is there is a stranger, and it is an error.
    Strangers,
    /// The hub of an earlier supervisor holds its socket there, until it gets the next.
    OurHub,
}

/// The API cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on api.listen {place}: {source}; set it to a free address, or to \"\" for off")]
pub struct ApiListenError {
    place: String,
    source: io::Error,
}

/// Listens where the API is to; `None` if nowhere.
///
/// # Errors
/// What the kernel says.
pub fn listen(listen: &ApiListen, others: Others) -> Result<Option<OwnedFd>, ApiListenError> {
    let failed = |place: String| move |source| ApiListenError { place, source };
    match listen {
        ApiListen::Off => Ok(None),
        ApiListen::Address(address) => {
            bind_tcp(*address, others).map(Some).map_err(failed(address.to_string()))
        }
        ApiListen::Unix(path) => {
            bind_unix(path, 0o660, others).map(Some).map_err(failed(path.display().to_string()))
        }
    }
}

/// Each of our sockets allows another of ours beside it: the next supervisor binds while the hub still has the one before.
fn bind_tcp(address: SocketAddr, others: Others) -> io::Result<OwnedFd> {
    if others == Others::Strangers {
        // Without SO_REUSEPORT this fails when anybody is there.
        drop(TcpListener::bind(address)?);
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Does anybody listen there?
#[must_use]
pub fn has_listener(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Listens on a socket in the file system, in place of one that nobody listens on any more, or our hub.
///
/// # Errors
/// What the kernel says; `AddrInUse` when a stranger listens.
pub fn bind_unix(path: &Path, mode: u32, others: Others) -> io::Result<OwnedFd> {
    if others == Others::Strangers && has_listener(path) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_our_hub_is_in_nobodys_way_and_a_strangers_is() {
        let place = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for place in [ApiListen::Unix(place.path().join("api")), ApiListen::Address(free)] {
            let first = listen(&place, Others::Strangers).unwrap().unwrap();
            assert!(listen(&place, Others::Strangers).unwrap_err().to_string().contains("api.listen"));
            let second = listen(&place, Others::OurHub).unwrap();
            drop((first, second));
            assert!(listen(&place, Others::Strangers).is_ok(), "what nobody listens on is in nobody's way");
        }
        assert!(listen(&ApiListen::Off, Others::Strangers).unwrap().is_none());
    }
}
