//! Connections that come, go, and enter and leave channels. All that is decided about them is decided here, since the hub
//! alone knows those of all slots.

use bytemuck::Zeroable;
use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::entry::{EntryHead, Kind};
use holdfast_shared::channels::rules::{ChannelName, Lag};
use holdfast_shared::channels::up_ring::{Gone, Here, Joined, Refusal, Subscribe, Verdict};
use serde::de::DeserializeOwned;

use super::events::{Event, Name};
use super::members::Who;
use super::{Desk, From, Knowledge};

/// Room that an entry of a channel that is left takes, with its event.
const LEFT_LENGTH: u64 = 512;

impl Desk {
    pub(super) fn on_joined(&mut self, from: From, connection: u64, bytes: &[u8]) {
        let Some(Joined { user, address, info, subscribe }) = read::<Joined>(from, bytes) else { return };
        let asked = subscribe.unwrap_or_default();
        let is_known = self.members.contains(connection);
        let refusal = self.refusal_of_user(user.as_deref()).filter(|_| !is_known);
        if refusal == Some(Refusal::AskAgain) {
            // It is as if it had not asked: it is not here yet.
            return self.refuse(from, connection, &asked, Refusal::AskAgain);
        }
        if !is_known {
            let event = Event { user: user.as_deref(), ..Event::of(Name::Connected, connection) };
            self.tell(from, &event);
            let address = address.parse().ok();
            // One that is refused takes no place of its user's.
            let user = user.filter(|_| refusal.is_none());
            self.members.add(connection, Who { slot: from.slot, row: asked.row, user, info, address });
        }
        match refusal {
            Some(refusal) => self.refuse(from, connection, &asked, refusal),
            None if asked.channel.is_empty() => {}
            None => self.ask(from, connection, &asked),
        }
    }

    pub(super) fn on_subscribe(&mut self, from: From, connection: u64, bytes: &[u8]) {
        if let Some(asked) = read::<Subscribe>(from, bytes) {
            self.ask(from, connection, &asked);
        }
    }

    pub(super) fn on_unsubscribe(&mut self, from: From, connection: u64, channel: u32) {
        // What the hub does not know of a connection, its worker does.
        if self.members.is_in(connection, channel) || (!self.knows_all && !self.members.contains(connection))
        {
            self.leave(from, connection, channel, Kind::Note);
        }
    }

    pub(super) fn on_gone(&mut self, from: From, connection: u64, bytes: &[u8]) {
        let Some(gone) = read::<Gone>(from, bytes) else { return };
        let user = self.members.who(connection).and_then(|who| who.user).or(gone.user);
        let channels = match self.members.remove(connection) {
            Some(channels) => channels,
            None if self.knows_all => return,
            None => self.members.settle(connection, gone.channels),
        };
        self.end(from, connection, &channels, (gone.code, &gone.reason), user.as_deref());
    }

    pub(super) fn on_here(&mut self, from: From, connection: u64, bytes: &[u8]) {
        let Some(here) = read::<Here>(from, bytes) else { return };
        if self.members.contains(connection) {
            return self.members.place(connection, from.slot, here.row);
        }
        let channels = self.members.settle(connection, here.channels);
        let address = here.address.parse().ok();
        let who = Who { slot: from.slot, row: here.row, user: here.user, info: here.info, address };
        self.members.add(connection, who);
        for channel in channels {
            self.members.enter(connection, channel);
            if self.knows_all {
                // The counts were compared without it.
                self.count_in(from, channel, connection);
            }
        }
    }

    /// The slot and its connections are no more. What its ring still held has been taken.
    pub(in crate::hub) fn lose_slot(&mut self, slot: u16) {
        for connection in self.members.in_slot(slot) {
            let user = self.members.who(connection).and_then(|who| who.user);
            let channels = self.members.remove(connection).unwrap_or_default();
            let (code, reason) = (1006, "worker_lost");
            self.end(From::APPLICATION, connection, &channels, (code, reason), user.as_deref());
            if self.is_full() {
                self.commit();
            }
        }
        // Whatever follows, the next hub does not look into this slot's ring for the batch before.
        self.append(Kind::Note, From::APPLICATION, EntryHead::zeroed(), &[]);
        self.commit();
        self.slots.remove(&slot);
        self.redone.remove(&slot);
        self.learn();
    }

    pub(super) fn set_knowledge(&mut self, slot: u16, knowledge: Knowledge) {
        if let Some(known) = self.slots.get_mut(&slot).filter(|known| **known != Knowledge::All) {
            *known = knowledge;
        }
    }

    pub(super) fn on_all_named(&mut self, slot: u16) {
        match self.slots.get(&slot) {
            Some(Knowledge::Naming) => {
                self.set_knowledge(slot, Knowledge::All);
                self.learn();
            }
            // The end of what was begun for an earlier hub: those who were named then are missing.
            Some(Knowledge::Nothing) => self.begin_generation(),
            Some(Knowledge::All) | None => {}
        }
    }

    /// Looks whether all connections are known now. Then counts must be what they are.
    pub(super) fn learn(&mut self) {
        let was_known = self.knows_all;
        self.knows_all =
            self.has_all_slots && self.slots.values().all(|&knowledge| knowledge == Knowledge::All);
        if !self.knows_all || was_known {
            return;
        }
        self.members.forget_unsettled();
        let counts = self.members.count_channels();
        let wrong: Vec<(u32, u64)> = self
            .channels
            .iter()
            .map(|(channel, found)| (channel, found.state.subscribers, counts.get(&channel).copied()))
            .filter(|&(_, counted, there)| counted != there.unwrap_or_default())
            .map(|(channel, _, there)| (channel, there.unwrap_or_default()))
            .collect();
        if !wrong.is_empty() {
            log::warn!("{} channels had other numbers of subscribers than they have", wrong.len());
        }
        for (channel, count) in wrong {
            let before =
                self.channels.touch(channel).map(|state| std::mem::replace(&mut state.subscribers, count));
            let head = EntryHead { channel, argument: count, ..EntryHead::zeroed() };
            self.append(Kind::Note, From::APPLICATION, head, &[]);
            if before.is_some_and(|before| before > 0) && count == 0 {
                self.tell_of_channel(From::APPLICATION, Name::ChannelVacated, channel);
            }
        }
    }

    /// Enters the connection into the channel that it asks for, or refuses.
    fn ask(&mut self, from: From, connection: u64, asked: &Subscribe) {
        if ChannelName::new(asked.channel.as_str()).is_err() {
            return self.refuse(from, connection, asked, Refusal::Forbidden);
        }
        let is_allowed =
            asked.is_granted || self.rule_for(&asked.channel).is_some_and(|rule| rule.client_subscribe);
        let entered = match is_allowed {
            true => self.enter(from, connection, asked),
            false => Err(Refusal::Forbidden),
        };
        if let Err(refusal) = entered {
            self.refuse(from, connection, asked, refusal);
        }
    }

    /// Enters the connection into the channel, if there is a place.
    pub(super) fn enter(&mut self, from: From, connection: u64, asked: &Subscribe) -> Result<u32, Refusal> {
        let most = self.rule_for(&asked.channel).map_or(0, |rule| u64::from(rule.max_subscribers));
        let found = self.channels.find(&asked.channel);
        let is_in = found.is_some_and(|channel| self.members.is_in(connection, channel));
        let subscribers =
            found.and_then(|channel| self.channels.get(channel)).map_or(0, |found| found.state.subscribers);
        if !is_in && most != 0 && subscribers >= most {
            return Err(Refusal::MaxSubscribers);
        }
        let channel = self
            .channels
            .open(&self.memory, &self.settings.rules, &asked.channel)
            .ok_or(Refusal::MaxChannels)?;
        let Some(state) = self.channels.touch(channel) else { return Err(Refusal::MaxChannels) };
        if !is_in {
            state.subscribers += 1;
            self.members.enter(connection, channel);
        }
        let state = *state;
        let recovery = self.recover(channel, asked.since, asked.epoch.as_deref());
        let rule = self.rule(channel);
        let verdict = Verdict {
            row: asked.row,
            channel: asked.channel.clone(),
            epoch: epoch_text(state.epoch),
            offset: state.offset,
            recovered: recovery.map(|from| from.is_some()),
            reason: None,
            may_publish: rule.is_some_and(|rule| rule.client_publish),
            lag_latest: rule.is_some_and(|rule| rule.lag == Lag::Latest),
        };
        let mut key = [0; 16];
        key[..8].copy_from_slice(&state.subscribers.to_le_bytes());
        let argument = recovery.flatten().unwrap_or_default();
        let head = EntryHead { channel, connection, argument, key, ..EntryHead::zeroed() };
        self.append(Kind::Subscribed, from, head, &json(&verdict));
        if !is_in {
            self.tell_of_member(from, Name::Subscribed, connection, channel);
            if state.subscribers == 1 {
                self.tell_of_channel(from, Name::ChannelOccupied, channel);
            }
        }
        Ok(channel)
    }

    /// Takes the connection out of the channel.
    pub(super) fn leave(&mut self, from: From, connection: u64, channel: u32, kind: Kind) {
        self.members.leave(connection, channel);
        let Some(left) = self.count_out(from, connection, channel, kind) else { return };
        self.tell_of_member(from, Name::Unsubscribed, connection, channel);
        if left == 0 {
            self.tell_of_channel(from, Name::ChannelVacated, channel);
        }
    }

    /// The connection has ended; it is no member any more.
    fn end(
        &mut self,
        from: From,
        connection: u64,
        channels: &[u32],
        (code, reason): (u16, &str),
        user: Option<&str>,
    ) {
        // Whatever a worker says, it does not fill the journal at once.
        let most = usize::try_from(self.memory.journal_size() / 8 / LEFT_LENGTH).unwrap_or(usize::MAX);
        let channels = &channels[..channels.len().min(most)];
        let mut vacated = Vec::new();
        for &channel in channels {
            if self.count_out(from, connection, channel, Kind::Note) == Some(0) {
                vacated.push(channel);
            }
        }
        if self.events.is_some() {
            let names = channels.iter().filter_map(|&channel| self.memory.channel_name(channel)).collect();
            let event = Event {
                code: Some(code),
                reason: Some(reason),
                user,
                channels: names,
                ..Event::of(Name::Disconnected, connection)
            };
            self.tell(from, &event);
        }
        for channel in vacated {
            self.tell_of_channel(from, Name::ChannelVacated, channel);
        }
    }

    /// One subscriber less. Returns how many are left; `None` if there is no such channel.
    fn count_out(&mut self, from: From, connection: u64, channel: u32, kind: Kind) -> Option<u64> {
        let state = self.channels.touch(channel)?;
        state.subscribers = state.subscribers.saturating_sub(1);
        let argument = state.subscribers;
        self.append(kind, from, EntryHead { channel, connection, argument, ..EntryHead::zeroed() }, &[]);
        Some(argument)
    }

    fn count_in(&mut self, from: From, channel: u32, connection: u64) {
        let Some(state) = self.channels.touch(channel) else { return };
        state.subscribers += 1;
        let argument = state.subscribers;
        let head =
            EntryHead { channel, connection, argument, flags: EntryHead::ENTERED, ..EntryHead::zeroed() };
        self.append(Kind::Note, from, head, &[]);
    }

    fn refuse(&mut self, from: From, connection: u64, asked: &Subscribe, refusal: Refusal) {
        let verdict = Verdict {
            row: asked.row,
            channel: asked.channel.clone(),
            reason: Some(refusal),
            ..Verdict::default()
        };
        let bytes = json(&verdict);
        let bytes = if bytes.len() <= self.memory.largest_entry() {
            bytes
        } else {
            json(&Verdict { channel: String::new(), ..verdict })
        };
        self.append(Kind::Refused, from, EntryHead { connection, ..EntryHead::zeroed() }, &bytes);
    }

    fn refusal_of_user(&self, user: Option<&str>) -> Option<Refusal> {
        let most = self.settings.max_connections_per_user as usize;
        let user = user.filter(|_| most != 0)?;
        if !self.knows_all {
            return Some(Refusal::AskAgain);
        }
        (self.members.of_user(user).len() >= most).then_some(Refusal::MaxConnectionsPerUser)
    }
}

/// Nothing of what a worker says is believed: what is no such message is passed over.
fn read<T: DeserializeOwned>(from: From, bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| log::warn!("slot {} says what cannot be read, passed over: {error}", from.slot))
        .ok()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Strings and numbers: nothing that JSON does not have.
    serde_json::to_vec(value).unwrap_or_default()
}
