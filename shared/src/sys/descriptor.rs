//! Descriptors by number. In a worker a descriptor is an index into the connection table, and the table
//! decides when it is closed; so the worker handles plain numbers, and the few places that turn a number into
//! something else are here. A number is lent for the length of a call, and gets one owner at most.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// The numbers that have been claimed in this process.
static CLAIMED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Why a descriptor given by number cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("descriptor {0} is no descriptor that is given away")]
    Invalid(RawFd),
    #[error("descriptor {number}, expected from the parent process, is not open")]
    NotOpen { number: RawFd, source: io::Error },
    #[error("descriptor {0} belongs to this process already")]
    Owned(RawFd),
}

/// Lends `number` for the length of a call of `use_it`, which must not close it.
///
/// # Errors
/// When it is not open.
pub fn with<T>(number: RawFd, use_it: impl FnOnce(BorrowedFd<'_>) -> T) -> io::Result<T> {
    // SAFETY: what it is lent to cannot keep it, and does not close it.
    Ok(use_it(unsafe { lend(number) }?))
}

/// As [`with`], for all `numbers` at once.
///
/// # Errors
/// When one of them is not open.
pub fn with_all<T>(
    numbers: impl IntoIterator<Item = RawFd>,
    use_them: impl FnOnce(&[BorrowedFd<'_>]) -> T,
) -> io::Result<T> {
    // SAFETY: as in `with`.
    let lend = |number| unsafe { lend(number) };
    let descriptors: Vec<BorrowedFd<'_>> = numbers.into_iter().map(lend).collect::<io::Result<_>>()?;
    Ok(use_them(&descriptors))
}

/// # Safety
/// Nobody may close it within `'a`.
unsafe fn lend<'a>(number: RawFd) -> io::Result<BorrowedFd<'a>> {
    if number < 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: it is not -1; if it is not open, it is not used but for this question.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(descriptor, FcntlArg::F_GETFD)?;
    Ok(descriptor)
}

/// Takes over a descriptor that this process inherited by number, for good: the value closes it when dropped.
/// A number is given once. What this process opened itself is close-on-exec, and refused.
///
/// # Errors
/// See [`ClaimError`].
pub fn claim(number: RawFd) -> Result<OwnedFd, ClaimError> {
    // Standard input and output are somebody else's to give away.
    if number <= 2 {
        return Err(ClaimError::Invalid(number));
    }
    let flags = with(number, |descriptor| fcntl(descriptor, FcntlArg::F_GETFD));
    let flags =
        flags.and_then(|flags| Ok(flags?)).map_err(|source| ClaimError::NotOpen { number, source })?;
    let is_inherited = !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC);
    if !is_inherited || !CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
        return Err(ClaimError::Owned(number));
    }
    // SAFETY: it is open, was inherited, and nobody in this process has got it before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a descriptor survive exec, or not.
///
/// # Errors
/// What `fcntl` says.
pub fn set_inherited(descriptor: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Makes calls on it return at once with would-block instead of waiting.
///
/// # Errors
/// What `fcntl` says.
pub fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Has a socket reset when it is closed, and what was not sent forgotten (SO_LINGER of zero). Otherwise the kernel keeps
/// that for a peer that does not read, without an owner, and the peer hears nothing.
///
/// # Errors
/// What `setsockopt` says.
pub fn reset_on_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO))
}

/// The numbers of all descriptors open in this process, in no particular order; the one used to list them
/// excluded.
///
/// # Errors
/// When /proc is not mounted or no descriptor is left to read it with.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let listing = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<RawFd> =
        listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The listing's own descriptor was among them and is closed by now.
    Ok(numbers.into_iter().filter(|&number| with(number, |_| ()).is_ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn lists_what_is_open() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(open_descriptors().unwrap().contains(&file.as_raw_fd()));
    }

    #[test]
    fn what_is_not_open_is_neither_lent_nor_given() {
        for number in [-1, 1_000_000] {
            assert!(with(number, |_| ()).is_err());
        }
        assert!(matches!(claim(-1), Err(ClaimError::Invalid(_))));
        assert!(matches!(claim(1), Err(ClaimError::Invalid(_))));
        assert!(matches!(claim(1_000_000), Err(ClaimError::NotOpen { .. })));
    }

    #[test]
    fn a_descriptor_gets_one_owner() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(claim(own.as_raw_fd()), Err(ClaimError::Owned(_))));
        set_inherited(own.as_fd(), true).unwrap();
        let number = own.into_raw_fd();
        let claimed = claim(number).unwrap();
        assert_eq!(claimed.as_raw_fd(), number);
        assert!(matches!(claim(number), Err(ClaimError::Owned(_))));
    }
}
