//! Clients from the accept queue to their last byte: taking them in, asking for their admission, telling them
//! to go.

pub(crate) mod admission;
pub(crate) mod drain;
pub(crate) mod listener;
