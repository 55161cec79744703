//! A connection of a slot, by name.

/// A connection, named so that a name kept too long misses: the descriptor may have been reused since. Stays the
/// same whichever of the slot's workers serves it; a connection that moves to another slot gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The descriptor: the record's index.
    pub row: u32,
    /// The record's serial.
    pub serial: u32,
}
