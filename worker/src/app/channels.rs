//! The `channels` protocol: plain WebSocket for any client. The path names a channel, each publication is one message, and
//! what a client sends is published where a rule lets it. Who is subscribed, and what is delivered, is the connection's
//! business.

use std::time::SystemTime;

use holdfast_shared::channels::rules::{self, ChannelName};
use holdfast_shared::channels::up_ring::Subscribe;
use holdfast_shared::reason::Rejection;

use super::{App, Context};
use crate::channels::Published;
use crate::channels::request::{self, Asked, Kept};
use crate::channels::token::Tokens;
use crate::websocket::handshake::Request;
use crate::websocket::refusal::{Refusal, Status};
use crate::websocket::{Message, MessageKind};

/// Clients of channels.
#[derive(Debug, Default)]
pub struct Channels;

impl App for Channels {
    fn request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Result<(), Refusal> {
        let bad = |detail| Refusal::of_request(Status::BadRequest, detail);
        let forbidden = |detail| Refusal::of_request(Status::Forbidden, detail);
        let asked = request::read(request).map_err(bad)?;
        let Ok(name) = ChannelName::new(&*asked.channel) else {
            return Err(bad("The path names no channel that can be: 1 to 128 printable characters"));
        };
        let settings = context.channels().ok_or(NO_CHANNELS)?;
        // Who shows a bad token is told so, even where none is needed: it is not who it says it is.
        let verify = |token: &str| Tokens::new(&settings.tokens).verify(token, SystemTime::now());
        let grant = asked.token.as_deref().map(verify).transpose();
        let grant = grant.map_err(|error| Refusal::of_request(Status::Forbidden, error.detail()))?;
        let is_granted = grant.as_ref().is_some_and(|grant| grant.allows(&name));
        let is_open = rules::find(&settings.rules, &asked.channel).is_some_and(|rule| rule.client_subscribe);
        if !is_open && !is_granted {
            return Err(forbidden("Neither a rule nor a token lets this client subscribe to this channel"));
        }
        let Asked { channel, since, epoch, envelope, subprotocol, .. } = asked;
        let asks = Some(Subscribe { channel, since, epoch, is_granted, row: 0 });
        let (user, info) = grant.map(|grant| (grant.user, grant.info)).unwrap_or_default();
        let kept = Kept { asks, user, info, envelope, ..Kept::default() };
        context.set_session(&kept.write()).map_err(|_| NO_MEMORY)?;
        if let Some(name) = subprotocol {
            context.choose_subprotocol(&name);
        }
        Ok(())
    }

    fn opened(&mut self, context: &mut Context<'_>) {
        context.join();
    }

    fn resumed(&mut self, context: &mut Context<'_>) {
        // The worker before died before it could say so.
        if !context.has_joined() {
            context.join();
        }
    }

    /// Told to those whose messages have an envelope: the others expect nothing but publications.
    fn degraded(&mut self, notice: &str, context: &mut Context<'_>) {
        if Kept::read(context.session()).envelope {
            context.send(MessageKind::Text, notice.as_bytes());
        }
    }

    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        match context.publish(message.kind(), message.payload()) {
            Published::Said => {}
            Published::Forbidden => context.close(1008, "This client may not publish to this channel"),
            Published::Degraded => context.close(1013, "degraded: clients may not publish now"),
            Published::TooLong => context.close(1009, "The publication is too long"),
            Published::NoRoom => context.close(1013, "There is no room for the publication"),
        }
    }
}

const NO_CHANNELS: Refusal = Refusal {
    status: Status::ServiceUnavailable,
    rejection: Rejection::BadRequest,
    detail: "Channels are not configured",
    head_only: false,
};

const NO_MEMORY: Refusal = Refusal { detail: "There is no memory for another subscriber", ..NO_CHANNELS };
