//! How this process was started: from which file, with which arguments. A later program is taken from the same
//! file and given the same arguments.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The running program, even when its file was replaced meanwhile.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

/// The environment variable that hands over to the program executed in our place. To be removed from the environment of
/// every other child.
pub(crate) const HANDOFF_VARIABLE: &str = "HOLDFAST_UPGRADE";

/// Sockets that an earlier program left open for this one. Not believed before they are looked at.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    /// The control socket.
    pub control: Option<OwnedFd>,
    /// The admin listener.
    pub admin: Option<OwnedFd>,
}

/// How this process was started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The file, by the name it was started by: a symbolic link may lead to another file by now.
    pub(crate) path: PathBuf,
    /// All arguments after the program's name.
    pub(crate) arguments: Vec<OsString>,
}

impl Launch {
    /// Finds out; `known` is the path, if an earlier program in this process has said.
    pub(crate) fn find(known: Option<&Path>) -> Self {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let path = match known {
            Some(path) => path.to_owned(),
            None => named(&name).unwrap_or_else(|| env::current_exe().unwrap_or_default()),
        };
        Self { path, arguments: arguments.collect() }
    }

    /// The arguments that ask a program whether it would start with ours.
    pub(crate) fn question(&self) -> impl Iterator<Item = &OsStr> {
        // `run` may be left out, and stands first if it is not.
        let is_run = self.arguments.first().is_some_and(|first| first == "run");
        let rest = self.arguments.iter().skip(usize::from(is_run));
        std::iter::once(OsStr::new("probe")).chain(rest.map(OsString::as_os_str))
    }
}

/// The running program by the name it was called by, as a shell finds it; `None` if that leads elsewhere.
fn named(name: &OsStr) -> Option<PathBuf> {
    if Path::new(name).components().count() > 1 {
        return std::path::absolute(name).ok().filter(|path| is_running_here(path).unwrap_or(false));
    }
    let directories = env::var_os("PATH")?;
    let mut candidates = env::split_paths(&directories).map(|directory| directory.join(name));
    let found = candidates.find(|candidate| is_running_here(candidate).unwrap_or(false))?;
    std::path::absolute(found).ok()
}

fn is_running_here(path: &Path) -> io::Result<bool> {
    let (there, here) = (fs::metadata(path)?, fs::metadata(OURSELVES)?);
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_remembered_by_its_name_and_a_wrong_name_is_not_believed() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("program");
        std::os::unix::fs::symlink(fs::read_link(OURSELVES).unwrap(), &link).unwrap();
        assert_eq!(named(link.as_os_str()), Some(link));
        assert_eq!(named(OsStr::new("/bin/sh")), None);
        assert_eq!(named(OsStr::new("no-such-program")), None);
    }

    #[test]
    fn the_question_has_the_arguments_of_run() {
        let question = |arguments: &[&str]| -> Vec<String> {
            let arguments = arguments.iter().map(OsString::from).collect();
            let launch = Launch { path: PathBuf::new(), arguments };
            launch.question().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(question(&[]), ["probe"]);
        assert_eq!(question(&["run", "--workers", "2"]), ["probe", "--workers", "2"]);
        assert_eq!(question(&["--config", "run"]), ["probe", "--config", "run"]);
    }
}
