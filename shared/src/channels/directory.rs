//! The directory of channels: one record for each, which the hub alone writes. What is in the record of a channel
//! that has a number follows from its entries in the journal, so that a hub can redo what the one before left undone.

use std::sync::atomic::{Ordering, fence};

use super::memory::{ChannelMemory, MAX_CHANNELS, Word};

/// The longest name of a channel, in bytes.
pub const MAX_NAME: usize = 128;

const NAME_LENGTH_AT: usize = MAX_NAME;
const EPOCH_AT: usize = 136;
const OFFSET_AT: usize = 144;
const LAST_AT: usize = 152;
const SUBSCRIBERS_AT: usize = 160;

/// A channel as its record has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChannelState {
    /// Differs between two channels that had the same name at different times.
    pub epoch: u64,
    /// The number of its last publication.
    pub offset: u64,
    /// Where that lies in the journal; 0 if there is none.
    pub last: u64,
    /// How many connections are subscribed.
    pub subscribers: u64,
}

/// An epoch as users see it: in base 36.
#[must_use]
pub fn epoch_text(mut epoch: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::new();
    loop {
        text.push(DIGITS[usize::try_from(epoch % 36).unwrap_or_default()]);
        epoch /= 36;
        if epoch == 0 {
            text.reverse();
            return text.into_iter().map(char::from).collect();
        }
    }
}

impl ChannelMemory {
    /// The channel's name; `None` if no channel has this number.
    #[must_use]
    pub fn channel_name(&self, channel: u32) -> Option<String> {
        let at = Self::channel_at(channel)?;
        let length = usize::try_from(self.raw().word(at + NAME_LENGTH_AT).load(Ordering::Acquire)).ok()?;
        let mut name = [0; MAX_NAME];
        self.raw().copy_out(at, &mut name);
        let name = name.get(..length).filter(|name| !name.is_empty())?;
        std::str::from_utf8(name).map(str::to_owned).ok()
    }

    /// What the channel's record says.
    #[must_use]
    pub fn channel_state(&self, channel: u32) -> Option<ChannelState> {
        let at = Self::channel_at(channel)?;
        let word = |place| self.raw().word(at + place).load(Ordering::Acquire);
        Some(ChannelState {
            epoch: word(EPOCH_AT),
            offset: word(OFFSET_AT),
            last: word(LAST_AT),
            subscribers: word(SUBSCRIBERS_AT),
        })
    }

    /// Writes the channel's record. The hub's alone.
    pub fn set_channel_state(&self, channel: u32, state: &ChannelState) {
        let Some(at) = Self::channel_at(channel) else { return };
        let set = |place, value| self.raw().word(at + place).store(value, Ordering::Release);
        set(EPOCH_AT, state.epoch);
        set(OFFSET_AT, state.offset);
        set(LAST_AT, state.last);
        set(SUBSCRIBERS_AT, state.subscribers);
    }

    /// Gives the channel its name, and with it its place, with nothing in it yet. The hub's alone.
    pub fn add_channel(&self, channel: u32, name: &str, epoch: u64) {
        let Some(at) = Self::channel_at(channel).filter(|_| name.len() <= MAX_NAME) else { return };
        self.raw().word(at + NAME_LENGTH_AT).store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        self.raw().copy_in(at, name.as_bytes());
        self.set_channel_state(channel, &ChannelState { epoch, ..ChannelState::default() });
        self.raw().word(at + NAME_LENGTH_AT).store(name.len() as u64, Ordering::Release);
        if self.get(Word::ChannelsUsed) < u64::from(channel) {
            self.set(Word::ChannelsUsed, channel.into());
        }
    }

    /// No channel has this number any more. The hub's alone.
    pub fn remove_channel(&self, channel: u32) {
        if let Some(at) = Self::channel_at(channel) {
            self.raw().word(at + NAME_LENGTH_AT).store(0, Ordering::Release);
        }
    }

    /// The numbers that channels have or had.
    pub fn channels(&self) -> impl Iterator<Item = u32> {
        let used = u32::try_from(self.get(Word::ChannelsUsed)).unwrap_or(MAX_CHANNELS);
        1..=used.min(MAX_CHANNELS)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::memory::{SMALLEST_JOURNAL, create};
    use super::*;
    use crate::sys::shared_memory::Access;

    #[test]
    fn an_epoch_is_a_number_in_base_36() {
        for epoch in [0, 35, 36, 1_679_615, u64::MAX] {
            assert_eq!(u64::from_str_radix(&epoch_text(epoch), 36), Ok(epoch));
        }
    }

    #[test]
    fn a_channel_is_there_from_its_name_on_until_it_is_removed() {
        let made = create(SMALLEST_JOURNAL).unwrap();
        let memory = ChannelMemory::map(made.as_fd(), Access::Write).unwrap();
        memory.add_channel(3, "chat:42", 7);
        let state = ChannelState { epoch: 7, offset: 1, last: 8, subscribers: 2 };
        memory.set_channel_state(3, &state);
        let named = |memory: &ChannelMemory| -> Vec<_> {
            memory.channels().map(|channel| memory.channel_name(channel)).collect()
        };
        assert_eq!(named(&memory), [None, None, Some("chat:42".to_owned())]);
        assert_eq!(memory.channel_state(3), Some(state));
        memory.remove_channel(3);
        assert_eq!(named(&memory), [None, None, None]);
        assert_eq!((memory.channel_name(0), memory.channel_name(u32::MAX)), (None, None));
    }
}
