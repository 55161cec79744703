//! The settings in force. They lie in memory whose number stands in the table's header, so that a worker that
//! starts while there is no supervisor finds them.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};

use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Header, Table};

/// The descriptor of the memory of the settings in force, if any are.
pub(crate) fn memory(header: &Header) -> Option<RawFd> {
    header.settings.checked_sub(1).and_then(|number| RawFd::try_from(number).ok())
}

/// The settings in force, and their generation.
///
/// # Errors
/// When there are none.
pub(crate) fn in_force(table: &Table) -> Result<(u64, Settings), SettingsMemoryError> {
    let memory = memory(table.header()).ok_or(SettingsMemoryError::None)?;
    descriptor::with(memory, settings_memory::read).map_err(SettingsMemoryError::Read)?
}

/// Reads the settings that have come, and puts them in force for this worker and those after it.
///
/// # Errors
/// When they cannot be read; those before them stay in force.
pub(crate) fn put_in_force(
    table: &mut Table,
    came: Option<OwnedFd>,
) -> Result<(u64, Settings), SettingsMemoryError> {
    let came = came.ok_or(SettingsMemoryError::None)?;
    let settings = settings_memory::read(came.as_fd())?;
    // Clients outlive this program, and so do the settings for whoever goes on with them.
    descriptor::set_inherited(came.as_fd(), true).map_err(SettingsMemoryError::Read)?;
    let before = memory(table.header());
    table.header_mut().set_settings(came.into_raw_fd());
    // Whoever finds the header after a death must find a descriptor that is open.
    compiler_fence(Ordering::SeqCst);
    if let Some(before) = before
        && let Err(error) = nix::unistd::close(before)
    {
        log::error!("cannot close the settings before: {error}");
    }
    Ok(settings)
}
