//! Extended attributes of any object, symlinks and device nodes included, through the
//! `/proc/self/fd` name of an `O_PATH` descriptor.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::{Errno, Result, proc_path};

/// Largest value the VFS takes (XATTR_SIZE_MAX), and largest list (XATTR_LIST_MAX).
const MAX_SIZE: usize = 64 * 1024;
/// First guess of a size, enough for nearly all values.
const FIRST_GUESS: usize = 256;

/// The value of `name`.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let path = proc_path(fd);
    read_growing(|buffer| rustix::fs::getxattr(&path, name, buffer))
}

/// All names, each ended by NUL, as listxattr(2) gives them.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let path = proc_path(fd);
    read_growing(|buffer| rustix::fs::listxattr(&path, buffer))
}

/// Sets `name`; `flags` are those of setxattr(2).
pub fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    rustix::fs::setxattr(proc_path(fd), name, value, flags)
}

/// Removes `name`.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    rustix::fs::removexattr(proc_path(fd), name)
}

fn read_growing(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; FIRST_GUESS];
    match read(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(MAX_SIZE, 0);
            let len = read(&mut buffer)?;
            buffer.truncate(len);
        }
        Ok(len) => buffer.truncate(len),
        Err(errno) => return Err(errno),
    }
    Ok(buffer)
}
