//! Accepting with the peer's address in one system call, and leaving the new descriptor open across exec:
//! both things that the usual wrappers do otherwise.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use socket2::{SockAddr, SockAddrStorage};

/// Takes one client off the listener's queue; `None` when there is none. The descriptor is nonblocking and
/// *not* close-on-exec: it must survive the keeper's exec of a new binary.
///
/// # Errors
/// What `accept4` says: `EMFILE` and `ENFILE` mean that descriptors ran out.
pub fn accept(listener: RawFd) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    let accept4 = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: both pointers come from `try_init`, `length` holding the size of `storage`; accept4 writes
        // within it.
        let descriptor = unsafe { libc::accept4(listener, storage.cast(), length, libc::SOCK_NONBLOCK) };
        Errno::result(descriptor).map_err(io::Error::from)
    };
    // SAFETY: on success the kernel has filled in an address and its length; on failure nothing is read.
    let accepted = unsafe { SockAddr::try_init(accept4) };
    match accepted {
        Ok((descriptor, address)) => {
            // SAFETY: accept4 has just made it, so nobody else owns it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            let address = address.as_socket().ok_or_else(|| io::Error::other("a client that is not TCP"))?;
            Ok(Some((descriptor, address)))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(None),
            _ => Err(error),
        },
    }
}

/// A listening socket's accept queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AcceptQueue {
    /// Clients that wait in it.
    pub length: u32,
    /// How many may.
    pub limit: u32,
}

/// How many clients wait on a listening socket.
///
/// # Errors
/// What the kernel says.
pub fn accept_queue(listener: RawFd) -> io::Result<AcceptQueue> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: `info` has `length` bytes; the kernel writes at most that many.
    let result = unsafe {
        libc::getsockopt(
            listener,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    // SAFETY: all of it was zeroed, and zeros are valid for these integers; the kernel overwrote a prefix.
    let info = unsafe { info.assume_init() };
    // For a listening socket the kernel puts the queue's length and bound here (tcp_get_info in
    // net/ipv4/tcp.c).
    Ok(AcceptQueue { length: info.tcpi_unacked, limit: info.tcpi_sacked })
}
