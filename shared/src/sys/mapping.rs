//! Anonymous memory that outlives a process: a memfd and its mapping. Knows bytes only; `table` gives them meaning.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

/// Makes a memfd of `size` zero bytes. Sparse: untouched pages cost nothing. Not inherited by exec unless asked.
///
/// # Errors
/// What the kernel says.
pub fn create(name: &str, size: usize) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    resize(memory.as_fd(), size)?;
    Ok(memory)
}

/// Makes the memory at least `size` bytes long. It is never cut: a page that another process has mapped would
/// vanish under it and kill it with SIGBUS.
///
/// # Errors
/// What the kernel says.
pub fn resize(memory: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let current = nix::sys::stat::fstat(memory)?.st_size;
    let wanted = i64::try_from(size).map_err(io::Error::other)?;
    if wanted > current {
        ftruncate(memory, wanted)?;
    }
    Ok(())
}

/// A shared, writable mapping of the start of a memfd. Page-aligned. Unmapped when dropped; the memory itself stays
/// as long as a descriptor of it does.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes, which the memory must have.
    ///
    /// # Errors
    /// What the kernel says; a memory that is shorter than `length` is refused.
    pub fn new(memory: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let available = nix::sys::stat::fstat(memory)?.st_size;
        if i64::try_from(length).map_err(io::Error::other)? > available {
            return Err(io::Error::other(format!("memory has {available} bytes, {length} are needed")));
        }
        let size = std::num::NonZeroUsize::new(length)
            .ok_or_else(|| io::Error::other("an empty mapping is of no use"))?;
        let protection = nix::sys::mman::ProtFlags::PROT_READ.union(nix::sys::mman::ProtFlags::PROT_WRITE);
        // SAFETY: no address is asked for, so no existing mapping is replaced; the file is long enough (checked
        // above) and never shrinks (see `resize`), so no access can fault.
        let start = unsafe {
            nix::sys::mman::mmap(None, size, protection, nix::sys::mman::MapFlags::MAP_SHARED, memory, 0)
        }?;
        Ok(Self { start, length })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is mapped for `length` bytes until drop. Another process writes the memory only while
        // this one has no reference to it: a table has one live worker at a time.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }

    /// The bytes, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes other references in this process.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped, and no reference to it outlives `self`.
        let unmapped = unsafe { nix::sys::mman::munmap(self.start, self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let memory = create("test", 4096).unwrap();
        let mut first = Mapping::new(memory.as_fd(), 4096).unwrap();
        let second = Mapping::new(memory.as_fd(), 4096).unwrap();
        first.bytes_mut()[17] = 42;
        assert_eq!(second.bytes()[17], 42);
    }

    #[test]
    fn memory_grows_and_never_shrinks() {
        let memory = create("test", 4096).unwrap();
        assert!(Mapping::new(memory.as_fd(), 8192).is_err());
        resize(memory.as_fd(), 8192).unwrap();
        resize(memory.as_fd(), 100).unwrap();
        assert_eq!(Mapping::new(memory.as_fd(), 8192).unwrap().bytes().len(), 8192);
    }
}
