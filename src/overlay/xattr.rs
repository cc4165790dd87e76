//! Extended attributes. Those of unions themselves are not there, whoever asks; names that
//! could be taken for one are escaped.

use std::os::fd::AsFd;

use super::Overlay;
use super::error::{Context, Error, Result};
use crate::layers::number::Ino;
use crate::layers::private_xattr;
use crate::sys::{self, Caller, Errno};

/// What the names of ACLs begin with.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

impl Overlay {
    /// The value of an xattr.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let object = self.object(&self.inode(ino)?)?;
        match sys::get_xattr(object.as_fd(), &private_xattr::escape(name)) {
            Err(Errno::NODATA) => Err(Error::NoXattr),
            result => result.context("get xattr", name),
        }
    }

    /// The names of all xattrs, each ended by NUL.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        let object = self.object(&self.inode(ino)?)?;
        let list = sys::list_xattrs(object.as_fd()).context("list xattrs", b"")?;
        Ok(private_xattr::visible(&list))
    }

    /// Sets an xattr; `flags` are those of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let inode = self.inode(ino)?;
        match name {
            b"system.posix_acl_access" => self.copy_up_for_mode(&inode, 0)?, // it may be any
            _ => self.copy_up_attributes(&inode)?,
        }
        let _stable = inode.attrs.read();
        let object = self.object(&inode)?;
        let held = private_xattr::escape(name);
        sys::set_xattr(object.as_fd(), &held, value, flags).context("set xattr", name)?;
        self.attr_watcher.tell(ino); // the time of change, and with an ACL the mode
        Ok(())
    }

    /// As [`set_xattr`](Self::set_xattr) for a caller: an ACL set by who is not in the file's group
    /// drops setgid.
    pub fn set_xattr_by(
        &self,
        caller: Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.set_xattr(ino, name, value, flags)?;
        match name {
            b"system.posix_acl_access" => self.drop_setgid_of_stranger(ino, caller),
            _ => Ok(()),
        }
    }

    /// Removes an xattr; one that is missing copies nothing up.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        match self.get_xattr(ino, name) {
            // One that is not there is as good as removed (acl(5)).
            Err(Error::NoXattr) if name.starts_with(ACL_PREFIX) => return Ok(()),
            result => result.map(drop)?,
        }
        let inode = self.inode(ino)?;
        self.copy_up_attributes(&inode)?;
        let _stable = inode.attrs.read();
        let object = self.object(&inode)?;
        match sys::remove_xattr(object.as_fd(), &private_xattr::escape(name)) {
            Err(Errno::NODATA) => Err(Error::NoXattr),
            result => result.context("remove xattr", name),
        }?;
        self.attr_watcher.tell(ino);
        Ok(())
    }
}
