//! The connections that the hub knows, each with its channels. They are on its heap: a hub that starts hears of them from
//! the workers. What happened to a connection before it is named again is kept until then. Small, since there are many.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use holdfast_shared::id::ConnectionId;

/// Halves, so that an entry of the map has no padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key([u32; 2]);

/// What most connections need.
#[derive(Debug, Clone, Copy, Default)]
struct Member {
    /// Where its record is.
    row: u32,
    /// Its first channel; 0 is none.
    channel: u32,
    /// Its address, if that is one of IPv4.
    address: u32,
    /// There are details.
    has_details: bool,
}

/// What others need besides.
#[derive(Debug, Default)]
struct Details {
    /// Where it is, if another slot has let it in.
    slot: Option<u16>,
    user: Option<Box<str>>,
    info: Option<Box<str>>,
    /// If it is none of IPv4.
    address: Option<IpAddr>,
    more: Vec<u32>,
}

/// Who a connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) slot: u16,
    pub(super) row: u32,
    pub(super) user: Option<String>,
    pub(super) info: Option<String>,
    pub(super) address: Option<IpAddr>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: HashMap<Key, Member>,
    details: HashMap<u64, Box<Details>>,
    users: HashMap<Box<str>, Vec<u64>>,
    of_slot: HashMap<u16, u64>,
    /// Channels that connections which are not known have entered (true) or left since the journal's first entry.
    unsettled: HashMap<u64, Vec<(u32, bool)>>,
}

impl Members {
    pub(super) fn contains(&self, connection: u64) -> bool {
        self.all.contains_key(&key(connection))
    }

    /// How many the slot has.
    pub(super) fn of_slot(&self, slot: u16) -> u64 {
        self.of_slot.get(&slot).copied().unwrap_or_default()
    }

    /// All connections of the slot, by number.
    pub(super) fn in_slot(&self, slot: u16) -> Vec<u64> {
        let mut found: Vec<u64> = self.ids().filter(|&connection| self.slot(connection) == slot).collect();
        found.sort_unstable();
        found
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.all.keys().map(|key| u64::from(key.0[1]) << 32 | u64::from(key.0[0]))
    }

    /// Connections of the user.
    pub(super) fn of_user(&self, user: &str) -> &[u64] {
        self.users.get(user).map(Vec::as_slice).unwrap_or_default()
    }

    /// Who it is.
    pub(super) fn who(&self, connection: u64) -> Option<Who> {
        let member = self.all.get(&key(connection))?;
        let details = self.details.get(&connection);
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        Some(Who {
            slot: self.slot(connection),
            row: member.row,
            user: details.and_then(|details| text(&details.user)),
            info: details.and_then(|details| text(&details.info)),
            address: address_of(member, details.map(|details| &**details)),
        })
    }

    /// Its address.
    pub(super) fn address(&self, connection: u64) -> Option<IpAddr> {
        let member = self.all.get(&key(connection))?;
        address_of(member, self.details.get(&connection).map(|details| &**details))
    }

    /// Its channels.
    pub(super) fn channels(&self, connection: u64) -> Vec<u32> {
        let Some(member) = self.all.get(&key(connection)) else { return Vec::new() };
        let first = Some(member.channel).filter(|&channel| channel != 0);
        let more = self.details.get(&connection).map(|details| details.more.as_slice()).unwrap_or_default();
        first.into_iter().chain(more.iter().copied()).collect()
    }

    /// Is it subscribed to the channel, as far as is known?
    pub(super) fn is_in(&self, connection: u64, channel: u32) -> bool {
        match self.all.get(&key(connection)) {
            Some(member) => {
                member.channel == channel
                    || member.has_details
                        && self.details.get(&connection).is_some_and(|of| of.more.contains(&channel))
            }
            None => self.unsettled.get(&connection).is_some_and(|all| all.contains(&(channel, true))),
        }
    }

    /// A connection that is there, in no channel yet.
    pub(super) fn add(&mut self, connection: u64, who: Who) {
        let home = ConnectionId(connection).slot().0;
        let boxed = |text: Option<String>| text.map(String::into_boxed_str);
        let details = Details {
            slot: Some(who.slot).filter(|&slot| slot != home),
            user: boxed(who.user),
            info: boxed(who.info),
            address: who.address.filter(IpAddr::is_ipv6),
            more: Vec::new(),
        };
        if let Some(user) = &details.user {
            self.users.entry(user.clone()).or_default().push(connection);
        }
        let has_details = details.slot.is_some()
            || details.user.is_some()
            || details.info.is_some()
            || details.address.is_some();
        if has_details {
            self.details.insert(connection, Box::new(details));
        }
        let address = match who.address {
            Some(IpAddr::V4(address)) => address.to_bits(),
            _ => 0,
        };
        self.all.insert(key(connection), Member { row: who.row, channel: 0, address, has_details });
        *self.of_slot.entry(who.slot).or_default() += 1;
    }

    /// It is in another slot, or in another row.
    pub(super) fn place(&mut self, connection: u64, slot: u16, row: u32) {
        let before = self.slot(connection);
        let Some(member) = self.all.get_mut(&key(connection)) else { return };
        member.row = row;
        if before != slot {
            member.has_details = true;
            let home = ConnectionId(connection).slot().0;
            self.details.entry(connection).or_default().slot = Some(slot).filter(|&slot| slot != home);
            self.count_out(before);
            *self.of_slot.entry(slot).or_default() += 1;
        }
    }

    /// It is gone. Returns its channels; `None` if it is not known.
    pub(super) fn remove(&mut self, connection: u64) -> Option<Vec<u32>> {
        let (channels, slot) = (self.channels(connection), self.slot(connection));
        self.all.remove(&key(connection))?;
        let details = self.details.remove(&connection);
        if let Some(user) = details.and_then(|details| details.user)
            && let Some(connections) = self.users.get_mut(&user)
        {
            connections.retain(|&of_user| of_user != connection);
            if connections.is_empty() {
                self.users.remove(&user);
            }
        }
        self.count_out(slot);
        Some(channels)
    }

    /// It has entered the channel.
    pub(super) fn enter(&mut self, connection: u64, channel: u32) {
        match self.all.get_mut(&key(connection)) {
            None => self.note(connection, channel, true),
            Some(member) if member.channel == 0 => member.channel = channel,
            Some(member) => {
                member.has_details = true;
                self.details.entry(connection).or_default().more.push(channel);
            }
        }
    }

    /// It has left the channel.
    pub(super) fn leave(&mut self, connection: u64, channel: u32) {
        let Some(member) = self.all.get_mut(&key(connection)) else {
            return self.note(connection, channel, false);
        };
        let details = self.details.get_mut(&connection);
        if member.channel == channel {
            member.channel = details.and_then(|details| details.more.pop()).unwrap_or_default();
        } else if let Some(details) = details {
            details.more.retain(|&of_more| of_more != channel);
        }
    }

    /// The last that is known of a connection which may not be known otherwise.
    pub(super) fn note(&mut self, connection: u64, channel: u32, is_in: bool) {
        let notes = self.unsettled.entry(connection).or_default();
        match notes.iter_mut().find(|(of_note, _)| *of_note == channel) {
            Some(note) => note.1 = is_in,
            None => notes.push((channel, is_in)),
        }
    }

    /// What the channels of a connection are that is not known, given what its worker knows of them: what the worker has not
    /// heard of yet counts, too.
    pub(super) fn settle(&mut self, connection: u64, named: Vec<u32>) -> Vec<u32> {
        let mut channels = named;
        channels.sort_unstable();
        channels.dedup();
        for (channel, is_in) in self.unsettled.remove(&connection).unwrap_or_default() {
            match is_in {
                true if !channels.contains(&channel) => channels.push(channel),
                true => {}
                false => channels.retain(|&of_named| of_named != channel),
            }
        }
        channels
    }

    /// All connections are known.
    pub(super) fn forget_unsettled(&mut self) {
        self.unsettled = HashMap::new();
    }

    /// How many are in each channel.
    pub(super) fn count_channels(&self) -> HashMap<u32, u64> {
        let mut counts = HashMap::new();
        for connection in self.ids() {
            for channel in self.channels(connection) {
                *counts.entry(channel).or_default() += 1;
            }
        }
        counts
    }

    fn slot(&self, connection: u64) -> u16 {
        let details = self.all.get(&key(connection)).filter(|member| member.has_details);
        let moved = details.and_then(|_| self.details.get(&connection)?.slot);
        moved.unwrap_or(ConnectionId(connection).slot().0)
    }

    fn count_out(&mut self, slot: u16) {
        if let Some(count) = self.of_slot.get_mut(&slot) {
            *count = count.saturating_sub(1);
        }
    }
}

fn address_of(member: &Member, details: Option<&Details>) -> Option<IpAddr> {
    let short = (member.address != 0).then(|| Ipv4Addr::from_bits(member.address).into());
    short.or_else(|| details.and_then(|details| details.address))
}

fn key(connection: u64) -> Key {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    Key([half(connection), half(connection >> 32)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_and_slots_are_counted_as_connections_come_and_go() {
        let mut members = Members::default();
        let (one, other) = (1 << 48 | 5, 2 << 48 | 5);
        let user = Some("56".to_owned());
        members.add(one, Who { slot: 1, row: 7, user: user.clone(), ..Who::default() });
        members.add(other, Who { slot: 2, row: 8, ..Who::default() });
        for channel in [3, 4, 5] {
            members.enter(one, channel);
        }
        members.enter(other, 4);
        assert_eq!(members.count_channels(), HashMap::from([(3, 1), (4, 2), (5, 1)]));
        members.place(other, 1, 9);
        assert_eq!((members.of_slot(1), members.of_slot(2)), (2, 0));
        assert_eq!(members.who(other).unwrap(), Who { slot: 1, row: 9, ..Who::default() });
        assert_eq!(members.of_user("56"), [one]);
        members.leave(one, 3);
        assert!(!members.is_in(one, 3) && members.is_in(one, 4) && members.is_in(one, 5));
        let mut left = members.remove(one).unwrap();
        left.sort_unstable();
        assert_eq!((left, members.remove(one)), (vec![4, 5], None));
        assert_eq!((members.of_user("56"), members.of_slot(1)), (&[][..], 1));
    }

    #[test]
    fn what_a_worker_has_not_heard_of_counts() {
        let mut members = Members::default();
        members.note(1, 3, true);
        members.note(1, 4, true);
        members.note(1, 4, false);
        assert!(members.is_in(1, 3) && !members.is_in(1, 4));
        assert_eq!(members.settle(1, vec![4, 5, 5]), [5, 3]);
        assert_eq!(members.settle(1, vec![4]), [4]);
    }
}
