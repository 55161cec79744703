//! Anonymous memory that outlives a process: a memfd and its mapping. Knows sizes only; `table` gives them
//! meaning.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use bytemuck::Pod;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::unistd::ftruncate;

use super::memory;

/// Makes a memfd of `size` zero bytes, which can grow and not shrink. Sparse: untouched pages cost nothing.
/// Not inherited by exec unless asked.
///
/// # Errors
/// What the kernel says.
pub fn create(name: &str, size: usize) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    resize(memory.as_fd(), size)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    Ok(memory)
}

/// Can nobody cut it short under a mapping, whoever it came from?
#[must_use]
pub fn cannot_shrink(memory: BorrowedFd<'_>) -> bool {
    fcntl(memory, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK))
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

/// A shared, writable mapping of the start of a memfd, seen as one `Head` and, after `HEAD_SIZE` bytes, a run
/// of `Item`s. Unmapped when dropped; the memory itself stays as long as a descriptor of it does.
///
/// That everything fits is checked once, here, so that looking at an item costs what it costs in a slice.
#[derive(Debug)]
pub struct Mapping<Head, Item, const HEAD_SIZE: usize> {
    start: NonNull<c_void>,
    items: usize,
    types: PhantomData<(Head, Item)>,
}

impl<Head: Pod, Item: Pod, const HEAD_SIZE: usize> Mapping<Head, Item, HEAD_SIZE> {
    const FITS: () = assert!(
        size_of::<Head>() <= HEAD_SIZE
            && HEAD_SIZE.is_multiple_of(align_of::<Item>())
            && align_of::<Head>() <= 4096
            && align_of::<Item>() <= 4096
    );

    /// Bytes of memory that a head and `items` items need.
    #[must_use]
    pub fn size(items: usize) -> usize {
        items.saturating_mul(size_of::<Item>()).saturating_add(HEAD_SIZE)
    }

    /// Maps a head and `items` items, which the memory must have room for.
    ///
    /// # Errors
    /// What the kernel says; a memory that is too short is refused.
    pub fn new(memory: BorrowedFd<'_>, items: usize) -> io::Result<Self> {
        let () = Self::FITS;
        let length = Self::size(items);
        let available = nix::sys::stat::fstat(memory)?.st_size;
        if i64::try_from(length).map_err(io::Error::other)? > available {
            return Err(io::Error::other(format!("memory has {available} bytes, {length} are needed")));
        }
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
        // SAFETY: no address is asked for, so no existing mapping is replaced; the file is long enough
        // (checked above) and never shrinks (see `resize`), so no access can fault.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, memory, 0) }?;
        Ok(Self { start, items, types: PhantomData })
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &Head {
        // SAFETY: mapped until drop, page-aligned, long enough and any bytes are a `Head` (`FITS`, Pod).
        // Another process writes the memory only while this one has no reference to it: a table has
        // one live worker at a time.
        unsafe { self.start.cast::<Head>().as_ref() }
    }

    /// The head, to be changed.
    #[must_use]
    pub fn head_mut(&mut self) -> &mut Head {
        // SAFETY: as in `head`, and `&mut self` excludes other references in this process.
        unsafe { self.start.cast::<Head>().as_mut() }
    }

    /// The items.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        // SAFETY: `new` has mapped HEAD_SIZE bytes and `items` items behind them, aligned (`FITS`); for the
        // rest see `head`.
        unsafe { std::slice::from_raw_parts(self.first_item().as_ptr(), self.items) }
    }

    /// The items, to be changed.
    #[must_use]
    pub fn items_mut(&mut self) -> &mut [Item] {
        // SAFETY: as in `items`, and `&mut self` excludes other references in this process.
        unsafe { std::slice::from_raw_parts_mut(self.first_item().as_ptr(), self.items) }
    }

    /// Gives the whole pages that lie within `items` back to the kernel. They read as zeros from then on, and
    /// cost memory again once one of their items is looked at: a read of a shared mapping fills holes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn discard(&mut self, items: Range<usize>) -> io::Result<()> {
        let page = memory::page_size();
        let start = Self::size(items.start).next_multiple_of(page);
        let end = Self::size(items.end.min(self.items)) / page * page;
        let Some(length) = end.checked_sub(start).filter(|&length| length > 0) else { return Ok(()) };
        // SAFETY: `start` lies within the mapping, as `end` does.
        let first = unsafe { self.start.byte_add(start) };
        // SAFETY: whole pages of this mapping, in which only items lie, for the head lies before the first;
        // zeros are an `Item` (Pod), and `&mut self` excludes references to what changes.
        unsafe { madvise(first, length, MmapAdvise::MADV_REMOVE) }?;
        Ok(())
    }

    fn first_item(&self) -> NonNull<Item> {
        // SAFETY: the mapping has at least HEAD_SIZE bytes, so the sum stays within it or at its end.
        unsafe { self.start.byte_add(HEAD_SIZE) }.cast()
    }
}

impl<Head, Item, const HEAD_SIZE: usize> Drop for Mapping<Head, Item, HEAD_SIZE> {
    fn drop(&mut self) {
        let length = HEAD_SIZE + self.items * size_of::<Item>();
        // SAFETY: exactly the range that `new` mapped, and no reference to it outlives `self`.
        let unmapped = unsafe { munmap(self.start, length) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Mapping<u64, u32, 64>;

    #[test]
    fn two_mappings_show_the_same_bytes() {
        let memory = create("test", Small::size(10)).unwrap();
        let mut first = Small::new(memory.as_fd(), 10).unwrap();
        let second = Small::new(memory.as_fd(), 10).unwrap();
        *first.head_mut() = 7;
        first.items_mut()[9] = 42;
        assert_eq!((*second.head(), second.items()[9], second.items().len()), (7, 42, 10));
    }

    #[test]
    fn memory_grows_and_never_shrinks() {
        let memory = create("test", Small::size(10)).unwrap();
        assert!(Small::new(memory.as_fd(), 11).is_err());
        resize(memory.as_fd(), Small::size(11)).unwrap();
        resize(memory.as_fd(), 1).unwrap();
        assert_eq!(Small::new(memory.as_fd(), 11).unwrap().items().len(), 11);
        assert!(cannot_shrink(memory.as_fd()) && ftruncate(&memory, 1).is_err());
        assert!(!cannot_shrink(std::fs::File::open("/dev/null").unwrap().as_fd()));
    }

    #[test]
    fn discarded_items_read_as_zeros_and_others_stay() {
        type Paged = Mapping<u64, u64, 4096>;
        let page = memory::page_size() / size_of::<u64>();
        let file = create("test", Paged::size(4 * page)).unwrap();
        let mut mapping = Paged::new(file.as_fd(), 4 * page).unwrap();
        *mapping.head_mut() = 7;
        mapping.items_mut().fill(9);
        let held = || nix::sys::stat::fstat(&file).unwrap().st_blocks;
        let before = held();
        mapping.discard(1..3 * page).unwrap();
        assert!(held() < before);
        assert_eq!((*mapping.head(), mapping.items()[0], mapping.items()[3 * page]), (7, 9, 9));
        assert!(mapping.items()[2 * page - 1] == 0);
        mapping.discard(0..0).unwrap();
        mapping.discard(3 * page..usize::MAX).unwrap();
        assert_eq!(mapping.head(), &7);
    }
}
