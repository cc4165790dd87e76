//! Leaving the mount namespace in which the program was called.
//!
//! A daemon that stays in a namespace keeps it, and all that is mounted in it, for ever, also when
//! everybody else has gone. What it has open it can use from anywhere. So it moves to a namespace
//! of its own, in which there is little else:
//!
//! ```text
//! the caller's namespace     ─ unshare(2) ─>     a copy     ─ pivot_root(2) ─>     tmpfs
//!   /, the union, …                                                                ├── proc
//!                                                                                  └── dev/fuse
//! ```

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::{Errno, Result};

/// A mount namespace that the process was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountNamespace {
    /// What stat(2) says of it (namespaces(7)).
    dev: u64,
    ino: u64,
}

const OURS: &str = "/proc/self/ns/mnt";

impl MountNamespace {
    fn at(path: &str) -> Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// Leaves the present namespace, if it is one that can end: not that of the first process.
    /// `None` if it stays, as in a chroot(2), which is no place to pivot from.
    ///
    /// Only for a process that has no other thread: those would stay.
    pub fn leave() -> Result<Option<Self>> {
        let left = Self::at(OURS)?;
        if Self::at("/proc/1/ns/mnt") == Ok(left) || !is_mount_root("/")? {
            return Ok(None);
        }
        let back = Way::back()?;
        // SAFETY: a new mount namespace changes what paths mean to this process, whose callers
        // know that; no descriptor and no memory changes.
        match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) } {
            Err(Errno::PERM) => return Ok(None), // an ordinary user's namespace is the machine's
            result => result?,
        }
        match keep_what_is_needed() {
            Ok(()) => Ok(Some(left)),
            Err(errno) => {
                log::debug!("stay in the caller's mount namespace: {errno}");
                back.take()?;
                Ok(None)
            }
        }
    }

    /// Has the calling thread do something in this namespace, which it then stays in: so it should
    /// be one that ends. ENOENT if the namespace has no process any more.
    pub fn enter(self) -> Result<()> {
        let namespace = self.find()?;
        // SAFETY: what was shared with other threads (root, working directory, umask) becomes this
        // thread's own, which setns(2) asks for.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
    }

    /// Opens the namespace through a process that is in it.
    fn find(self) -> Result<OwnedFd> {
        let processes = std::fs::read_dir("/proc").map_err(|_| Errno::NOENT)?;
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let path = format!("/proc/{pid}/ns/mnt");
            if Self::at(&path) == Ok(self) {
                return rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            }
        }
        Err(Errno::NOENT)
    }
}

/// What it takes to be in a namespace again.
struct Way {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl Way {
    fn back() -> Result<Self> {
        let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { namespace: open(OURS, OFlags::RDONLY)?, root: open("/", OFlags::PATH)? })
    }

    fn take(self) -> Result<()> {
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), kind)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    }
}

fn is_mount_root(path: &str) -> Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes a new root that has what the daemon still opens by its path, and lets go of all else.
fn keep_what_is_needed() -> Result<()> {
    // What happens here happens nowhere else.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let (proc, device) = (copy_of(c"/proc")?, copy_of(c"/dev/fuse")?);
    // Any directory will do to build the new root on.
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("none", "/proc", "tmpfs", flags, c"size=64k")?;
    rustix::process::chdir("/proc")?;
    rustix::fs::mkdir("proc", Mode::RWXU)?;
    attach(&proc, c"proc")?;
    rustix::fs::mkdir("dev", Mode::RWXU)?;
    rustix::fs::open("dev/fuse", OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR)?;
    attach(&device, c"dev/fuse")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// What is mounted there, once more, and nowhere yet.
fn copy_of(path: &CStr) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

fn attach(mount: &OwnedFd, at: &CStr) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", CWD, at, flags)
}
