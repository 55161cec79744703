//! What one build of the server is: its version and the protocols it speaks. Everything else is the same in
//! all of them.

use holdfast_shared::config::CHANNELS;

use crate::app::{App, Channels, Echo};

/// A server program. Handed down from `main` to whoever has to know.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What it calls itself wherever versions are shown.
    pub version: &'static str,
    /// What routes may name. There is at least one; the first serves clients of programs that knew one only.
    pub protocols: &'static [Protocol],
}

/// A protocol, and the application that speaks it.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// As routes have it.
    pub name: &'static str,
    /// Makes the application; each worker has its own.
    pub app: fn() -> Box<dyn App>,
}

impl Program {
    /// A server that echoes, and has channels where a route says so.
    #[must_use]
    pub fn echo(version: &'static str) -> Self {
        const ECHO: Protocol = Protocol { name: "echo", app: || Box::new(Echo) };
        Self { version, protocols: &[ECHO, Protocol { name: CHANNELS, app: || Box::new(Channels) }] }
    }
}

/// The number by which a record names a protocol: made from the name, for other programs list others. Not 0.
pub(crate) fn protocol_id(name: &str) -> u16 {
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u16::try_from((hash ^ (hash >> 16)) & 0xffff).unwrap_or_default().max(1)
}

/// The applications of a worker.
pub(crate) struct Apps(Vec<(u16, Box<dyn App>)>);

impl Apps {
    pub(crate) fn new(program: Program) -> Self {
        Self(
            program.protocols.iter().map(|protocol| (protocol_id(protocol.name), (protocol.app)())).collect(),
        )
    }

    /// The application of a record's protocol; `None` when this program does not have it.
    #[inline]
    pub(crate) fn get(&mut self, protocol: u16) -> Option<&mut dyn App> {
        let (_, app) = self.0.iter_mut().find(|(id, _)| *id == protocol || protocol == 0)?;
        Some(&mut **app)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_numbers_of_their_own() {
        let ids = ["echo", "channels", "socket.io", "pusher"].map(protocol_id);
        for (place, id) in ids.iter().enumerate() {
            assert!(*id != 0 && !ids[..place].contains(id));
        }
    }
}
