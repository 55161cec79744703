//! One end of a link: a nonblocking SEQPACKET socket that carries whole messages of one type each way.
//! SEQPACKET, because each read is one message, with the descriptors that came with it, and end of file is
//! still seen.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ipc::codec::{self, CodecError};
use crate::ipc::message::{ToSupervisor, ToWorker};
use crate::sys::descriptor;

/// Most descriptors that the kernel lets one message carry (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

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
    /// Descriptors came with a message and could not be taken: this process has none left.
    #[error("the descriptors of a message got lost: this process may have no more")]
    DescriptorsLost,
    /// What arrived, or was to be sent, is not a message.
    #[error("on the link: {0}")]
    Codec(#[from] CodecError),
}

/// An end that sends `Tx` and receives `Rx`.
#[derive(Debug)]
pub struct Link<Tx, Rx> {
    socket: OwnedFd,
    queue: VecDeque<Packet>,
    buffer: Vec<u8>,
    control: Vec<u8>,
    direction: PhantomData<fn(Tx) -> Rx>,
}

/// A message on its way.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
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
            control: nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]),
            direction: PhantomData,
        }
    }

    /// Sends a message, or queues it behind those the other side has not read yet.
    ///
    /// # Errors
    /// [`LinkError::Full`] when too many wait already: the message is not queued.
    pub fn send(&mut self, message: &Tx) -> Result<(), LinkError> {
        self.send_with(message, &[])
    }

    /// As [`send`](Self::send), with copies of `descriptors`, at most [`MAX_DESCRIPTORS`].
    ///
    /// # Errors
    /// As `send`; and when a descriptor that has to wait cannot be copied.
    pub fn send_with(&mut self, message: &Tx, descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        if !self.has_room() {
            return Err(LinkError::Full);
        }
        let bytes = codec::encode(message)?;
        if self.queue.is_empty() && self.write(&bytes, descriptors)? {
            return Ok(());
        }
        let copies: io::Result<Vec<OwnedFd>> =
            descriptors.iter().map(|descriptor| descriptor.try_clone_to_owned()).collect();
        let descriptors = copies.map_err(|source| LinkError::Send { source })?;
        self.queue.push_back(Packet { bytes, descriptors });
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

    /// Frees everything but the socket, which stays open: others have it too, by its number.
    pub fn abandon(self) {
        let _ = self.socket.into_raw_fd();
    }

    /// Sends what waits, as far as the other side reads. To be called when the socket is writable.
    ///
    /// # Errors
    /// When the other end is closed, or the kernel refuses.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(packet) = self.queue.pop_front() {
            let descriptors: Vec<BorrowedFd<'_>> = packet.descriptors.iter().map(AsFd::as_fd).collect();
            if !self.write(&packet.bytes, &descriptors)? {
                drop(descriptors);
                self.queue.push_front(packet);
                break;
            }
        }
        Ok(())
    }

    /// The next message, if there is one; descriptors that came with it are closed. To be called until it
    /// returns `None`.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at end of file; a message that does not decode is an error, and consumed.
    pub fn receive(&mut self) -> Result<Option<Rx>, LinkError> {
        Ok(self.receive_with()?.map(|(message, _)| message))
    }

    /// As [`receive`](Self::receive), with the descriptors that came with the message. They are not inherited
    /// by exec.
    ///
    /// # Errors
    /// As `receive`; and when the descriptors got lost on the way.
    pub fn receive_with(&mut self) -> Result<Option<(Rx, Vec<OwnedFd>)>, LinkError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let number = self.socket.as_raw_fd();
        let (length, descriptors) = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            match recvmsg::<()>(number, &mut parts, Some(&mut self.control), flags) {
                Ok(packet) if packet.bytes == 0 => return Err(LinkError::Closed),
                Ok(packet) => {
                    let control = packet.cmsgs().map_err(|_| LinkError::DescriptorsLost)?;
                    break (packet.bytes, control.flat_map(take_descriptors).collect());
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Receive { source: error.into() }),
            }
        };
        Ok(Some((codec::decode(&self.buffer[..length])?, descriptors)))
    }

    fn write(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<bool, LinkError> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
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

/// Owns what the kernel has just put into this process's table.
fn take_descriptors(control: ControlMessageOwned) -> Vec<OwnedFd> {
    match control {
        ControlMessageOwned::ScmRights(numbers) => {
            numbers.into_iter().filter_map(|number| descriptor::adopt(number).ok()).collect()
        }
        _ => Vec::new(),
    }
}

impl<Tx, Rx> AsFd for Link<Tx, Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Tx, Rx> AsRawFd for Link<Tx, Rx> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use nix::sys::socket::send;

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
    fn descriptors_travel_with_their_message_even_when_it_has_to_wait() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut before = 0;
        while !supervisor.has_queued() {
            supervisor.send(&ToWorker::ReportNow { request: 0 }).unwrap();
            before += 1;
        }
        supervisor.send_with(&ToWorker::Leave, &[reader.as_fd(), writer.as_fd()]).unwrap();
        drop((reader, writer));
        for _ in 0..before {
            let (_, descriptors) = slot.receive_with().unwrap().unwrap();
            assert!(descriptors.is_empty());
            supervisor.flush().unwrap();
        }
        let (message, descriptors) = slot.receive_with().unwrap().unwrap();
        assert_eq!(message, ToWorker::Leave);
        let [reader, writer] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        File::from(writer).write_all(b"over there").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "over there");
    }

    #[test]
    fn what_is_abandoned_stays_open() {
        let (mut supervisor, slot) = pair().unwrap();
        let number = slot.as_raw_fd();
        SlotEnd::new(slot).abandon();
        let mut slot = SlotEnd::new(descriptor::adopt(number).unwrap());
        supervisor.send(&ToWorker::Leave).unwrap();
        assert_eq!(slot.receive().unwrap(), Some(ToWorker::Leave));
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
