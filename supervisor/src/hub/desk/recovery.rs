//! What was published in a channel and can be had again: read backwards from its last publication, within the bounds of the
//! channel's rule.

use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::journal::Entry;
use holdfast_shared::clock::milliseconds;

use super::Desk;

impl Desk {
    /// From where a client is to be served that was here before: the position of what it has missed first, 0 if it has
    /// missed nothing. The inner `None`: what it has missed cannot be had; the outer: it has not asked.
    pub(super) fn recover(
        &self,
        channel: u32,
        since: Option<u64>,
        epoch: Option<&str>,
    ) -> Option<Option<u64>> {
        let (since, epoch) = since.zip(epoch)?;
        let state = self.channels.get(channel)?.state;
        if epoch != epoch_text(state.epoch) {
            return Some(None);
        }
        let Some(missed) = state.offset.checked_sub(since) else { return Some(None) };
        if missed == 0 {
            return Some(Some(0));
        }
        let first = self.history(channel).nth(usize::try_from(missed - 1).unwrap_or(usize::MAX));
        Some(first.map(|entry| entry.position))
    }

    /// The publications of the channel that can be had again, the latest first.
    pub(super) fn history(&self, channel: u32) -> impl Iterator<Item = Entry> {
        let last = self.channels.get(channel).map(|found| found.state.last);
        let rule = self.rule(channel);
        let most = rule.map_or(0, |rule| rule.history);
        let ttl = rule.map(|rule| rule.history_ttl).filter(|ttl| !ttl.is_zero());
        let oldest_ms = ttl.map_or(0, |ttl| self.now.wall_ms.saturating_sub(milliseconds(ttl)));
        let is_recent = move |entry: &Entry| entry.head.time_ms >= oldest_ms;
        self.publications(channel, last.unwrap_or_default()).take(most as usize).take_while(is_recent)
    }

    /// The publications of the channel from the one at `position` on, backwards. Of the batch under way there are none.
    pub(super) fn publications(&self, channel: u32, position: u64) -> impl Iterator<Item = Entry> {
        let mut next = position;
        std::iter::from_fn(move || {
            let entry = self.memory.entry(next).ok().filter(|entry| entry.head.channel == channel)?;
            next = entry.head.previous;
            Some(entry)
        })
    }
}
