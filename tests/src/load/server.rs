//! What the server's processes use: CPU time and memory, from proc(5). Only reads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use nix::unistd::{SysconfVar, sysconf};

use super::LoadError;

/// Which processes are the server.
#[derive(Debug, Clone)]
pub enum Watched {
    /// These.
    Only(Vec<u32>),
    /// This one and all its descendants, whoever they are at the moment.
    Tree(u32),
}

/// CPU time since the processes began, children that have ended included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// Seconds in user mode.
    pub user: f64,
    /// Seconds in the kernel.
    pub system: f64,
}

impl Cpu {
    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }

    /// User and system together.
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// The fields of /proc/PID/stat that matter here.
struct Stat {
    parent: u32,
    /// utime, stime, cutime, cstime, in clock ticks.
    ticks: [u64; 4],
}

impl Watched {
    /// CPU time used so far.
    pub fn cpu(&self) -> Result<Cpu, LoadError> {
        let per_second = ticks_per_second();
        let mut cpu = Cpu::default();
        for pid in self.pids()? {
            // One that ended since it was listed is in its parent's cutime and cstime as soon as it is
            // reaped.
            let Some(Stat { ticks: [user, system, children_user, children_system], .. }) = stat(pid)? else {
                continue;
            };
            cpu.user += seconds(user + children_user, per_second);
            cpu.system += seconds(system + children_system, per_second);
        }
        Ok(cpu)
    }

    /// Proportional set size in bytes: private memory, and each shared page divided by those that share it.
    pub fn pss(&self) -> Result<u64, LoadError> {
        let mut total = 0;
        for pid in self.pids()? {
            let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if is_gone(&error) => continue,
                Err(source) => return Err(LoadError::Process { path, source }),
            };
            let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
            match kib.and_then(|kib| kib.parse::<u64>().ok()) {
                Some(kib) => total += kib * 1024,
                None => return Err(LoadError::ProcFormat { path }),
            }
        }
        Ok(total)
    }

    /// The processes as they are now; an error when the named ones are not there.
    pub fn pids(&self) -> Result<BTreeSet<u32>, LoadError> {
        match self {
            Self::Only(pids) => Ok(pids.iter().copied().collect()),
            Self::Tree(root) => tree(*root),
        }
    }

    /// Fails when a named process does not exist.
    pub fn check(&self) -> Result<(), LoadError> {
        let named = match self {
            Self::Only(pids) => pids.clone(),
            Self::Tree(root) => vec![*root],
        };
        for pid in named {
            let path = PathBuf::from(format!("/proc/{pid}/stat"));
            fs::read(&path).map_err(|source| LoadError::Process { path, source })?;
        }
        Ok(())
    }
}

fn tree(root: u32) -> Result<BTreeSet<u32>, LoadError> {
    let path = PathBuf::from("/proc");
    let entries = fs::read_dir(&path).map_err(|source| LoadError::Process { path, source })?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for pid in pids {
        if let Ok(Some(stat)) = stat(pid) {
            parents.push((pid, stat.parent));
        }
    }
    let mut tree = BTreeSet::from([root]);
    // A child may be listed before its parent: until nothing is added.
    loop {
        let before = tree.len();
        for (pid, parent) in &parents {
            if tree.contains(parent) {
                tree.insert(*pid);
            }
        }
        if tree.len() == before {
            return Ok(tree);
        }
    }
}

/// `None`: there is no such process any more.
fn stat(pid: u32) -> Result<Option<Stat>, LoadError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(source) => return Err(LoadError::Process { path, source }),
    };
    parse_stat(&text).map(Some).ok_or(LoadError::ProcFormat { path })
}

/// The command name, in parentheses, may itself hold spaces and parentheses: what follows the last one
/// counts.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let tick = |n: usize| fields.get(n)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: [tick(11)?, tick(12)?, tick(13)?, tick(14)?] })
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH: it ended between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32)
}

fn ticks_per_second() -> u32 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u32::try_from(ticks).ok()).unwrap_or(100)
}

fn seconds(ticks: u64, per_second: u32) -> f64 {
    u32::try_from(ticks).map_or(f64::INFINITY, f64::from) / f64::from(per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let text = "7 (a) (b) c) S 3 7 7 0 -1 4194304 1 2 3 4 250 50 10 5 20 0 1 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, [250, 50, 10, 5]));
        assert!(parse_stat("7 (a) S 3").is_none());
    }

    #[test]
    fn this_process_uses_memory_and_is_in_its_own_tree() {
        let me = Watched::Tree(std::process::id());
        assert!(me.pids().unwrap().contains(&std::process::id()));
        assert!(me.pss().unwrap() > 0);
        assert!(me.cpu().unwrap().total() >= 0.0);
        assert!(Watched::Only(vec![u32::MAX]).check().is_err());
    }
}
