//! The way to the hub, which the keeper gets while it has no worker: the channel memory mapped, and no descriptor of it
//! left, for one that can only be read can be opened again for writing (proc_pid_fd(5)). Workers inherit the mapping by
//! clone. Ring and bells are descriptors of the slot, noted in the table's header.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use holdfast_shared::channels::memory::{ChannelMemory, ChannelMemoryError, Word};
use holdfast_shared::clock;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::{Envelope, KeeperMessage, ToWorker};
use holdfast_shared::ipc::settings::ChannelSettings;
use holdfast_shared::ipc::settings_memory;
use holdfast_shared::sys::descriptor;
use holdfast_shared::sys::shared_memory::Access;
use holdfast_shared::table::Header;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Keeper;
use crate::channels::ChannelAccess;

/// How long a supervisor may take. Then the worker starts without: it is replaced when there is an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a keeper has not got the way to the hub.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelsError {
    #[error("nobody answers")]
    NoAnswer,
    #[error("the answer has {0} descriptors")]
    Incomplete(usize),
    #[error(transparent)]
    Memory(#[from] ChannelMemoryError),
    #[error("cannot keep the descriptors: {0}")]
    Descriptors(#[from] io::Error),
}

impl Keeper {
    /// Gets what the settings in force say there is, unless it is there already. What else the supervisor says meanwhile is meant
    /// for a worker that is dead: the next one is told anew when it says Hello.
    pub(super) fn get_channels(&mut self) {
        let wanted = self.wanted_channels();
        let has = self.channels.as_ref().map(|access| access.memory.get(Word::Seed));
        match wanted {
            None => self.channels = None,
            Some(settings) if has == Some(settings.memory) => {}
            Some(_) => {
                self.channels = None;
                match self.ask_for_channels() {
                    Ok(access) => self.channels = Some(access),
                    Err(error) => {
                        log::warn!(
                            "slot {}: its worker has no channels for now: {error}",
                            self.handover.slot
                        );
                    }
                }
            }
        }
    }

    fn wanted_channels(&self) -> Option<ChannelSettings> {
        let header = descriptor::with(self.handover.table, Header::read).ok()?.ok()?;
        let memory = RawFd::try_from(header.settings.checked_sub(1)?).ok()?;
        let (_, settings) = descriptor::with(memory, settings_memory::read).ok()?.ok()?;
        settings.channels.filter(|channels| channels.memory != 0)
    }

    fn ask_for_channels(&mut self) -> Result<ChannelAccess, ChannelsError> {
        self.tell(KeeperMessage::WantsChannels);
        let deadline = clock::now() + PATIENCE;
        loop {
            match self.link.flush().and_then(|()| self.link.receive_with()) {
                Ok(Some((Envelope { message: ToWorker::Channels, .. }, descriptors))) => {
                    return self.keep_channels(descriptors);
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    let left = deadline.saturating_sub(clock::now());
                    if left.is_zero() {
                        return Err(ChannelsError::NoAnswer);
                    }
                    let mut interest = PollFlags::POLLIN;
                    interest.set(PollFlags::POLLOUT, self.link.has_queued());
                    let mut wanted = [PollFd::new(self.link.as_fd(), interest)];
                    // An interrupted wait is only a reason to look again.
                    let _ = poll(&mut wanted, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
                }
                Err(LinkError::Closed) => return Err(ChannelsError::NoAnswer),
                Err(error) => log::error!("{error}; the message is ignored"),
            }
        }
    }

    fn keep_channels(&self, descriptors: Vec<OwnedFd>) -> Result<ChannelAccess, ChannelsError> {
        let found = descriptors.len();
        let all: [OwnedFd; 4] = descriptors.try_into().map_err(|_| ChannelsError::Incomplete(found))?;
        let [memory, ring, bell, hub_bell] = all;
        let memory = {
            let mapped = ChannelMemory::map(memory.as_fd(), Access::Read)?;
            // Before there is a worker, which shares all descriptors.
            drop(memory);
            mapped
        };
        let before: Vec<RawFd> = descriptor::with(self.handover.table, Header::read)??.channels().collect();
        for kept in [&ring, &bell, &hub_bell] {
            // As all descriptors of the slot: they outlive this program.
            descriptor::set_inherited(kept.as_fd(), true)?;
        }
        let numbers = [ring.as_raw_fd(), bell.as_raw_fd(), hub_bell.as_raw_fd()];
        descriptor::with(self.handover.table, |table| Header::set_channels(table, numbers))??;
        let [ring, bell, hub_bell] = [ring, bell, hub_bell].map(IntoRawFd::into_raw_fd);
        for number in before {
            let _ = nix::unistd::close(number);
        }
        Ok(ChannelAccess { memory, ring, bell, hub_bell })
    }
}
