//! Settings as memory of their own, one for each generation: written once, sealed, and handed over by descriptor. A
//! worker that starts while there is no supervisor finds those in force by the number in its table's header.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::uio::pread;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::format::Format;
use crate::ipc::hub::HubSettings;
use crate::ipc::settings::Settings;

/// The settings of this program. Growing by names raises only its version.
pub const SETTINGS_FORMAT: Format = Format { name: "settings", version: 1, reads_since: 1 };

/// Most bytes that settings may have. A configuration that needs more is refused before anything changes.
pub const MAX_SETTINGS: usize = 16 * 1024 * 1024;

/// Why settings could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum SettingsMemoryError {
    /// The memory could not be made.
    #[error("cannot make memory for the workers' settings: {0}")]
    Create(#[source] io::Error),
    /// The memory could not be read.
    #[error("cannot read the settings' memory: {0}")]
    Read(#[source] io::Error),
    /// There is no memory of settings.
    #[error("no settings are in force")]
    None,
    /// There are too many of them.
    #[error(
        "the workers' settings have {length} bytes; at most {MAX_SETTINGS} can be applied: shorten \
         security.allowed_origins or proxy.trusted"
    )]
    TooLong {
        /// Their bytes.
        length: usize,
    },
    /// They are not settings as this binary knows them.
    #[error("the settings' memory holds something else: {0}")]
    Content(#[from] serde_json::Error),
}

/// What the memory holds.
#[derive(Serialize, Deserialize)]
struct Content<S> {
    generation: u64,
    settings: S,
}

/// The settings as bytes: what can be wrong with them is found here.
///
/// # Errors
/// When they are too long.
pub fn encode(generation: u64, settings: &Settings) -> Result<Vec<u8>, SettingsMemoryError> {
    let bytes = serde_json::to_vec(&Content { generation, settings })?;
    let length = bytes.len();
    if length > MAX_SETTINGS { Err(SettingsMemoryError::TooLong { length }) } else { Ok(bytes) }
}

/// Makes memory that holds `settings`, and nothing else ever after. Not inherited by exec unless asked.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn create(generation: u64, settings: &Settings) -> Result<OwnedFd, SettingsMemoryError> {
    write(&encode(generation, settings)?).map_err(SettingsMemoryError::Create)
}

/// The generation of the settings, and they themselves.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn read(memory: BorrowedFd<'_>) -> Result<(u64, Settings), SettingsMemoryError> {
    let bytes = read_all(memory).map_err(SettingsMemoryError::Read)?;
    if bytes.len() > MAX_SETTINGS {
        return Err(SettingsMemoryError::TooLong { length: bytes.len() });
    }
    let Content { generation, settings } = serde_json::from_slice::<Content<Map<String, Value>>>(&bytes)?;
    let known = serde_json::to_value(Settings::default())?;
    let (known, unknown): (Map<_, _>, Map<_, _>) =
        settings.into_iter().partition(|(name, _)| known.get(name).is_some());
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().map(|(name, _)| name).collect();
        log::info!("settings that this program does not know are ignored: {}", names.join(", "));
    }
    Ok((generation, serde_json::from_value(Value::Object(known))?))
}

/// As [`create`], for the hub.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn create_for_hub(generation: u64, settings: &HubSettings) -> Result<OwnedFd, SettingsMemoryError> {
    let bytes = serde_json::to_vec(&Content { generation, settings })?;
    let length = bytes.len();
    if length > MAX_SETTINGS {
        return Err(SettingsMemoryError::TooLong { length });
    }
    write(&bytes).map_err(SettingsMemoryError::Create)
}

/// What [`create_for_hub`] has made.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn read_for_hub(memory: BorrowedFd<'_>) -> Result<HubSettings, SettingsMemoryError> {
    let bytes = read_all(memory).map_err(SettingsMemoryError::Read)?;
    Ok(serde_json::from_slice::<Content<HubSettings>>(&bytes)?.settings)
}

fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create("holdfast-settings", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut memory = File::from(memory);
    memory.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory.into())
}

/// The bytes from the start; the descriptor's own position is shared with other processes, and left alone.
fn read_all(memory: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let length = usize::try_from(nix::sys::stat::fstat(memory)?.st_size).unwrap_or(0);
    let mut bytes = vec![0; length.min(MAX_SETTINGS + 1)];
    let mut read = 0;
    while read < bytes.len() {
        match pread(memory, &mut bytes[read..], i64::try_from(read).map_err(io::Error::other)?)? {
            0 => break,
            length => read += length,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_stays() {
        let settings = Settings { rows: 7, path: "/chat".to_owned(), ..Settings::default() };
        let memory = create(3, &settings).unwrap();
        assert_eq!(read(memory.as_fd()).unwrap(), (3, settings));
        assert!(File::from(memory).write_all(b"{}").is_err());
    }

    #[test]
    fn names_of_another_program_are_ignored_and_missing_ones_take_their_default() {
        let memory = write(br#"{"generation":2,"settings":{"rows":9,"colour":"green"},"later":1}"#).unwrap();
        let expected = Settings { rows: 9, ..Settings::default() };
        assert_eq!(read(memory.as_fd()).unwrap(), (2, expected));
    }

    #[test]
    fn thousands_of_origins_fit_and_millions_are_refused_by_name() {
        let origins =
            |count| (0..count).map(|number| format!("https://a-site-{number}.example.org")).collect();
        let mut settings = Settings { allowed_origins: origins(30_000), ..Settings::default() };
        assert_eq!(read(create(1, &settings).unwrap().as_fd()).unwrap().1, settings);
        settings.allowed_origins = origins(600_000);
        let refused = create(1, &settings).unwrap_err().to_string();
        assert!(refused.contains("16777216") && refused.contains("allowed_origins"), "{refused}");
    }

    #[test]
    fn what_holds_none_says_so() {
        let memory = write(b"colourless").unwrap();
        assert!(matches!(read(memory.as_fd()), Err(SettingsMemoryError::Content(_))));
    }
}
