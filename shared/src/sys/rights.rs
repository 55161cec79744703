//! Reading a message together with the descriptors that came with it.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// What was read.
#[derive(Debug)]
pub struct Packet {
    pub length: usize,
    /// They are close-on-exec. `None` when some got lost on the way.
    pub descriptors: Option<Vec<OwnedFd>>,
}

/// Reads one message into `buffer`, without waiting. `control` has room for the descriptors.
///
/// # Errors
/// What recvmsg(2) says.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], control: &mut [u8]) -> Result<Packet, Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
    let descriptors = received.cmsgs().map(|control| control.flat_map(take).collect());
    Ok(Packet { length: received.bytes, descriptors: descriptors.ok() })
}

fn take(control: ControlMessageOwned) -> Vec<OwnedFd> {
    match control {
        ControlMessageOwned::ScmRights(numbers) => {
            // SAFETY: the kernel has just put it into this process's table, so nobody else owns it.
            numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
        }
        _ => Vec::new(),
    }
}
