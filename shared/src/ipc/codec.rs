//! Messages as bytes: magic, protocol version, payload. The one place that names bincode. Size and version
//! are checked before anything of the payload is looked at, and a decoder must consume every byte.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Raised whenever the bytes of an existing message change.
pub const PROTOCOL_VERSION: u16 = 1;

/// Longest message, head included. A SEQPACKET socket takes up to 212,960 bytes by default.
pub const MAX_MESSAGE: usize = 64 * 1024;

const MAGIC: [u8; 2] = *b"hf";
const HEAD: usize = 4;
// Fixed-size integers: what a message weighs can be told from its shape.
const CONFIGURATION: Configuration<LittleEndian, Fixint, Limit<MAX_MESSAGE>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_MESSAGE>();
const UNLIMITED: Configuration<LittleEndian, Fixint> = bincode::config::standard().with_fixed_int_encoding();

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
    /// From a Holdfast that speaks another version.
    #[error("a message of protocol version {found}; this binary speaks {PROTOCOL_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The payload does not decode.
    #[error("a message that cannot be decoded")]
    Decode {
        /// What bincode said.
        source: bincode::error::DecodeError,
    },
    /// The payload decodes, and bytes are left over: the two sides disagree about its shape.
    #[error("a message with {count} bytes too many")]
    Leftover {
        /// How many.
        count: usize,
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
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
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
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let length = bytes.len();
    if length > MAX_MESSAGE {
        return Err(CodecError::TooLong { length });
    }
    let (head, payload) = bytes.split_at_checked(HEAD).ok_or(CodecError::NotAMessage { length })?;
    if head[..2] != MAGIC {
        return Err(CodecError::NotAMessage { length });
    }
    let found = u16::from_le_bytes([head[2], head[3]]);
    if found != PROTOCOL_VERSION {
        return Err(CodecError::Version { found });
    }
    let (message, consumed) = bincode::serde::decode_from_slice(payload, CONFIGURATION)
        .map_err(|source| CodecError::Decode { source })?;
    match payload.len() - consumed {
        0 => Ok(message),
        count => Err(CodecError::Leftover { count }),
    }
}

/// Appends the bytes of `value` to `bytes`, bare: which version wrote them is said by what they are part of.
///
/// # Errors
/// When it cannot be encoded.
pub fn append_bare<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, bytes, UNLIMITED)
        .map_err(|source| CodecError::Encode { source })?;
    Ok(())
}

/// The value that [`append_bare`] wrote, all of `bytes`. Its byte strings are borrowed from there, so that
/// nothing is allocated for a length that is not true.
///
/// # Errors
/// When the bytes are not such a value; whatever they are, this does not panic.
pub fn read_bare<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (value, consumed) = bincode::serde::borrow_decode_from_slice(bytes, UNLIMITED)
        .map_err(|source| CodecError::Decode { source })?;
    match bytes.len() - consumed {
        0 => Ok(value),
        count => Err(CodecError::Leftover { count }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Incarnation, Ticket};
    use crate::ipc::message::{MAX_BATCH, ToSupervisor, ToWorker};
    use crate::reason::CloseReason;

    #[test]
    fn the_largest_batches_fit() {
        let address = "2001:db8::1".parse().unwrap();
        let incarnation = Incarnation(1);
        for message in [
            ToSupervisor::Admit { incarnation, tickets: vec![(Ticket(u64::MAX), address); MAX_BATCH] },
            ToSupervisor::Release { incarnation, closed: vec![(address, CloseReason::Client); MAX_BATCH] },
            ToSupervisor::Holdings { incarnation, addresses: vec![(address, u32::MAX); MAX_BATCH] },
        ] {
            let bytes = encode(&message).unwrap();
            assert_eq!(decode::<ToSupervisor>(&bytes).unwrap(), message);
        }
    }

    #[test]
    fn another_version_is_named_before_the_payload_is_read() {
        let mut bytes = encode(&ToWorker::ReportNow { request: 1 }).unwrap();
        bytes[2] = 9;
        bytes.truncate(4);
        assert!(matches!(decode::<ToWorker>(&bytes), Err(CodecError::Version { found: 9 })));
    }

    #[test]
    fn leftover_bytes_are_an_error() {
        let mut bytes = encode(&ToWorker::ReportNow { request: 1 }).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<ToWorker>(&bytes), Err(CodecError::Leftover { count: 1 })));
    }

    #[test]
    fn oversize_is_refused_both_ways() {
        let endless = ToSupervisor::Release {
            incarnation: Incarnation(1),
            closed: vec![("::1".parse().unwrap(), CloseReason::Client); 10 * MAX_BATCH],
        };
        assert!(matches!(encode(&endless), Err(CodecError::TooLong { .. })));
        assert!(matches!(decode::<ToSupervisor>(&vec![0; MAX_MESSAGE + 1]), Err(CodecError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = b"hf\x01\x00".to_vec();
            bytes.extend_from_slice(&payload);
            let _ = decode::<ToSupervisor>(&bytes);
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<ToWorker>(&payload);
        }
    }
}
