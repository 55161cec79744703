//! The application seam: what an application is told, and what it can do. It sees whole, valid messages and
//! writes whole replies, to any client of its worker; it never sees a frame, a socket or a limit.

mod channels;
mod context;
mod echo;
mod program;

pub use channels::Channels;
pub use context::Context;
pub(crate) use context::Host;
pub use echo::Echo;
pub(crate) use program::{Apps, protocol_id};
pub use program::{Program, Protocol};

pub use holdfast_shared::id::ConnectionId;
pub use holdfast_shared::reason::CloseReason;
pub use holdfast_shared::session::{MAX_SESSION, SessionError};
pub use holdfast_shared::table::Key;

pub use crate::websocket::handshake::Request;
pub use crate::websocket::refusal::{Refusal, Status};
pub use crate::websocket::{Message, MessageKind};

/// An application, which serves all clients of one protocol in one worker. Workers die and are replaced: what it
/// keeps in itself dies with its worker, what it keeps in a client's session does not.
///
/// Each call is about one client, the `context`'s.
pub trait App {
    /// A client asks to be let in. Nobody has counted it yet, and it may still be turned away by a limit; then it
    /// was never opened.
    ///
    /// # Errors
    /// With a refusal the client gets an HTTP response. To refuse it with a close code, close it once it is open.
    fn request(&mut self, _request: &Request<'_>, _context: &mut Context<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    /// The client is let in. What is sent here is the first that it gets.
    fn opened(&mut self, _context: &mut Context<'_>) {}

    /// The client came while the server is degraded: `notice` says so in JSON, and what is limited. Sent as a text message,
    /// unless the protocol has another way, or none.
    fn degraded(&mut self, notice: &str, context: &mut Context<'_>) {
        context.send(MessageKind::Text, notice.as_bytes());
    }

    /// The client sent `message`; text is valid UTF-8.
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>);

    /// The client is gone, and cannot be written to any more. Said once for each that opened; said again only
    /// if the worker died while it was being said.
    fn closed(&mut self, _reason: CloseReason, _context: &mut Context<'_>) {}

    /// A client that opened in an earlier worker, or in another slot, is served by this worker from now on. Its
    /// [`Key`] is another when it comes from another slot.
    fn resumed(&mut self, _context: &mut Context<'_>) {}

    /// The client goes to another slot: nothing more can be done with it here, unless it is resumed.
    fn moved(&mut self, _context: &mut Context<'_>) {}

    /// The time that was set with [`Context::set_timer`] has come.
    fn timer(&mut self, _context: &mut Context<'_>) {}
}
