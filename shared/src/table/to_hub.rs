//! The descriptors of the way to the hub, which the keeper notes in the header while it has no worker.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use nix::sys::uio::pwrite;

use super::Header;

impl Header {
    /// Notes the descriptors of the way to the hub in the header in `memory`, of which no worker lives.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_channels(memory: BorrowedFd<'_>, numbers: [RawFd; 3]) -> io::Result<()> {
        let noted = numbers.map(|number| u32::try_from(number).map_or(0, |number| number + 1));
        let place = i64::try_from(std::mem::offset_of!(Self, channels)).map_err(io::Error::other)?;
        let bytes = bytemuck::bytes_of(&noted);
        match pwrite(memory, bytes, place)? {
            length if length == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The descriptors of the way to the hub, as far as there are any.
    pub fn channels(&self) -> impl Iterator<Item = RawFd> {
        self.channels.into_iter().filter_map(|noted| RawFd::try_from(noted.checked_sub(1)?).ok())
    }
}
