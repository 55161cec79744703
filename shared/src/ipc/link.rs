//! One end of a link: a nonblocking SEQPACKET socket that carries whole messages of one type each way.
//! SEQPACKET, because each read is one message, with the descriptors that came with it, and end of file is
//! still seen.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::id::Incarnation;
use crate::ipc::codec::{self, CodecError, Kind, Message};
use crate::ipc::message::{Envelope, ToSupervisor, ToWorker};
use crate::sys::rights;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

/// Most descriptors that the kernel lets one message carry (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

/// How many messages wait for the other side to read before those that may be lost are.
pub const MAX_QUEUED: usize = 1024;

/// The supervisor's end of a slot's link.
pub type SupervisorEnd = Link<ToWorker, ToSupervisor>;
/// The slot's end: the worker's, and the keeper's while there is no worker.
pub type SlotEnd = Link<ToSupervisor, ToWorker>;

/// A message and the descriptors that came with it.
pub type Received<M> = (Envelope<M>, Vec<OwnedFd>);

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
    /// The program on the other side is older than this kind of message. Logged already.
    #[error("the program on the other side of the link does not know the message {}", kind.name().unwrap_or("it is sent"))]
    NotKnown {
        /// Which kind.
        kind: Kind,
    },
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
    /// How many kinds of messages the other side knows, once it has said so.
    peer_knows: Option<u32>,
    dropped: u64,
    skipped: u64,
    skipped_kinds: BTreeSet<(u32, u32)>,
    unsent_kinds: BTreeSet<u32>,
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
    let (ours, theirs) = socket_pair()?;
    Ok((Link::new(ours), theirs))
}

/// Makes both ends of any link.
///
/// # Errors
/// What the kernel says.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd), LinkError> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(|error| LinkError::Create { source: error.into() })
}

impl<Tx: Message, Rx: Message> Link<Tx, Rx> {
    /// The end whose nonblocking socket this is.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            buffer: vec![0; codec::MAX_MESSAGE + 1],
            control: nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]),
            peer_knows: None,
            dropped: 0,
            skipped: 0,
            skipped_kinds: BTreeSet::new(),
            unsent_kinds: BTreeSet::new(),
            direction: PhantomData,
        }
    }

    /// The other side knows so many kinds of messages. Those beyond are not sent from now on.
    pub fn set_peer_knows(&mut self, kinds: u32) {
        self.peer_knows = Some(kinds);
    }

    /// Sends a message, or queues it behind those the other side has not read yet. One that may be lost is dropped
    /// instead, and counted, when [`MAX_QUEUED`] wait.
    ///
    /// # Errors
    /// When it cannot be sent, or would not be understood.
    pub fn send(&mut self, incarnation: Incarnation, message: &Tx) -> Result<(), LinkError> {
        self.send_with(incarnation, message, &[])
    }

    /// As [`send`](Self::send), with copies of `descriptors`, at most [`MAX_DESCRIPTORS`].
    ///
    /// # Errors
    /// As `send`; and when a descriptor that has to wait cannot be copied.
    pub fn send_with(
        &mut self,
        incarnation: Incarnation,
        message: &Tx,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        if !self.has_room() && message.may_be_lost() {
            self.dropped += 1;
            return Ok(());
        }
        let bytes = codec::encode(incarnation, message)?;
        if let Some(known) = self.peer_knows
            && let Some(kind) = codec::kind::<Tx>(&bytes)
            && kind.index >= known
        {
            if self.unsent_kinds.insert(kind.index) {
                let name = kind.name().unwrap_or_default();
                log::info!("the program on the other side is older than the message {name}: not sent");
            }
            return Err(LinkError::NotKnown { kind });
        }
        if self.queue.is_empty() && self.write(&bytes, descriptors)? {
            return Ok(());
        }
        let copies: io::Result<Vec<OwnedFd>> =
            descriptors.iter().map(|descriptor| descriptor.try_clone_to_owned()).collect();
        let descriptors = copies.map_err(|source| LinkError::Send { source })?;
        self.queue.push_back(Packet { bytes, descriptors });
        Ok(())
    }

    /// Does the other side read as fast as this one sends, so far?
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED
    }

    /// Messages that were dropped since the other side did not read, and messages of unknown kinds that were
    /// skipped, since this was last asked.
    #[must_use]
    pub fn take_lost(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.dropped), std::mem::take(&mut self.skipped))
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

    /// The socket alone.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
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
    pub fn receive(&mut self) -> Result<Option<Envelope<Rx>>, LinkError> {
        Ok(self.receive_with()?.map(|(envelope, _)| envelope))
    }

    /// As [`receive`](Self::receive), with the descriptors that came with the message. They are not inherited
    /// by exec.
    ///
    /// # Errors
    /// As `receive`; and when the descriptors got lost on the way.
    pub fn receive_with(&mut self) -> Result<Option<Received<Rx>>, LinkError> {
        while let Some((length, descriptors)) = self.read()? {
            match codec::decode(&self.buffer[..length]) {
                Ok(envelope) => return Ok(Some((envelope, descriptors))),
                Err(CodecError::UnknownKind { kind }) => self.note_skipped(kind),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn note_skipped(&mut self, kind: Kind) {
        self.skipped += 1;
        if self.skipped_kinds.insert((kind.speaker, kind.index)) {
            let Kind { index, known, .. } = kind;
            log::warn!(
                "a newer program sends message {index} of which this one knows {}: skipped",
                known.len()
            );
        }
    }

    /// The next packet, in `buffer`: its length, and what came with it.
    fn read(&mut self) -> Result<Option<(usize, Vec<OwnedFd>)>, LinkError> {
        loop {
            match rights::receive(self.socket.as_fd(), &mut self.buffer, &mut self.control) {
                Ok(packet) if packet.length == 0 => return Err(LinkError::Closed),
                Ok(packet) => {
                    let descriptors = packet.descriptors.ok_or(LinkError::DescriptorsLost)?;
                    return Ok(Some((packet.length, descriptors)));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(LinkError::Receive { source: error.into() }),
            }
        }
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
    use crate::ipc::message::{KeeperMessage, WorkerMessage};

    const ANY: Incarnation = Incarnation::ANY;

    fn next(slot: &mut SlotEnd) -> Option<ToWorker> {
        slot.receive().unwrap().map(|envelope| envelope.message)
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        for request in 0..5 {
            supervisor.send(ANY, &ToWorker::ReportNow { request }).unwrap();
        }
        for request in 0..5 {
            assert_eq!(next(&mut slot), Some(ToWorker::ReportNow { request }));
        }
        assert_eq!(next(&mut slot), None);
    }

    #[test]
    fn a_side_that_does_not_read_costs_only_what_may_be_lost() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        let mut sent = 0;
        while supervisor.has_room() {
            supervisor.send(ANY, &ToWorker::ReportNow { request: sent }).unwrap();
            sent += 1;
        }
        let must_arrive = ToWorker::Counted { transfer: 7 };
        for _ in 0..MAX_QUEUED {
            supervisor.send(ANY, &ToWorker::ReportNow { request: 0 }).unwrap();
            supervisor.send(Incarnation(5), &must_arrive).unwrap();
        }
        assert_eq!(supervisor.take_lost(), (MAX_QUEUED as u64, 0));
        let mut received = Vec::new();
        while supervisor.has_queued() {
            supervisor.flush().unwrap();
            received.extend(std::iter::from_fn(|| slot.receive().unwrap()));
        }
        let reports = (0..sent).map(|request| (ANY, ToWorker::ReportNow { request }));
        let expected = reports.chain(std::iter::repeat_n((Incarnation(5), must_arrive), MAX_QUEUED));
        assert!(received.into_iter().map(|envelope| (envelope.incarnation, envelope.message)).eq(expected));
    }

    #[test]
    fn what_the_other_side_does_not_know_is_not_sent_and_what_this_one_does_not_is_skipped() {
        let (mut supervisor, slot) = pair().unwrap();
        supervisor.set_peer_knows(1);
        let new = supervisor.send(ANY, &ToWorker::Leave).unwrap_err();
        assert!(new.to_string().ends_with("does not know the message Leave"), "{new}");
        let known = ToSupervisor::from(WorkerMessage::Applied { generation: 1 });
        let mut bytes = codec::encode(ANY, &known).unwrap();
        bytes[12] = 200;
        for _ in 0..3 {
            send(slot.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
        }
        SlotEnd::new(slot).send(ANY, &known).unwrap();
        assert_eq!(supervisor.receive().unwrap().unwrap().message, known);
        assert_eq!(supervisor.take_lost(), (0, 3));
    }

    #[test]
    fn descriptors_travel_with_their_message_even_when_it_has_to_wait() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(slot);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut before = 0;
        while !supervisor.has_queued() {
            supervisor.send(ANY, &ToWorker::ReportNow { request: 0 }).unwrap();
            before += 1;
        }
        supervisor.send_with(ANY, &ToWorker::Leave, &[reader.as_fd(), writer.as_fd()]).unwrap();
        drop((reader, writer));
        for _ in 0..before {
            let (_, descriptors) = slot.receive_with().unwrap().unwrap();
            assert!(descriptors.is_empty());
            supervisor.flush().unwrap();
        }
        let (envelope, descriptors) = slot.receive_with().unwrap().unwrap();
        assert_eq!(envelope.message, ToWorker::Leave);
        let [reader, writer] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        File::from(writer).write_all(b"over there").unwrap();
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "over there");
    }

    #[test]
    fn the_socket_outlives_its_link() {
        let (mut supervisor, slot) = pair().unwrap();
        let mut slot = SlotEnd::new(SlotEnd::new(slot).into_socket());
        supervisor.send(ANY, &ToWorker::Leave).unwrap();
        assert_eq!(next(&mut slot), Some(ToWorker::Leave));
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (mut supervisor, slot) = pair().unwrap();
        drop(slot);
        assert!(matches!(supervisor.receive(), Err(LinkError::Closed)));
        assert!(matches!(supervisor.send(ANY, &ToWorker::ReportNow { request: 0 }), Err(LinkError::Closed)));
    }

    #[test]
    fn garbage_is_an_error_and_the_next_message_still_arrives() {
        let (mut supervisor, slot) = pair().unwrap();
        send(slot.as_raw_fd(), b"garbage", MsgFlags::empty()).unwrap();
        let started = ToSupervisor::from(KeeperMessage::Started { pid: 2 });
        SlotEnd::new(slot).send(Incarnation(1), &started).unwrap();
        assert!(matches!(supervisor.receive(), Err(LinkError::Codec(_))));
        let expected = Envelope { incarnation: Incarnation(1), message: started };
        assert_eq!(supervisor.receive().unwrap(), Some(expected));
    }
}
