//! What applications order: it is carried out as what clients ask for is, but that no rule keeps applications from anything
//! except where a limit is reached.

use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::entry::{EntryHead, Kind};
use holdfast_shared::channels::up_ring::{Refusal, Subscribe};
use holdfast_worker::websocket::MessageKind;
use holdfast_worker::websocket::frame;

use super::idempotency::digest;
use super::publish::LONGEST_HEADER;
use super::{Desk, From};
use crate::hub::api::{
    Answer, ApiError, Broadcast, Command, Data, Disconnect, Outcome, Publish, Published, Reached, Send,
    Subscription, Target,
};

impl Desk {
    /// Carries the command out. It is to be answered when the batch counts.
    ///
    /// # Errors
    /// What the application is told; nothing has changed.
    pub(in crate::hub) fn execute(&mut self, command: &Command) -> Result<Answer, ApiError> {
        if self.is_full() {
            self.commit();
        }
        match command {
            Command::Publish(publish) => self.publish(publish).map(Answer::Published),
            Command::Broadcast(broadcast) => Ok(self.broadcast(broadcast)),
            Command::Batch(commands) => {
                let results = commands.iter().map(|command| self.execute(command).into()).collect();
                Ok(Answer::Results { results })
            }
            Command::Subscribe(order) => self.subscribe_all(order),
            Command::Unsubscribe(order) => self.unsubscribe_all(order),
            Command::Send(order) => self.send(order),
            Command::Disconnect(order) => self.disconnect_all(order),
            Command::Channels(query) => Ok(Answer::Channels(self.list_channels(query))),
            Command::Channel(name) => self.show_channel(name).map(Answer::Channel),
            Command::History(query) => self.read_history(query).map(Answer::History),
            Command::Presence(name) => self.presence(name).map(Answer::Presence),
            Command::Connections(query) => self.list_connections(query).map(Answer::Connections),
            Command::Events(query) => self.read_events(query).map(Answer::Events),
        }
    }

    fn publish(&mut self, publish: &Publish) -> Result<Published, ApiError> {
        self.check_length(&publish.data)?;
        let rules = &self.settings.rules;
        let channel = self.channels.open(&self.memory, rules, publish.channel.as_str());
        let channel = channel.ok_or_else(|| explain(Refusal::MaxChannels))?;
        let key = publish.idempotency_key.as_deref().map(digest).unwrap_or_default();
        let published_before = match publish.idempotency_key {
            Some(_) => self.idempotency.find(key, channel),
            None => None,
        };
        let offset = match published_before {
            Some(offset) => offset,
            None => {
                let rate = self.rule(channel).map_or(0, |rule| rule.publish_rate);
                if !self.rates.take(channel, rate, self.now.monotonic) {
                    let message = format!(
                        "the channel {} takes {rate} publications in a second (publish_rate of its rule); try again",
                        publish.channel
                    );
                    return Err(ApiError::new(429, "publish_rate", message));
                }
                let exclude = publish.exclude.map_or(0, |connection| connection.0);
                let (kind, data) = (kind_of(&publish.data), publish.data.bytes());
                self.publish_frame(From::APPLICATION, channel, kind, data, key, exclude)
            }
        };
        let state = self.channels.get(channel).map(|found| found.state).unwrap_or_default();
        Ok(Published { offset, epoch: epoch_text(state.epoch), subscribers: state.subscribers })
    }

    fn broadcast(&mut self, broadcast: &Broadcast) -> Answer {
        let mut results: Vec<Outcome> = Vec::with_capacity(broadcast.channels.len());
        for channel in &broadcast.channels {
            if self.is_full() {
                self.commit();
            }
            let publish = Publish {
                channel: channel.clone(),
                data: broadcast.data.clone(),
                idempotency_key: broadcast.idempotency_key.clone(),
                exclude: broadcast.exclude,
            };
            results.push(self.publish(&publish).map(Answer::Published).into());
        }
        Answer::Results { results }
    }

    fn subscribe_all(&mut self, order: &Subscription) -> Result<Answer, ApiError> {
        let connections = self.find_target(&order.target)?;
        for &connection in &connections {
            let row = self.members.who(connection).map_or(0, |who| who.row);
            let asked = Subscribe { channel: order.channel.as_str().to_owned(), row, ..Subscribe::default() };
            self.enter(From::APPLICATION, connection, &asked).map_err(explain)?;
        }
        Ok(reached(&connections))
    }

    fn unsubscribe_all(&mut self, order: &Subscription) -> Result<Answer, ApiError> {
        let mut connections = self.find_target(&order.target)?;
        let channel = self.channels.find(order.channel.as_str()).unwrap_or_default();
        connections.retain(|&connection| channel != 0 && self.members.is_in(connection, channel));
        for &connection in &connections {
            self.leave(From::APPLICATION, connection, channel, Kind::Unsubscribed);
        }
        Ok(reached(&connections))
    }

    fn send(&mut self, order: &Send) -> Result<Answer, ApiError> {
        self.check_length(&order.data)?;
        let connections = self.find_target(&order.target)?;
        let kind = kind_of(&order.data);
        let flags = if kind == MessageKind::Text { EntryHead::TEXT } else { 0 };
        let mut frame = Vec::new();
        frame::append_message(&mut frame, kind, order.data.bytes());
        for &connection in &connections {
            if self.is_full() {
                self.commit();
            }
            let head = EntryHead { flags, ..self.addressed(connection) };
            self.append(Kind::Direct, From::APPLICATION, head, &frame);
        }
        Ok(reached(&connections))
    }

    fn disconnect_all(&mut self, order: &Disconnect) -> Result<Answer, ApiError> {
        let connections = self.find_target(&order.target)?;
        for &connection in &connections {
            self.disconnect(From::APPLICATION, connection, order.code, &order.reason);
        }
        Ok(reached(&connections))
    }

    /// The connections that are meant.
    fn find_target(&self, target: &Target) -> Result<Vec<u64>, ApiError> {
        match target {
            Target::Connection(connection) if self.members.contains(connection.0) => Ok(vec![connection.0]),
            _ if !self.knows_all => Err(not_known_yet()),
            Target::Connection(connection) => {
                Err(ApiError::of_status(404, format!("there is no connection {connection} with channels")))
            }
            Target::User(user) => Ok(self.members.of_user(user).to_vec()),
        }
    }

    fn check_length(&self, data: &Data) -> Result<(), ApiError> {
        let (length, most) = (data.bytes().len(), self.memory.largest_entry() - LONGEST_HEADER);
        if length <= most {
            return Ok(());
        }
        let message = format!(
            "the data has {length} bytes, and at most {most} fit into the journal; raise channels.journal_size"
        );
        Err(ApiError::of_status(413, message))
    }
}

/// The hub has only just begun.
pub(super) fn not_known_yet() -> ApiError {
    ApiError::of_status(503, "not all connections are known yet; try again")
}

fn kind_of(data: &Data) -> MessageKind {
    if data.is_binary() { MessageKind::Binary } else { MessageKind::Text }
}

fn reached(connections: &[u64]) -> Answer {
    Answer::Reached(Reached { connections: connections.len() as u64 })
}

fn explain(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::MaxSubscribers => {
            ApiError::new(409, "max_subscribers", "the channel has as many subscribers as its rule allows")
        }
        Refusal::MaxChannels => {
            ApiError::new(503, "max_channels", "there are as many channels as there can be")
        }
        Refusal::AskAgain => not_known_yet(),
        Refusal::Forbidden | Refusal::MaxConnectionsPerUser | Refusal::MaxSubscriptions => {
            ApiError::of_status(403, "no rule allows it")
        }
    }
}
