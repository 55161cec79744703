//! Makes the two listening sockets of the control side, or takes over those of the program that this one was
//! executed in place of. Accepts nothing.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as SocketName, UnixListener};
use std::path::{Path, PathBuf};

use nix::sys::socket::{Shutdown, UnixAddr, getsockname, shutdown};

use super::Error;
pub use crate::host::launch::InheritedSockets;
pub use crate::host::run_dir::socket_path;

/// Its name in the directory it is made in.
const NEWBORN: &str = "s";

/// The listening sockets. Whoever accepts on them works on copies, so they listen for as long as these are
/// open: clients who come while nobody accepts wait.
#[derive(Debug)]
pub struct Sockets {
    control: UnixListener,
    admin: Option<TcpListener>,
    /// Where the admin side was to listen, with a port that may be 0.
    wanted: Option<SocketAddr>,
}

impl Sockets {
    /// Binds the control socket in `run_dir` and, if wanted, the `admin` address; but for those `inherited`
    /// that are what is wanted.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn bind(
        run_dir: &Path,
        admin: Option<SocketAddr>,
        inherited: InheritedSockets,
    ) -> Result<Self, Error> {
        let path = socket_path(run_dir);
        let control = match inherited.control.filter(|control| is_bound_to(control, &path)) {
            Some(control) => control.into(),
            None => bind_control(run_dir)?,
        };
        let listens = |listener: &TcpListener, wanted: SocketAddr| {
            let port_fits = |port| wanted.port() == 0 || wanted.port() == port;
            listener.local_addr().is_ok_and(|at| at.ip() == wanted.ip() && port_fits(at.port()))
        };
        let admin_listener = match (admin, inherited.admin.map(TcpListener::from)) {
            (Some(wanted), Some(listener)) if listens(&listener, wanted) => Some(listener),
            (Some(wanted), _) => Some(bind_admin(wanted)?),
            (None, _) => None,
        };
        Ok(Self { control, admin: admin_listener, wanted: admin })
    }

    /// These, whoever bound them.
    pub(super) fn of(control: UnixListener, admin: Option<TcpListener>, wanted: Option<SocketAddr>) -> Self {
        Self { control, admin, wanted }
    }

    /// For others to inherit: the control socket and, if there is one, the admin address.
    #[must_use]
    pub fn descriptors(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.control.as_fd(), self.admin.as_ref().map(AsFd::as_fd))
    }

    /// Where the admin side was to listen, with a port that may be 0.
    pub(super) fn wanted(&self) -> Option<SocketAddr> {
        self.wanted
    }

    /// Copies to accept on.
    pub(super) fn copies(&self) -> io::Result<(UnixListener, Option<TcpListener>)> {
        Ok((self.control.try_clone()?, self.admin.as_ref().map(TcpListener::try_clone).transpose()?))
    }

    /// Replaces the admin listener. The old one listens no more, whoever has copies of it.
    pub(super) fn set_admin(&mut self, listener: Option<TcpListener>) {
        if let Some(old) = std::mem::replace(&mut self.admin, listener)
            && let Err(error) = shutdown(old.as_raw_fd(), Shutdown::Both)
        {
            log::warn!("cannot close the old admin address: {error}");
        }
    }

    /// Notes where the admin side is wanted now.
    pub(super) fn set_wanted(&mut self, wanted: Option<SocketAddr>) {
        self.wanted = wanted;
    }
}

/// Is this the socket that was bound for `path`? It was moved there from where it was made.
fn is_bound_to(socket: &OwnedFd, path: &Path) -> bool {
    let nursery = nursery(path.parent().unwrap_or(path));
    let name = getsockname::<UnixAddr>(socket.as_raw_fd());
    name.is_ok_and(|name| name.path().is_some_and(|name| name == nursery.join(NEWBORN))) && path.exists()
}

/// Binds the control socket in `run_dir`, mode 0600, in place of one that a dead supervisor may have left.
/// The caller holds the run directory's lock, so that no living supervisor can be disowned.
///
/// bind(2) takes the mode from the umask, which belongs to the whole process, and a chmod afterwards leaves a
/// moment in which anybody could connect. So the socket is made in a directory only we may enter and moved
/// out when its mode is right. rename(2) also means that at no time there is no socket.
///
/// # Errors
/// The directory or socket cannot be made: no right to write, or a path longer than `sun_path` (107 bytes).
pub fn bind_control(run_dir: &Path) -> Result<UnixListener, Error> {
    let path = socket_path(run_dir);
    let nursery = nursery(run_dir);
    // Left by a supervisor that died between the steps below.
    let _ = fs::remove_dir_all(&nursery);
    let listener = bind_private(&nursery, &path);
    let _ = fs::remove_dir_all(&nursery);
    listener.map_err(|source| Error::BindControl { path, source })
}

/// Binds the admin address; port 0 takes any free port.
///
/// # Errors
/// The address is taken, not of this host, or its port is reserved.
pub fn bind_admin(address: SocketAddr) -> Result<TcpListener, Error> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| Error::BindAdmin { address, source })
}

/// Where the control socket is made.
fn nursery(run_dir: &Path) -> PathBuf {
    run_dir.join(".new")
}

fn bind_private(nursery: &Path, path: &Path) -> io::Result<UnixListener> {
    // The name it is born with is shorter: without this a socket could be made that nobody can name in
    // connect(2).
    SocketName::from_pathname(path)?;
    DirBuilder::new().mode(0o700).create(nursery)?;
    let newborn = nursery.join(NEWBORN);
    let listener = UnixListener::bind(&newborn)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&newborn, Permissions::from_mode(0o600))?;
    fs::rename(&newborn, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_control_socket_is_private_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(bind_control(dir.path()).unwrap());
        let path = socket_path(dir.path());
        assert!(UnixStream::connect(&path).is_err(), "the first one is stale");

        fs::create_dir(dir.path().join(".new")).unwrap();
        let _listener = bind_control(dir.path()).unwrap();
        UnixStream::connect(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_run_directory_that_cannot_hold_it_is_named() {
        let error = bind_control(Path::new("/nonexistent/holdfast")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/holdfast/control.sock"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().as_os_str().len() + "//control.sock".len();
        for (length, fits) in [(107, true), (108, false)] {
            let deep = dir.path().join("d".repeat(length - named));
            fs::create_dir(&deep).unwrap();
            assert_eq!(bind_control(&deep).is_ok(), fits, "{length} bytes");
        }
    }

    #[test]
    fn an_admin_address_in_use_is_named() {
        let first = bind_admin("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind_admin(address).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
