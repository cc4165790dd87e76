//! Extended attributes of any object, symlinks and device nodes included: through the descriptor,
//! or the `/proc/self/fd` name of one that is `O_PATH`.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::object::or_by_path;
use super::{Errno, Result};

/// Largest value the VFS takes (XATTR_SIZE_MAX), and largest list (XATTR_LIST_MAX).
const MAX_SIZE: usize = 64 * 1024;
/// First guess of a size, enough for nearly all values.
const FIRST_GUESS: usize = 256;

/// The value of `name`.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    read_growing(|buffer| {
        let value = rustix::fs::fgetxattr(fd, name, &mut *buffer);
        or_by_path(value, fd, |path| rustix::fs::getxattr(path, name, buffer))
    })
}

/// All names, each ended by NUL, as listxattr(2) gives them.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    read_growing(|buffer| {
        let names = rustix::fs::flistxattr(fd, &mut *buffer);
        or_by_path(names, fd, |path| rustix::fs::listxattr(path, buffer))
    })
}

/// Sets `name`; `flags` are those of setxattr(2).
pub fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    let set = rustix::fs::fsetxattr(fd, name, value, flags);
    or_by_path(set, fd, |path| rustix::fs::setxattr(path, name, value, flags))
}

/// Removes `name`.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let removed = rustix::fs::fremovexattr(fd, name);
    or_by_path(removed, fd, |path| rustix::fs::removexattr(path, name))
}

fn read_growing(mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
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
