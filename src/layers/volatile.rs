//! The marker of a volatile mount: WORK/volatile holds the boot in which syncs were skipped.
//!
//! While the machine stays up nothing is lost, whatever becomes of the daemon. After a crash
//! of the machine, upper may lack what programs synced. So the marker is made durable before
//! the first sync is skipped, a clean unmount removes it, and one of another boot tells that
//! upper is not to be trusted (as `incompat/volatile` of the kernel's overlayfs does). What was
//! written in the last seconds before a clean unmount is still the page cache's, as after any
//! program that does not sync.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::sys::{self, Errno, Ignoring};

const NAME: &str = "volatile";
/// Changes with each start of the machine (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A workdir whose mount skips syncs; dropping it is the clean unmount.
#[derive(Debug)]
pub struct Volatile {
    work: OwnedFd,
    /// The marker as long as it is not durable.
    unsynced: Mutex<Option<OwnedFd>>,
}

impl Volatile {
    /// Puts the marker into the workdir.
    pub fn mark(work: OwnedFd) -> sys::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let flags = flags | OFlags::NOFOLLOW;
        let marker = rustix::fs::openat(&work, NAME, flags, Mode::RUSR | Mode::WUSR)?;
        std::fs::File::from(marker.try_clone().map_err(errno)?)
            .write_all(this_boot().as_bytes())
            .map_err(errno)?;
        Ok(Self { work, unsynced: Mutex::new(Some(marker)) })
    }

    /// To be called before a sync is skipped.
    pub fn before_skipping(&self) -> sys::Result<()> {
        let mut unsynced = self.unsynced.lock();
        if let Some(marker) = &*unsynced {
            rustix::fs::fsync(marker)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&self.work, c".", flags, Mode::empty())?;
            rustix::fs::fsync(dir)?;
            *unsynced = None;
        }
        Ok(())
    }
}

impl Drop for Volatile {
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::unlinkat(&self.work, NAME, AtFlags::empty()) {
            log::warn!("remove workdir's {NAME}: {errno}");
        }
    }
}

/// Whether a crash of the machine cut a volatile mount of this workdir short.
pub fn was_cut_short(work: &Path) -> sys::Result<bool> {
    match std::fs::read_to_string(work.join(NAME)) {
        Ok(boot) => Ok(boot != this_boot()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(errno(error)),
    }
}

/// Ends the doubt that an earlier volatile mount left: all that upper holds is synced.
pub fn settle(work: &OwnedFd) -> sys::Result<()> {
    if sys::statx_at(work.as_fd(), NAME.as_bytes()).ignoring(Errno::NOENT)?.is_none() {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::syncfs(rustix::fs::openat(work, c".", flags, Mode::empty())?)?;
    rustix::fs::unlinkat(work, NAME, AtFlags::empty())
}

fn this_boot() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_else(|_| "unknown".to_owned())
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
