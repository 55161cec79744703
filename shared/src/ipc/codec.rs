//! Messages as bytes: magic, versions, incarnation, payload. The one place that names bincode.
//!
//! A message may be longer than the reader knows, then the rest is ignored; or shorter, since it was written by an
//! older program, then what is missing is zeros.

use std::any::type_name;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::error::DecodeError;
use serde::de::value::Error as NoValue;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};

use crate::format::Format;
use crate::id::Incarnation;
use crate::ipc::message::Envelope;

/// The messages of this program.
pub const LINK_FORMAT: Format = Format { name: "link messages", version: 4, reads_since: 2 };

/// Longest message, head included. A SEQPACKET socket takes up to 212,960 bytes by default.
pub const MAX_MESSAGE: usize = 64 * 1024;

const MAGIC: [u8; 2] = *b"hf";
const HEAD: usize = 8;
/// What appended fields may weigh when an older program does not send them.
const MAX_MISSING: usize = 128;
// Fixed-size integers: what a message weighs can be told from its shape, and zeros are zero, none or empty.
const CONFIGURATION: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_MESSAGE>();
const UNLIMITED: Configuration<LittleEndian, Fixint> = bincode::config::standard().with_fixed_int_encoding();

/// What is sent over a link: an enum whose kinds are numbered in order.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of the message with these bytes; `None` if they are too short to say.
    fn kind(payload: &[u8]) -> Option<Kind>;

    /// May it be dropped when the other side does not read? Everything else waits until there is room.
    fn may_be_lost(&self) -> bool;
}

/// Which message it is, among all that one speaker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Who speaks, where several do.
    pub speaker: u32,
    /// Its number among the speaker's messages.
    pub index: u32,
    /// The names of those that this program knows.
    pub known: &'static [&'static str],
}

impl Kind {
    /// Its name, if this program knows it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.known.get(usize::try_from(self.index).ok()?).copied()
    }
}

/// Why bytes are not a message, or a message not bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than any message may be.
    #[error("a message of {length} bytes; {MAX_MESSAGE} are allowed")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Too short, or not ours.
    #[error("{length} bytes that are not a Holdfast message")]
    NotAMessage {
        /// Their number.
        length: usize,
    },
    /// From a Holdfast that does not fit to this one.
    #[error(
        "a message of version {version}, for readers since version {reads_since}; this binary has {LINK_FORMAT}"
    )]
    Version {
        /// The writer's version.
        version: u8,
        /// The oldest version that reads it.
        reads_since: u8,
    },
    /// A kind of message that this program does not know.
    #[error("a message of unknown kind {}", kind.index)]
    UnknownKind {
        /// Which.
        kind: Kind,
    },
    /// The payload does not decode.
    #[error("a message that cannot be decoded")]
    Decode {
        /// What bincode said.
        source: DecodeError,
    },
    /// The message cannot be encoded.
    #[error("cannot encode a message")]
    Encode {
        /// What bincode said.
        source: bincode::error::EncodeError,
    },
}

/// The bytes of `message`.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`].
pub fn encode<T: Message>(incarnation: Incarnation, message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[short(LINK_FORMAT.version), short(LINK_FORMAT.reads_since)]);
    bytes.extend_from_slice(&incarnation.0.to_le_bytes());
    bincode::serde::encode_into_std_write(message, &mut bytes, CONFIGURATION)
        .map_err(|source| CodecError::Encode { source })?;
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong { length: bytes.len() });
    }
    Ok(bytes)
}

/// The message in `bytes`.
///
/// # Errors
/// See [`CodecError`]; whatever the bytes are, this does not panic and does not allocate more than they
/// warrant.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<Envelope<T>, CodecError> {
    let length = bytes.len();
    if length > MAX_MESSAGE {
        return Err(CodecError::TooLong { length });
    }
    let (&[m0, m1, version, reads_since, i0, i1, i2, i3], payload) =
        bytes.split_first_chunk::<HEAD>().ok_or(CodecError::NotAMessage { length })?;
    if [m0, m1] != MAGIC {
        return Err(CodecError::NotAMessage { length });
    }
    let theirs = Format { version: version.into(), reads_since: reads_since.into(), ..LINK_FORMAT };
    if !LINK_FORMAT.fits(&theirs) {
        return Err(CodecError::Version { version, reads_since });
    }
    let incarnation = Incarnation(u32::from_le_bytes([i0, i1, i2, i3]));
    let message = match read(payload) {
        Err(DecodeError::UnexpectedEnd { .. }) => read(&[payload, [0; MAX_MISSING].as_slice()].concat()),
        decoded => decoded,
    };
    let message = message.map_err(|source| match T::kind(payload) {
        Some(kind) if kind.name().is_none() => CodecError::UnknownKind { kind },
        _ => CodecError::Decode { source },
    })?;
    Ok(Envelope { incarnation, message })
}

/// The kind of a message that [`encode`] made.
#[must_use]
pub fn kind<T: Message>(bytes: &[u8]) -> Option<Kind> {
    T::kind(bytes.get(HEAD..)?)
}

/// The number at the start of an enum's bytes, and the rest.
#[must_use]
pub fn tag(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (tag, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*tag), rest))
}

/// The kind of a message of which there is one speaker.
#[must_use]
pub fn only_kind<T: DeserializeOwned>(payload: &[u8]) -> Option<Kind> {
    Some(Kind { speaker: 0, index: tag(payload)?.0, known: kinds::<T>() })
}

/// The names of an enum's variants, in order.
#[must_use]
pub fn kinds<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Never succeeds: the names are all it is asked for.
    let _ = T::deserialize(Variants(&mut names));
    debug_assert!(!names.is_empty(), "{} is no enum", type_name::<T>());
    names
}

/// How many variants an enum has.
#[must_use]
pub fn known<T: DeserializeOwned>() -> u32 {
    u32::try_from(kinds::<T>().len()).unwrap_or(u32::MAX)
}

/// Looks at what is asked of it, and has nothing to give.
struct Variants<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Variants<'_> {
    type Error = NoValue;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
        Err(NoValue::custom("there is no value"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, NoValue> {
        *self.0 = variants;
        Err(NoValue::custom("there is no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    bincode::serde::decode_from_slice(payload, CONFIGURATION).map(|(message, _)| message)
}

const fn short(version: u32) -> u8 {
    assert!(version <= u8::MAX as u32);
    version.to_le_bytes()[0]
}

/// Appends the bytes of `value` to `bytes`, bare: which version wrote them is said by what they are part of. Behind
/// them come zeros, which a newer program reads as the fields that it has in addition.
///
/// # Errors
/// When it cannot be encoded.
pub fn append_bare<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, bytes, UNLIMITED)
        .map_err(|source| CodecError::Encode { source })?;
    bytes.extend_from_slice(&[0; MAX_MISSING]);
    Ok(())
}

/// The value that [`append_bare`] wrote. Its byte strings are borrowed from there, so that
/// nothing is allocated for a length that is not true.
///
/// # Errors
/// When the bytes are not such a value; whatever they are, this does not panic.
pub fn read_bare<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    bincode::serde::borrow_decode_from_slice(bytes, UNLIMITED)
        .map(|(value, _)| value)
        .map_err(|source| CodecError::Decode { source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Ticket;
    use crate::ipc::message::{MAX_BATCH, ToSupervisor, ToWorker, WorkerMessage};
    use crate::reason::CloseReason;

    const WORKER: Incarnation = Incarnation(3);

    /// Messages of a program that has grown: one has another field, one is new.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Grown {
        Known { number: u32, text: String, later: Option<u64>, last: u32 },
        New,
    }

    /// The same before it grew.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Small {
        Known { number: u32, text: String },
    }

    macro_rules! plain_message {
        ($($name:ty),+) => {$(
            impl Message for $name {
                fn kind(payload: &[u8]) -> Option<Kind> {
                    only_kind::<Self>(payload)
                }

                fn may_be_lost(&self) -> bool {
                    false
                }
            }
        )+};
    }
    plain_message!(Grown, Small);

    #[test]
    fn the_largest_batches_fit() {
        let address = "2001:db8::1".parse().unwrap();
        for message in [
            WorkerMessage::Admit { tickets: vec![(Ticket(u64::MAX), address); MAX_BATCH] },
            WorkerMessage::Release { closed: vec![(address, CloseReason::Client); MAX_BATCH] },
            WorkerMessage::Holdings { addresses: vec![(address, u32::MAX); MAX_BATCH] },
        ] {
            let message = ToSupervisor::from(message);
            let bytes = encode(WORKER, &message).unwrap();
            assert_eq!(decode(&bytes).unwrap(), Envelope { incarnation: WORKER, message });
        }
    }

    #[test]
    fn a_longer_message_is_read_as_far_as_it_is_known() {
        let message = Grown::Known { number: 7, text: "seven".to_owned(), later: Some(8), last: 9 };
        let bytes = encode(WORKER, &message).unwrap();
        let known = Small::Known { number: 7, text: "seven".to_owned() };
        assert_eq!(decode::<Small>(&bytes).unwrap().message, known);
    }

    #[test]
    fn what_a_shorter_message_lacks_is_zero() {
        let bytes = encode(WORKER, &Small::Known { number: 7, text: "seven".to_owned() }).unwrap();
        let grown = Grown::Known { number: 7, text: "seven".to_owned(), later: None, last: 0 };
        assert_eq!(decode::<Grown>(&bytes).unwrap().message, grown);
    }

    #[test]
    fn a_message_of_an_unknown_kind_is_named() {
        let bytes = encode(WORKER, &Grown::New).unwrap();
        let Err(CodecError::UnknownKind { kind }) = decode::<Small>(&bytes) else { panic!("it was read") };
        assert_eq!((kind.index, kind.known), (1, ["Known"].as_slice()));
        assert_eq!(super::kind::<Grown>(&bytes).and_then(Kind::name), Some("New"));
        assert!(known::<WorkerMessage>() > 10);
    }

    #[test]
    fn another_version_is_named_before_the_payload_is_read() {
        let mut bytes = encode(WORKER, &ToWorker::ReportNow { request: 1 }).unwrap();
        bytes.truncate(HEAD);
        (bytes[2], bytes[3]) = (9, 9);
        let refused = CodecError::Version { version: 9, reads_since: 9 }.to_string();
        assert_eq!(decode::<ToWorker>(&bytes).unwrap_err().to_string(), refused);
        // The next one, if this program reads it.
        bytes[3] = short(LINK_FORMAT.version);
        assert!(!matches!(decode::<ToWorker>(&bytes), Err(CodecError::Version { .. })));
    }

    #[test]
    fn oversize_is_refused_both_ways() {
        let closed = vec![("::1".parse().unwrap(), CloseReason::Client); 10 * MAX_BATCH];
        let endless = ToSupervisor::from(WorkerMessage::Release { closed });
        assert!(matches!(encode(WORKER, &endless), Err(CodecError::TooLong { .. })));
        assert!(matches!(decode::<ToSupervisor>(&vec![0; MAX_MESSAGE + 1]), Err(CodecError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let head = encode(WORKER, &ToWorker::Leave).unwrap();
            let bytes = [&head[..HEAD], &payload].concat();
            let _ = decode::<ToSupervisor>(&bytes);
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<ToWorker>(&payload);
        }
    }
}
