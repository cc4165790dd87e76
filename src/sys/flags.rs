//! Inode flags (`chattr`, `lsattr`) and the attributes of a private mount.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{IFlags, OFlags};

use super::{Result, checked, reopen};

/// The flags of a file or directory (FS_IOC_GETFLAGS).
pub fn get_flags(object: BorrowedFd<'_>) -> Result<u32> {
    Ok(rustix::fs::ioctl_getflags(open(object)?)?.bits())
}

/// Sets the flags of a file or directory (FS_IOC_SETFLAGS).
pub fn set_flags(object: BorrowedFd<'_>, flags: u32) -> Result<()> {
    rustix::fs::ioctl_setflags(open(object)?, IFlags::from_bits_retain(flags))
}

/// `struct fsxattr` of linux/fs.h, as bytes: flags, extent sizes, project.
pub type ExtendedFlags = [u8; 28];

/// The extended flags of a file or directory (FS_IOC_FSGETXATTR).
pub fn get_extended_flags(object: BorrowedFd<'_>) -> Result<ExtendedFlags> {
    let mut flags = [0u32; 7];
    let fd = open(object)?;
    // SAFETY: the kernel writes a `struct fsxattr`, which is seven aligned u32.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, flags.as_mut_ptr()) })?;
    let mut bytes = [0; 28];
    for (to, from) in bytes.chunks_exact_mut(4).zip(flags) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    Ok(bytes)
}

/// Sets the extended flags of a file or directory (FS_IOC_FSSETXATTR).
pub fn set_extended_flags(object: BorrowedFd<'_>, bytes: &ExtendedFlags) -> Result<()> {
    let mut flags = [0u32; 7];
    for (to, from) in flags.iter_mut().zip(bytes.chunks_exact(4)) {
        *to = u32::from_ne_bytes(std::array::from_fn(|n| from[n]));
    }
    let fd = open(object)?;
    // SAFETY: the kernel reads a `struct fsxattr`, which is seven aligned u32.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, flags.as_ptr()) })
}

/// The numbers of the two ioctls (linux/fs.h).
pub const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
/// See [`FS_IOC_FSGETXATTR`].
pub const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;

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
    checked(if result == 0 { 0 } else { -1 })
}
