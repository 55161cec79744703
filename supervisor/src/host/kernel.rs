//! What the kernel says of our processes and sockets. Read when asked for; a figure that cannot be had is
//! absent, never guessed.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Raises this process's descriptor limit as far as it may go, for itself and all it starts. Returns the
/// limit.
///
/// # Errors
/// What the kernel says.
pub fn raise_descriptor_limit() -> nix::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// The memory that this process and its children may use together, in bytes: the machine's, or that of the
/// narrowest of its cgroups that has a limit. 0 if nobody says.
#[must_use]
pub fn memory_limit() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text, "MemTotal:"));
    let limit =
        |group: PathBuf| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    total.into_iter().chain(cgroups().filter_map(limit)).min().unwrap_or(0)
}

/// A figure of /proc/meminfo, in bytes.
pub(super) fn meminfo(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The folders of this process's cgroup of version 2, and of those around it.
pub(super) fn cgroups() -> impl Iterator<Item = PathBuf> + use<> {
    groups_of(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

fn groups_of(own: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let groups: Vec<PathBuf> = Path::new(path).ancestors().map(Path::to_owned).collect();
    groups.into_iter().map(|group| Path::new("/sys/fs/cgroup").join(group))
}

/// Resident memory of a process, in bytes.
#[must_use]
pub fn resident_bytes(pid: Pid) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page_size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page_size).ok()?)
}

/// Has the process children? As far as the kernel says (CONFIG_PROC_CHILDREN).
pub(crate) fn has_children(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .is_ok_and(|children| !children.trim().is_empty())
}

/// The parent of a process, while there is one.
pub(crate) fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): the name before the state may contain spaces and parentheses; the parent follows the
    // state.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

/// Connections the kernel dropped since an accept queue was full, on the whole host, since boot.
#[must_use]
pub fn listen_drops() -> Option<u64> {
    let netstat = fs::read_to_string("/proc/net/netstat").ok()?;
    extended_tcp(&netstat, "ListenDrops")
}

/// The file has pairs of lines: names, then values, both starting with the same word.
fn extended_tcp(netstat: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split_whitespace().position(|column| column == name)?;
    values.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_column() {
        let text = "TcpExt: A ListenDrops B\nTcpExt: 1 42 3\nIpExt: ListenDrops\nIpExt: 7\n";
        assert_eq!(extended_tcp(text, "ListenDrops"), Some(42));
        assert_eq!(extended_tcp(text, "C"), None);
        assert!(listen_drops().is_some());
    }

    #[test]
    fn the_memory_there_is_and_the_groups_that_limit_it_are_known() {
        assert_eq!(meminfo("MemFree: 1 kB\nMemTotal:   2048 kB\n", "MemTotal:"), Some(2 << 20));
        assert!(memory_limit() > 1 << 20);
        let groups: Vec<PathBuf> = groups_of("1:x:/y\n0::/a/b\n").collect();
        let group = |name: &str| PathBuf::from(format!("/sys/fs/cgroup/{name}"));
        assert_eq!(groups, [group("a/b"), group("a"), group("")]);
    }

    #[test]
    fn our_own_memory_is_known() {
        assert!(resident_bytes(nix::unistd::getpid()).is_some_and(|bytes| bytes > 100_000));
    }
}
