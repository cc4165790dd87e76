//! Extended attributes. Those of unions themselves are not there, whoever asks; names that
//! could be taken for one are escaped.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Overlay;
use super::error::{Context, Error, Result};
use super::inode::Inode;
use crate::layers::acl;
use crate::layers::number::Ino;
use crate::layers::override_stat::OverrideXattr;
use crate::layers::private_xattr;
use crate::sys::{self, Caller, Errno};

impl Overlay {
    /// The value of an xattr.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        // The kernel asks for capabilities before the first write, which copies the file up.
        let object = self.object_to_read(&inode, name == b"security.capability")?;
        let get = |held: &[u8]| match sys::get_xattr(object.as_fd(), held) {
            Err(Errno::NODATA) => Err(Error::NoXattr),
            result => result.context("get xattr", name),
        };
        if !self.acl && name.starts_with(acl::PREFIX) {
            return Err(Errno::OPNOTSUPP).context("get ACL", name);
        }
        if self.is_reserved_xattr(name) {
            return Err(Error::NoXattr);
        }
        if let Some(held) = self.held_behind(&inode, name)
            && let Ok(value) = get(&held)
        {
            return Ok(value);
        }
        let value = get(&private_xattr::escape(name))?;
        Ok(if name.starts_with(acl::PREFIX) { self.owners.shown_acl(&value) } else { value })
    }

    /// The names of all xattrs, each ended by NUL.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        let object = self.object_to_read(&self.inode(ino)?, false)?;
        let list = sys::list_xattrs(object.as_fd()).context("list xattrs", b"")?;
        if self.acl && self.owners.overrides.is_none() {
            return Ok(private_xattr::visible(&list));
        }
        let names = private_xattr::names(&list);
        let shown: BTreeSet<_> = names.filter_map(|name| self.shown_behind(name)).collect();
        Ok(shown.iter().flat_map(|name| [&name[..], b"\0"]).flatten().copied().collect())
    }

    /// Sets an xattr; `flags` are those of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let inode = self.inode(ino)?;
        if !self.acl && name.starts_with(acl::PREFIX) {
            return Err(Errno::OPNOTSUPP).context("set ACL", name);
        }
        if self.is_reserved_xattr(name) {
            return Err(Errno::PERM).context("set an xattr of the union's own", name);
        }
        let _open = match name {
            b"system.posix_acl_access" => self.copy_up_for_mode(&inode, 0)?, // it may be any
            _ => self.copy_up_attributes(&inode)?,
        };
        let value = match name.starts_with(acl::PREFIX) {
            true => Cow::Owned(self.owners.held_acl(value)?),
            false => Cow::Borrowed(value),
        };
        // Nobody makes a name meanwhile, which would inherit it or not.
        let mut names = (name == acl::DEFAULT).then(|| inode.dir.write());
        if let Some(names) = names.as_mut().and_then(|names| names.as_deref_mut()) {
            names.bequeaths_nothing = false;
        }
        let _stable = inode.attrs.read();
        let object = self.object(&inode)?;
        let held = match self.held_behind(&inode, name) {
            Some(held) => held,
            None => private_xattr::escape(name),
        };
        sys::set_xattr(object.as_fd(), &held, &value, flags).context("set xattr", name)?;
        self.watcher.tell(ino); // the time of change, and with an ACL the mode
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
            Err(Error::NoXattr) if name.starts_with(acl::PREFIX) => return Ok(()),
            result => result.map(drop)?,
        }
        let inode = self.inode(ino)?;
        let _open = self.copy_up_attributes(&inode)?;
        let _stable = inode.attrs.read();
        let object = self.object(&inode)?;
        let behind = self.held_behind(&inode, name);
        let names = behind.into_iter().chain([private_xattr::escape(name)]);
        let mut found = false;
        for held in names {
            match sys::remove_xattr(object.as_fd(), &held) {
                Err(Errno::NODATA) => {}
                Err(Errno::PERM) if found => {} // nobody could have set it beside the held one
                result => {
                    result.context("remove xattr", name)?;
                    found = true;
                }
            }
        }
        if !found {
            return Err(Error::NoXattr);
        }
        self.watcher.tell(ino);
        Ok(())
    }

    /// Whether the xattr is where the union keeps owners, which is nobody else's business.
    fn is_reserved_xattr(&self, name: &[u8]) -> bool {
        self.owners.overrides.is_some_and(|xattr| xattr.is_reserved(name))
    }

    /// The name behind which the file holds what its filesystem would refuse to a user.
    fn held_behind(&self, inode: &Arc<Inode>, name: &[u8]) -> Option<Cow<'static, [u8]>> {
        let holds = |xattr: &OverrideXattr| xattr.is_for(inode.kind);
        self.owners.overrides.filter(holds)?.held_name(name)
    }

    /// What is shown of a name that a file has.
    fn shown_behind<'a>(&self, held: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if !self.acl && held.starts_with(acl::PREFIX) {
            return None;
        }
        match self.owners.overrides {
            Some(xattr) if xattr.is_reserved(held) => xattr.shown_name(held).map(Cow::Borrowed),
            _ => private_xattr::unescape(held),
        }
    }
}
