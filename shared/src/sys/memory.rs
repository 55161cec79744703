//! The process's own memory: how large its pages are, and how to give back what the allocator keeps.

use std::sync::OnceLock;

use nix::unistd::{SysconfVar, sysconf};

/// Bytes of a page.
#[must_use]
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    let ask = || sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| usize::try_from(size).ok());
    *SIZE.get_or_init(|| ask().unwrap_or(4096))
}

/// Gives freed memory that the allocator keeps for later back to the kernel. By itself glibc does that only
/// with what lies at the very end of its heap: one living byte there keeps all that was freed below.
///
/// Walks all that was freed, and what is given back costs a page fault when it is needed again: for when a
/// burst is over, not for every turn. Does nothing with allocators other than glibc's.
pub fn give_back_freed() {
    // SAFETY: malloc_trim(3) is thread-safe and touches nothing but free memory.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}
