//! The program that is to come: its file is opened, looked at and asked (`holdfast probe`) before anybody makes way
//! for it. From the first look on it is this one file, whatever its name leads to later. Whatever is wrong with
//! it is found out here, with nothing changed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mio::unix::pipe::Receiver;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use crate::cluster::lifecycle::Cause;
use crate::host::launch::{HANDOFF_VARIABLE, Launch};
use crate::host::probe::Identity;

/// How long it may take to be opened and to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// More of an answer is not read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// As much of what it said as is repeated.
const LONGEST_QUOTE: usize = 2000;

/// Why a program is not upgraded to. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// It cannot be opened.
    #[error("cannot open {}: {source}; put the new program there", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// Opening it takes for ever.
    #[error("{} could not be opened within {PATIENCE:?}; is its file system there?", path.display())]
    Unopened { path: PathBuf },
    /// A directory, or worse.
    #[error("{} is not a file", path.display())]
    NotAFile { path: PathBuf },
    /// Nobody may execute it.
    #[error("{} is not executable; `chmod +x` it if it is the new program", path.display())]
    NotExecutable { path: PathBuf },
    /// Something else.
    #[error("{} is not a program (it does not begin as an ELF file does)", path.display())]
    NotAProgram { path: PathBuf },
    /// The kernel does not run it.
    #[error("cannot run {}: {source}", path.display())]
    Run { path: PathBuf, source: io::Error },
    /// Its answer cannot be waited for.
    #[error("cannot ask {}: {source}", path.display())]
    Ask { path: PathBuf, source: io::Error },
    /// It does not answer.
    #[error(
        "{} did not answer `holdfast probe` within {PATIENCE:?} and was killed{}", path.display(), quoted(complaint)
    )]
    Silent { path: PathBuf, complaint: String },
    /// It would not start.
    #[error("{} refuses to start here ({cause}){}", path.display(), quoted(complaint))]
    Refuses { path: PathBuf, cause: Cause, complaint: String },
    /// A signal ended it.
    #[error("{} crashed when it was asked ({cause}){}", path.display(), quoted(complaint))]
    Crashes { path: PathBuf, cause: Cause, complaint: String },
    /// It is no Holdfast, or says something else.
    #[error("{} is no Holdfast that can be upgraded to; its answer to `holdfast probe` was {answer:?}", path.display())]
    BadAnswer { path: PathBuf, answer: String },
    /// It could not go on with what is here.
    #[error(
        "{} (version {version}) cannot go on with connections of this program, or this one with those of the new one: \
         {differences}; upgrade by way of a version that fits to both, or stop this one and start that one",
        path.display()
    )]
    Incompatible { path: PathBuf, version: String, differences: String },
}

impl Refusal {
    /// The HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Unopened { .. } | Self::Silent { .. } => 504,
            Self::Ask { .. } => 500,
            Self::Incompatible { .. } => 409,
            _ => 422,
        }
    }
}

/// Opens the file at `path` and sees whether it can be a program. May take as long as its file system likes.
pub(crate) fn open(path: &Path) -> Result<File, Refusal> {
    let cannot = |source| Refusal::Open { path: path.to_owned(), source };
    // Opening a named pipe would wait for its other end.
    let flags = OFlag::O_NONBLOCK.bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(Refusal::NotAFile { path: path.to_owned() });
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Refusal::NotExecutable { path: path.to_owned() });
    }
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        // A script would be run by its interpreter, from a descriptor that is closed by then.
        Ok(()) if magic == *b"\x7fELF" => Ok(file),
        Ok(()) => Err(Refusal::NotAProgram { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Refusal::NotAProgram { path: path.to_owned() })
        }
        Err(source) => Err(cannot(source)),
    }
}

/// A program that was asked what it is and has not answered.
#[derive(Debug)]
pub(crate) struct Question {
    path: PathBuf,
    pub(crate) file: File,
    /// Its process, a child of ours.
    pub(crate) pid: Pid,
    answer: Pipe,
    complaint: Pipe,
}

#[derive(Debug)]
struct Pipe {
    end: Receiver,
    bytes: Vec<u8>,
}

impl Question {
    /// Asks the program in `file`; `token` becomes ready when it says something. To be called by the thread
    /// that starts all other processes, and waits for them.
    pub(crate) fn ask(
        file: File,
        launch: &Launch,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, Refusal> {
        let path = launch.path.clone();
        let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
        command.arg0(&path).args(launch.question()).env_remove(HANDOFF_VARIABLE).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|source| match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
                Errno::EACCES => Refusal::NotExecutable { path: path.clone() },
                _ => Refusal::Run { path: path.clone(), source },
            })?;
        let cannot = |source| Refusal::Ask { path: path.clone(), source };
        let pid =
            i32::try_from(child.id()).map(Pid::from_raw).map_err(|error| cannot(io::Error::other(error)))?;
        let (Some(answer), Some(complaint)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(cannot(io::ErrorKind::BrokenPipe.into()));
        };
        let pipe = |end: Receiver| -> io::Result<Pipe> {
            let mut end = end;
            end.set_nonblocking(true)?;
            registry.register(&mut end, token, Interest::READABLE)?;
            Ok(Pipe { end, bytes: Vec::new() })
        };
        let answer = pipe(answer.into()).map_err(cannot)?;
        let complaint = pipe(complaint.into()).map_err(cannot)?;
        Ok(Self { path, file, pid, answer, complaint })
    }

    /// Reads what it has said since.
    pub(crate) fn read(&mut self) {
        self.answer.read();
        self.complaint.read();
    }

    /// It has ended, of `cause`; `in_time` unless we have killed it. The program and what it is, if it can be
    /// upgraded to by one that is `ours`.
    pub(crate) fn judge(
        mut self,
        cause: Cause,
        in_time: bool,
        ours: &Identity,
    ) -> Result<(File, Identity), Refusal> {
        self.read();
        let Self { path, file, answer, complaint, .. } = self;
        let identity = judge(&path, cause, in_time, ours, &answer.bytes, &complaint.bytes)?;
        Ok((file, identity))
    }
}

impl Pipe {
    fn read(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            match self.end.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => {
                    let room = LONGEST_ANSWER.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(&chunk[..length.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more for now. What else it may be, what was read so far will show.
                Err(_) => return,
            }
        }
    }
}

fn judge(
    path: &Path,
    cause: Cause,
    in_time: bool,
    ours: &Identity,
    answer: &[u8],
    complaint: &[u8],
) -> Result<Identity, Refusal> {
    let path = path.to_owned();
    let complaint = text(complaint);
    match cause {
        _ if !in_time => return Err(Refusal::Silent { path, complaint }),
        Cause::Exit(0) => {}
        Cause::Signal(_) => return Err(Refusal::Crashes { path, cause, complaint }),
        _ => return Err(Refusal::Refuses { path, cause, complaint }),
    }
    let Ok(identity) = serde_json::from_slice::<Identity>(answer) else {
        return Err(Refusal::BadAnswer { path, answer: text(answer) });
    };
    let differences = ours.differences(&identity);
    if differences.is_empty() {
        return Ok(identity);
    }
    let each = differences
        .iter()
        .map(|(theirs, ours)| format!("{}: the new program has {theirs}, this one has {ours}", theirs.name));
    let differences = each.collect::<Vec<_>>().join("; ");
    Err(Refusal::Incompatible { path, version: identity.version, differences })
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().take(LONGEST_QUOTE).collect()
}

fn quoted(complaint: &str) -> String {
    if complaint.is_empty() { String::new() } else { format!(": {complaint}") }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use holdfast_worker::Program;

    use super::*;

    fn verdict(
        cause: Cause,
        in_time: bool,
        answer: &str,
        complaint: &str,
    ) -> Result<Identity, (u16, String)> {
        let ours = Identity::of(Program::echo("1"));
        judge(Path::new("/x"), cause, in_time, &ours, answer.as_bytes(), complaint.as_bytes())
            .map_err(|refusal| (refusal.status(), refusal.to_string()))
    }

    fn refused(cause: Cause, in_time: bool, answer: &str, complaint: &str, status: u16, words: &str) {
        let (found, text) = verdict(cause, in_time, answer, complaint).unwrap_err();
        assert_eq!(found, status, "{text}");
        assert!(text.starts_with("/x") && text.contains(words), "{text}");
    }

    #[test]
    fn answers_are_judged() {
        let ours = Identity::of(Program::echo("2"));
        let answer = serde_json::to_string(&ours).unwrap();
        assert_eq!(verdict(Cause::Exit(0), true, &answer, "a warning"), Ok(ours.clone()));
        refused(Cause::Exit(2), true, "", "file:3: no such key", 422, "(exit status 2): file:3: no such key");
        refused(Cause::Signal(6), true, &answer, "", 422, "crashed when it was asked (SIGABRT)");
        refused(Cause::Signal(9), false, &answer, "", 504, "did not answer");
        refused(Cause::Exit(0), true, "holdfast 1.0", "", 422, "holdfast 1.0");
        let mut other = ours;
        (other.formats[3].version, other.formats[3].reads_since) = (98, 98);
        let answer = serde_json::to_string(&other).unwrap();
        refused(
            Cause::Exit(0),
            true,
            &answer,
            "",
            409,
            "saved connections: the new program has version 98, which fits to versions since 98, this one has",
        );
    }

    #[test]
    fn what_cannot_be_a_program_is_not_run() {
        let place = tempfile::tempdir().unwrap();
        let refusal = |name: &str, content: &[u8], mode: u32| {
            let path = place.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            open(&path).map(drop).unwrap_err()
        };
        assert!(matches!(refusal("plain", b"\x7fELF", 0o644), Refusal::NotExecutable { .. }));
        assert!(matches!(refusal("script", b"#!/bin/sh\n", 0o755), Refusal::NotAProgram { .. }));
        assert!(matches!(refusal("empty", b"", 0o755), Refusal::NotAProgram { .. }));
        assert!(matches!(open(place.path()), Err(Refusal::NotAFile { .. })));
        assert!(matches!(open(&place.path().join("none")), Err(Refusal::Open { .. })));
    }
}
