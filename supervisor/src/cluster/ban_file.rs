//! RUN_DIR/bans: which networks are banned, so that it outlives the supervisor. A line is added for each change and the file
//! written anew when most of its lines say what is no longer so. It ends with the service.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_shared::clock::milliseconds;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ledger::{Bans, MOST_BANS, Until};

const NAME: &str = "bans";

/// One change.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    network: IpNet,
    /// When it ends, by the monotonic clock; `None` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
    /// It is no more.
    #[serde(default, skip_serializing_if = "is_false")]
    ended: bool,
}

/// The file.
#[derive(Debug)]
pub(super) struct BanFile {
    path: PathBuf,
    lines: usize,
}

impl BanFile {
    /// The file in `run_dir`, and what it says, if the service is older than this process.
    pub(super) fn open(run_dir: &Path, adopting: bool, now: Duration) -> (Self, Bans) {
        let mut file = Self { path: run_dir.join(NAME), lines: 0 };
        let mut bans = Bans::default();
        if !adopting {
            file.remove();
            return (file, bans);
        }
        match fs::read_to_string(&file.path) {
            Ok(text) => {
                file.lines = text.lines().count();
                for line in text.lines() {
                    match serde_json::from_str(line) {
                        Ok(Line { network, ended: true, .. }) => drop(bans.unban(network)),
                        Ok(Line { network, until_ms, .. }) => {
                            let until = until_ms.map(Duration::from_millis);
                            if !bans.ban(network, until, now) {
                                log::error!("{}: more than {MOST_BANS} networks", file.path.display());
                            }
                        }
                        Err(error) => log::error!("{}: {line:?}: {error}; ignored", file.path.display()),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::error!("cannot read {}: {error}; nobody is banned", file.path.display()),
        }
        (file, bans)
    }

    /// `network` is banned `until` then.
    pub(super) fn ban(&mut self, network: IpNet, until: Until) -> io::Result<()> {
        self.add(&Line { network, until_ms: until.map(milliseconds), ended: false })
    }

    /// `network` is no longer banned.
    pub(super) fn unban(&mut self, network: IpNet) -> io::Result<()> {
        self.add(&Line { network, until_ms: None, ended: true })
    }

    /// Writes it anew if most of it is no longer so.
    pub(super) fn shrink(&mut self, bans: &Bans, now: Duration) -> io::Result<()> {
        if self.lines <= 2 * MOST_BANS {
            return Ok(());
        }
        let all = bans.all(now);
        let line = |&(network, until): &(IpNet, Until)| {
            let line = Line { network, until_ms: until.map(milliseconds), ended: false };
            Ok(serde_json::to_string(&line)? + "\n")
        };
        let text: io::Result<String> = all.iter().map(line).collect();
        let beside = self.path.with_extension("new");
        fs::write(&beside, text?)?;
        fs::rename(&beside, &self.path)?;
        self.lines = all.len();
        Ok(())
    }

    /// Nothing is banned any more.
    pub(super) fn remove(&mut self) {
        self.lines = 0;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error!("cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }

    fn add(&mut self, line: &Line) -> io::Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        // One write: a line is there or not, but for a full disk.
        file.write_all(text.as_bytes())?;
        self.lines += 1;
        Ok(())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn network(n: u32) -> IpNet {
        IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from(n)))
    }

    #[test]
    fn what_was_said_is_there_for_the_next_process_and_not_for_the_next_service() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, bans) = BanFile::open(dir.path(), false, NOW);
        assert!(bans.all(NOW).is_empty());
        file.ban(network(1), None).unwrap();
        file.ban(network(2), Some(NOW * 2)).unwrap();
        file.ban(network(3), None).unwrap();
        file.unban(network(1)).unwrap();
        let expected = [(network(2), Some(NOW * 2)), (network(3), None)];
        assert_eq!(BanFile::open(dir.path(), true, NOW).1.all(NOW), expected);
        // A line that was written half.
        fs::write(dir.path().join(NAME), fs::read_to_string(dir.path().join(NAME)).unwrap() + "{\"netw")
            .unwrap();
        assert_eq!(BanFile::open(dir.path(), true, NOW).1.all(NOW), expected);
        assert!(BanFile::open(dir.path(), false, NOW).1.all(NOW).is_empty());
        assert!(BanFile::open(dir.path(), true, NOW).1.all(NOW).is_empty());
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, mut bans) = BanFile::open(dir.path(), false, NOW);
        assert!(bans.ban(network(7), None, NOW));
        file.ban(network(7), None).unwrap();
        file.lines = 2 * MOST_BANS + 1;
        file.shrink(&bans, NOW).unwrap();
        assert_eq!(file.lines, 1);
        assert_eq!(BanFile::open(dir.path(), true, NOW).1.all(NOW), [(network(7), None)]);
    }
}
