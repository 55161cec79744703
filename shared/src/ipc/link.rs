//! One end of a link: a nonblocking SEQPACKET socket that carries whole messages of one type each way.
//! SEQPACKET, because each read is one message, with its own descriptors should it ever carry any, and end of
//! file is still seen.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ipc::codec::{self, CodecError};
use crate::ipc::message::{ToSupervisor, ToWorker};

/// Most messages that wait for the other side to read.
pub const MAX_QUEUED: usize = 1024;

/// The supervisor's end of a slot's link.
pub type SupervisorEnd = Link<ToWorker, ToSupervisor>;
/// The slot's end: the worker's, and the keeper's while there is no worker.
pub type SlotEnd = Link<ToSupervisor, ToWorker>;

/// Why a link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The pair could not be made.
    #[error("cannot make a link")]
    Create {
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody holds the other end any more.
    #[error("the other end of the link is closed")]
    Closed,
    /// A message could not be written.
    #[error("cannot send on the link")]
    Send {
        /// What the kernel said.
        source: io::Error,
    },
    /// A message could not be read.
    #[error("cannot receive on the link")]
    Receive {
        /// What the kernel said.
        source: io::Error,
    },
    /// The other side does not read: [`MAX_QUEUED`] messages wait already.
    #[error("the other side of the link does not read: {MAX_QUEUED} messages are waiting")]
    Full,
    /// What arrived, or was to be sent, is not a message.
    #[error("on the link: {0}")]
    Codec(#[from] CodecError),
}

/// An end that sends `Tx` and receives `Rx`.
#[derive(Debug)]
pub struct Link<Tx, Rx> {
    socket: OwnedFd,
    queue: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
    direction: PhantomData<fn(Tx) -> Rx>,
}

/// Makes both ends of a slot's link; the slot's is still a bare descriptor, to be inherited.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> Result<(SupervisorEnd, OwnedFd), LinkError> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| LinkError::Create { source: error.into() })?;
    Ok((Link::new(ours), theirs))
}

impl<Tx: Serialize, Rx: DeserializeOwned> Link<Tx, Rx> {
    /// The end whose nonblocking socket this is.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            buffer: vec![0; codec::MAX_MESSAGE + 1],
            direction: PhantomData,
        }
    }

    /// Sends a message, or queues it behind those the other side has not read yet.
    ///
    /// # Errors
    /// [`LinkError::Full`] when too many wait already: the message is not queued.
    pub fn send(&mut self, message: &Tx) -> Result<(), LinkError> {
        if !self.has_room() {
            return Err(LinkError::Full);
        }
        let bytes = codec::encode(message)?;
        if !self.queue.is_empty() || !self.write(&bytes)? {
            self.queue.push_back(bytes);
        }
        Ok(())
    }

    /// Would `send` take another message?
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED
    }

    /// Does anything wait for the other side to read?
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Forgets what waits: it is another process's, which will send it itself.
    pub fn forget_queued(&mut self) {
        self.queue.clear();
    }

    /// Sends what waits, as far as the other side reads. To be called when the socket is writable.
    ///
    /// # Errors
    /// When the other end is closed, or the kernel refuses.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(bytes) = self.queue.pop_front() {
            if !self.write(&bytes)? {
                self.queue.push_front(bytes);
                break;
            }
        }
        Ok(())
    }

    /// The next message, if there is one. To be called until it returns `None`.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at end of file; a message that does not decode is an error, and consumed.
    pub fn receive(&mut self) -> Result<Option<Rx>, LinkError> {
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(length) => break length,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Receive { source: error.into() }),
            }
        };
        Ok(Some(codec::decode(&self.buffer[..length])?))
    }

    fn write(&self, bytes: &[u8]) -> Result<bool, LinkError> {
        loop {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), bytes, flags) {
                Ok(_) => return Ok(true),
                // ENOBUFS: the kernel is short of memory now; to us that is the same as a full queue.
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Send { source: error.into() }),
            }
        }
    }
}

impl<Tx, Rx> AsRawFd for Link<Tx, Rx> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        for request in 0..5 {
            supervisor.send(&ToWorker::ReportNow { request }).unwrap();
        }
        for request in 0..5 {
            assert_eq!(slot.receive().unwrap(), Some(ToWorker::ReportNow { request }));
        }
        assert_eq!(slot.receive().unwrap(), None);
    }

    #[test]
    fn a_side_that_does_not_read_fills_a_bounded_queue_and_loses_nothing() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        let mut sent = 0;
        while supervisor.has_room() {
            supervisor.send(&ToWorker::ReportNow { request: sent }).unwrap();
            sent += 1;
        }
        assert!(matches!(supervisor.send(&ToWorker::ReportNow { request: 0 }), Err(LinkError::Full)));
        let mut received = 0;
        while received < sent {
            supervisor.flush().unwrap();
            while let Some(message) = slot.receive().unwrap() {
                assert_eq!(message, ToWorker::ReportNow { request: received });
                received += 1;
            }
        }
        assert!(supervisor.has_room());
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (mut supervisor, slot) = pair().unwrap();
        drop(slot);
        assert!(matches!(supervisor.receive(), Err(LinkError::Closed)));
        assert!(matches!(supervisor.send(&ToWorker::ReportNow { request: 0 }), Err(LinkError::Closed)));
    }

    #[test]
    fn garbage_is_an_error_and_the_next_message_still_arrives() {
        let (mut supervisor, slot) = pair().unwrap();
        send(slot.as_raw_fd(), b"garbage", MsgFlags::empty()).unwrap();
        let message =
            codec::encode(&ToSupervisor::Started { incarnation: crate::id::Incarnation(1), pid: 2 });
        send(slot.as_raw_fd(), &message.unwrap(), MsgFlags::empty()).unwrap();
        assert!(matches!(supervisor.receive(), Err(LinkError::Codec(_))));
        assert!(matches!(supervisor.receive(), Ok(Some(ToSupervisor::Started { pid: 2, .. }))));
    }
}
