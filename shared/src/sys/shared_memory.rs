//! A mapping of memory that several processes read and write at the same time. Single words are atomic; runs of
//! bytes are copied in and out. What a copy means is for whoever made it to find out: the words around it say
//! whether it was whole.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::mapping::cannot_shrink;

/// What a process may do with the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Look at it. A write would be a fault.
    Read,
    /// Change it.
    Write,
}

/// The mapping. Stays when the descriptor that it was made from is closed, and is inherited by fork.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<c_void>,
    length: usize,
    access: Access,
}

// SAFETY: the mapping belongs to the value, and everything done through it is as good from one thread as from
// another.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// Maps the first `length` bytes of a memfd.
    ///
    /// # Errors
    /// What the kernel says; a memory that is shorter, or could be cut short, is refused.
    pub fn map(memory: BorrowedFd<'_>, length: usize, access: Access) -> io::Result<Self> {
        let available = nix::sys::stat::fstat(memory)?.st_size;
        if i64::try_from(length).map_err(io::Error::other)? > available || !cannot_shrink(memory) {
            return Err(io::Error::other(format!("memory of {available} bytes is no {length} that stay")));
        }
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE),
        };
        // SAFETY: no address is asked for, so no existing mapping is replaced; the file is long enough and
        // never shrinks (checked above), so no access can fault.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, memory, 0) }?;
        Ok(Self { start, length, access })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// It never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What this process may do with it.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The word at `at`, a multiple of 8. Only to be loaded from where the access is [`Access::Read`].
    ///
    /// # Panics
    /// When it is not within the memory: a mistake of the caller, never of what lies there.
    #[must_use]
    #[inline]
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at.checked_add(8).is_some_and(|end| end <= self.length));
        // SAFETY: within the mapping (checked).
        let word = unsafe { self.start.byte_add(at) };
        // SAFETY: aligned (checked; mappings begin at pages), and alive as long as `self`; other processes change it
        // atomically, too.
        unsafe { word.cast::<AtomicU64>().as_ref() }
    }

    /// The half word at `at`, a multiple of 4.
    ///
    /// # Panics
    /// As [`SharedMemory::word`].
    #[must_use]
    #[inline]
    pub fn half_word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at.checked_add(4).is_some_and(|end| end <= self.length));
        // SAFETY: as in `word`.
        let half_word = unsafe { self.start.byte_add(at) };
        // SAFETY: as in `word`.
        unsafe { half_word.cast::<AtomicU32>().as_ref() }
    }

    /// Copies bytes out. Another process may be changing them meanwhile: then the copy is torn, and the words
    /// that guard it say so.
    ///
    /// # Panics
    /// As [`SharedMemory::word`].
    #[inline]
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.length));
        // SAFETY: the source is within the mapping (checked) and readable, the destination is a slice of ours,
        // and they do not overlap, for nobody has a slice of the mapping. Any bytes are bytes, torn ones too.
        let source = unsafe { self.start.cast::<u8>().byte_add(at) };
        let length = bytes.len();
        // SAFETY: as above.
        unsafe { source.copy_to_nonoverlapping(NonNull::from(bytes).cast(), length) };
    }

    /// As [`copy_out`](Self::copy_out), from a ring that lies from `ring` to the end of the memory: what is behind the end is at
    /// its start. At most as many bytes as the ring has.
    ///
    /// # Panics
    /// As [`SharedMemory::word`].
    #[inline]
    pub fn copy_out_around(&self, ring: usize, at: usize, bytes: &mut [u8]) {
        let first = bytes.len().min(self.length.saturating_sub(at));
        let (before, after) = bytes.split_at_mut(first);
        self.copy_out(at, before);
        if !after.is_empty() {
            self.copy_out(ring, after);
        }
    }

    /// As [`copy_in`](Self::copy_in), into a ring that lies from `ring` to the end of the memory.
    ///
    /// # Panics
    /// As [`SharedMemory::copy_in`].
    #[inline]
    pub fn copy_in_around(&self, ring: usize, at: usize, bytes: &[u8]) {
        let first = bytes.len().min(self.length.saturating_sub(at));
        let (before, after) = bytes.split_at(first);
        self.copy_in(at, before);
        if !after.is_empty() {
            self.copy_in(ring, after);
        }
    }

    /// Copies bytes out, at the end of `into`.
    ///
    /// # Panics
    /// As [`SharedMemory::word`].
    #[inline]
    pub fn append_to(&self, at: usize, length: usize, into: &mut Vec<u8>) {
        let before = into.len();
        into.resize(before + length, 0);
        self.copy_out(at, &mut into[before..]);
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// As [`SharedMemory::word`], and when the access is [`Access::Read`].
    #[inline]
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(self.access == Access::Write);
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.length));
        // SAFETY: the destination is within the mapping (checked); it is writable (checked).
        let place = unsafe { self.start.cast::<u8>().byte_add(at) };
        // SAFETY: as above; nobody has a slice of the mapping, so the two do not overlap.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Children made by fork do not get the mapping.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep_from_children(&self) -> io::Result<()> {
        // SAFETY: exactly the range that `map` mapped; it changes nothing for this process.
        unsafe { madvise(self.start, self.length, MmapAdvise::MADV_DONTFORK) }?;
        Ok(())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` mapped, and no reference to it outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use super::super::mapping;
    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let memory = mapping::create("test", 4096).unwrap();
        let writer = SharedMemory::map(memory.as_fd(), 4096, Access::Write).unwrap();
        let reader = SharedMemory::map(memory.as_fd(), 4096, Access::Read).unwrap();
        writer.word(8).store(7, Ordering::Release);
        writer.copy_in(4090, b"abcdef");
        let mut bytes = Vec::from(*b"x");
        reader.append_to(4091, 5, &mut bytes);
        assert_eq!((reader.word(8).load(Ordering::Acquire), bytes.as_slice()), (7, &b"xbcdef"[..]));
        assert_eq!(reader.half_word(8).load(Ordering::Acquire), 7);
    }

    #[test]
    fn more_than_there_is_is_not_mapped() {
        let memory = mapping::create("test", 4096).unwrap();
        assert!(SharedMemory::map(memory.as_fd(), 4097, Access::Read).is_err());
    }
}
