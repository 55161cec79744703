//! Descriptors by number. In a worker a descriptor is an index into the connection table, and the table
//! decides when it is closed; so the worker handles plain numbers, and the few places that turn a number into
//! something that closes itself are here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// Why a descriptor given by number could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The number is negative.
    #[error("descriptor {number} is not a descriptor")]
    Invalid {
        /// The number.
        number: RawFd,
    },
    /// It is not open in this process.
    #[error("descriptor {number}, expected from the parent process, is not open")]
    NotOpen {
        /// The number.
        number: RawFd,
        /// What `fcntl` said.
        source: io::Error,
    },
}

/// Lends `number` to calls that want a borrowed descriptor. It must be open for as long as it is lent; a
/// closed number makes the call fail with `EBADF` and does no harm beyond.
#[must_use]
pub fn borrow<'a>(number: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: -1, the one value BorrowedFd forbids, is excluded. An ill-timed close makes a system call fail
    // or reach another descriptor, neither of which touches memory.
    (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Takes over a descriptor that was inherited by number, for good: the value closes it when dropped.
///
/// # Errors
/// When no such descriptor is open.
pub fn adopt(number: RawFd) -> Result<OwnedFd, DescriptorError> {
    let borrowed = borrow(number).ok_or(DescriptorError::Invalid { number })?;
    fcntl(borrowed, FcntlArg::F_GETFD)
        .map_err(|error| DescriptorError::NotOpen { number, source: error.into() })?;
    // SAFETY: it is open (checked above), and an inherited number has no other owner in a fresh process.
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

/// Puts a copy of `descriptor` at `number`, in place of what is open there, for every process that shares the
/// table. The copy is inherited by exec.
///
/// # Errors
/// What dup2(2) says.
pub fn replace(number: RawFd, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain numbers. Whoever uses `number` goes on with another socket; no memory is touched.
    nix::errno::Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
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
    Ok(numbers.into_iter().filter(|&number| is_open(number)).collect())
}

fn is_open(number: RawFd) -> bool {
    borrow(number).is_some_and(|descriptor| fcntl(descriptor, FcntlArg::F_GETFD).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_what_is_open() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(open_descriptors().unwrap().contains(&file.as_raw_fd()));
    }

    #[test]
    fn refuses_what_is_not_open() {
        assert!(matches!(adopt(-1), Err(DescriptorError::Invalid { .. })));
        assert!(matches!(adopt(1_000_000), Err(DescriptorError::NotOpen { .. })));
    }
}
