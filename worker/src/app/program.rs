//! What one build of the server is: its version and the application it runs. Everything else is the same in
//! all of them.

use crate::app::{App, Echo};

/// A server program. Handed down from `main` to whoever has to know.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// What it calls itself wherever versions are shown.
    pub version: &'static str,
    /// Makes the application; each worker has its own.
    pub app: fn() -> Box<dyn App>,
}

impl Program {
    /// A server that echoes.
    #[must_use]
    pub fn echo(version: &'static str) -> Self {
        Self { version, app: || Box::new(Echo) }
    }
}
