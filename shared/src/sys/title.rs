//! What `ps` and `top` show a process as. The environment stays where /proc shows it, so the arguments are not
//! written over, as there is seldom room: the kernel is told of others in memory of our own.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::prctl;

/// `struct prctl_mm_map` of linux/prctl.h.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// What the kernel was told.
static SHOWN: Mutex<Option<&'static mut [u8]>> = Mutex::new(None);

/// Shows this process as `title` followed by `arguments` in its command line (`ps`), and as `short`, of which the
/// kernel keeps 15 bytes, where there is room for a name alone (`top`).
///
/// # Errors
/// What the kernel says, such as `EINVAL` when it was built without `CONFIG_CHECKPOINT_RESTORE`; the process is
/// shown as before then, but for the short name.
pub fn set(title: &str, arguments: &[OsString], short: &str) -> io::Result<()> {
    prctl::set_name(&CString::new(short)?)?;
    let mut line = title.as_bytes().to_vec();
    for argument in arguments {
        line.push(0);
        line.extend(argument.as_bytes());
    }
    line.push(0);
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shown) = shown.as_mut().filter(|shown| shown.len() == line.len()) {
        // A process made by this one, when there may be no descriptor left to ask the kernel with.
        shown.copy_from_slice(&line);
        return Ok(());
    }
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5): the name in parentheses is the second field.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).copied().ok_or(io::ErrorKind::InvalidData);
    // SAFETY: asks where the heap ends, and moves nothing.
    let brk = unsafe { libc::sbrk(0) };
    // Shown for as long as the process lives.
    let line: &'static mut [u8] = line.leak();
    let map = MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: brk as u64,
        start_stack: field(28)?,
        arg_start: line.as_ptr() as u64,
        arg_end: line.as_ptr() as u64 + line.len() as u64,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: the kernel copies the map, checks it, and only ever reads at the addresses that are new in it, which
    // stay valid for ever; the other fields are what they were.
    let result = unsafe {
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0)
    };
    Errno::result(result)?;
    *shown = Some(line);
    Ok(())
}
