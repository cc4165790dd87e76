//! The kernel's side of the protocol: structures, numbers and flags of `linux/fuse.h`, version 7.42.
//!
//! Only what is used here has a name. All structures are as the kernel lays them out, in the
//! machine's byte order; a test compares their sizes.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's version that is spoken here.
pub(super) const VERSION: u32 = 7;
pub(super) const MINOR: u32 = 42;
/// The smallest buffer with which the kernel hands out requests.
pub(super) const MIN_READ_BUFFER: usize = 8192;

/// Kinds of requests, by number.
macro_rules! opcodes {
    ($($name:ident = $number:literal $text:literal)*) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Opcode { $($name = $number),* }

        impl Opcode {
            /// All that are known.
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The kind with this number.
            pub(super) fn of(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its name in the protocol.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

opcodes! {
    Lookup = 1 "LOOKUP"
    Forget = 2 "FORGET"
    GetAttr = 3 "GETATTR"
    SetAttr = 4 "SETATTR"
    ReadLink = 5 "READLINK"
    Symlink = 6 "SYMLINK"
    MkNod = 8 "MKNOD"
    MkDir = 9 "MKDIR"
    Unlink = 10 "UNLINK"
    RmDir = 11 "RMDIR"
    Rename = 12 "RENAME"
    Link = 13 "LINK"
    Open = 14 "OPEN"
    Read = 15 "READ"
    Write = 16 "WRITE"
    StatFs = 17 "STATFS"
    Release = 18 "RELEASE"
    FSync = 20 "FSYNC"
    SetXattr = 21 "SETXATTR"
    GetXattr = 22 "GETXATTR"
    ListXattr = 23 "LISTXATTR"
    RemoveXattr = 24 "REMOVEXATTR"
    Flush = 25 "FLUSH"
    Init = 26 "INIT"
    OpenDir = 27 "OPENDIR"
    ReadDir = 28 "READDIR"
    ReleaseDir = 29 "RELEASEDIR"
    FSyncDir = 30 "FSYNCDIR"
    Create = 35 "CREATE"
    Interrupt = 36 "INTERRUPT"
    Destroy = 38 "DESTROY"
    Ioctl = 39 "IOCTL"
    BatchForget = 42 "BATCH_FORGET"
    FAllocate = 43 "FALLOCATE"
    ReadDirPlus = 44 "READDIRPLUS"
    Rename2 = 45 "RENAME2"
    LSeek = 46 "LSEEK"
    CopyFileRange = 47 "COPY_FILE_RANGE"
}

/// What both sides can do, as INIT tells (`FUSE_*` there).
pub(super) mod init {
    pub(in super::super) const ASYNC_READ: u64 = 1 << 0;
    pub(in super::super) const BIG_WRITES: u64 = 1 << 5;
    pub(in super::super) const DONT_MASK: u64 = 1 << 6;
    pub(in super::super) const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub(in super::super) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in super::super) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(in super::super) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in super::super) const POSIX_ACL: u64 = 1 << 20;
    pub(in super::super) const MAX_PAGES: u64 = 1 << 22;
    pub(in super::super) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in super::super) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(in super::super) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(in super::super) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// The flags' upper half is there.
    pub(in super::super) const INIT_EXT: u64 = 1 << 30;
    pub(in super::super) const PASSTHROUGH: u64 = 1 << 37;
    pub(in super::super) const OVER_IO_URING: u64 = 1 << 41;
}

/// Which attributes a SETATTR sets (`FATTR_*`).
pub(super) mod set {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
}

/// How the kernel treats what it opened (`FOPEN_*`).
pub(super) mod open {
    pub(in super::super) const KEEP_CACHE: u32 = 1 << 1;
    pub(in super::super) const NOFLUSH: u32 = 1 << 5;
    pub(in super::super) const PASSTHROUGH: u32 = 1 << 7;
}

/// Of a WRITE: it drops setuid and setgid (`FUSE_WRITE_KILL_SUIDGID`).
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Of an FSYNC: the data alone (`FUSE_FSYNC_FDATASYNC`).
pub(super) const FSYNC_DATA: u32 = 1 << 0;
/// The message that drops what is cached of an inode (`FUSE_NOTIFY_INVAL_INODE`).
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

/// Defines structures that the kernel sends, or takes.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
            pub(super) struct $name { $(pub(super) $field: $type),* }
        )*
    };
}

structures! {
    /// Before each request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Before each reply and each message.
    OutHeader { len: u32, error: i32, unique: u64 }
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, max_stack_depth: u32, request_timeout: u16,
        unused: [u16; 11],
    }
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    ForgetIn { nlookup: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    ForgetOne { nodeid: u64, nlookup: u64 }
    SetAttrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64,
        ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    MkNodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkDirIn { mode: u32, umask: u32 }
    RenameIn { newdir: u64 }
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    LinkIn { oldnodeid: u64 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, backing_id: u32 }
    /// Of READ, READDIR and READDIRPLUS.
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    WriteOut { size: u32, padding: u32 }
    /// `struct fuse_kstatfs`
    StatFsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
    FSyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// Without FUSE_SETXATTR_EXT.
    SetXattrIn { size: u32, flags: u32 }
    /// Of GETXATTR and LISTXATTR.
    GetXattrIn { size: u32, padding: u32 }
    GetXattrOut { size: u32, padding: u32 }
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    FAllocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LSeekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LSeekOut { offset: u64 }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// Before each name of a READDIR; what follows is filled up to 8 bytes.
    DirEnt { ino: u64, off: u64, namelen: u32, kind: u32 }
    InvalInodeOut { ino: u64, off: i64, len: i64 }
}

impl OutHeader {
    /// Of a reply of so many bytes after the header.
    pub(super) fn reply(unique: u64, body_len: usize) -> Self {
        Self { len: (size_of::<Self>() + body_len) as u32, error: 0, unique }
    }

    /// Of a reply that is an error.
    pub(super) fn error(unique: u64, errno: Errno) -> Self {
        Self { error: -errno.raw_os_error(), ..Self::reply(unique, 0) }
    }

    /// How many bytes follow.
    pub(super) fn body_len(&self) -> usize {
        self.len as usize - size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that linux/fuse.h gives.
    #[test]
    fn structures_are_as_large_as_the_kernels() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<InitIn>(), 64),
            (size_of::<InitOut>(), 64),
            (size_of::<Attr>(), 88),
            (size_of::<AttrOut>(), 104),
            (size_of::<EntryOut>(), 128),
            (size_of::<SetAttrIn>(), 88),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<StatFsOut>(), 80),
            (size_of::<IoctlIn>(), 32),
            (size_of::<FAllocateIn>(), 32),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<DirEnt>(), 24),
            (size_of::<OpenOut>(), 16),
            (size_of::<CreateIn>(), 16),
            (size_of::<MkNodIn>(), 16),
            (size_of::<MkDirIn>(), 8),
            (size_of::<Rename2In>(), 16),
            (size_of::<SetXattrIn>(), 8),
            (size_of::<GetXattrIn>(), 8),
            (size_of::<FSyncIn>(), 16),
            (size_of::<LSeekIn>(), 24),
            (size_of::<WriteOut>(), 8),
            (size_of::<ForgetOne>(), 16),
            (size_of::<IoctlOut>(), 16),
            (size_of::<InvalInodeOut>(), 24),
        ];
        for (n, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "number {n}");
        }
    }

    #[test]
    fn kinds_have_their_numbers() {
        for kind in Opcode::ALL {
            assert_eq!(Opcode::of(*kind as u32), Some(*kind), "{}", kind.name());
        }
        assert_eq!(Opcode::of(34), None); // ACCESS: permissions are checked in the kernel
    }
}
