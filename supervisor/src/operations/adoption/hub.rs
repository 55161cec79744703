//! The hub of a supervisor that is gone comes to a socket of its own, with its memory and the ways to the slots. Looked at
//! before anything is believed: what it brings is mapped, and what can be cut short would kill us.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use holdfast_shared::channels::memory::ChannelMemory;
use holdfast_shared::channels::up_ring::UpRing;
use holdfast_shared::clock;
use holdfast_shared::ipc::hub::{FromHub, SupervisorHubEnd};
use holdfast_shared::ipc::reconnect::ReconnectListener;
use holdfast_shared::sys::process::open_pidfd;
use holdfast_shared::sys::shared_memory::Access;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::cluster::hub::{AdoptedHub, HUB_SOCKET};
use crate::host::api_sockets::{LOCAL_SOCKET, has_listener};

/// How long a hub may take to find us: it looks ten times a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for the hub of an earlier supervisor, if one lives: it may have outlived all slots, and nobody else holds its socket.
pub(crate) fn gather_hub(run_dir: &Path) -> Option<AdoptedHub> {
    if !has_listener(&run_dir.join(LOCAL_SOCKET)) {
        return None;
    }
    let listener = ReconnectListener::open_named(run_dir, HUB_SOCKET)
        .map_err(|error| log::error!("the hub cannot be adopted: {error}"))
        .ok()?;
    let deadline = clock::now() + PATIENCE;
    let mut link = None;
    while clock::now() < deadline {
        match listener.accept() {
            Ok(Some((socket, pid))) => link = Some((SupervisorHubEnd::new(socket), pid)),
            Ok(None) => {}
            Err(error) => log::warn!("{error}; not heard"),
        }
        if let Some((link, pid)) = &mut link
            && let Ok(Some((envelope, descriptors))) = link.receive_with()
        {
            let socket = link.as_fd().try_clone_to_owned().ok()?;
            let adopted = examine(&envelope.message, descriptors, *pid, SupervisorHubEnd::new(socket));
            match adopted {
                Some(hub) => {
                    log::info!("adopted the hub, process {pid}");
                    return Some(hub);
                }
                None => log::error!("process {pid} on {HUB_SOCKET} brings no hub; not adopted"),
            }
        }
        let mut watched = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        watched.extend(link.as_ref().map(|(link, _)| PollFd::new(link.as_fd(), PollFlags::POLLIN)));
        let left = deadline.saturating_sub(clock::now());
        let _ = poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
    }
    log::error!(
        "the hub did not come: publications that were not delivered are lost, and subscribers come back"
    );
    None
}

fn examine(
    message: &FromHub,
    descriptors: Vec<OwnedFd>,
    pid: Pid,
    link: SupervisorHubEnd,
) -> Option<AdoptedHub> {
    let FromHub::Adopt { pid: said, slots } = message else { return None };
    if Pid::from_raw(*said) != pid {
        return None;
    }
    let mut descriptors = descriptors.into_iter();
    let (memory, bell) = (descriptors.next()?, descriptors.next()?);
    ChannelMemory::map(memory.as_fd(), Access::Read).ok()?;
    let mut ways = BTreeMap::new();
    for &slot in slots {
        let (ring, bell) = (descriptors.next()?, descriptors.next()?);
        let is_of = UpRing::map(ring.as_fd()).ok()?.slot() == slot.0;
        if !is_of || ways.insert(slot, (ring, bell)).is_some() {
            return None;
        }
    }
    Some(AdoptedHub { pid, pidfd: open_pidfd(pid).ok()?, link, memory, bell, ways })
}
