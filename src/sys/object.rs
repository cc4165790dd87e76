//! Opening objects below a directory descriptor, never through a symlink or a `..`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;

use super::{Errno, Result};

/// A handle that only names the object: enough to stat, chmod, chown, and to resolve below.
pub const O_PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A directory opened for resolving names below it.
pub const O_DIRECTORY: OFlags = O_PATH.union(OFlags::DIRECTORY);
/// For reading data; `O_NONBLOCK` so that a FIFO planted in a layer cannot hang the daemon.
pub const O_READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// For reading and writing data.
pub const O_READWRITE: OFlags =
    OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Longest path handed to one system call (PATH_MAX less the terminating NUL).
const MAX_PATH: usize = 4095;

/// Opens one component of `dir`; `name` must not contain `/`.
pub fn open_at(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    debug_assert!(!name.contains(&b'/'));
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a relative path below `root` with no step through a symlink, `..`, magic link or
/// mountpoint (EXDEV).
///
/// An empty path opens `root` itself. Paths longer than PATH_MAX are walked in pieces.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let mut rest = path;
    let mut from: Option<OwnedFd> = None;
    while rest.len() > MAX_PATH {
        let cut = rest[..MAX_PATH].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let dir = from.as_ref().map_or(root, |fd| fd.as_fd());
        from = Some(resolve_in(dir, &rest[..cut], O_DIRECTORY, resolve)?);
        rest = &rest[cut + 1..];
    }
    let dir = from.as_ref().map_or(root, |fd| fd.as_fd());
    let last: &[u8] = if rest.is_empty() { b"." } else { rest };
    resolve_in(dir, last, flags, resolve)
}

/// openat2(2) of what is there; tried again when it says that a rename elsewhere crossed it.
pub fn resolve_in(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
}

/// Opens a directory given by the user on the command line; here symlinks are followed.
pub fn open_dir(path: &std::path::Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The directory as the root of a private read-only mount, without what is mounted inside it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL where something mounted inside must not be uncovered.
pub fn clone_mount(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(dir, c"", flags)?;
    if let Err(errno) = super::flags::make_read_only(mount.as_fd()) {
        log::debug!("a layer's mount stays writable for others: {errno}");
    }
    Ok(mount)
}

/// Opens without marking the access, where that is allowed: to the owner of the file.
pub fn open_unmarked(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    match open_at(dir, name, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open_at(dir, name, flags),
        result => result,
    }
}

/// The name under which /proc gives access to an open descriptor.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The result of a call on `fd`, or, as an `O_PATH` descriptor takes hardly any (EBADF), of one on
/// its [`proc_path`].
pub(super) fn or_by_path<T>(
    result: Result<T>,
    fd: BorrowedFd<'_>,
    by_path: impl FnOnce(String) -> Result<T>,
) -> Result<T> {
    match result {
        Err(Errno::BADF) => by_path(proc_path(fd)),
        result => result,
    }
}

/// Opens the object behind `fd` anew with other flags (`O_NOFOLLOW` must not be among them).
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(proc_path(fd), flags - OFlags::NOFOLLOW, Mode::empty())
}

/// Gives the object behind `fd` another name.
pub fn link_fd(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH) {
        // Without CAP_DAC_READ_SEARCH, before Linux 6.10.
        Err(Errno::NOENT) => {
            rustix::fs::linkat(rustix::fs::CWD, proc_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        result => result,
    }
}
