//! Operations on names.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::super::abi::{
    self, Attr, CreateIn, LinkIn, MkDirIn, MkNodIn, OpenOut, Rename2In, RenameIn,
};
use super::super::convert;
use super::super::reply::{self, Reply};
use super::super::request::{Request, name};
use super::{Ops, Result};
use crate::layers::number::Ino;
use crate::overlay::{self, Error, Node, NodeKind, RenameMode};
use crate::sys::FileType;

const PERMISSIONS: u32 = 0o7777;

impl Ops {
    pub(super) fn lookup(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (name, _) = name(request.unstructured())?;
        match self.overlay.lookup(request.ino(), name) {
            Ok(attr) => Ok(reply.entry(&convert::attr(&attr), self.ttl)?),
            // A missing name that is to be remembered: an entry of inode 0.
            Err(Error::NotFound) => {
                Ok(reply.structure(&reply::entry(0, &Attr::default(), self.ttl))?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn make(&self, request: &Request<'_>, name: &[u8], node: &Node<'_>) -> Result<overlay::Attr> {
        Ok(self.overlay.create(request.ino(), name, node)?)
    }

    pub(super) fn mknod(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (MkNodIn { mode, rdev, umask, .. }, rest) = request.split()?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::Unknown => NodeKind::File,
            kind => NodeKind::Special { kind, rdev: convert::decode_device(rdev) },
        };
        let node = Node { kind, mode: mode & PERMISSIONS, umask, owner: request.owner() };
        let attr = self.make(request, name(rest)?.0, &node)?;
        Ok(reply.entry(&convert::attr(&attr), self.ttl)?)
    }

    pub(super) fn mkdir(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (MkDirIn { mode, umask }, rest) = request.split()?;
        let (kind, owner) = (NodeKind::Directory, request.owner());
        let node = Node { kind, mode: mode & PERMISSIONS, umask, owner };
        let attr = self.make(request, name(rest)?.0, &node)?;
        Ok(reply.entry(&convert::attr(&attr), self.ttl)?)
    }

    pub(super) fn symlink(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (link_name, rest) = name(request.unstructured())?;
        let (target, _) = name(rest)?;
        let (kind, owner) = (NodeKind::Symlink(target), request.owner());
        let attr = self.make(request, link_name, &Node { kind, mode: 0o777, umask: 0, owner })?;
        Ok(reply.entry(&convert::attr(&attr), self.ttl)?)
    }

    pub(super) fn create(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (CreateIn { mode, umask, .. }, rest) = request.split()?;
        let (kind, owner) = (NodeKind::File, request.owner());
        let node = Node { kind, mode: mode & PERMISSIONS, umask, owner };
        let attr = self.make(request, name(rest)?.0, &node)?;
        let backing = self.opens.as_ref().and_then(|o| o.open(attr.ino, || self.backing(attr.ino)));
        reply.entry(&convert::attr(&attr), self.ttl)?;
        let cached = OpenOut {
            fh: 0,
            open_flags: abi::open::KEEP_CACHE | abi::open::NOFLUSH,
            backing_id: 0,
        };
        Ok(reply.structure(&backing.map_or(cached, |backing| passthrough(&backing)))?)
    }

    pub(super) fn unlink(&self, request: &Request<'_>) -> Result<()> {
        let (name, _) = name(request.unstructured())?;
        Ok(self.overlay.unlink(request.ino(), name)?)
    }

    pub(super) fn rmdir(&self, request: &Request<'_>) -> Result<()> {
        let (name, _) = name(request.unstructured())?;
        Ok(self.overlay.rmdir(request.ino(), name)?)
    }

    pub(super) fn rename(&self, request: &Request<'_>) -> Result<()> {
        let (RenameIn { newdir }, names) = request.split()?;
        self.rename_as(request, Ino(newdir), names, RenameMode::Replace)
    }

    pub(super) fn rename2(&self, request: &Request<'_>) -> Result<()> {
        let (Rename2In { newdir, flags, .. }, names) = request.split()?;
        let mode = match RenameFlags::from_bits_retain(flags) {
            RenameFlags::NOREPLACE => RenameMode::NoReplace,
            RenameFlags::EXCHANGE => RenameMode::Exchange,
            flags if flags.is_empty() => RenameMode::Replace,
            _ => return Err(Errno::INVAL.into()), // as the kernel's overlayfs
        };
        self.rename_as(request, Ino(newdir), names, mode)
    }

    fn rename_as(
        &self,
        request: &Request<'_>,
        newparent: Ino,
        names: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let (old, rest) = name(names)?;
        let (new, _) = name(rest)?;
        let mut wait = self.overlay.rename_waits_for(request.ino(), old);
        if mode == RenameMode::Exchange {
            wait = wait.max(self.overlay.rename_waits_for(newparent, new));
        }
        let _waiting = request.waits(wait)?;
        Ok(self.overlay.rename(request.ino(), old, newparent, new, mode)?)
    }

    pub(super) fn link(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (LinkIn { oldnodeid }, rest) = request.split()?;
        let ino = Ino(oldnodeid);
        let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
        let attr = self.overlay.link(ino, request.ino(), name(rest)?.0)?;
        Ok(reply.entry(&convert::attr(&attr), self.ttl)?)
    }
}

/// How a file is opened that the kernel reads and writes itself.
pub(super) fn passthrough(backing: &super::Backing) -> OpenOut {
    OpenOut {
        fh: 0,
        open_flags: abi::open::PASSTHROUGH | abi::open::NOFLUSH,
        backing_id: backing.number,
    }
}
