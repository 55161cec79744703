//! What /proc says about processes: which ones belong to a test, their memory and their processor time.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every process whose environment has `variable` set to `value`: a mark that survives fork, exec and the
/// death of a parent.
#[must_use]
pub fn marked(variable: &str, value: &str) -> Vec<Pid> {
    let mark = format!("{variable}={value}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            // A process that ends while we look has no environment any more, and needs no attention either.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        })
        .map(Pid::from_raw)
        .collect()
}

/// Kills every process with the mark, and those they start meanwhile, until none is left.
pub fn kill_marked(variable: &str, value: &str) {
    loop {
        let survivors = marked(variable, value);
        if survivors.is_empty() {
            return;
        }
        for pid in survivors {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// Whether `pid` is a process that has not ended.
#[must_use]
pub fn is_running(pid: Pid) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z" && state != "X"))
}

/// Proportional set size in bytes, 0 for a process that has ended: shared pages are counted once over all
/// sharers.
#[must_use]
pub fn pss(pid: Pid) -> u64 {
    rollup(pid, &["Pss:"])
}

/// As [`pss`], but without the pages of files: how many of those count here depends on who else runs the same
/// program.
#[must_use]
pub fn data_pss(pid: Pid) -> u64 {
    rollup(pid, &["Pss_Anon:", "Pss_Shmem:"])
}

fn rollup(pid: Pid, fields: &[&str]) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |line: &str| {
        let rest = fields.iter().find_map(|field| line.strip_prefix(field))?;
        rest.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    rollup.lines().filter_map(kib).sum::<u64>() * 1024
}

/// Memory that the memfds of this name which `pid` has open really take up, in bytes.
#[must_use]
pub fn memfd_bytes(pid: Pid, name: &str) -> u64 {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let target = format!("/memfd:{name} (deleted)");
    entries
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy() == target))
        // A block is 512 bytes for stat(2), whatever the file system.
        .filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.blocks() * 512))
        .sum()
}

/// Processor time used so far, in clock ticks, 0 for a process that has ended.
#[must_use]
pub fn cpu_ticks(pid: Pid) -> u64 {
    // proc_pid_stat(5): utime and stime are fields 14 and 15; `stat` begins at field 3.
    stat(pid).map_or(0, |fields| fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap_or(0)).sum())
}

/// How many descriptors `pid` has open.
#[must_use]
pub fn open_descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The fields of /proc/PID/stat from the state on: the name before them may contain spaces and parentheses.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
