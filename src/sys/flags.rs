//! Inode flags (`chattr`, `lsattr`) and the attributes of a private mount.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{IFlags, OFlags};

use super::{Errno, Result, reopen};

/// The flags of a file or directory (FS_IOC_GETFLAGS).
pub fn get_flags(object: BorrowedFd<'_>) -> Result<u32> {
    Ok(rustix::fs::ioctl_getflags(open(object)?)?.bits())
}

/// Sets the flags of a file or directory (FS_IOC_SETFLAGS).
pub fn set_flags(object: BorrowedFd<'_>, flags: u32) -> Result<()> {
    rustix::fs::ioctl_setflags(open(object)?, IFlags::from_bits_retain(flags))
}

/// The ioctl wants a file that is open, not one that is only named.
fn open(object: BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd> {
    reopen(object, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)
}

/// Lets nothing be written through a mount that nobody else has, access times included.
pub(super) fn make_read_only(mount: BorrowedFd<'_>) -> Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, and `attr` lives through the call, which
    // reads as many bytes of it as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
