//! How short the host is of memory. Read when asked for; a figure that cannot be had is absent, never guessed.

use std::fs;
use std::path::Path;

use super::kernel;

/// How short of memory the service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pressure {
    /// Memory in use, in hundredths of what there is: of the machine, or of the cgroup that has the least left.
    pub(crate) memory: Option<u8>,
    /// How much of the last ten seconds some process waited for memory, in hundredths; of the machine, or of the cgroup
    /// where it was most.
    pub(crate) memory_stalls: Option<u8>,
}

impl Pressure {
    /// As it is now.
    pub(crate) fn read() -> Self {
        let groups: Vec<_> = kernel::cgroups().collect();
        let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| used_of_machine(&text));
        let of_groups = groups.iter().filter_map(|group| used_of_group(group));
        let stalls = groups
            .iter()
            .map(|group| group.join("memory.pressure"))
            .chain([Path::new("/proc/pressure/memory").to_owned()])
            .filter_map(|path| stalls(&fs::read_to_string(path).ok()?));
        Self { memory: of_groups.chain(of_machine).max(), memory_stalls: stalls.max() }
    }
}

/// What cannot be had for others: MemAvailable leaves out what the kernel would give back.
fn used_of_machine(meminfo: &str) -> Option<u8> {
    let (total, available) =
        (kernel::meminfo(meminfo, "MemTotal:")?, kernel::meminfo(meminfo, "MemAvailable:")?);
    hundredths(total.saturating_sub(available), total)
}

/// As for the machine: pages of files that were not used lately are given back before anybody is short of memory.
fn used_of_group(group: &Path) -> Option<u8> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, current) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    hundredths(current.saturating_sub(inactive.unwrap_or(0)), limit)
}

/// `some avg10=1.23 avg60=...` of a pressure file.
fn stalls(pressure: &str) -> Option<u8> {
    let line = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let share = line.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    share.split('.').next()?.parse().ok()
}

fn hundredths(part: u64, whole: u64) -> Option<u8> {
    let share = u128::from(part) * 100 / u128::from(whole).max(1);
    (whole > 0).then(|| u8::try_from(share).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_from_the_kernels_words() {
        let meminfo = "MemTotal:        8000 kB\nMemFree:  100 kB\nMemAvailable:    2000 kB\n";
        assert_eq!(used_of_machine(meminfo), Some(75));
        assert_eq!(used_of_machine("MemTotal:        8000 kB\n"), None);
        let pressure = "some avg10=12.94 avg60=0.10 avg300=0.00 total=7\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(stalls(pressure), Some(12));
        assert_eq!(stalls("full avg10=3.00"), None);
    }

    #[test]
    fn a_cgroup_counts_what_it_would_not_give_back() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 500\ninactive_file 300\n");
        assert_eq!(used_of_group(group.path()), Some(60));
        write("memory.max", "max\n");
        assert_eq!(used_of_group(group.path()), None);
    }

    #[test]
    fn this_machine_says_how_much_memory_is_in_use() {
        assert!(Pressure::read().memory.is_some_and(|share| (1..=100).contains(&share)));
    }
}
