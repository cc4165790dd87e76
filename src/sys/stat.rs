//! File attributes as statx(2) reports them.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags};

use super::Result;

/// A point in time: seconds since 1970 (negative before) and nanoseconds within the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01T00:00Z, rounded down.
    pub secs: i64,
    /// Nanoseconds after `secs`, 0..1_000_000_000.
    pub nanos: u32,
}

impl Timestamp {
    /// The time of day.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Self { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) }
    }

    /// The time from `earlier` to this one; none if that is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = |t: Self| i128::from(t.secs) * 1_000_000_000 + i128::from(t.nanos);
        let between = (nanos(self) - nanos(earlier)).max(0);
        Duration::from_nanos(u64::try_from(between).unwrap_or(u64::MAX))
    }
}

/// What statx(2) says of one file.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device that holds the file.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// File type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `makedev` makes it.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated size in 512-byte units.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Birth, where the filesystem records it.
    pub btime: Option<Timestamp>,
    /// Whether it is marked immutable (`chattr +i`).
    pub immutable: bool,
    /// Whether it is marked append-only (`chattr +a`).
    pub append_only: bool,
}

impl Stat {
    /// The type encoded in `mode`.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether this is a character device numbered 0:0, the kernel overlayfs's whiteout.
    pub fn is_whiteout_device(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.rdev == 0
    }

    /// Whether its flags forbid to change, remove and link it.
    pub fn is_protected(&self) -> bool {
        self.immutable || self.append_only
    }

    /// The permission bits with setuid, setgid and sticky.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// statx(2) of `name` in `dir`, not following a symlink.
pub fn statx_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
    convert(rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )?)
}

/// statx(2) of an open file, `O_PATH` included.
pub fn fstat(fd: impl AsFd) -> Result<Stat> {
    convert(rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )?)
}

/// As [`fstat`], and the ID of the mount that the file was reached by (STATX_MNT_ID).
pub fn fstat_in_mount(fd: BorrowedFd<'_>) -> Result<(Stat, u64)> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let statx = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, flags)?;
    Ok((convert(statx)?, statx.stx_mnt_id))
}

fn convert(x: rustix::fs::Statx) -> Result<Stat> {
    let time = |t: rustix::fs::StatxTimestamp| Timestamp { secs: t.tv_sec, nanos: t.tv_nsec };
    let has_btime = StatxFlags::from_bits_retain(x.stx_mask).contains(StatxFlags::BTIME);
    Ok(Stat {
        dev: rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor),
        ino: x.stx_ino,
        mode: u32::from(x.stx_mode),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: rustix::fs::makedev(x.stx_rdev_major, x.stx_rdev_minor),
        size: x.stx_size,
        blocks: x.stx_blocks,
        blksize: x.stx_blksize,
        atime: time(x.stx_atime),
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        btime: has_btime.then(|| time(x.stx_btime)),
        immutable: x.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        append_only: x.stx_attributes.contains(StatxAttributes::APPEND),
    })
}
