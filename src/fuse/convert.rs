//! Between the union's types and the wire's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo, TimeOrNow};

use crate::layers::number::Ino;
use crate::overlay::{Attr, Error};
use crate::sys::{FileType, TimeChange, Timestamp};

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// The errno of the wire; details go to the log.
pub(super) fn errno(operation: &str, error: &Error) -> fuser::Errno {
    log::debug!("{operation}: {error}");
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        atime: to_system_time(stat.atime),
        mtime: to_system_time(stat.mtime),
        ctime: to_system_time(stat.ctime),
        crtime: to_system_time(stat.btime.unwrap_or_default()),
        kind: kind(attr.kind),
        perm: stat.permissions() as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}

/// The kernel's 32-bit form of a device number: minor in bits 0-7 and 20-31, major in 8-19.
pub(super) fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The inverse of [`encode_device`].
pub(super) fn decode_device(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev & 0xf_ff00) >> 8, rdev & 0xff | (rdev >> 12) & 0xf_ff00)
}

fn to_system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let seconds =
        if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    seconds
        .and_then(|t| t.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// The time that the kernel sent.
///
/// Before 1970, fuser 0.18 decodes (secs, nanos) as `1970 - (|secs| + nanos)` where the
/// protocol means `1970 - |secs| + nanos`; this takes the two apart again.
fn from_system_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                secs: 0i64.saturating_sub_unsigned(before.as_secs()),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::At(from_system_time(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_with_large_numbers_survive() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xf_ffff)] {
            let rdev = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(rdev)), rdev, "{major}:{minor}");
        }
    }

    #[test]
    fn times_before_1970() {
        // As fuser's decoder makes it from secs -2, nanos 800_000_000.
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(from_system_time(decoded), Timestamp { secs: -2, nanos: 800_000_000 });
        let shown = to_system_time(Timestamp { secs: -2, nanos: 800_000_000 });
        assert_eq!(shown, UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
