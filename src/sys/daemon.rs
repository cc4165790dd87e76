//! Process state of a daemon: fork, umask, limits, capabilities.

use std::os::fd::RawFd;

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

/// Closes what the caller of the program left open by accident: it must not live as long as
/// a daemon.
///
/// Those are the descriptors above stderr without FD_CLOEXEC: whatever came through execve(2)
/// has none, and whatever this program opens has it.
pub fn close_inherited() -> std::io::Result<()> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        inherited.extend(number.filter(|fd| *fd > 2));
    }
    for fd in inherited {
        // SAFETY: F_GETFD only looks at the number; one that is closed by now gives EBADF.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: nothing in the program owns a descriptor without FD_CLOEXEC (the
            // standard library, rustix and this crate always set it).
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Whether the process may read and set `trusted.*` xattrs: it has CAP_SYS_ADMIN in the first
/// user namespace (xattr(7)).
pub fn may_use_trusted_xattrs() -> bool {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    let has_admin =
        effective.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    has_admin && is_in_first_user_namespace()
}

/// Whether the process is in the machine's own user namespace, which maps all ids to themselves.
pub fn is_in_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Clears the umask, so that modes given to system calls are the modes made.
pub fn set_umask_zero() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Gives memory that is free within the process back to the machine; takes milliseconds.
pub fn trim_memory() {
    // SAFETY: malloc_trim(3) may be called at any time, by any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// How many files the process may have open.
pub fn nofile_limit() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
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
