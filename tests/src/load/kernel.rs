//! What the kernel uses for connections, on this whole machine: it has no figure per process.
//!
//! Slab (/proc/meminfo) holds sockets, files, inodes and epoll entries; TCP `mem` (/proc/net/sockstat) the
//! pages of socket buffers. The growth of their sum, divided by the connections, is what one connection costs
//! the kernel: both ends of it, when the clients are here too. Anything else the machine does in the meantime
//! is in it.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Bytes in slab and socket buffers now; `None` where /proc does not say.
pub fn memory() -> Option<i64> {
    let slab = fs::read_to_string("/proc/meminfo").ok()?;
    let slab_kib = slab.lines().find_map(|line| line.strip_prefix("Slab:")?.trim().strip_suffix(" kB"))?;
    let sockets = fs::read_to_string("/proc/net/sockstat").ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(slab_kib.parse::<i64>().ok()? * 1024 + buffer_pages(&sockets)? * page)
}

/// `TCP: inuse 5 orphan 0 tw 2 alloc 7 mem 3`
fn buffer_pages(sockstat: &str) -> Option<i64> {
    let mut words = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_ascii_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_tcp_are_found() {
        let text = "sockets: used 30\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 3\nUDP: inuse 0 mem 9\n";
        assert_eq!(buffer_pages(text), Some(3));
        assert!(memory().is_some_and(|bytes| bytes > 0));
    }
}
