//! Unpacking a layer's tar into a directory, by the rules of the OCI image-spec (layer.md).
//!
//! ```text
//! HOME/diff/               the layer; whiteouts stay files named `.wh.`
//! HOME/tar-split.json.gz   what else the tar held, to write it again
//! HOME/implied             parent directories that the tar does not list
//! HOME/links               hard links to files of layers below
//! HOME/replaced/           files that later entries of the tar took the place of
//! HOME/left-out            what the filesystem could not be given
//! ```
//!
//! The tar is untrusted. Every path resolves with openat2(2) inside the layer's directory,
//! as if that were the root of a chroot; `..` is refused. Attributes of directories are set last,
//! so that their content does not disturb them.
//!
//! What the layer is does not depend on the layers below it. What it takes from them (attributes
//! of directories that it implies, the content of hard links) is listed, and given to each stack
//! by itself (see [`crate::store`]). A hard link into a layer below is an empty file here.

mod attributes;
mod directories;
mod left_out;
mod replaced;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags};

pub(crate) use attributes::may_be_given;
use attributes::{DirAttributes, Later};
use directories::{Directories, Directory};
pub use left_out::LeftOut;
pub(crate) use left_out::{Lacking, What};
pub(crate) use replaced::Replaced;

use super::limits::{Limits, Name};
use super::tar::{Entry, Kind, Reader};
use super::tar_split::{self, Crc, FilePiece};
use super::{Error, Result};
use crate::layers::{marks, path};
use crate::store::layer_files::LayerFiles;
use crate::store::stack::LISTED;
use crate::sys::{self, Errno, FileType};

/// Bytes of a file that are read and written at a time.
const BUFFER_SIZE: usize = 128 * 1024;

struct Unpacker<'a> {
    limits: Limits,
    directories: Directories,
    later: Later,
    /// Symlinks that are to be regular files that stand for them, by their real paths.
    symlinks: BTreeMap<Vec<u8>, Entry>,
    /// Directories that shut out who loads, with their modes.
    shut: BTreeMap<Vec<u8>, u32>,
    /// Directories that the tar did not list yet.
    implied: BTreeSet<Vec<u8>>,
    /// Files that stand for hard links into layers below, and their targets.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    replaced: replaced::Keeper<'a>,
    left_out: left_out::Keeper<'a>,
    /// Whether who loads may set all attributes there are.
    may_set_all: bool,
    /// Whether something is kept in an override xattr.
    has_overrides: bool,
    buffer: Vec<u8>,
    /// Bytes of its files.
    size: u64,
}

/// Unpacks the tar `input` into the directory `home`; what cannot be kept.
pub(super) fn unpack(input: &mut dyn Read, home: &Path, limits: Limits) -> Result<LeftOut> {
    let files = LayerFiles::new(home);
    let failed = |e: std::io::Error| Error::io("make", home.display(), e);
    std::fs::create_dir(files.diff()).map_err(failed)?;
    let root = sys::open_dir(&files.diff()).map_err(|e| failed(e.into()))?;
    let record = File::create_new(files.tar_split()).map_err(failed)?;
    let mut record = tar_split::Writer::new(BufWriter::new(record));
    let mut unpacker = Unpacker {
        limits,
        directories: Directories::new(root),
        later: Later::new(home).map_err(failed)?,
        symlinks: BTreeMap::new(),
        shut: BTreeMap::new(),
        implied: BTreeSet::from([Vec::new()]),
        links: BTreeMap::new(),
        replaced: replaced::Keeper::new(home),
        left_out: left_out::Keeper::new(home),
        may_set_all: rustix::process::geteuid().is_root() && sys::is_in_first_user_namespace(),
        has_overrides: false,
        buffer: vec![0; BUFFER_SIZE],
        size: 0,
    };
    let noted = |e| Error::io("write", files.tar_split().display(), e);
    let mut reader = Reader::recording(input, limits);
    while let Some(entry) = reader.next_entry()? {
        record.segment(&reader.take_recorded()).map_err(noted)?;
        let file = unpacker.add(&entry, &mut reader)?;
        record.file(file).map_err(noted)?;
    }
    record.segment(&reader.take_recorded()).map_err(noted)?;
    loop {
        let len = reader.read_tail(&mut unpacker.buffer)?;
        if len == 0 {
            break;
        }
        record.segment(&unpacker.buffer[..len]).map_err(noted)?;
    }
    record.finish().and_then(|mut out| out.flush()).map_err(noted)?;
    unpacker.finish()?;
    let implied = unpacker.implied.iter().map(Vec::as_slice);
    files.write_implied(implied)?;
    files.write_links(&unpacker.links)?;
    files.write_size(unpacker.size)?;
    unpacker.left_out.finish().map_err(|e| Error::io("write", home.display(), e))
}

/// The path relative to the root, without `.` and empty components.
fn relative(path: &[u8], limits: Limits) -> Result<Vec<u8>> {
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
    limits.check(Name::Depth, parts.len() as u64)?;
    Ok(parts.join(&b"/"[..]))
}

impl Unpacker<'_> {
    /// Adds an entry; where its data went.
    fn add(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<FilePiece> {
        let path = relative(&entry.path, self.limits)?;
        if path.is_empty() {
            self.add_root(entry)?;
            return Ok(FilePiece { path: b"./".to_vec(), ..FilePiece::default() });
        }
        let (parent, name) = path::split(&path);
        if [&b".wh."[..], b".wh..", b".wh..."].contains(&name) {
            return Err(Error::entry(&path, "a whiteout of nothing"));
        }
        let parent = self.directory(parent)?;
        let path = path::join(&parent.path, name);
        let at = Place { dir: parent.fd.as_fd(), name, path: &path };
        let crc = match entry.kind {
            Kind::File => self.add_file(&at, entry, data)?,
            Kind::Directory => self.add_directory(&at, entry).map(|()| None)?,
            Kind::Symlink => self.add_symlink(&at, entry).map(|()| None)?,
            Kind::HardLink => self.add_hard_link(&at, entry).map(|()| None)?,
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.add_node(&at, entry).map(|()| None)?
            }
        };
        let extents = entry.sparse.as_ref().map(|sparse| sparse.extents.clone());
        let path = match entry.kind {
            Kind::Directory => [&path, &b"/"[..]].concat(), // as tars have it
            _ => path,
        };
        Ok(FilePiece { path, size: entry.size, crc, extents })
    }

    fn add_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(Error::entry(&entry.path, "the root is not a directory"));
        }
        self.implied.remove(&b""[..]);
        self.set_later(b"", DirAttributes::of(entry), false)
    }

    /// The directory under this path: symlinks are followed inside the layer, and what is missing
    /// is made.
    fn directory(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        if let Some(found) = self.directories.find(path)? {
            return Ok(found);
        }
        let (parent, name) = path::split(path);
        let parent = self.directory(parent)?;
        let real = path::join(&parent.path, name);
        let at = Place { dir: parent.fd.as_fd(), name, path: &real };
        self.make_directory(&at)?;
        self.check_listed()?;
        self.implied.insert(real.clone());
        self.set_later(&real, DirAttributes::default(), false)?;
        let fd = at.io("open", sys::open_at(at.dir, name, sys::O_DIRECTORY))?;
        Ok(self.directories.keep(path, Directory { fd, path: real }))
    }

    /// Each of these will be looked up, and is held in memory: short paths may imply as much as many
    /// entries list.
    fn check_listed(&self) -> Result<()> {
        let listed = self.implied.len() + self.links.len() + self.symlinks.len();
        self.limits.check(Name::Lookups, LISTED * listed as u64)
    }

    fn add_directory(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let is_new = self.make_directory(at)?;
        let was_implied = self.implied.remove(at.path);
        self.set_later(at.path, DirAttributes::of(entry), !is_new && !was_implied)
    }

    fn set_later(&mut self, path: &[u8], attributes: DirAttributes, again: bool) -> Result<()> {
        let noted = self.later.note(path, attributes, again);
        noted.map_err(|e| Error::io("note the attributes of", path.escape_ascii(), e))
    }

    /// Makes a directory, unless it is there; whether it was made.
    fn make_directory(&mut self, at: &Place<'_>) -> Result<bool> {
        // Through symlinks, short paths may lead deep.
        let depth = at.path.split(|b| *b == b'/').count() as u64;
        self.limits.check(Name::Depth, depth)?;
        let make = |at: &Place<'_>| rustix::fs::mkdirat(at.dir, at.name, Mode::RWXU).map(|()| true);
        let made = self.make(at, make, true)?;
        at.io("make directory", made)
    }

    /// Makes an object; one of that name that is there already goes, but for a directory that
    /// `keeps_directory`.
    fn make<T: Default>(
        &mut self,
        at: &Place<'_>,
        mut make: impl FnMut(&Place<'_>) -> sys::Result<T>,
        keeps_directory: bool,
    ) -> Result<sys::Result<T>> {
        match make(at) {
            Err(Errno::EXIST) => {}
            result => return Ok(result),
        }
        if !self.clear(at, keeps_directory)? {
            return Ok(Ok(T::default()));
        }
        Ok(make(at))
    }

    /// Removes what an earlier entry left under the name; false if it is a directory that stays.
    fn clear(&mut self, at: &Place<'_>, keeps_directory: bool) -> Result<bool> {
        let stat = at.io("stat", sys::statx_at(at.dir, at.name))?;
        if stat.kind() != FileType::Directory {
            self.take(at, stat.kind() == FileType::RegularFile && stat.size > 0)?;
            if stat.kind() == FileType::Symlink {
                self.directories.forget_all();
            }
            return Ok(true);
        }
        if keeps_directory {
            return Ok(false);
        }
        self.clear_tree(at)?;
        at.io("replace", rustix::fs::unlinkat(at.dir, at.name, AtFlags::REMOVEDIR))?;
        self.directories.forget_all();
        // What is in it went before it, one by one.
        self.implied.remove(at.path);
        Ok(true)
    }

    /// Empties a directory. How deep it is, is limited.
    fn clear_tree(&mut self, at: &Place<'_>) -> Result<()> {
        let dir = at.io("open", sys::open_at(at.dir, at.name, sys::O_DIRECTORY))?;
        for entry in at.io("read", sys::read_dir(dir.as_fd()))? {
            let path = path::join(at.path, &entry.name);
            let inside = Place { dir: dir.as_fd(), name: &entry.name, path: &path };
            self.clear(&inside, false)?;
        }
        Ok(())
    }

    fn take(&mut self, at: &Place<'_>, has_data: bool) -> Result<()> {
        self.links.remove(at.path);
        self.symlinks.remove(at.path);
        let taken = self.replaced.take(at.dir, at.name, at.path, has_data);
        taken.map_err(|e| Error::io("replace", at.shown(), e))
    }

    /// A new file for writing.
    fn create(&mut self, at: &Place<'_>) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |at: &Place<'_>| {
            rustix::fs::openat(at.dir, at.name, flags, Mode::RUSR | Mode::WUSR).map(Some)
        };
        let file = at.io("create", self.make(at, open, false)?)?;
        file.map(File::from).ok_or_else(|| Error::entry(at.path, "a directory is in its place"))
    }

    fn add_file(
        &mut self,
        at: &Place<'_>,
        entry: &Entry,
        data: &mut dyn Read,
    ) -> Result<Option<[u8; 8]>> {
        let file = self.create(at)?;
        let mut crc = Crc::default();
        let whole = [(0, entry.size)];
        let extents = entry.sparse.as_ref().map_or(&whole[..], |sparse| &sparse.extents);
        for (offset, len) in extents {
            self.copy(at, &file, *offset, *len, data, &mut crc)?;
        }
        let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.size);
        if entry.sparse.is_some() {
            at.io("extend", rustix::fs::ftruncate(&file, size))?;
        }
        self.size += size;
        self.set_attributes(at, file.as_fd(), entry)?;
        Ok((entry.size > 0).then(|| crc.finish()))
    }

    fn copy(
        &mut self,
        at: &Place<'_>,
        file: &File,
        mut offset: u64,
        mut left: u64,
        data: &mut dyn Read,
        crc: &mut Crc,
    ) -> Result<()> {
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_SIZE);
            let len = data
                .read(&mut self.buffer[..want])
                .map_err(|e| Error::io("read", "the layer", e))?;
            crc.update(&self.buffer[..len]);
            file.write_all_at(&self.buffer[..len], offset)
                .map_err(|e| Error::io("write", at.shown(), e))?;
            offset += len as u64;
            left -= len as u64;
        }
        Ok(())
    }

    /// Links to an earlier entry of this layer; what the layer does not have is one of a layer
    /// below.
    fn add_hard_link(&mut self, at: &Place<'_>, entry: &Entry) -> Result<()> {
        let target = relative(&entry.link, self.limits)?;
        if target.is_empty() {
            return Err(Error::entry(&entry.path, "a hard link to the root"));
        }
        let (parent, name) = path::split(&target);
        let Some(parent) = self.directories.find(parent)? else {
            return self.link_below(at, &target);
        };
        let target = path::join(&parent.path, name);
        if target == at.path {
            return Err(Error::entry(&entry.path, "a hard link to itself"));
        }
        let link = |at: &Place<'_>| {
            rustix::fs::linkat(parent.fd.as_fd(), name, at.dir, at.name, AtFlags::empty())
        };
        match self.make(at, link, false)? {
            Err(Errno::NOENT) => return self.link_below(at, &target),
            Err(Errno::PERM) if is_directory(parent.fd.as_fd(), name) => {
                return Err(Error::entry(&entry.path, "a hard link to a directory"));
            }
            result => at.io("link", result)?,
        }
        if let Some(symlink) = self.symlinks.get(&target).cloned() {
            self.symlinks.insert(at.path.to_vec(), symlink);
        }
        if let Some(below) = self.links.get(&target).cloned() {
            self.note_link(at, below);
        }
        Ok(())
    }

    fn link_below(&mut self, at: &Place<'_>, target: &[u8]) -> Result<()> {
        self.create(at)?;
        self.note_link(at, target.to_vec());
        self.check_listed()
    }

    /// A mark is one whatever it contains: it is no name of the file below.
    fn note_link(&mut self, at: &Place<'_>, below: Vec<u8>) {
        if marks::meaning(at.name) == marks::Meaning::Name {
            self.links.insert(at.path.to_vec(), below);
        }
    }
}

fn is_directory(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    sys::statx_at(dir, name).is_ok_and(|stat| stat.kind() == FileType::Directory)
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
