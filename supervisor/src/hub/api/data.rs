//! What is published: bytes, and whether they are text. JSON stays as it was written, so what was posted is what is
//! delivered.

use data_encoding::BASE64;
use serde::ser::SerializeStruct;
use serde_json::value::RawValue;

/// Longest message, in bytes.
pub const MAX_DATA: usize = 1 << 20;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    bytes: Vec<u8>,
    is_binary: bool,
}

impl Data {
    /// Text, JSON or not.
    #[must_use]
    pub fn text(text: String) -> Self {
        Self { bytes: text.into_bytes(), is_binary: false }
    }

    /// Bytes.
    #[must_use]
    pub fn binary(bytes: Vec<u8>) -> Self {
        Self { bytes, is_binary: true }
    }

    /// As it is delivered.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it goes to clients as a binary message.
    #[must_use]
    pub fn is_binary(&self) -> bool {
        self.is_binary
    }

    /// What `"data"` or `"data_base64"` says; one of them must.
    pub(super) fn read(json: Option<Box<RawValue>>, base64: Option<&str>) -> Result<Self, String> {
        let data = match (json, base64) {
            (Some(json), None) => Self::text(Box::<str>::from(json).into_string()),
            (None, Some(base64)) => Self::binary(
                BASE64
                    .decode(base64.as_bytes())
                    .map_err(|error| format!("data_base64 is no base64: {error}"))?,
            ),
            (None, None) => return Err("there is neither data nor data_base64".to_owned()),
            (Some(_), Some(_)) => return Err("data and data_base64 exclude each other".to_owned()),
        };
        let length = data.bytes.len();
        if length > MAX_DATA {
            return Err(format!("the data has {length} bytes, and at most {MAX_DATA} are published"));
        }
        Ok(data)
    }

    /// Adds it to an object: JSON as it is, other text as a string, bytes as `data_base64`.
    pub(super) fn write<S: SerializeStruct>(&self, object: &mut S) -> Result<(), S::Error> {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) if !self.is_binary => match serde_json::from_str::<&RawValue>(text) {
                Ok(json) => object.serialize_field("data", json),
                Err(_) => object.serialize_field("data", text),
            },
            _ => object.serialize_field("data_base64", &BASE64.encode(&self.bytes)),
        }
    }
}
