//! The run directory: where the control socket and the pid file are, and the lock that lets one cluster at a
//! time be there.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::control::remove_control;

const SYSTEM: &str = "/run/holdfast";
const PID_FILE: &str = "holdfast.pid";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It cannot be made.
    #[error("cannot make the run directory {}: {source}; set run_dir (--run-dir) to a place this user may write to", path.display())]
    Create {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be written to.
    #[error("cannot write to the run directory {}: {source}; set run_dir (--run-dir) to a place this user may write to", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else owns it, so somebody else could replace what is in it.
    #[error("the run directory {} belongs to user {owner}, not to user {user} who runs this; set run_dir (--run-dir)", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our user.
        user: u32,
    },
    /// Others may write to it, so others could replace what is in it.
    #[error(
        "the run directory {} is open to others (mode {mode:03o}): `chmod 700` it if it is for this alone, or set run_dir (--run-dir)",
        path.display()
    )]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Whoever made the link decides where things go.
    #[error("the run directory {} is a symbolic link; set run_dir (--run-dir) to the directory itself", path.display())]
    Link {
        /// Where.
        path: PathBuf,
    },
    /// A supervisor is alive there.
    #[error(
        "another supervisor is alive in {} (pid {pid}): stop it with `holdfast ctl --run-dir {} stop`, or set another run_dir (--run-dir)",
        path.display(), path.display()
    )]
    Alive {
        /// Where.
        path: PathBuf,
        /// Its pid, as its pid file says.
        pid: String,
    },
    /// A supervisor is dead, but its keepers still hold connections.
    #[error(
        "the supervisor of {} is dead, but processes {holders} still serve its clients: end them with `kill -9 {holders}`, \
         which cuts those clients, or wait until the clients have left; or set another run_dir and listen address",
        path.display()
    )]
    Orphans {
        /// Where.
        path: PathBuf,
        /// Who holds the lock.
        holders: String,
    },
}

/// A locked run directory. The lock is held until this process and all keepers that inherited it are gone.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: File,
}

impl RunDir {
    /// Makes and locks the configured directory, or the first of the usual ones that this user may write to.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn acquire(configured: Option<&Path>) -> Result<Self, RunDirError> {
        if let Some(path) = configured {
            return Self::lock(path.to_path_buf());
        }
        let mut last = None;
        for path in usual() {
            match Self::lock(path) {
                Err(error @ (RunDirError::Create { .. } | RunDirError::Write { .. })) => last = Some(error),
                result => return result,
            }
        }
        Err(last
            .unwrap_or(RunDirError::Create { path: SYSTEM.into(), source: io::ErrorKind::NotFound.into() }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for keepers to inherit.
    #[must_use]
    pub fn lock_descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    fn lock(path: PathBuf) -> Result<Self, RunDirError> {
        make(&path)?;
        let pid_file = path.join(PID_FILE);
        let unwritable = |source| RunDirError::Write { path: path.clone(), source };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&pid_file)
            .map_err(unwritable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(who_holds(path, &mut lock)),
            Err(TryLockError::Error(source)) => return Err(unwritable(source)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(unwritable)?;
        Ok(Self { path, lock })
    }
}

impl Drop for RunDir {
    /// Nobody is to be found here any more. The pid file stays, empty: whoever is waiting for its lock would
    /// be left with a file that is not there. The lock itself goes with the last process that has it.
    fn drop(&mut self) {
        remove_control(&self.path);
        let _ = self.lock.set_len(0);
    }
}

/// Where a running supervisor's control socket is looked for when nobody says where.
#[must_use]
pub fn find(socket: &str) -> PathBuf {
    let mut usual = usual();
    let with_socket = usual.iter().position(|path| path.join(socket).exists()).unwrap_or(0);
    usual.swap_remove(with_socket)
}

fn usual() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(SYSTEM)];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        places.push(PathBuf::from(runtime).join("holdfast"));
    }
    places.push(PathBuf::from(format!("/tmp/holdfast-{}", geteuid())));
    places
}

/// Makes the directory for this user alone. One that exists must be this user's, and nobody else's to write
/// to; it is left as it is.
fn make(path: &Path) -> Result<(), RunDirError> {
    let place = || path.to_path_buf();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RunDirError::Create { path: place(), source })?;
    let metadata =
        fs::symlink_metadata(path).map_err(|source| RunDirError::Write { path: place(), source })?;
    let (user, mode) = (geteuid().as_raw(), metadata.permissions().mode() & 0o7777);
    if metadata.is_symlink() {
        Err(RunDirError::Link { path: place() })
    } else if metadata.uid() != user {
        Err(RunDirError::Foreign { path: place(), owner: metadata.uid(), user })
    } else if mode & 0o022 != 0 {
        Err(RunDirError::Exposed { path: place(), mode })
    } else {
        Ok(())
    }
}

fn who_holds(path: PathBuf, lock: &mut File) -> RunDirError {
    let mut pid = String::new();
    let _ = lock.read_to_string(&mut pid);
    let pid = pid.trim().to_string();
    let holders = holders(&path.join(PID_FILE));
    if holders.is_empty() || holders.contains(&pid) {
        return RunDirError::Alive { path, pid };
    }
    RunDirError::Orphans { path, holders: holders.join(" ") }
}

/// The processes that have the file open, as far as this user may look.
fn holders(file: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id().to_string();
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| *name != own && name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
                descriptors
                    .flatten()
                    .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_is_there() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let first = RunDir::acquire(Some(&path)).unwrap();
        let error = RunDir::acquire(Some(&path)).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        RunDir::acquire(Some(&path)).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_is_named() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let error = RunDir::acquire(Some(&place.path().join("run"))).unwrap_err();
        assert!(matches!(error, RunDirError::Create { .. }));
        assert!(error.to_string().contains("--run-dir"));
    }

    #[test]
    fn a_place_that_is_not_ours_alone_is_refused_and_left_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let open = place.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(RunDir::acquire(Some(&open)), Err(RunDirError::Exposed { mode: 0o1777, .. })));
        assert_eq!(fs::metadata(&open).unwrap().permissions().mode() & 0o7777, 0o1777);

        let (target, link) = (place.path().join("target"), place.path().join("link"));
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(RunDir::acquire(Some(&link)), Err(RunDirError::Link { .. })));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn what_was_made_is_for_its_user_alone() {
        let place = tempfile::tempdir().unwrap();
        let run_dir = RunDir::acquire(Some(&place.path().join("new"))).unwrap();
        assert_eq!(fs::metadata(run_dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
