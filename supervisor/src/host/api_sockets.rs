//! The sockets that the API listens on.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::{fs, io};

use holdfast_shared::config::ApiListen;

/// The local socket of the API, in the run directory.
pub const LOCAL_SOCKET: &str = "api.sock";

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
pub fn listen(listen: &ApiListen) -> Result<Option<OwnedFd>, ApiListenError> {
    let failed = |place: String| move |source| ApiListenError { place, source };
    match listen {
        ApiListen::Off => Ok(None),
        ApiListen::Address(address) => {
            let bound = TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            bound.map(|listener| Some(listener.into())).map_err(failed(address.to_string()))
        }
        ApiListen::Unix(path) => bind_unix(path, 0o660).map(Some).map_err(failed(path.display().to_string())),
    }
}

/// Listens on a socket in the file system, in place of one that nobody listens on any more.
///
/// # Errors
/// What the kernel says; `AddrInUse` when somebody does.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    if UnixStream::connect(path).is_ok() {
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
    fn the_socket_of_a_dead_process_is_in_nobodys_way() {
        let place = tempfile::tempdir().unwrap();
        let at = ApiListen::Unix(place.path().join("api"));
        let first = listen(&at).unwrap().unwrap();
        assert!(listen(&at).unwrap_err().to_string().contains("api.listen"));
        drop(first);
        assert!(listen(&at).is_ok());
        assert!(listen(&ApiListen::Off).unwrap().is_none());
    }
}
