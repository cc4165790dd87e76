//! Listing one real directory.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, RawDir};

use super::{Result, open_unmarked};

/// Bytes asked of one getdents64(2).
const BUFFER_SIZE: usize = 32 * 1024;

/// One name in a real directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// The name, without NUL.
    pub name: Box<[u8]>,
    /// The type, or `Unknown` where the filesystem does not say.
    pub kind: FileType,
}

/// Reads all of a directory given by an `O_PATH` or readable descriptor, `.` and `..` left out.
/// It is no access to the directory, where that is allowed.
pub fn read_dir(dir: BorrowedFd<'_>) -> Result<Vec<RawEntry>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = open_unmarked(dir, b".", flags)?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER_SIZE];
    let mut entries = Vec::new();
    let mut iter = RawDir::new(&open, &mut buffer);
    while let Some(entry) = iter.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push(RawEntry { name: name.into(), kind: entry.file_type() });
        }
    }
    Ok(entries)
}
