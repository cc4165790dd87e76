//! The wire: a union as a FUSE filesystem. The only module that knows the protocol.
//!
//! - [`mount`]: attach a union to a directory; the tree is there when it returns
//! - [`Mounted::serve`]: answer the kernel until the tree is unmounted
//! - [`unmount`]: detach a mountpoint

mod abi;
mod attach;
mod awake;
mod beside;
mod cache;
mod convert;
mod crew;
mod device;
mod helper;
mod init;
mod near;
mod opens;
mod ops;
mod reply;
mod request;
mod ring;
mod session;
mod stats;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub use attach::{MountFlag, unmount};
use awake::Awake;
use cache::KernelCache;
use init::Disagreement;
use ops::Ops;
use ring::Queues;
use session::{Session, Threads};
pub use stats::STATS_XATTR;

use crate::overlay::Overlay;
use crate::sys::{self, Errno, MountEntry, MountNamespace};

/// The filesystem type in /proc/mounts.
pub const FS_TYPE: &str = "fuse.plyfs";

/// Why a union could not be mounted, or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no FUSE device.
    #[error(
        "no /dev/fuse: the fuse kernel module is not loaded, or the container has no such device"
    )]
    NoDevice,
    /// The FUSE device cannot be opened.
    #[error("no permission to open /dev/fuse (it is usually mode 0666; here it is not)")]
    DeviceDenied,
    /// The mountpoint is not a usable directory.
    #[error("mountpoint {path}: {cause}")]
    Mountpoint {
        /// The mountpoint.
        path: String,
        /// What is wrong with it.
        cause: io::Error,
    },
    /// The kernel, or fusermount3 for an ordinary user, refused.
    #[error("mount on {path}: {message}")]
    Refused {
        /// The mountpoint.
        path: String,
        /// What it said.
        message: String,
    },
    /// The kernel cannot read and write the real files itself.
    #[error(
        "io=passthrough takes Linux 6.9 with FUSE_PASSTHROUGH, and root (CAP_SYS_ADMIN in the first user namespace)"
    )]
    NoPassthrough,
    /// The kernel does not let the caller keep processors awake.
    #[error("idle=poll takes root, who may write to /dev/cpu_dma_latency: {0}")]
    NoPolling(io::Error),
    /// Requests cannot come by io_uring.
    #[error("io_uring=on: {0}")]
    NoRing(&'static str),
    /// The mountpoint could not be detached.
    #[error("unmount {path}: {message}")]
    Unmount {
        /// The mountpoint.
        path: String,
        /// What the kernel or fusermount3 said.
        message: String,
    },
}

/// Who may use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Only the user who mounts.
    Owner,
    /// That user and root (`allow_root`).
    OwnerAndRoot,
    /// Everybody, as permissions say (`allow_other`).
    Everybody,
}

/// Who reads and writes the files' data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// The daemon; the kernel caches, and opens and closes without asking.
    #[default]
    Cache,
    /// The kernel, where it can (FUSE_PASSTHROUGH): each open asks the daemon once.
    Passthrough,
}

/// What processors do while they wait for a request or its reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// As the system does: they sleep.
    #[default]
    Sleep,
    /// All poll while requests follow one another closely, which takes power; in a virtual machine a
    /// request then takes half of the time or less.
    Poll,
}

/// The priority of threads that answer on the processor of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// A nice value of -10, where the process has 0 and may give it; not while they copy a large file.
    #[default]
    High,
    /// That of the process.
    Normal,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uring {
    /// By io_uring where the kernel offers it and the process may use it, else by /dev/fuse.
    #[default]
    Auto,
    /// By io_uring, or not at all.
    On,
    /// By /dev/fuse.
    Off,
}

/// How a union is mounted.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The source in /proc/mounts.
    pub source: String,
    /// mount(2)'s flags.
    pub flags: Vec<MountFlag>,
    /// Who may use it.
    pub allow: Allow,
    /// Whether permissions are checked; else who may use it may do all that who mounts can.
    pub checks_permissions: bool,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// The filesystem type in /proc/mounts: `fuse.` and the subtype.
    pub fs_type: String,
    /// SELinux contexts, as mount options (`context="…"`).
    pub contexts: Vec<String>,
    /// Have fusermount3 take the mount away when the daemon dies.
    pub auto_unmount: bool,
    /// How long the kernel may believe names and attributes; no limit if unset.
    pub timeout: Option<Duration>,
    /// Largest WRITE in bytes; as much as the kernel sends if unset.
    pub max_write: Option<u32>,
    /// Whether files have xattrs.
    pub xattrs: bool,
    /// Who reads and writes.
    pub io: Io,
    /// What waiting processors do.
    pub idle: Idle,
    /// How requests come.
    pub uring: Uring,
    /// The priority with which they are answered.
    pub priority: Priority,
}

impl MountConfig {
    /// A mount with this source and this many threads, the rest as is usual.
    pub fn new(source: String, threads: usize, allow: Allow) -> Self {
        Self {
            source,
            flags: Vec::new(),
            allow,
            checks_permissions: true,
            threads,
            fs_type: FS_TYPE.to_owned(),
            contexts: Vec::new(),
            auto_unmount: false,
            timeout: None,
            max_write: None,
            xattrs: true,
            io: Io::Cache,
            idle: Idle::Sleep,
            uring: Uring::Auto,
            priority: Priority::High,
        }
    }
}

/// A union that is mounted and waits to be served.
#[derive(Debug)]
pub struct Mounted {
    /// Taken when it is served.
    session: Option<Session>,
    mountpoint: PathBuf,
    /// Where it is mounted, if not in the process's own mount namespace, and as what.
    namespace: Option<(MountNamespace, MountEntry)>,
    /// While it is open, fusermount3 waits to take the mount away.
    _auto_unmount: Option<UnixStream>,
}

/// Nobody would serve it any more: takes it away again.
impl Drop for Mounted {
    fn drop(&mut self) {
        if self.session.take().is_some() {
            detach(self.namespace.as_ref(), &self.mountpoint);
        }
    }
}

/// Fails if nothing can be mounted on `mountpoint`, before anything is prepared for it.
pub fn check(mountpoint: &Path) -> Result<(), Error> {
    attach::check_mountpoint(mountpoint)?;
    attach::open_device().map(drop)
}

/// Mounts `overlay` on the directory `mountpoint`. Requests wait until [`Mounted::serve`].
pub fn mount(overlay: Overlay, mountpoint: &Path, config: &MountConfig) -> Result<Mounted, Error> {
    // What trusted xattrs take is what registering a file with the kernel takes.
    if config.io == Io::Passthrough && !sys::may_use_trusted_xattrs() {
        return Err(Error::NoPassthrough);
    }
    let mountpoint = attach::check_mountpoint(mountpoint)?;
    let overlay = Arc::new(overlay);
    let awake = match config.idle {
        Idle::Sleep => None,
        Idle::Poll => Some(Awake::new().map_err(Error::NoPolling)?),
    };
    let threads = Threads { count: config.threads.max(1), priority: config.priority };
    let queues = match config.uring {
        // Of a daemon that dies with rings, fusermount3 can meet an error that it does not know.
        Uring::On if config.auto_unmount => return Err(Error::NoRing("not with auto_unmount")),
        Uring::Auto if config.auto_unmount => None,
        Uring::Off => None,
        Uring::On => Some(Queues::of_machine(threads.count).map_err(Error::NoRing)?),
        Uring::Auto => Queues::of_machine(threads.count).ok(),
    };
    let (device, auto_unmount) = attach::attach(&mountpoint, config)?;
    let ops = Ops::new(Arc::clone(&overlay), device.clone(), config, awake);
    let session = Session::new(device.clone(), ops, threads, config.max_write, queues);
    let session = Some(session.map_err(|error| disagreed(&mountpoint, error))?);
    let mounted = Mounted { session, mountpoint, namespace: None, _auto_unmount: auto_unmount };
    if config.uring == Uring::On && !mounted.has_ring() {
        return Err(Error::NoRing(ring::NOT_OFFERED)); // and takes it away again
    }
    let cache = KernelCache::new(device, config);
    overlay.watch(move |stale| cache.drop_stale(stale));
    Ok(mounted)
}

/// Why there is no mount after all. Nobody will serve it: takes it away again.
fn disagreed(mountpoint: &Path, error: Disagreement) -> Error {
    // The first error is the one to tell.
    let _ = unmount(mountpoint, true);
    match error {
        Disagreement::NoPassthrough => Error::NoPassthrough,
        other => {
            Error::Refused { path: mountpoint.display().to_string(), message: other.to_string() }
        }
    }
}

/// What is mounted on this path, for the calling thread.
fn topmost(mountpoint: &Path) -> Option<MountEntry> {
    sys::mounted_on(mountpoint).ok()?.pop()
}

/// Takes a mount away, in the namespace that has it.
fn detach(namespace: Option<&(MountNamespace, MountEntry)>, mountpoint: &Path) {
    let Some((namespace, entry)) = namespace.cloned() else {
        if let Err(error) = unmount(mountpoint, true) {
            log::error!("{error}");
        }
        return;
    };
    let mountpoint = mountpoint.to_owned();
    let work = move || {
        match namespace.enter() {
            // With its last process the namespace went, and the mount with it.
            Err(Errno::NOENT) => return,
            Err(errno) => return log::error!("enter the mount's namespace: {errno}"),
            // Its root may be another one than the caller's was.
            Ok(()) if topmost(&mountpoint) != Some(entry) => {
                return log::error!("the mount is not at {}", mountpoint.display());
            }
            Ok(()) => {}
        }
        if let Err(error) = unmount(&mountpoint, true) {
            log::error!("{error}");
        }
    };
    // A thread of its own: it does not come back from there.
    let thread = std::thread::Builder::new().name("unmount".into()).spawn(work);
    if thread.map(std::thread::JoinHandle::join).is_err() {
        log::error!("no thread to unmount the tree");
    }
}

impl Mounted {
    /// Whether requests come by io_uring.
    fn has_ring(&self) -> bool {
        self.session.as_ref().is_some_and(Session::has_ring)
    }

    /// Leaves the mount namespace in which the tree was mounted, so that it can end: then the tree
    /// goes too. To be called before [`serve`](Self::serve), with no other thread.
    pub fn leave_namespace(&mut self) {
        let Some(entry) = topmost(&self.mountpoint) else { return };
        match MountNamespace::leave() {
            Ok(left) => self.namespace = left.map(|namespace| (namespace, entry)),
            Err(errno) => log::warn!("stay in the caller's mount namespace: {errno}"),
        }
    }

    /// Answers the kernel until the tree is unmounted, by whomever; SIGTERM, SIGINT and
    /// SIGHUP unmount it.
    pub fn serve(mut self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = signals.handle();
        let (namespace, mountpoint) = (self.namespace.clone(), self.mountpoint.clone());
        let watcher = std::thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in &mut signals {
                detach(namespace.as_ref(), &mountpoint);
            }
        })?;
        let result = self.session.take().map_or(Ok(()), Session::run);
        // A session that fails leaves a tree that nobody serves.
        if result.is_err() {
            detach(self.namespace.as_ref(), &self.mountpoint);
        }
        handle.close();
        if watcher.join().is_err() {
            log::error!("the signal thread panicked");
        }
        result
    }
}
