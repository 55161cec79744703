//! The run directory: where the sockets, the pid file and the state are, and the two locks that let one
//! cluster at a time be there. The supervisor alone holds that of the pid file. That of the slots is held by
//! whatever process has a slot's descriptors, so it tells a supervisor whether there are slots to adopt.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use holdfast_shared::ipc::reconnect::{self, MAX_RUN_DIR_BYTES};
use nix::sys::stat::fstat;
use nix::unistd::{Pid, geteuid};

/// Name of the control socket in the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";
const SYSTEM: &str = "/run/holdfast";
const PID_FILE: &str = "holdfast.pid";
const SLOTS_LOCK: &str = "slots.lock";
/// A connection table, as /proc names it.
const TABLE_LINK: &str = "/memfd:holdfast-table (deleted)";

/// A supervisor that was killed has its lock until the kernel has closed what it had open, which may be after the
/// next one is started: so often, with such pauses, it is tried again before somebody is said to be alive.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("cannot make the run directory {}: {source}; set run_dir (--run-dir) to a place this user may write to", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write to the run directory {}: {source}; set run_dir (--run-dir) to a place this user may write to", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the run directory {} belongs to user {owner}, not to user {user} who runs this; set run_dir (--run-dir)", path.display())]
    Foreign { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "the run directory {} is open to others (mode {mode:03o}): `chmod 700` it if it is for this alone, or set run_dir (--run-dir)",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the run directory {} is a symbolic link; set run_dir (--run-dir) to the directory itself", path.display())]
    Link { path: PathBuf },
    #[error(
        "the path of the run directory {} has {} bytes, and sockets in it can be named up to {MAX_RUN_DIR_BYTES}; set run_dir (--run-dir) to a shorter one",
        real_path.display(), real_path.as_os_str().len()
    )]
    TooLong { real_path: PathBuf },
    #[error(
        "another supervisor is alive in {} (pid {pid}): stop it with `holdfast ctl --run-dir {} stop`, or set another run_dir (--run-dir)",
        path.display(), path.display()
    )]
    Alive { path: PathBuf, pid: String },
}

/// A run directory that is this supervisor's.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Without symbolic links and dots: as /proc names it.
    real_path: PathBuf,
    supervisor: File,
    slots: File,
    inhabited: bool,
}

impl RunDir {
    /// Makes and locks the configured directory, or the first of the usual ones that this user may write to.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn acquire(configured: Option<&Path>) -> Result<Self, RunDirError> {
        if let Some(path) = configured {
            return Self::lock(path.to_path_buf(), None);
        }
        let mut last = None;
        for path in usual() {
            match Self::lock(path, None) {
                Err(
                    error @ (RunDirError::Create { .. }
                    | RunDirError::Write { .. }
                    | RunDirError::TooLong { .. }),
                ) => last = Some(error),
                result => return result,
            }
        }
        Err(last
            .unwrap_or(RunDirError::Create { path: SYSTEM.into(), source: io::ErrorKind::NotFound.into() }))
    }

    /// Takes over the directory at `path` from the program that this one was executed in place of: `lock` is
    /// that of its pid file, and was never given up.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn inherit(path: &Path, lock: Option<OwnedFd>) -> Result<Self, RunDirError> {
        Self::lock(path.to_path_buf(), lock)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Do processes of an earlier supervisor hold slots?
    #[must_use]
    pub fn is_inhabited(&self) -> bool {
        self.inhabited
    }

    /// Where a slot meets its next supervisor.
    #[must_use]
    pub fn reconnect_socket(&self) -> PathBuf {
        self.real_path.join(reconnect::SOCKET_NAME)
    }

    /// The lock of the pid file, for a program that is executed in this one's place.
    #[must_use]
    pub fn supervisor_lock(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }

    /// The lock of the slots, for keepers to inherit.
    #[must_use]
    pub fn slots_lock(&self) -> BorrowedFd<'_> {
        self.slots.as_fd()
    }

    /// Takes the lock of the slots, if nobody holds it any more. Says whether it is ours.
    ///
    /// # Errors
    /// What the kernel says, unless that it is held.
    pub fn claim_slots(&mut self) -> Result<bool, RunDirError> {
        self.inhabited = is_held(&self.path, &self.slots)?;
        Ok(!self.inhabited)
    }

    /// Holds the lock of the slots together with those who hold it: `lock` is theirs.
    ///
    /// # Errors
    /// When it is not locked, or cannot be copied.
    pub fn share_slots(&mut self, lock: &OwnedFd) -> Result<(), RunDirError> {
        let path = &self.path;
        let copy = lock.try_clone().map_err(|source| RunDirError::Write { path: path.clone(), source })?;
        self.slots = File::from(copy);
        Ok(())
    }

    /// Is this the lock of the slots, and held through this very descriptor?
    #[must_use]
    pub fn is_slots_lock(&self, lock: &OwnedFd) -> bool {
        let same = is_same_file(lock, &self.slots);
        // flock(2): a lock belongs to the open file, so asking again through the one that holds it succeeds.
        same && lock.try_clone().is_ok_and(|lock| File::from(lock).try_lock().is_ok())
    }

    /// The processes that hold slots, as far as this user may look.
    #[must_use]
    pub fn slot_holders(&self) -> Vec<Pid> {
        holders(&self.real_path.join(SLOTS_LOCK))
    }

    fn lock(path: PathBuf, inherited: Option<OwnedFd>) -> Result<Self, RunDirError> {
        make(&path)?;
        let unwritable = |source| RunDirError::Write { path: path.clone(), source };
        let real_path = fs::canonicalize(&path).map_err(unwritable)?;
        // Slots meet their next supervisor by this path, whatever links lead there.
        if real_path.as_os_str().len() > MAX_RUN_DIR_BYTES {
            return Err(RunDirError::TooLong { real_path });
        }
        let mut supervisor = open(&path.join(PID_FILE)).map_err(unwritable)?;
        if let Some(lock) = inherited.filter(|lock| is_same_file(lock, &supervisor)) {
            supervisor = File::from(lock);
        }
        if stays_held(&path, &supervisor)? {
            let mut pid = String::new();
            let _ = supervisor.read_to_string(&mut pid);
            return Err(RunDirError::Alive { path, pid: pid.trim().to_owned() });
        }
        supervisor
            .set_len(0)
            .and_then(|()| supervisor.rewind())
            .and_then(|()| writeln!(supervisor, "{}", std::process::id()))
            .map_err(unwritable)?;
        let slots = open(&path.join(SLOTS_LOCK)).map_err(unwritable)?;
        let inhabited = is_held(&path, &slots)?;
        Ok(Self { path, real_path, supervisor, slots, inhabited })
    }
}

impl Drop for RunDir {
    /// Nobody is to be found here any more. The locked files stay, the pid file empty: whoever is waiting for
    /// a lock would be left with a file that is not there. The lock of the slots goes with the last process
    /// that has it.
    fn drop(&mut self) {
        remove_control(&self.path);
        let _ = self.supervisor.set_len(0);
    }
}

/// Locks the file, unless somebody else holds it.
fn is_held(path: &Path, file: &File) -> Result<bool, RunDirError> {
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(RunDirError::Write { path: path.to_path_buf(), source }),
    }
}

/// Locks the file as `is_held` does, and waits a little for whoever is about to let go of it.
fn stays_held(path: &Path, file: &File) -> Result<bool, RunDirError> {
    for _ in 0..LOCK_ATTEMPTS {
        if !is_held(path, file)? {
            return Ok(false);
        }
        thread::sleep(LOCK_PAUSE);
    }
    is_held(path, file)
}

fn is_same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
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

/// The keepers and workers that serve on in the directory without a supervisor, as far as this user may look: those
/// that have the slots' lock and a connection table open.
#[must_use]
pub fn left_behind(path: &Path) -> Vec<Pid> {
    let Ok(real_path) = fs::canonicalize(path) else { return Vec::new() };
    if !holders(&real_path.join(PID_FILE)).is_empty() {
        return Vec::new();
    }
    let mut pids = holders(&real_path.join(SLOTS_LOCK));
    pids.retain(|&pid| is_slot_process(pid, path));
    pids
}

/// Has the process the slots' lock of the directory and a connection table open?
#[must_use]
pub fn is_slot_process(pid: Pid, path: &Path) -> bool {
    let table = Path::new(TABLE_LINK);
    fs::canonicalize(path).is_ok_and(|path| has_open(pid, &path.join(SLOTS_LOCK)) && has_open(pid, table))
}

/// The processes that have the file open, as far as this user may look.
fn holders(file: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = nix::unistd::getpid();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|&pid| pid != own)
        .filter(|&pid| has_open(pid, file))
        .collect()
}

fn has_open(pid: Pid, file: &Path) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
        descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file))
    })
}

/// Where the control socket of the supervisor in `run_dir` is.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(CONTROL_SOCKET)
}

/// Removes the control socket of `run_dir`; the last thing a supervisor does before it gives up the
/// directory's lock.
pub fn remove_control(run_dir: &Path) {
    let path = socket_path(run_dir);
    if let Err(error) = fs::remove_file(&path) {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

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
    fn one_that_is_about_to_end_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let first = RunDir::acquire(Some(&path)).unwrap();
        let file = path.join(PID_FILE);
        let opened = || {
            let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
            descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file)).count()
        };
        let answered = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while opened() < 2 && !answered.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                drop(first);
            });
            let second = RunDir::acquire(Some(&path));
            answered.store(true, Ordering::Relaxed);
            second.unwrap();
        });
    }

    #[test]
    fn a_place_that_cannot_be_is_named() {
        let place = tempfile::NamedTempFile::new().unwrap();
        let error = RunDir::acquire(Some(&place.path().join("run"))).unwrap_err();
        assert!(matches!(error, RunDirError::Create { .. }));
        assert!(error.to_string().contains("--run-dir"));
    }

    #[test]
    fn a_place_whose_sockets_cannot_be_named_is_refused_however_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(directory.path()).unwrap();
        let of_length = |bytes: usize| place.join("d".repeat(bytes - place.as_os_str().len() - 1));
        let (fits, too_long) = (of_length(MAX_RUN_DIR_BYTES), of_length(MAX_RUN_DIR_BYTES + 1));
        let run_dir = RunDir::acquire(Some(&fits)).unwrap();
        drop(reconnect::ReconnectListener::open(run_dir.path()).unwrap());
        std::os::unix::fs::symlink(&place, place.join("l")).unwrap();
        let short = place.join("l").join(too_long.file_name().unwrap());
        for path in [&too_long, &short] {
            let error = RunDir::acquire(Some(path)).unwrap_err();
            assert!(matches!(error, RunDirError::TooLong { .. }), "{error}");
            assert!(error.to_string().contains("has 92 bytes"), "{error}");
        }
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
