//! Frames of an open connection: parsing them is `websocket::engine`'s business, answering messages the
//! application's; here is what follows from either.

use std::ops::ControlFlow;

use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Phase, Record};
use tungstenite::protocol::frame::coding::{CloseCode, Control};

use super::client::Client;
use super::input::Read;
use super::message_rate::MessageRate;
use super::{Clients, Connections, Key};
use crate::app::{App, Context};
use crate::websocket::Message;
use crate::websocket::engine::{Engine, Event, Sink};
use crate::websocket::violation::Violation;

/// Where the bytes of a read are.
enum Input<'a> {
    /// In a buffer that is overwritten by the next read.
    Passing(&'a mut [u8]),
    /// This many, where the engine wanted them.
    InPlace(usize),
}

/// What comes from an open connection, answered. After our close frame what the client says no longer
/// matters, but for its own.
struct Answering<'a> {
    app: &'a mut dyn App,
    context: Context<'a>,
    closing: bool,
    received: u64,
    /// `None` without a limit.
    rate: Option<MessageRate>,
    is_too_fast: bool,
    /// What the last pong brought, if it may be of a ping of ours.
    pong: Option<[u8; 4]>,
    /// The client closes, with the code it gave.
    close: Option<Option<CloseCode>>,
}

impl Sink for Answering<'_> {
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Message(message) => return self.message(message),
            Event::Ping(payload) if !self.closing => self.context.control(Control::Pong, payload),
            Event::Ping(_) => {}
            Event::Pong(payload) => self.pong = payload.try_into().ok(),
            Event::Close(frame) => self.close = Some(frame.map(|(code, _)| code)),
        }
        ControlFlow::Continue(())
    }

    #[inline]
    fn message(&mut self, message: Message<'_>) -> ControlFlow<()> {
        if !self.closing && !self.context.is_closed() {
            if let Some(rate) = &mut self.rate
                && !rate.take()
            {
                self.is_too_fast = true;
                return ControlFlow::Break(());
            }
            self.received += 1;
            self.app.message(message, &mut self.context);
        }
        ControlFlow::Continue(())
    }
}

impl Clients {
    /// Reads frames: a long payload straight to where it stays, everything else by way of the scratch buffer.
    pub(super) fn read_frames(&mut self, key: Key) -> Read {
        let mut kept = self.connections.heap_state(key).and_then(|heap| heap.engine.take());
        if let Some(engine) = &mut kept
            && let Some(vacant) = engine.vacant(&mut self.assembly)
        {
            let read = self.connections.receive(key, vacant);
            if let Read::Last(length) | Read::Some(length) = read {
                self.process(key, kept, Input::InPlace(length));
            } else {
                self.keep_engine(key, kept);
            }
            return read;
        }
        // The scratch buffer leaves the worker for the time of this call, so that both can be borrowed.
        let mut scratch = std::mem::take(&mut self.scratch);
        let read = self.connections.receive(key, &mut scratch);
        if let Read::Last(length) | Read::Some(length) = read {
            self.process(key, kept, Input::Passing(&mut scratch[..length]));
        } else {
            self.keep_engine(key, kept);
        }
        self.scratch = scratch;
        read
    }

    /// Takes frames that have been read already.
    pub(super) fn take_frames(&mut self, key: Key, bytes: &mut [u8]) {
        let kept = self.connections.heap_state(key).and_then(|heap| heap.engine.take());
        self.process(key, kept, Input::Passing(bytes));
    }

    fn process(&mut self, key: Key, mut kept: Option<Box<Engine>>, input: Input<'_>) {
        self.connections.heard_from(key);
        let Some(record) = self.connections.get(key) else { return };
        let rate = self.connections.message_rate(record);
        let Some(app) = self.apps.get(record.protocol) else { return };
        let mut fresh = Engine::default();
        let engine = kept.as_deref_mut().unwrap_or(&mut fresh);
        let closing = self.connections.is_in(key, Phase::Closing);
        let mut client = Client::answered(&mut self.connections, key);
        let context = Context::new(&mut client, &mut self.out);
        let (received, is_too_fast, pong, close) = (0, false, None, None);
        let mut answering = Answering { app, context, closing, received, rate, is_too_fast, pong, close };
        let result = match input {
            Input::Passing(bytes) => engine.feed(bytes, &mut self.assembly, &mut answering),
            Input::InPlace(count) => engine.filled(count, &mut self.assembly, &mut answering),
        };
        let Answering { context, received, rate, is_too_fast, pong, close, .. } = answering;
        let sent = context.finish();
        let (is_idle, progressed) = (engine.is_idle(), engine.take_progress());
        self.count_messages(key, received, sent, progressed, rate);
        if let Some(sent_at) = pong {
            self.connections.note_pong(key, u32::from_be_bytes(sent_at));
        }
        match (result, close) {
            _ if is_too_fast => {
                let (code, reason) = (CloseCode::Policy, CloseReason::MessageRate);
                self.connections.finish_close(key, Some(code), "Too many messages", reason);
            }
            (Ok(()), None) if is_idle => self.note_engine(key, None, received > 0),
            (Ok(()), None) => {
                let engine = kept.unwrap_or_else(|| Box::new(fresh));
                self.note_engine(key, Some(engine), received > 0);
            }
            (Ok(()), Some(code)) => self.connections.finish_close(key, code, "", CloseReason::Client),
            (Err(violation), _) => self.close_violator(key, violation),
        }
    }

    /// Keeps what the engine remembers after a read, and when the message began that is not complete. `has_ended` says
    /// that one ended in this read: then it began in this read, too.
    fn note_engine(&mut self, key: Key, engine: Option<Box<Engine>>, has_ended: bool) {
        let now_ms = self.connections.now_ms;
        let is_in_message = engine.as_ref().is_some_and(|engine| engine.is_in_message());
        self.keep_engine(key, engine);
        let Some(heap) = self.connections.heap_state(key) else { return };
        let before_ms = heap.message_since_ms;
        heap.message_since_ms = match is_in_message {
            true if has_ended || before_ms == 0 => now_ms,
            true => before_ms,
            false => 0,
        };
        if is_in_message && before_ms == 0 {
            // Otherwise the wheel knows of an earlier time.
            self.connections.arm_open(key);
        }
    }

    fn keep_engine(&mut self, key: Key, engine: Option<Box<Engine>>) {
        if engine.is_some()
            && let Some(heap) = self.connections.heap_state_or_new(key)
        {
            heap.engine = engine;
        }
    }

    fn close_violator(&mut self, key: Key, violation: Violation) {
        log::debug!("connection on descriptor {}: {violation}", key.row);
        let code: CloseCode = violation.code();
        self.connections.finish_close(key, Some(code), violation.text(), violation.reason());
    }

    fn count_messages(
        &mut self,
        key: Key,
        received: u64,
        sent: u64,
        progressed: bool,
        rate: Option<MessageRate>,
    ) {
        let counters = self.connections.table.counters();
        counters.messages_received += received;
        counters.messages_sent += sent;
        let now_ms = self.connections.now_ms;
        if let Some(record) = self.connections.get_mut(key)
            && (received > 0 || progressed)
        {
            record.messages_received += received;
            record.active_ms = now_ms;
            record.set_rate_taken(rate.map_or(0, MessageRate::taken));
        }
    }
}

impl Connections {
    /// How many messages more the connection may send now.
    fn message_rate(&self, record: &Record) -> Option<MessageRate> {
        let elapsed_ms = self.now_ms.saturating_sub(record.active_ms);
        MessageRate::new(record.rate_taken(), elapsed_ms, self.settings.messages_per_second)
    }
}
