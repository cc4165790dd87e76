//! System calls: thin, fd-relative wrappers, and the only `unsafe` of the crate.
//!
//! Nothing here knows what a layer or a union is. Names are bytes; an object is named by
//! an open directory and one component, or by an `O_PATH` descriptor. Each function
//! reports a bare [`Errno`]; its caller knows the operation and the path, and adds them.

mod caller;
mod copy;
mod daemon;
mod dir;
mod flags;
mod fuse_device;
mod fuse_ring;
mod mapped;
mod metadata;
mod mount_table;
mod namespace;
mod object;
mod processor;
mod stat;
mod xattr;

pub use caller::Caller;
pub use copy::{AfterCopy, copy_data, is_zero, is_zero_between};
pub use daemon::{
    Forked, close_inherited, fork, is_in_first_user_namespace, may_use_trusted_xattrs,
    nofile_limit, raise_nofile_limit, set_umask_zero, trim_memory,
};
pub use dir::{RawEntry, read_dir};
pub use flags::{
    ExtendedFlags, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, get_extended_flags, get_flags,
    set_extended_flags, set_flags,
};
pub use fuse_device::{clone_fuse_device, close_backing, open_backing};
pub use fuse_ring::{FuseRing, Lent, RingRequest, has_io_uring};
pub use mapped::Mapped;
pub use metadata::{TimeChange, chmod, set_times, with_write_permission};
pub use mount_table::{MountEntry, mounted_on};
pub use namespace::MountNamespace;
pub use object::{
    O_DIRECTORY, O_PATH, O_READ, O_READWRITE, clone_mount, link_fd, open_at, open_beneath,
    open_dir, open_unmarked, proc_path, reopen, resolve_in,
};
pub use processor::{
    LongWork, Processor, lower_priority, place_thread, raise_priority, run_as_usual,
};
pub use stat::{Stat, Timestamp, fstat, fstat_in_mount, statx_at};
pub use xattr::{get_xattr, list_xattrs, remove_xattr, set_xattr};

pub use rustix::fs::FileType;
pub use rustix::io::Errno;

/// Result of one system call.
pub type Result<T> = std::result::Result<T, Errno>;

/// What a function of the C library tells.
fn checked(result: libc::c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Turns an expected errno into `None`.
pub trait Ignoring<T> {
    /// `Ok(None)` if the call failed with `expected`.
    fn ignoring(self, expected: Errno) -> Result<Option<T>>;
}

impl<T> Ignoring<T> for Result<T> {
    fn ignoring(self, expected: Errno) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(errno) if errno == expected => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}
