//! Reading the records of a table without mapping it, whether or not it is being written: a page that was given back, or never
//! written, costs nothing to pass over, where looking at it in a mapping would make it memory.

use std::io;
use std::os::fd::BorrowedFd;

use bytemuck::Zeroable;
use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

use super::{Header, RECORD_SIZE, Record, size};

/// Records read at a time.
const CHUNK: usize = 512;

/// Shows `each` record, with its row, up to the last that was ever used, in order, but for those in pages that are not
/// there, which are all free. One that is being written may be seen half as it was and half as it will be.
///
/// # Errors
/// What the kernel says.
pub fn scan(memory: BorrowedFd<'_>, header: &Header, mut each: impl FnMut(u32, &Record)) -> io::Result<()> {
    let (begin, end) = (size(0), size(header.rows_used.min(header.rows)));
    let mut chunk = vec![Record::zeroed(); CHUNK];
    let mut at = begin;
    while at < end {
        let there = match lseek(memory, i64::try_from(at).map_err(io::Error::other)?, Whence::SeekData) {
            Ok(there) => usize::try_from(there).map_err(io::Error::other)?,
            // Nothing but holes up to the end.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // A page begins within a record if the header is no whole number of pages.
        at = begin + (there - begin) / RECORD_SIZE * RECORD_SIZE;
        let records = &mut chunk[..(end.saturating_sub(at) / RECORD_SIZE).min(CHUNK)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(records);
        let wanted = bytes.len();
        if pread(memory, bytes, i64::try_from(at).map_err(io::Error::other)?)? != wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let first = u32::try_from((at - begin) / RECORD_SIZE).map_err(io::Error::other)?;
        (first..).zip(&*records).for_each(|(row, record)| each(row, record));
        at += wanted;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

    use super::*;
    use crate::id::SlotId;
    use crate::sys::mapping;
    use crate::table::{Phase, Table};

    const ROWS: u32 = 1_000_000;

    #[test]
    fn all_records_are_seen_and_none_costs_memory() {
        let memory = mapping::create("table", size(ROWS)).unwrap();
        let mut table = Table::format(memory.as_fd(), SlotId(0), ROWS).unwrap();
        let used: Vec<u32> = vec![0, 1, 31, 32, 5_000, 5_001, 70_123, 999_998, 999_999];
        for &row in &used {
            let address = IpAddr::from(Ipv4Addr::LOCALHOST);
            table.records_mut()[row as usize].begin(u64::from(row), 0, address, 1, 2);
        }
        table.header_mut().rows_used = ROWS - 1;
        drop(table);
        let blocks = || fstat(memory.as_fd()).unwrap().st_blocks;
        let before = blocks();
        let (mut found, mut seen) = (Vec::new(), 0);
        let header = Header::read(memory.as_fd()).unwrap();
        scan(memory.as_fd(), &header, |row, record| {
            seen += 1;
            if record.phase() != Phase::Free {
                assert_eq!(record.id, u64::from(row));
                found.push(row);
            }
        })
        .unwrap();
        assert_eq!(found, used[..used.len() - 1], "the last row is said to be unused");
        assert!(seen < used.len() * 2 * CHUNK, "{seen} records were looked at");
        assert_eq!(blocks(), before);
        assert!(before < 1_000, "{before} blocks of 512 bytes for a few records");
    }
}
