//! The default application: every message goes back as it came.

use super::{App, Replies};
use crate::websocket::Message;

/// Echo.
#[derive(Debug, Default)]
pub struct Echo;

impl App for Echo {
    fn message(&mut self, message: Message<'_>, replies: &mut Replies<'_>) {
        replies.send_back(message);
    }
}
