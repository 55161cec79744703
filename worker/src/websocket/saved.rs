//! What an engine remembers between two reads, as data that the next worker can take up. Whoever reads it
//! back believes nothing: bytes from which the engine could not go on make no engine.

use serde::{Deserialize, Serialize, Serializer};
use tungstenite::protocol::frame::coding::{Control, OpCode};

use super::control::PartialControl;
use super::engine::{Engine, Stage};
use super::frame::{ClientHeader, MAX_CLIENT_HEADER, MAX_CONTROL_PAYLOAD, MAX_SERVER_HEADER};
use super::mask::Mask;
use super::message::{MessageKind, PartialMessage};
use super::utf8::PiecewiseUtf8;

/// No message is anywhere near this long, and twice as much can still be counted.
const TOO_LONG: usize = usize::MAX / 4;

/// An engine's memory. Made by [`Engine::save`].
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedEngine<'a> {
    #[serde(borrow)]
    stage: SavedStage<'a>,
    #[serde(borrow)]
    message: Option<SavedMessage<'a>>,
}

/// Where in a frame the stream stands.
#[derive(Debug, Serialize, Deserialize)]
enum SavedStage<'a> {
    BetweenFrames,
    /// The bytes of the header that have come.
    InHeader(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    InData {
        remaining: u64,
        mask: [u8; 4],
        last: bool,
    },
    InControl {
        opcode: u8,
        mask: [u8; 4],
        length: u8,
        /// Still masked.
        #[serde(serialize_with = "as_bytes")]
        payload: &'a [u8],
    },
}

/// A message whose first bytes have come. How much of a code point its text ends with is told from the text.
#[derive(Debug, Serialize, Deserialize)]
struct SavedMessage<'a> {
    is_text: bool,
    #[serde(serialize_with = "as_bytes")]
    payload: &'a [u8],
}

impl Engine {
    /// What it remembers.
    #[must_use]
    pub fn save(&self) -> SavedEngine<'_> {
        let stage = match &self.stage {
            Stage::BetweenFrames => SavedStage::BetweenFrames,
            Stage::InHeader { bytes, have } => SavedStage::InHeader(&bytes[..*have]),
            &Stage::InData { remaining, mask: Mask(mask), last } => {
                SavedStage::InData { remaining: remaining as u64, mask, last }
            }
            Stage::InControl(control) => SavedStage::InControl {
                opcode: OpCode::Control(control.opcode).into(),
                mask: control.mask.0,
                length: u8::try_from(control.length).unwrap_or(u8::MAX),
                payload: &control.payload[..control.have],
            },
        };
        let message = self.message.as_ref().map(|message| SavedMessage {
            is_text: message.kind == MessageKind::Text,
            payload: message.payload(),
        });
        SavedEngine { stage, message }
    }
}

impl SavedEngine<'_> {
    /// The engine that remembers this; `None` if none could have come to remember it.
    #[must_use]
    pub fn restore(&self) -> Option<Engine> {
        let message = match &self.message {
            Some(saved) => Some(saved.restore()?),
            None => None,
        };
        let stage = self.stage.restore(message.as_ref().map(PartialMessage::len))?;
        Some(Engine { stage, message, ..Engine::default() })
    }
}

impl SavedStage<'_> {
    /// `unfinished` is the length of the message that the stage belongs to, if there is one.
    fn restore(&self, unfinished: Option<usize>) -> Option<Stage> {
        match *self {
            Self::BetweenFrames => Some(Stage::BetweenFrames),
            Self::InHeader(header) => {
                let mut bytes = [0; MAX_CLIENT_HEADER];
                bytes.get_mut(..header.len())?.copy_from_slice(header);
                // A header that is complete, or breaks a rule, would not have been kept.
                let is_partial = matches!(ClientHeader::parse(header, unfinished, usize::MAX), Ok(None));
                (is_partial && !header.is_empty()).then_some(Stage::InHeader { bytes, have: header.len() })
            }
            Self::InData { remaining, mask, last } => {
                let remaining = usize::try_from(remaining).ok()?;
                let is_sound = (1..TOO_LONG).contains(&remaining) && unfinished? < TOO_LONG;
                is_sound.then_some(Stage::InData { remaining, mask: Mask(mask), last })
            }
            Self::InControl { opcode, mask, length, payload } => {
                // `OpCode::from` panics above 15.
                let opcode = [Control::Close, Control::Ping, Control::Pong]
                    .into_iter()
                    .find(|&control| u8::from(OpCode::Control(control)) == opcode)?;
                let length = usize::from(length);
                let is_sound = length <= MAX_CONTROL_PAYLOAD && payload.len() < length;
                let mut control = PartialControl {
                    opcode,
                    mask: Mask(mask),
                    length,
                    have: 0,
                    payload: [0; MAX_CONTROL_PAYLOAD],
                };
                is_sound.then(|| {
                    control.append(payload);
                    Stage::InControl(Box::new(control))
                })
            }
        }
    }
}

impl SavedMessage<'_> {
    fn restore(&self) -> Option<PartialMessage> {
        let kind = if self.is_text { MessageKind::Text } else { MessageKind::Binary };
        let mut utf8 = PiecewiseUtf8::default();
        if self.is_text {
            utf8.push(self.payload).ok()?;
        }
        let mut buffer = vec![0; MAX_SERVER_HEADER];
        buffer.extend_from_slice(self.payload);
        let end = buffer.len();
        Some(PartialMessage { kind, buffer, end, utf8 })
    }
}

/// As one run of bytes; serde's own way is one by one.
pub(crate) fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}
