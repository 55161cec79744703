//! The default application: every message goes back as it came.

use super::{App, Context};
use crate::websocket::Message;

/// Echo.
#[derive(Debug, Default)]
pub struct Echo;

impl App for Echo {
    fn message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        context.send_back(message);
    }
}
