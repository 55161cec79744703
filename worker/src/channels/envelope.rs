//! What clients get for an entry: the frame that the hub has built, or one that also says of which channel the publication
//! is and which number it has. Both follow from the entry alone, so that another worker goes on in the middle of one.

use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::journal::{Entry, Overwritten};
use holdfast_shared::channels::memory::ChannelMemory;
use holdfast_shared::channels::up_ring::Verdict;
use serde::Serialize;
use serde_json::value::RawValue;
use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::websocket::frame;

#[derive(Serialize)]
struct Envelope<'a> {
    channel: &'a str,
    offset: u64,
    epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

#[derive(Serialize)]
struct Subscribed<'a> {
    subscribed: &'a str,
    offset: u64,
    epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
}

/// Appends the frame that clients with an envelope get.
///
/// # Errors
/// When it was overwritten.
pub(crate) fn append_envelope(
    memory: &ChannelMemory,
    entry: &Entry,
    out: &mut Vec<u8>,
) -> Result<(), Overwritten> {
    let mut plain = Vec::new();
    memory.append_bytes(entry, &mut plain)?;
    let payload = payload_of(&plain);
    let channel = memory.channel_name(entry.head.channel).unwrap_or_default();
    let epoch = memory.channel_state(entry.head.channel).map_or(0, |state| state.epoch);
    let text = entry.head.is_text().then(|| std::str::from_utf8(payload).ok()).flatten();
    let data = text.map(|text| match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => Payload::Json(json),
        Err(_) => Payload::Text(text),
    });
    let data_base64 = data.is_none().then(|| data_encoding::BASE64.encode(payload));
    let epoch = epoch_text(epoch);
    let envelope =
        Envelope { channel: &channel, offset: entry.head.offset, epoch: &epoch, data, data_base64 };
    append_json(&envelope, out);
    Ok(())
}

/// Appends the first message of a client with an envelope.
pub(crate) fn append_subscribed(verdict: &Verdict, out: &mut Vec<u8>) {
    append_json(
        &Subscribed {
            subscribed: &verdict.channel,
            offset: verdict.offset,
            epoch: &verdict.epoch,
            recovered: verdict.recovered,
        },
        out,
    );
}

/// Appends what a client with an envelope is told of what it was too slow for.
pub(crate) fn append_skipped(channel: &str, out: &mut Vec<u8>) {
    append_json(&serde_json::json!({ "skipped": channel }), out);
}

fn append_json(value: &impl Serialize, out: &mut Vec<u8>) {
    // Numbers and strings: nothing that JSON does not have.
    let text = serde_json::to_vec(value).unwrap_or_default();
    frame::append_frame(out, OpCode::Data(Data::Text), &text);
}

/// The message in a whole frame of a server.
fn payload_of(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1).map(|length| length & 0x7f) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(header..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use holdfast_shared::channels::entry::{EntryHead, Kind};
    use holdfast_shared::channels::journal::Writer;
    use holdfast_shared::channels::memory::{SMALLEST_JOURNAL, Word, create};
    use holdfast_shared::sys::shared_memory::Access;

    use super::*;

    fn enveloped(opcode: Data, payload: &[u8]) -> String {
        let made = create(SMALLEST_JOURNAL).unwrap();
        let memory = ChannelMemory::map(made.as_fd(), Access::Write).unwrap();
        memory.add_channel(1, "chat:1", 36);
        let flags = if opcode == Data::Text { EntryHead::TEXT } else { 0 };
        let head = EntryHead {
            channel: 1,
            offset: 5,
            flags,
            kind: Kind::Publication.number(),
            ..bytemuck::Zeroable::zeroed()
        };
        let mut bytes = Vec::new();
        frame::append_frame(&mut bytes, OpCode::Data(opcode), payload);
        let mut writer = Writer::new(&memory);
        let position = writer.append(&memory, head, &bytes);
        writer.commit(&memory);
        assert!(position < memory.get(Word::Tail));
        let (entry, mut out) = (memory.entry(position).unwrap(), Vec::new());
        append_envelope(&memory, &entry, &mut out).unwrap();
        String::from_utf8(payload_of(&out).to_vec()).unwrap()
    }

    #[test]
    fn json_stays_json_text_becomes_a_string_and_bytes_base64() {
        let around = |data: &str| format!(r#"{{"channel":"chat:1","offset":5,"epoch":"10",{data}}}"#);
        assert_eq!(enveloped(Data::Text, br#"{"a": 1}"#), around(r#""data":{"a": 1}"#));
        assert_eq!(enveloped(Data::Text, b"say \"hi\""), around(r#""data":"say \"hi\"""#));
        assert_eq!(enveloped(Data::Binary, &[1, 2]), around(r#""data_base64":"AQI=""#));
        assert!(enveloped(Data::Text, &[b'7'; 300]).contains("777"));
    }
}
