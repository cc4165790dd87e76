//! Unpacking a layer's tar into a directory, by the rules of the OCI image-spec (layer.md).
//!
//! The tar is untrusted. Every path resolves with openat2(2) inside the layer's directory,
//! as if that were the root of a chroot; `..` is refused. Whiteouts stay files named `.wh.`.
//! Attributes of directories are set last, so that their content does not disturb them.
//!
//! A parent directory that the tar does not list must not mask the one below: it takes the
//! attributes of the merged directory of the layers below. So does a hard link to a file of
//! a layer below, which is copied first. Both make the layer depend on its parent.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};

use super::tar::{Entry, Kind, Reader};
use super::{Error, Result};
use crate::layers::{marks, private_xattr};
use crate::sys::{self, Errno, FileType, Stat, TimeChange, Timestamp};

/// What an ordinary user's layer directory cannot hold, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files of other owners.
    pub owners: u64,
    /// Device nodes.
    pub devices: u64,
    /// Extended attributes that need privileges.
    pub xattrs: u64,
}

/// What unpacking a layer gave.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Bytes of its files.
    pub(super) size: u64,
    pub(super) depends_on_parent: bool,
    pub(super) left_out: LeftOut,
}

/// Attributes of a directory, to be set when all is unpacked.
#[derive(Clone, Debug)]
struct DirAttributes {
    mode: u32,
    mtime: Timestamp,
}

struct Unpacker<'a> {
    root: OwnedFd,
    /// Directories of the layers below, the topmost first.
    below: &'a [PathBuf],
    is_root: bool,
    /// By their real paths: directories that the tar lists or implies.
    directories: BTreeMap<Vec<u8>, DirAttributes>,
    /// Device nodes that an ordinary user could not make.
    missing_nodes: HashSet<Vec<u8>>,
    done: Unpacked,
}

/// Unpacks the tar `input` into the new directory `target`.
pub(super) fn unpack(input: &mut dyn Read, target: &Path, below: &[PathBuf]) -> Result<Unpacked> {
    let failed = |e: std::io::Error| Error::io("make", target.display(), e);
    std::fs::create_dir(target).map_err(failed)?;
    let root = sys::open_dir(target).map_err(|e| failed(e.into()))?;
    let mut unpacker = Unpacker {
        root,
        below,
        is_root: rustix::process::geteuid().is_root(),
        directories: BTreeMap::new(),
        missing_nodes: HashSet::new(),
        done: Unpacked::default(),
    };
    let mut reader = Reader::new(input);
    while let Some(entry) = reader.next_entry()? {
        unpacker.add(&entry, &mut reader)?;
    }
    unpacker.finish()?;
    Ok(unpacker.done)
}

/// Splits a path into its parent and its last component; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        _ if path.is_empty() => None,
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// The path relative to the root, without `.` and empty components.
fn relative(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Error::entry(path, "'..' in a path")),
            part if part.contains(&0) => return Err(Error::entry(path, "NUL in a path")),
            part if part.len() > marks::NAME_MAX => {
                return Err(Error::entry(path, "name too long"));
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b"/"[..]))
}

impl Unpacker<'_> {
    fn add(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        let path = relative(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            return self.add_root(entry);
        };
        if [&b".wh."[..], b".wh..", b".wh..."].contains(&name) {
            return Err(Error::entry(&path, "a whiteout of nothing"));
        }
        let (dir, parent) = self.directory(parent)?;
        let path = join(&parent, name);
        let at = Place { dir: dir.as_fd(), name, path: &path };
        let is_dir = self.clear(&at, entry.kind)?;
        match entry.kind {
            Kind::File => self.add_file(&at, entry, data)?,
            Kind::Directory if is_dir => {}
            Kind::Directory => {
                at.io("make directory", rustix::fs::mkdirat(at.dir, name, Mode::RWXU))?
            }
            Kind::Symlink => at.io("link", rustix::fs::symlinkat(&entry.link[..], at.dir, name))?,
            Kind::HardLink => return self.add_hard_link(&at, entry),
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                if !self.add_node(&at, entry)? {
                    return Ok(());
                }
            }
        }
        let object = at.io("open", sys::open_at(at.dir, name, sys::O_PATH))?;
        self.set_attributes(&at, object.as_fd(), entry)
    }

    fn add_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(Error::entry(&entry.path, "the root is not a directory"));
        }
        let object = rustix::io::dup(&self.root).map_err(|e| Error::io("open", "/", e.into()))?;
        let at = Place { dir: object.as_fd(), name: b"", path: b"" };
        self.set_attributes(&at, object.as_fd(), entry)
    }

    /// The directory under this path and its real path: symlinks are followed inside the
    /// layer, and what is missing is made.
    fn directory(&mut self, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
        match sys::open_beneath(self.root.as_fd(), path, sys::O_DIRECTORY) {
            Ok(fd) => return Ok((fd, path.to_vec())),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(Error::io("open", path.escape_ascii(), errno.into())),
        }
        if let Some(found) = self.follow(path)? {
            return Ok(found);
        }
        let (parent, name) = split(path).ok_or_else(|| Error::entry(path, "no root"))?;
        let (dir, parent) = self.directory(parent)?;
        let path = join(&parent, name);
        let at = Place { dir: dir.as_fd(), name, path: &path };
        self.clear(&at, Kind::Directory)?;
        match rustix::fs::mkdirat(at.dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            result => at.io("make directory", result)?,
        }
        let fd = at.io("open", sys::open_at(at.dir, name, sys::O_DIRECTORY))?;
        self.inherit(&path, fd.as_fd())?;
        Ok((fd, path))
    }

    /// Opens a directory as a chroot into the layer would; `None` if it is not there.
    fn follow(&self, path: &[u8]) -> Result<Option<(OwnedFd, Vec<u8>)>> {
        let failed = |errno: Errno| Error::io("open", path.escape_ascii(), errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                return Ok(None);
            }
            Err(errno) => return Err(failed(errno)),
        };
        let place = |fd: BorrowedFd<'_>| {
            rustix::fs::readlink(sys::proc_path(fd), Vec::new()).map(std::ffi::CString::into_bytes)
        };
        let root = place(self.root.as_fd()).map_err(failed)?;
        let real = place(fd.as_fd()).map_err(failed)?;
        let inside = real.strip_prefix(&root[..]).ok_or_else(|| failed(Errno::XDEV))?;
        let inside = inside.strip_prefix(b"/").unwrap_or(inside).to_vec();
        Ok(Some((fd, inside)))
    }

    /// Gives an implied directory the attributes of the merged one below, else 0755 and 1970.
    ///
    /// Upon another stack it would be given others: the layer is not self-contained.
    fn inherit(&mut self, path: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
        self.done.depends_on_parent = true;
        let mut attributes = DirAttributes { mode: 0o755, mtime: Timestamp::default() };
        if let Some(below) = self.find_below(path)?
            && let Ok(stat) = sys::fstat(&below)
            && stat.kind() == FileType::Directory
        {
            attributes = DirAttributes { mode: stat.permissions(), mtime: stat.mtime };
            self.chown(fd, stat.uid, stat.gid)?;
            private_xattr::copy_others(below.as_fd(), fd)
                .map_err(|e| Error::io("copy xattrs to", path.escape_ascii(), e.into()))?;
        }
        self.directories.insert(path.to_vec(), attributes);
        Ok(())
    }

    /// What the layers below show under a path, if anything.
    fn find_below(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        for layer in self.below {
            let root =
                sys::open_dir(layer).map_err(|e| Error::io("open", layer.display(), e.into()))?;
            match sys::open_beneath(root.as_fd(), path, sys::O_PATH) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT) if !hides(root.as_fd(), path) => {}
                Err(_) => return Ok(None), // whited out, or not a path through directories
            }
        }
        Ok(None)
    }

    /// Removes what an earlier entry left under the name; true if a directory may stay.
    fn clear(&mut self, at: &Place<'_>, kind: Kind) -> Result<bool> {
        let stat = match sys::statx_at(at.dir, at.name) {
            Err(Errno::NOENT) => return Ok(false),
            result => at.io("stat", result)?,
        };
        if stat.kind() != FileType::Directory {
            at.io("replace", rustix::fs::unlinkat(at.dir, at.name, AtFlags::empty()))?;
            return Ok(false);
        }
        if kind == Kind::Directory {
            return Ok(true);
        }
        let path = PathBuf::from(sys::proc_path(at.dir)).join(OsStr::from_bytes(at.name));
        std::fs::remove_dir_all(path).map_err(|e| Error::io("replace", at.shown(), e))?;
        let below = [at.path, b"/"].concat();
        self.directories.retain(|known, _| known != at.path && !known.starts_with(&below));
        Ok(false)
    }

    fn add_file(&mut self, at: &Place<'_>, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(at.dir, at.name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = std::fs::File::from(at.io("create", fd)?);
        let mut left = entry.size;
        let mut buffer = vec![0; 128 * 1024];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let len =
                data.read(&mut buffer[..want]).map_err(|e| Error::io("read", "the layer", e))?;
            std::io::Write::write_all(&mut file, &buffer[..len])
                .map_err(|e| Error::io("write", at.shown(), e))?;
            left -= len as u64;
        }
        self.done.size += entry.size;
        Ok(())
    }

    /// Links to an earlier entry of this layer, or to a copy of a file of the layers below.
    fn add_hard_link(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let target = relative(&entry.link)?;
        let missing = || Error::entry(&entry.path, "a hard link to nothing");
        let (parent, name) = split(&target).ok_or_else(missing)?;
        let (dir, parent) = self.directory(parent)?;
        let target = join(&parent, name);
        if self.missing_nodes.contains(&target) {
            self.missing_nodes.insert(at.path.to_vec());
            return Ok(());
        }
        let object = match sys::open_at(dir.as_fd(), name, sys::O_PATH) {
            Ok(object) => object,
            Err(Errno::NOENT) => {
                let below = self.find_below(&target)?.ok_or_else(missing)?;
                let to = Place { dir: dir.as_fd(), name, path: &target };
                self.copy_from_below(&below, &to)?
            }
            Err(errno) => return at.io("link", Err(errno)),
        };
        if at.io("stat", sys::fstat(&object))?.kind() == FileType::Directory {
            return Err(Error::entry(&entry.path, "a hard link to a directory"));
        }
        at.io("link", sys::link_fd(object.as_fd(), at.dir, at.name))
    }

    fn copy_from_below(&mut self, below: &OwnedFd, at: &Place<'_>) -> Result<OwnedFd> {
        let stat = at.io("stat", sys::fstat(below))?;
        match stat.kind() {
            FileType::RegularFile => {
                let from = at.io("open", sys::reopen(below.as_fd(), sys::O_READ))?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let to = rustix::fs::openat(at.dir, at.name, flags, Mode::RUSR | Mode::WUSR);
                let to = at.io("create", to)?;
                at.io("copy", sys::copy_data(from.as_fd(), to.as_fd(), stat.size))?;
                self.done.size += stat.size;
            }
            FileType::Symlink => {
                let target = at.io("read link", rustix::fs::readlinkat(below, c"", Vec::new()))?;
                at.io("link", rustix::fs::symlinkat(target, at.dir, at.name))?;
            }
            _ => {
                return Err(Error::entry(
                    at.path,
                    "a hard link to a special file of a layer below",
                ));
            }
        }
        self.done.depends_on_parent = true;
        let copy = at.io("open", sys::open_at(at.dir, at.name, sys::O_PATH))?;
        self.chown(copy.as_fd(), stat.uid, stat.gid)?;
        at.io("set attributes of", copy_attributes(&stat, below.as_fd(), copy.as_fd()))?;
        Ok(copy)
    }

    /// Makes a FIFO or device; false if an ordinary user cannot.
    fn add_node(&mut self, at: &Place<'_>, entry: &Entry) -> Result<bool> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        match rustix::fs::mknodat(at.dir, at.name, kind, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) if !self.is_root => {
                self.done.left_out.devices += 1;
                self.missing_nodes.insert(at.path.to_vec());
                Ok(false)
            }
            result => at.io("make node", result).map(|()| true),
        }
    }

    /// Owner, xattrs, mode, times; of a directory mode and time come last of all. (chown(2)
    /// drops capabilities, so it is first; an ordinary user cannot give a read-only file xattrs.)
    fn set_attributes(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        entry: &Entry,
    ) -> Result<()> {
        self.chown(object, entry.uid, entry.gid)?;
        for (name, value) in &entry.xattrs {
            self.set_xattr(at, object, entry.kind, name, value)?;
        }
        if entry.kind == Kind::Directory {
            let attributes = DirAttributes { mode: entry.mode, mtime: entry.mtime };
            self.directories.insert(at.path.to_vec(), attributes);
            return Ok(());
        }
        if entry.kind != Kind::Symlink {
            at.io("chmod", sys::chmod(object, entry.mode))?;
        }
        at.io("set times of", set_mtime(object, entry.mtime))
    }

    fn chown(&mut self, object: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
        let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match rustix::fs::chownat(object, c"", user, group, AtFlags::EMPTY_PATH) {
            Err(Errno::PERM | Errno::INVAL) if !self.is_root => {
                self.done.left_out.owners += 1;
                Ok(())
            }
            result => result.map_err(|e| Error::io("chown", "a file of the layer", e.into())),
        }
    }

    fn set_xattr(
        &mut self,
        at: &Place<'_>,
        object: BorrowedFd<'_>,
        kind: Kind,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if private_xattr::is_private(name) {
            let (path, name) = (at.shown(), name.escape_ascii());
            log::warn!("{path}: the layer's {name} is private to unions: left out");
            return Ok(());
        }
        // Linux has user.* on files and directories alone (xattr(7)).
        let impossible =
            name.starts_with(b"user.") && !matches!(kind, Kind::File | Kind::Directory);
        match sys::set_xattr(object, name, value, 0) {
            Err(Errno::OPNOTSUPP) => {}
            Err(Errno::PERM) if impossible || !self.is_root => {}
            result => return at.io("set xattr of", result),
        }
        self.done.left_out.xattrs += 1;
        Ok(())
    }

    /// Sets what directories are to have, the deepest first, and syncs the layer.
    fn finish(&mut self) -> Result<()> {
        if !self.directories.contains_key(&b""[..]) {
            let root = rustix::io::dup(&self.root).map_err(|e| Error::io("open", "/", e.into()))?;
            self.inherit(b"", root.as_fd())?;
        }
        for (path, attributes) in self.directories.iter().rev() {
            let fd = match sys::open_beneath(self.root.as_fd(), path, sys::O_PATH) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue, // replaced since
                result => result.map_err(|e| Error::io("open", path.escape_ascii(), e.into()))?,
            };
            let set = sys::chmod(fd.as_fd(), attributes.mode)
                .and_then(|()| set_mtime(fd.as_fd(), attributes.mtime));
            set.map_err(|e| Error::io("set attributes of", path.escape_ascii(), e.into()))?;
        }
        let root =
            sys::reopen(self.root.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC);
        root.and_then(rustix::fs::syncfs).map_err(|e| Error::io("sync", "the layer", e.into()))
    }
}

/// A name in an open directory.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    path: &'a [u8],
}

impl Place<'_> {
    fn shown(&self) -> String {
        self.path.escape_ascii().to_string()
    }

    fn io<T>(&self, op: &'static str, result: sys::Result<T>) -> Result<T> {
        result.map_err(|errno| Error::io(op, self.shown(), errno.into()))
    }
}

/// Whether a layer's marks hide a path in the layers below it.
fn hides(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    let mut parent = Vec::new();
    for name in path.split(|b| *b == b'/') {
        let Ok(dir) = sys::open_beneath(root, &parent, sys::O_DIRECTORY) else {
            return false;
        };
        let has = |mark: &[u8]| sys::statx_at(dir.as_fd(), mark).is_ok();
        if has(marks::OPAQUE) || has(&marks::whiteout_of(name).file_name) {
            return true;
        }
        if !parent.is_empty() {
            parent.push(b'/');
        }
        parent.extend_from_slice(name);
    }
    false
}

fn set_mtime(object: BorrowedFd<'_>, time: Timestamp) -> sys::Result<()> {
    let time = Some(TimeChange::At(time));
    sys::set_times(object, time, time)
}

fn copy_attributes(stat: &Stat, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> sys::Result<()> {
    if stat.kind() != FileType::Symlink {
        sys::chmod(to, stat.mode)?;
    }
    private_xattr::copy_others(from, to)?;
    set_mtime(to, stat.mtime)
}

impl LeftOut {
    /// Whether everything was kept.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.devices += other.devices;
        self.xattrs += other.xattrs;
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts =
            [(self.owners, "owners"), (self.devices, "device nodes"), (self.xattrs, "xattrs")];
        let parts: Vec<_> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{what} ({count})"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}
