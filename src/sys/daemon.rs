//! Process state of a daemon: fork, umask, limits.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{Pid, Resource, Rlimit};

use super::{Errno, Result};

/// Which side of a [`fork`] this is.
#[derive(Clone, Copy, Debug)]
pub enum Forked {
    /// The caller's process; the child has this pid.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks a process that has no other thread.
///
/// Fails with EBUSY if there are other threads: what they hold locked would stay locked in
/// the child.
pub fn fork() -> Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: the process has a single thread (checked above), so the child owns every
    // lock and may go on as the parent would.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid).ok_or(Errno::SRCH)?)),
    }
}

/// Closes every descriptor above stderr but `keep`: what a caller left open by accident must
/// not live as long as the daemon.
///
/// # Safety
/// Nothing in the process may own a descriptor above 2 other than `keep`.
pub unsafe fn close_inherited(keep: BorrowedFd<'_>) {
    let keep = keep.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, keep.wrapping_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last && last != 2 {
            // SAFETY: the caller says that nobody owns these; errors mean there is nothing
            // to close or no such call (Linux before 5.9), and then they stay open.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Clears the umask, so that modes given to system calls are the modes made.
pub fn set_umask_zero() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Raises the soft limit on open files to the hard one and returns it.
pub fn raise_nofile_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let kept = limit.current.unwrap_or(u64::MAX);
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => kept,
    }
}
