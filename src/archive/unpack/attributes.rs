//! Owners, modes, xattrs, times and types of what is unpacked.
//!
//! What the filesystem does not let who loads set is kept in an override xattr (see
//! [`crate::layers::override_stat`]), which the mount shows in its place: owners, setuid, device
//! nodes, security xattrs. A symlink can have no such xattr: of root's, which nearly all are, it
//! is not needed (a symlink of such a layer is root's), any other is a regular file that says so.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Uid};
use serde::{Deserialize, Serialize};

use super::left_out::What;
use super::{Entry, Errno, Error, FileType, Kind, Place, Result, Unpacker, sys};
use crate::layers::override_stat::{OverrideStat, OverrideXattr, real_mode};
use crate::layers::{path, private_xattr};
use crate::sys::{TimeChange, Timestamp};

/// What a directory is to have when all is unpacked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct DirAttributes {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What all directories are to have, in the order of the tar: on disk, for there may be millions.
pub(super) struct Later {
    file: BufWriter<File>,
    /// The root's.
    root: DirAttributes,
}

impl Later {
    pub(super) fn new(home: &Path) -> io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile_in(home)?);
        Ok(Self { file, root: DirAttributes::default() })
    }

    /// Notes what a directory is to have; `again` if it was listed before.
    pub(super) fn note(
        &mut self,
        path: &[u8],
        attributes: DirAttributes,
        again: bool,
    ) -> io::Result<()> {
        if path.is_empty() {
            self.root = attributes;
            return Ok(());
        }
        ciborium::into_writer(&(path, attributes, again), &mut self.file).map_err(io::Error::other)
    }

    /// All of them, and the root's.
    fn read(
        &mut self,
    ) -> io::Result<(impl Iterator<Item = io::Result<Noted>> + use<>, DirAttributes)> {
        self.file.flush()?;
        let mut file = self.file.get_ref().try_clone()?;
        let end = file.stream_position()?;
        file.rewind()?;
        let mut input = BufReader::new(file);
        let next = move || {
            let is_end = match input.stream_position() {
                Ok(at) => at == end,
                Err(error) => return Some(Err(error)),
            };
            (!is_end).then(|| ciborium::from_reader(&mut input).map_err(io::Error::other))
        };
        Ok((std::iter::from_fn(next), self.root.clone()))
    }
}

/// A directory's path and attributes, and whether it was listed before.
type Noted = (Vec<u8>, DirAttributes, bool);

/// Of a directory that no layer lists: root's, 0755, 1970.
impl Default for DirAttributes {
    fn default() -> Self {
        Self { mode: 0o755, owner: (0, 0), mtime: (0, 0), xattrs: BTreeMap::new() }
    }
}

impl DirAttributes {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            mtime: (entry.mtime.secs, entry.mtime.nanos),
            xattrs: BTreeMap::clone(&entry.xattrs),
        }
    }
}

const KEPT: OverrideXattr = OverrideXattr::Containers;

impl Unpacker<'_> {
    pub(super) fn add_symlink(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let link = |at: &Place<'_>| rustix::fs::symlinkat(&entry.link[..], at.dir, at.name);
        at.io("link", self.make(at, link, false)?)?;
        let object = at.io("open", sys::open_at(at.dir, at.name, sys::O_PATH))?;
        let needs_xattr = (entry.uid, entry.gid) != (0, 0) || !entry.xattrs.is_empty();
        let has_owner = self.chown(at, object.as_fd(), (entry.uid, entry.gid))?;
        // Beside owners that are kept aside no real symlink tells its own.
        let is_known = has_owner && self.may_set_all;
        if !is_known && needs_xattr {
            // Until all is unpacked, other entries' paths may lead through it.
            self.symlinks.insert(at.path.to_vec(), entry.clone());
            return self.check_listed();
        }
        self.has_overrides |= !has_owner;
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, object.as_fd(), FileType::Symlink, name, value)?;
        }
        self.set_mtime(at, object.as_fd(), entry.mtime)
    }

    pub(super) fn add_node(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let make = |at: &Place<'_>| {
            rustix::fs::mknodat(at.dir, at.name, kind, Mode::RUSR | Mode::WUSR, device)
        };
        match self.make(at, make, false)? {
            Err(Errno::PERM) => return self.stand_in(at, entry, kind, device),
            result => at.io("make node", result)?,
        }
        let object = at.io("open", sys::open_at(at.dir, at.name, sys::O_PATH))?;
        if !self.chown(at, object.as_fd(), (entry.uid, entry.gid))? {
            at.io("replace", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()))?;
            return self.stand_in(at, entry, kind, device);
        }
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, object.as_fd(), kind, name, value)?;
        }
        at.io("chmod", sys::chmod(object.as_fd(), entry.mode))?;
        self.set_mtime(at, object.as_fd(), entry.mtime)
    }

    /// Makes a regular file that says what it stands for.
    fn stand_in(&mut self, at: &Place<'_>, entry: &Entry, kind: FileType, rdev: u64) -> Result<()> {
        let mut file = self.create(at)?;
        if kind == FileType::Symlink {
            file.write_all(&entry.link).map_err(|e| Error::io("write", at.shown(), e))?;
        }
        let permissions = if kind == FileType::Symlink { 0o777 } else { entry.mode };
        let kept =
            OverrideStat { uid: entry.uid, gid: entry.gid, permissions, node: Some((kind, rdev)) };
        if !self.keep(file.as_fd(), FileType::RegularFile, &kept)? {
            // Nothing can say what it is: better none than an empty file.
            self.leave_out(at, What::Device)?;
            return at.io("remove", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()));
        }
        for (name, value) in &*entry.xattrs {
            self.set_xattr(at, file.as_fd(), FileType::RegularFile, name, value)?;
        }
        self.set_mtime(at, file.as_fd(), entry.mtime)
    }

    /// Owner, xattrs, mode, times of a file. (chown(2) drops capabilities, so it is first; an
    /// ordinary user cannot give a read-only file xattrs.)
    pub(super) fn set_attributes(
        &mut self,
        at: &Place<'_>,
        file: BorrowedFd<'_>,
        entry: &Entry,
    ) -> Result<()> {
        let owner = (entry.uid, entry.gid);
        let Entry { mode, mtime, .. } = *entry;
        self.set_all(at, file, FileType::RegularFile, owner, mode, mtime, &entry.xattrs)
    }

    #[allow(clippy::too_many_arguments)] // one per attribute
    fn set_all(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        kind: FileType,
        owner: (u32, u32),
        mode: u32,
        mtime: Timestamp,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<()> {
        let has_owner = self.chown(at, object, owner)?;
        for (name, value) in xattrs {
            self.set_xattr(at, object, kind, name, value)?;
        }
        let (uid, gid) = owner;
        let kept = OverrideStat { uid, gid, permissions: mode, node: None };
        // A mode may shut its owner out, who is to read it again and to remove it.
        let is_real = has_owner && (self.may_set_all || real_mode(mode, kind) == mode);
        if is_real || !self.keep(object, kind, &kept)? {
            match has_owner {
                true if kind == FileType::Directory && mode & 0o100 == 0 && !self.may_set_all => {
                    self.shut.insert(at.path.to_vec(), mode);
                }
                true => at.io("chmod", sys::chmod(object, mode))?,
                false => self.leave_out(at, What::Owner)?,
            }
        }
        self.set_mtime(at, object, mtime)
    }

    /// Gives the object its owner; false if that is not allowed to who loads.
    fn chown(&self, at: &Place<'_>, object: BorrowedFd<'_>, owner: (u32, u32)) -> Result<bool> {
        let (user, group) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        match rustix::fs::chownat(object, c"", user, group, AtFlags::EMPTY_PATH) {
            Ok(()) => Ok(true),
            // EINVAL: an id that the user namespace does not map.
            Err(Errno::PERM | Errno::INVAL) => Ok(false),
            Err(errno) => at.io("chown", Err(errno)),
        }
    }

    /// Keeps owner, mode and type in an xattr; false if the filesystem has none. The real mode lets
    /// who loads use the file, and nobody be another by it.
    fn keep(
        &mut self,
        object: BorrowedFd<'_>,
        kind: FileType,
        kept: &OverrideStat,
    ) -> Result<bool> {
        let written = KEPT.write(object, kept);
        let chmod = sys::chmod(object, real_mode(kept.permissions, kind));
        chmod.map_err(|e| Error::io("chmod", "a file of the layer", e.into()))?;
        match written {
            Ok(()) => {
                self.has_overrides = true;
                Ok(true)
            }
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC) => Ok(false),
            Err(errno) => Err(Error::io("keep the owner of", "a file of the layer", errno.into())),
        }
    }

    fn set_xattr(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        kind: FileType,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if private_xattr::is_private(name) {
            let (path, name) = (at.shown(), name.escape_ascii());
            log::warn!("{path}: the layer's {name} is private to unions: left out"); // verify knows
            return Ok(());
        }
        match sys::set_xattr(object, name, value, 0) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            result => return at.io("set xattr of", result),
        }
        if KEPT.is_for(kind)
            && let Some(held) = KEPT.held_name(name)
            && sys::set_xattr(object, &held, value, 0).is_ok()
        {
            self.has_overrides = true;
            return Ok(());
        }
        self.leave_out(at, What::Xattr(name))
    }

    /// Sets what directories are to have: of one that was listed twice, what the last said. The
    /// attributes of one disturb no other's: what shuts who loads out comes last.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.replace_symlinks()?;
        let failed = |e| Error::io("read", "the attributes of directories", e);
        let (noted, root) = self.later.read().map_err(failed)?;
        for noted in noted {
            let (path, attributes, again) = noted.map_err(failed)?;
            self.set_directory(&path, &attributes, again)?;
        }
        self.set_directory(b"", &root, false)?;
        for (path, mode) in std::mem::take(&mut self.shut).into_iter().rev() {
            let shut = sys::open_beneath(self.directories.root(), &path, sys::O_DIRECTORY)
                .and_then(|dir| sys::chmod(dir.as_fd(), mode));
            shut.map_err(|e| Error::io("chmod", path.escape_ascii(), e.into()))?;
        }
        Ok(())
    }

    /// Puts regular files in the place of symlinks that cannot have their owners; names of one
    /// symlink become names of one file.
    fn replace_symlinks(&mut self) -> Result<()> {
        let mut made: HashMap<u64, Vec<u8>> = HashMap::new();
        for (path, entry) in std::mem::take(&mut self.symlinks) {
            let (parent, name) = path::split(&path);
            let root = self.directories.root();
            let dir = sys::open_beneath(root, parent, sys::O_DIRECTORY);
            let dir = dir.map_err(|e| Error::io("open", parent.escape_ascii(), e.into()))?;
            let at = Place { dir: dir.as_fd(), name, path: &path };
            let inode = at.io("stat", sys::statx_at(at.dir, name))?.ino;
            let known = made.get(&inode).map(|known| sys::open_beneath(root, known, sys::O_PATH));
            at.io("replace", rustix::fs::unlinkat(at.dir, name, AtFlags::empty()))?;
            match known {
                Some(Err(Errno::NOENT)) => self.leave_out(&at, What::Device)?, // as the first was
                Some(file) => {
                    let linked = sys::link_fd(at.io("open", file)?.as_fd(), at.dir, name);
                    at.io("link", linked)?;
                }
                None => {
                    self.stand_in(&at, &entry, FileType::Symlink, 0)?;
                    made.insert(inode, path.clone());
                }
            }
        }
        Ok(())
    }

    fn set_directory(
        &mut self,
        path: &[u8],
        attributes: &DirAttributes,
        again: bool,
    ) -> Result<()> {
        let fd = match sys::open_beneath(self.directories.root(), path, sys::O_DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()), // replaced since
            result => result.map_err(|e| Error::io("open", path.escape_ascii(), e.into()))?,
        };
        let at = Place { dir: fd.as_fd(), name: b"", path };
        if again {
            // What an earlier entry gave it.
            let listed = at.io("list xattrs of", sys::list_xattrs(fd.as_fd()))?;
            for name in private_xattr::names(&listed).filter(|name| may_be_given(name)) {
                at.io("remove an xattr of", sys::remove_xattr(fd.as_fd(), name))?;
            }
        }
        let DirAttributes { mode, owner, mtime: (secs, nanos), ref xattrs } = *attributes;
        let time = Timestamp { secs, nanos };
        self.set_all(&at, fd.as_fd(), FileType::Directory, owner, mode, time, xattrs)?;
        if path.is_empty() && self.has_overrides {
            self.mark_root(fd.as_fd(), attributes)?;
        }
        Ok(())
    }

    /// The root's xattr tells that others of the layer may have one.
    fn mark_root(&mut self, root: BorrowedFd<'_>, attributes: &DirAttributes) -> Result<()> {
        let (uid, gid) = attributes.owner;
        let kept = OverrideStat { uid, gid, permissions: attributes.mode, node: None };
        self.keep(root, FileType::Directory, &kept).map(drop)
    }

    fn set_mtime(&mut self, at: &Place<'_>, object: BorrowedFd<'_>, time: Timestamp) -> Result<()> {
        let change = Some(TimeChange::At(time));
        at.io("set times of", sys::set_times(object, change, change))?;
        // Far from now a filesystem gives the nearest that it can tell (utimensat(2)).
        let is_plain = i32::try_from(time.secs).is_ok();
        if is_plain || at.io("stat", sys::fstat(object))?.mtime == time {
            return Ok(());
        }
        self.leave_out(at, What::Time)
    }

    fn leave_out(&mut self, at: &Place<'_>, what: What<'_>) -> Result<()> {
        let noted = self.left_out.note(what, at.path);
        noted.map_err(|e| Error::io("note what is left out of", at.shown(), e))
    }
}

/// Whether an image may give this xattr: not if it is a label that the kernel gives by itself, or a
/// filesystem's own (`system.nfs4_acl`, `lustre.lov`).
pub(crate) fn may_be_given(name: &[u8]) -> bool {
    const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    const LABELS: [&[u8]; 5] = [
        b"security.selinux",
        b"security.SMACK64",
        b"security.ima",
        b"security.evm",
        b"trusted.lov",
    ];
    let begins = |prefix: &&[u8]| name.starts_with(prefix);
    NAMESPACES.iter().any(begins) && !LABELS.iter().any(begins)
}
