//! Inode flags (`chattr`, `lsattr`), which the real file in upper carries itself. So what they
//! forbid, the filesystem below forbids; a lower file that is immutable is not copied up.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Overlay;
use super::error::{Context, Result};
use super::fd_cache::FdKey;
use super::inode::Inode;
use crate::layers::number::Ino;
use crate::sys::{self, Errno, ExtendedFlags, FileType};

/// The flags that may change through the mount (linux/fs.h, FS_*_FL): secrm, unrm, compr, sync,
/// immutable, append, nodump, noatime, nocomp, dirsync, topdir, nocow. For others the filesystem
/// below would ask for the daemon's capabilities instead of the caller's, or read names in
/// another way.
const SETTABLE: u32 = 0x0083_04ff;
/// The same as FS_XFLAG_*: immutable, append, sync, noatime, nodump.
const SETTABLE_EXTENDED: u32 = 0x08 | 0x10 | 0x20 | 0x40 | 0x80;

impl Overlay {
    /// The flags of a file or directory, as `lsattr` shows them (FS_IOC_GETFLAGS).
    ///
    /// # Errors
    /// ENOTTY for what has none.
    pub fn flags(&self, ino: Ino) -> Result<u32> {
        let inode = self.flagged(ino)?;
        sys::get_flags(self.object(&inode)?.as_fd()).context("get flags", b"")
    }

    /// Sets the flags of a file or directory (FS_IOC_SETFLAGS).
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<()> {
        let inode = self.flagged(ino)?;
        let now = self.flags(ino)?;
        if flags & !now & !SETTABLE != 0 {
            return Err(Errno::OPNOTSUPP).context("set flags", b"");
        }
        let flags = now & !SETTABLE | flags & SETTABLE;
        if flags == now {
            return Ok(());
        }
        self.copy_up(&inode)?;
        sys::set_flags(self.object(&inode)?.as_fd(), flags).context("set flags", b"")?;
        // What was open for writing would not ask the new flags.
        self.fds.remove(FdKey::Write(ino));
        self.watcher.tell(ino);
        Ok(())
    }

    /// The extended flags of a file or directory (FS_IOC_FSGETXATTR).
    pub fn extended_flags(&self, ino: Ino) -> Result<ExtendedFlags> {
        let inode = self.flagged(ino)?;
        sys::get_extended_flags(self.object(&inode)?.as_fd()).context("get flags", b"")
    }

    /// Sets the extended flags of a file or directory (FS_IOC_FSSETXATTR).
    pub fn set_extended_flags(&self, ino: Ino, flags: &ExtendedFlags) -> Result<()> {
        let inode = self.flagged(ino)?;
        let now = self.extended_flags(ino)?;
        let word = |bytes: &ExtendedFlags| u32::from_ne_bytes(std::array::from_fn(|n| bytes[n]));
        if (word(&now) ^ word(flags)) & !SETTABLE_EXTENDED != 0 || now[4..] != flags[4..] {
            return Err(Errno::OPNOTSUPP).context("set flags", b"");
        }
        self.copy_up(&inode)?;
        let object = self.object(&inode)?;
        sys::set_extended_flags(object.as_fd(), flags).context("set flags", b"")?;
        self.fds.remove(FdKey::Write(ino));
        self.watcher.tell(ino);
        Ok(())
    }

    fn flagged(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileType::RegularFile | FileType::Directory => Ok(inode),
            _ => Err(Errno::NOTTY).context("flags", b""),
        }
    }
}
