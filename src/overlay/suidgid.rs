//! What becomes of setuid and setgid when somebody changes a file: they go, unless the caller has
//! CAP_FSETID; setgid without group-execute goes only if the caller is not in the group either
//! (inode(7), chown(2)). The wire says for a write alone what the caller has; else /proc does.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::AtFlags;

use super::Overlay;
use super::attr::Attr;
use super::error::{Context, Result};
use super::inode::Inode;
use crate::layers::number::Ino;
use crate::sys::{self, Caller, Errno};

/// What becomes of setuid and setgid when the content changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SuidGid {
    /// They stay: the caller has CAP_FSETID.
    #[default]
    Keep,
    /// They go: the caller lacks it.
    Drop(Caller),
    /// That is to be found out.
    AsCallerMay(Caller),
}

impl Overlay {
    /// Before the data changes: what is written must never run with the old bits.
    pub(super) fn drop_privileges(
        &self,
        inode: &Inode,
        fd: BorrowedFd<'_>,
        suidgid: SuidGid,
    ) -> Result<()> {
        self.drop_held_capabilities(fd)?;
        if self.drop_suidgid(inode, fd, suidgid)? {
            self.watcher.tell(inode.ino);
        }
        Ok(())
    }

    /// A change of attributes that names none: chown(2) to nobody else, which sets the time of
    /// change and drops setuid and setgid; or the kernel, which before a write asks for
    /// setuid, setgid and capabilities to go. The two look alike. So only the owner's and
    /// root's request does something, and root's nothing where capabilities may be meant: the
    /// write that follows says itself what it drops, and nobody else may take a bit away.
    pub(super) fn change_nothing(&self, ino: Ino, caller: Caller) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let owner = self.owners.shown_uid(self.stat_object(&inode)?.uid);
        let is_chown = match caller.uid {
            0 => {
                let object = self.object(&inode)?;
                sys::get_xattr(object.as_fd(), b"security.capability").is_err()
            }
            uid => uid == owner,
        };
        if !is_chown {
            return self.getattr(ino);
        }
        let _open = self.copy_up_attributes(&inode)?;
        if self.owners.overrides.is_some() {
            let held = self.stat_object(&inode)?;
            let uid = Some(self.owners.shown_uid(held.uid));
            self.set_owner_and_mode(&inode, uid, None, None)?;
        }
        let _stable = inode.attrs.read();
        let object = self.object(&inode)?;
        rustix::fs::chownat(&object, c"", None, None, AtFlags::EMPTY_PATH).context("chown", b"")?;
        self.attr_of(&inode, None)
    }

    /// What goes before somebody writes past the union: setuid, setgid and capabilities.
    pub fn drop_before_write(&self, ino: Ino, caller: Caller) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let object = self.object(&inode)?;
        self.drop_privileges(&inode, object.as_fd(), SuidGid::AsCallerMay(caller))?;
        match sys::remove_xattr(object.as_fd(), b"security.capability") {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno).context("drop capabilities", b""),
        }
        self.getattr(ino)
    }

    /// Drops setgid from a file whose ACL was set by somebody who is not in its group.
    pub(super) fn drop_setgid_of_stranger(&self, ino: Ino, caller: Caller) -> Result<()> {
        let inode = self.inode(ino)?;
        let _stable = inode.attrs.read();
        let stat = self.stat_object(&inode)?;
        let is_member = || caller.is_in_group(self.owners.shown_gid(stat.gid));
        if stat.mode & 0o2000 != 0 && !is_member() && !caller.has_fsetid() {
            let object = self.object(&inode)?;
            self.owners.set_permissions(object.as_fd(), stat.permissions() & !0o2000)?;
            self.watcher.tell(ino);
        }
        Ok(())
    }

    /// What a write or truncate by an unprivileged caller does: setuid goes, and setgid where
    /// the group may execute, or the caller is not in the group (inode(7)).
    /// Whether there was anything to drop.
    fn drop_suidgid(&self, inode: &Inode, fd: BorrowedFd<'_>, suidgid: SuidGid) -> Result<bool> {
        let caller = match suidgid {
            SuidGid::Keep => return Ok(false),
            SuidGid::Drop(caller) | SuidGid::AsCallerMay(caller) => caller,
        };
        let stat = || self.owners.held(fd, sys::fstat(fd).context("stat", b"")?);
        let may_keep = || suidgid == SuidGid::AsCallerMay(caller) && caller.has_fsetid();
        if stat()?.mode & 0o6000 == 0 || may_keep() {
            return Ok(false);
        }
        // Between the look and the change nobody else may change the mode.
        let _alone = inode.attrs.write();
        let stat = stat()?;
        let mode = stat.permissions();
        let is_member = || caller.is_in_group(self.owners.shown_gid(stat.gid));
        let mut kept = mode & !0o4000;
        if mode & 0o2010 == 0o2010 || mode & 0o2000 != 0 && !is_member() {
            kept &= !0o2000;
        }
        if kept != mode {
            self.owners.set_permissions(fd, kept)?;
        }
        Ok(kept != mode)
    }
}
