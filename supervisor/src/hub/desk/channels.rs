//! The channels that there are, as the hub has them on its heap beside the directory: found by name, each with the rule
//! that holds for it. Numbers of channels that are gone are used again only once the journal has no entry of them left.

use std::collections::{HashMap, VecDeque};

use holdfast_shared::channels::directory::ChannelState;
use holdfast_shared::channels::memory::{ChannelMemory, MAX_CHANNELS, Word};
use holdfast_shared::channels::rules::Rule;

/// Channels looked at in one step of [`Channels::sweep`].
const SWEPT_PER_STEP: usize = 4096;

/// A channel.
#[derive(Debug)]
pub(super) struct Channel {
    /// As its record is to be once the batch counts.
    pub(super) state: ChannelState,
    /// The rule that holds for it, by place.
    pub(super) rule: Option<usize>,
    /// Its record is behind.
    is_touched: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Channels {
    numbers: HashMap<Box<str>, u32>,
    all: Vec<Option<Channel>>,
    /// Numbers without a channel, each with the position from which on the journal has nothing of it.
    free: VecDeque<(u32, u64)>,
    touched: Vec<u32>,
    swept: usize,
}

impl Channels {
    /// Those of the directory.
    pub(super) fn read(memory: &ChannelMemory, rules: &[Rule]) -> Self {
        let (mut this, tail) = (Self::default(), memory.get(Word::Tail));
        for number in memory.channels() {
            let (name, state) = (memory.channel_name(number), memory.channel_state(number));
            match name.zip(state) {
                Some((name, state)) => this.put(number, &name, state, rules),
                None => {
                    this.all.push(None);
                    this.free.push_back((number, tail));
                }
            }
        }
        this
    }

    /// Other rules hold from now on.
    pub(super) fn set_rules(&mut self, rules: &[Rule]) {
        for (name, &number) in &self.numbers {
            if let Some(channel) = self.all.get_mut(place(number)).and_then(Option::as_mut) {
                channel.rule = rule_of(rules, name);
            }
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// All, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Channel)> {
        (1..).zip(&self.all).filter_map(|(number, channel)| Some((number, channel.as_ref()?)))
    }

    /// Names and numbers, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.numbers.iter().map(|(name, &number)| (&**name, number))
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&Channel> {
        self.all.get(place(number))?.as_ref()
    }

    /// The channel, to be changed: its record will be written after the batch.
    #[inline]
    pub(super) fn touch(&mut self, number: u32) -> Option<&mut ChannelState> {
        let channel = self.all.get_mut(place(number))?.as_mut()?;
        if !std::mem::replace(&mut channel.is_touched, true) {
            self.touched.push(number);
        }
        Some(&mut channel.state)
    }

    /// The channel of this name, made if there is none; `None` when there are as many as there can be.
    pub(super) fn open(&mut self, memory: &ChannelMemory, rules: &[Rule], name: &str) -> Option<u32> {
        if let Some(number) = self.find(name) {
            return Some(number);
        }
        let floor = memory.get(Word::Floor);
        let number = match self.free.front() {
            Some(&(number, last)) if last <= floor => {
                self.free.pop_front();
                number
            }
            _ => u32::try_from(self.all.len() + 1).ok().filter(|&number| number <= MAX_CHANNELS)?,
        };
        let count = memory.get(Word::Epochs) + 1;
        memory.set(Word::Epochs, count);
        let epoch = memory.get(Word::Seed).wrapping_add(count);
        memory.add_channel(number, name, epoch);
        self.put(number, name, ChannelState { epoch, ..ChannelState::default() }, rules);
        Some(number)
    }

    /// Writes the records of all that have changed. To be called when the batch counts.
    pub(super) fn write_records(&mut self, memory: &ChannelMemory) {
        for number in self.touched.drain(..) {
            if let Some(channel) = self.all.get_mut(place(number)).and_then(Option::as_mut) {
                memory.set_channel_state(number, &channel.state);
                channel.is_touched = false;
            }
        }
    }

    /// Removes some of those that `is_over` says are of no use any more. To be called between batches.
    pub(super) fn sweep(&mut self, memory: &ChannelMemory, is_over: impl Fn(u32, &Channel) -> bool) {
        let tail = memory.get(Word::Tail);
        for _ in 0..SWEPT_PER_STEP.min(self.all.len()) {
            self.swept = (self.swept + 1) % self.all.len();
            let Ok(number) = u32::try_from(self.swept + 1) else { continue };
            if self.get(number).is_some_and(|channel| is_over(number, channel))
                && let Some(name) = memory.channel_name(number)
            {
                memory.remove_channel(number);
                self.numbers.remove(&*name);
                self.all[self.swept] = None;
                self.free.push_back((number, tail));
            }
        }
    }

    fn put(&mut self, number: u32, name: &str, state: ChannelState, rules: &[Rule]) {
        let channel = Channel { state, rule: rule_of(rules, name), is_touched: false };
        self.numbers.insert(name.into(), number);
        if self.all.len() <= place(number) {
            self.all.resize_with(place(number) + 1, || None);
        }
        self.all[place(number)] = Some(channel);
    }
}

fn rule_of(rules: &[Rule], name: &str) -> Option<usize> {
    rules.iter().position(|rule| rule.matches.matches(name))
}

/// Of the channel in the list. There is none at the place of 0, which no channel has.
fn place(number: u32) -> usize {
    (number as usize).wrapping_sub(1)
}
