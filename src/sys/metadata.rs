//! Changing attributes through a descriptor, `O_PATH` included, whatever it names.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps};

use super::object::or_by_path;
use super::{Errno, Result, Timestamp};

/// A new value of a timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// The time at which it is set.
    Now,
    /// This time.
    At(Timestamp),
}

/// chmod(2); a symlink has no mode to change (EOPNOTSUPP).
pub fn chmod(object: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    or_by_path(rustix::fs::fchmod(object, mode), object, |path| rustix::fs::chmod(path, mode))
}

/// Changes a directory, or moves it to another parent, although its mode may forbid that to its
/// own owner: if the change fails for that, it is tried again with the mode widened for the
/// moment. Nobody else may change the mode meanwhile.
pub fn with_write_permission<T>(
    dir: BorrowedFd<'_>,
    mut change: impl FnMut() -> Result<T>,
) -> Result<T> {
    match change() {
        Err(Errno::ACCESS) => {}
        result => return result,
    }
    let mode = super::fstat(dir)?.permissions();
    chmod(dir, mode | 0o300)?;
    let result = change();
    if let Err(errno) = chmod(dir, mode) {
        log::warn!("the mode of a directory could not be set back to {mode:o}: {errno}");
    }
    result // what is done is done
}

/// Sets the given times of last access and last change, leaving those that are `None`.
pub fn set_times(
    object: BorrowedFd<'_>,
    atime: Option<TimeChange>,
    mtime: Option<TimeChange>,
) -> Result<()> {
    let spec = |change| match change {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(TimeChange::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(TimeChange::At(t)) => Timespec { tv_sec: t.secs, tv_nsec: i64::from(t.nanos) },
    };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    rustix::fs::utimensat(object, c"", &times, AtFlags::EMPTY_PATH)
}
