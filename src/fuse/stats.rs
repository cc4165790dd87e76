//! How many requests of each kind the kernel has sent: what an operation costs, whatever the
//! machine's noise. `plyfs stats` reads the counts through the mount, as the xattr
//! [`STATS_XATTR`] of its root: a line `NAME COUNT` for each kind that was asked.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of the root alone; no list names it.
pub const STATS_XATTR: &str = "user.plyfs.stats";

/// A kind of request, as the protocol names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    ReadLink,
    MkNod,
    MkDir,
    Unlink,
    RmDir,
    Symlink,
    Rename,
    Link,
    Open,
    Release,
    Create,
    Read,
    Write,
    Flush,
    FSync,
    OpenDir,
    ReadDir,
    ReadDirPlus,
    FSyncDir,
    StatFs,
    SetXattr,
    GetXattr,
    ListXattr,
    RemoveXattr,
    Ioctl,
    FAllocate,
    LSeek,
    CopyFileRange,
}

/// Names in the order of the kinds.
const NAMES: [&str; 32] = [
    "LOOKUP",
    "FORGET",
    "GETATTR",
    "SETATTR",
    "READLINK",
    "MKNOD",
    "MKDIR",
    "UNLINK",
    "RMDIR",
    "SYMLINK",
    "RENAME",
    "LINK",
    "OPEN",
    "RELEASE",
    "CREATE",
    "READ",
    "WRITE",
    "FLUSH",
    "FSYNC",
    "OPENDIR",
    "READDIR",
    "READDIRPLUS",
    "FSYNCDIR",
    "STATFS",
    "SETXATTR",
    "GETXATTR",
    "LISTXATTR",
    "REMOVEXATTR",
    "IOCTL",
    "FALLOCATE",
    "LSEEK",
    "COPY_FILE_RANGE",
];

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Stats([AtomicU64; NAMES.len()]);

impl Stats {
    pub(super) fn count(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts that are not 0, in lines.
    pub(super) fn tell(&self) -> String {
        let mut text = String::new();
        for (name, count) in NAMES.iter().zip(&self.0) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let _ = writeln!(text, "{name} {count}"); // a String takes it
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_name() {
        let stats = Stats::default();
        stats.count(Request::Lookup);
        stats.count(Request::CopyFileRange);
        stats.count(Request::CopyFileRange);
        assert_eq!(stats.tell(), "LOOKUP 1\nCOPY_FILE_RANGE 2\n");
        assert_eq!(Request::CopyFileRange as usize + 1, NAMES.len());
        assert_eq!(NAMES[Request::ReadDirPlus as usize], "READDIRPLUS");
    }
}
