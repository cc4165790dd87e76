//! Operations on attributes, xattrs and flags.

use rustix::io::Errno;

use super::super::abi::{
    self, GetXattrIn, GetXattrOut, IoctlIn, IoctlOut, SetAttrIn, SetXattrIn, StatFsOut,
};
use super::super::convert;
use super::super::reply::Reply;
use super::super::request::{Request, name};
use super::super::stats::STATS_XATTR;
use super::{Ops, Result};
use crate::layers::marks::NAME_MAX;
use crate::layers::number::Ino;
use crate::overlay::{SetAttr, SuidGid};
use crate::sys::{self, TimeChange};

/// The inode of the root.
const ROOT: Ino = Ino(1);

impl Ops {
    pub(super) fn getattr(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let attr = self.overlay.getattr(request.ino())?;
        Ok(reply.attr(&convert::attr(&attr), self.ttl)?)
    }

    pub(super) fn setattr(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (ino, caller) = (request.ino(), request.caller());
        let change = change(&request.structure()?, SuidGid::AsCallerMay(caller));
        let is_passthrough = self.opens.as_ref().is_some_and(|opens| opens.is_passthrough(ino));
        let attr = if change.names_nothing() && is_passthrough {
            // No WRITE will say what it drops.
            self.overlay.drop_before_write(ino, caller)?
        } else {
            let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
            self.overlay.setattr(ino, &change)?
        };
        Ok(reply.attr(&convert::attr(&attr), self.ttl)?)
    }

    pub(super) fn readlink(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        Ok(reply.bytes(&self.overlay.readlink(request.ino())?)?)
    }

    pub(super) fn statfs(&self, reply: &mut Reply<'_>) -> Result<()> {
        let stat = self.overlay.statfs()?;
        Ok(reply.structure(&StatFsOut {
            blocks: stat.blocks,
            bfree: stat.blocks_free,
            bavail: stat.blocks_available,
            files: stat.files,
            ffree: stat.files_free,
            bsize: stat.block_size,
            namelen: NAME_MAX as u32,
            frsize: stat.fragment_size,
            ..Default::default()
        })?)
    }

    /// Where files have no xattrs, the kernel is told so and asks no more.
    fn check_xattrs(&self) -> Result<()> {
        if self.xattrs { Ok(()) } else { Err(Errno::NOSYS.into()) }
    }

    pub(super) fn setxattr(&self, request: &Request<'_>) -> Result<()> {
        self.check_xattrs()?;
        let (SetXattrIn { size, flags }, rest) = request.split()?;
        let (name, value) = name(rest)?;
        let value = value.get(..size as usize).ok_or(Errno::INVAL)?;
        let ino = request.ino();
        let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
        Ok(self.overlay.set_xattr_by(request.caller(), ino, name, value, flags)?)
    }

    pub(super) fn getxattr(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        self.check_xattrs()?;
        let (GetXattrIn { size, .. }, rest) = request.split()?;
        let (name, _) = name(rest)?;
        let value = if request.ino() == ROOT && name == STATS_XATTR.as_bytes() {
            self.stats.tell().into_bytes()
        } else {
            self.overlay.get_xattr(request.ino(), name)?
        };
        reply_xattr(reply, size, &value)
    }

    pub(super) fn listxattr(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        self.check_xattrs()?;
        let GetXattrIn { size, .. } = request.structure()?;
        reply_xattr(reply, size, &self.overlay.list_xattrs(request.ino())?)
    }

    pub(super) fn removexattr(&self, request: &Request<'_>) -> Result<()> {
        self.check_xattrs()?;
        let ino = request.ino();
        let (name, _) = name(request.unstructured())?;
        let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
        Ok(self.overlay.remove_xattr(ino, name)?)
    }

    pub(super) fn ioctl(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (IoctlIn { cmd, in_size, .. }, data) = request.split()?;
        let data = data.get(..in_size as usize).ok_or(Errno::INVAL)?;
        let ino = request.ino();
        // Of a number, the kernel sends the low 32 bits; of a long, an int.
        match (libc::Ioctl::from(cmd), data) {
            (libc::FS_IOC_GETFLAGS, _) => {
                reply_ioctl(reply, &self.overlay.flags(ino)?.to_ne_bytes())
            }
            (libc::FS_IOC_SETFLAGS, [a, b, c, d, ..]) => {
                let flags = u32::from_ne_bytes([*a, *b, *c, *d]);
                let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
                self.overlay.set_flags(ino, flags)?;
                reply_ioctl(reply, &[])
            }
            (sys::FS_IOC_FSGETXATTR, _) => reply_ioctl(reply, &self.overlay.extended_flags(ino)?),
            (sys::FS_IOC_FSSETXATTR, data) => {
                let flags = sys::ExtendedFlags::try_from(data).map_err(|_| Errno::INVAL)?;
                let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
                self.overlay.set_extended_flags(ino, &flags)?;
                reply_ioctl(reply, &[])
            }
            _ => Err(Errno::NOTTY.into()),
        }
    }
}

fn change(wanted: &SetAttrIn, suidgid: SuidGid) -> SetAttr {
    let sets = |flag| wanted.valid & flag != 0;
    let time = |flag, now_flag, secs: u64, nanos| {
        let at = TimeChange::At(convert::time(secs, nanos));
        sets(flag).then_some(if sets(now_flag) { TimeChange::Now } else { at })
    };
    use abi::set;
    SetAttr {
        mode: sets(set::MODE).then_some(wanted.mode),
        uid: sets(set::UID).then_some(wanted.uid),
        gid: sets(set::GID).then_some(wanted.gid),
        size: sets(set::SIZE).then_some(wanted.size),
        atime: time(set::ATIME, set::ATIME_NOW, wanted.atime, wanted.atimensec),
        mtime: time(set::MTIME, set::MTIME_NOW, wanted.mtime, wanted.mtimensec),
        suidgid,
    }
}

/// An xattr, or a list of names: its size alone, if there is no room for more.
fn reply_xattr(reply: &mut Reply<'_>, size: u32, value: &[u8]) -> Result<()> {
    if size == 0 {
        let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        return Ok(reply.structure(&GetXattrOut { size, padding: 0 })?);
    }
    if value.len() > size as usize {
        return Err(Errno::RANGE.into());
    }
    Ok(reply.bytes(value)?)
}

fn reply_ioctl(reply: &mut Reply<'_>, data: &[u8]) -> Result<()> {
    reply.structure(&IoctlOut::default())?;
    Ok(reply.bytes(data)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Timestamp;

    #[test]
    fn what_a_setattr_changes() {
        use abi::set;
        let wanted = SetAttrIn {
            valid: set::MODE | set::ATIME | set::ATIME_NOW | set::MTIME,
            mode: 0o100_644,
            uid: 7,
            mtime: (-2i64).cast_unsigned(),
            mtimensec: 800_000_000,
            ..Default::default()
        };
        let change = change(&wanted, SuidGid::Keep);
        assert_eq!((change.mode, change.uid, change.size), (Some(0o100_644), None, None));
        assert_eq!(change.atime, Some(TimeChange::Now));
        let before_1970 = Timestamp { secs: -2, nanos: 800_000_000 };
        assert_eq!(change.mtime, Some(TimeChange::At(before_1970)));
    }
}
