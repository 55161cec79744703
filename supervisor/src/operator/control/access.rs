//! Who may do what at the control socket and the admin address.

use std::fmt;

use crate::host::http::Peer;

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything: the superuser, or the user the supervisor runs as.
    Everything {
        /// The peer's user.
        uid: u32,
        /// The peer's process, where the kernel knows it.
        pid: Option<i32>,
    },
    /// What the routes of the admin address offer.
    Reads,
    /// Nothing: it hears 403.
    Nothing,
}

impl Access {
    /// The access of a peer, where we run as `own_uid`. The control socket's mode 0600 says the same, but a mode is
    /// easily widened by hand.
    pub fn of_peer(peer: Peer, own_uid: u32) -> Self {
        match peer {
            Peer::Process { uid, pid } if uid == 0 || uid == own_uid => Self::Everything { uid, pid },
            Peer::Process { .. } | Peer::Unknown => Self::Nothing,
            Peer::Address => Self::Reads,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything { uid, pid: Some(pid) } => write!(f, "uid {uid}, pid {pid}"),
            Self::Everything { uid, pid: None } => write!(f, "uid {uid}"),
            Self::Reads => f.write_str("a reader"),
            Self::Nothing => f.write_str("a stranger"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_may_command() {
        let everything = |uid| Access::Everything { uid, pid: Some(7) };
        let of = |uid, own_uid| Access::of_peer(Peer::Process { uid, pid: Some(7) }, own_uid);
        assert_eq!(of(0, 1000), everything(0));
        assert_eq!(of(1000, 1000), everything(1000));
        assert_eq!(of(1001, 1000), Access::Nothing);
        assert_eq!(of(1001, 0), Access::Nothing);
        assert_eq!(Access::of_peer(Peer::Unknown, 0), Access::Nothing);
        assert_eq!(Access::of_peer(Peer::Address, 0), Access::Reads);
    }
}
