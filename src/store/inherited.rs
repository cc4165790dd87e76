//! What the layers of a stack take from those below them.
//!
//! A layer is unpacked as its tar says, whatever lies below, and stored once for all stacks. Two
//! things of it depend on the stack:
//!
//! - a parent directory that the tar does not list must not mask the attributes of the one below
//!   (OCI image-spec, layer.md);
//! - a hard link to a file of a layer below is that file, under one more name.
//!
//! Both are made anew in one more, small layer, which lies on top of the stack: directories with
//! the attributes of the topmost layer that lists them, and hard-linked copies. Most stacks need
//! none.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::layer_files::LayerFiles;
use super::stack::{Cursor, Layer, Stack, failed};
use super::{Error, Result, Store};
use crate::layers::{marks, path, private_xattr};
use crate::sys::{self, AfterCopy, Errno, Stat, TimeChange};

impl Store {
    /// Builds what the layers with these homes take from one another, the topmost first, where `at`
    /// says, which is only asked if that is anything; where it is. The caller syncs it. `lookups` are
    /// those that are left.
    ///
    /// # Errors
    /// `BadLink` if a hard link leads to nothing that the layers have, `TooManyLookups`.
    pub(crate) fn build_inherited(
        &self,
        homes: &[PathBuf],
        at: &mut dyn FnMut() -> Result<PathBuf>,
        lookups: &Cell<u64>,
    ) -> Result<Option<PathBuf>> {
        Stack::open(homes, lookups)?.build_inherited(at)
    }
}

/// A file of a layer.
type File = (usize, Vec<u8>);

/// Hard links that show, and the file of each.
type Links = BTreeMap<Vec<u8>, File>;

impl Stack<'_> {
    /// Builds the layer, if there is anything to put into it.
    fn build_inherited(&self, at: &mut dyn FnMut() -> Result<PathBuf>) -> Result<Option<PathBuf>> {
        let directories = self.inheriting_directories()?;
        let links = self.shown_links()?;
        if directories.is_empty() && links.is_empty() {
            return Ok(None);
        }
        let home = at()?;
        let diff = home.join("diff");
        let make = fs::create_dir(&home).and_then(|()| fs::create_dir(&diff));
        make.map_err(super::io_error("make", &diff))?;
        let root = sys::open_dir(&diff).map_err(failed("open", b"diff"))?;
        let directories_made = BTreeSet::from([Vec::new()]);
        let mut built = Built { stack: self, root, directories: directories_made, size: 0 };
        for path in &directories {
            built.directory(path)?;
        }
        built.links(&links)?;
        built.finish()?;
        LayerFiles::new(&home).write_size(built.size)?;
        Ok(Some(home))
    }

    /// Directories that show what no tar lists, though one below does.
    fn inheriting_directories(&self) -> Result<Vec<Vec<u8>>> {
        let above_lowest = self.layers.iter().rev().skip(1);
        let paths: BTreeSet<_> = above_lowest.flat_map(|layer| &layer.implied).collect();
        let mut cursor = self.cursor();
        let mut inheriting = Vec::new();
        for path in paths {
            let found = cursor.find(0, path)?;
            let top = found.first().map(|(layer, _)| *layer);
            if self.listed(&found, path).is_some_and(|donor| Some(donor) != top) {
                inheriting.push(path.clone());
            }
        }
        Ok(inheriting)
    }

    /// The topmost layer that has a directory there because its tar lists it.
    fn listed(&self, found: &[(usize, FileType)], path: &[u8]) -> Option<usize> {
        let is_listed = |layer: usize| !self.layers[layer].implied.contains(path);
        let mut dirs = found.iter().filter(|(_, kind)| *kind == FileType::Directory);
        dirs.find(|(layer, _)| is_listed(*layer)).map(|(layer, _)| *layer)
    }

    /// Names that show a file which a hard link from a layer above leads to: the links, and the
    /// other names that it has in its own layer.
    fn shown_links(&self) -> Result<Links> {
        let files = self.linked_files()?;
        let mut cursor = self.cursor();
        let mut shown = BTreeMap::new();
        // By layer: files with several names, of which one stands for all.
        let mut several: BTreeMap<usize, HashMap<u64, Vec<u8>>> = BTreeMap::new();
        for ((name, layer), (at, mut path)) in files {
            if !cursor.shows(layer, name)? {
                continue;
            }
            let (_, stat) = self.object(at, &path)?;
            if stat.nlink > 1 {
                path = several.entry(at).or_default().entry(stat.ino).or_insert(path).clone();
            }
            shown.insert(name.to_vec(), (at, path));
        }
        for (layer, files) in &several {
            OtherNames {
                stack: self,
                layer: *layer,
                files,
                cursor: &mut cursor,
                shown: &mut shown,
            }
            .add(&mut Vec::new())?;
        }
        Ok(shown)
    }

    /// Every hard link (by name and layer), and the file that it leads to.
    fn linked_files(&self) -> Result<BTreeMap<(&[u8], usize), File>> {
        let mut links = Vec::new();
        for (layer, Layer { links: of_layer, .. }) in self.layers.iter().enumerate() {
            links.extend(of_layer.iter().map(|(name, target)| (&target[..], layer, &name[..])));
        }
        links.sort_unstable();
        let mut cursor = self.cursor();
        // Where the layers below have the target: there it may be a link again.
        let mut nearest = BTreeMap::new();
        for (target, layer, name) in links {
            let bad = |reason| Error::BadLink { target: target.escape_ascii().to_string(), reason };
            match cursor.find(layer + 1, target)?.first() {
                None => return Err(bad("nothing")),
                Some((_, FileType::Directory)) => return Err(bad("a directory")),
                Some((below, _)) => nearest.insert((layer, name), (*below, target)),
            };
        }
        let mut files: BTreeMap<(&[u8], usize), File> = BTreeMap::new();
        for ((layer, name), (below, target)) in nearest.into_iter().rev() {
            let file = files.get(&(target, below)).cloned();
            files.insert((name, layer), file.unwrap_or_else(|| (below, target.to_vec())));
        }
        Ok(files)
    }
}

/// Looks through a layer for further names of files.
struct OtherNames<'a, 'c> {
    stack: &'a Stack<'a>,
    layer: usize,
    /// The files, by inode.
    files: &'a HashMap<u64, Vec<u8>>,
    cursor: &'a mut Cursor<'c>,
    shown: &'a mut Links,
}

impl OtherNames<'_, '_> {
    /// Adds those in the directory `at`, and below it, that show.
    fn add(&mut self, at: &mut Vec<u8>) -> Result<()> {
        let (dir, _) = self.stack.object(self.layer, at)?;
        let mut below = Vec::new();
        let len = at.len();
        for entry in sys::read_dir(dir.as_fd()).map_err(failed("read", at))? {
            let stat = sys::statx_at(dir.as_fd(), &entry.name).map_err(failed("stat", at))?;
            if stat.kind() == FileType::Directory {
                below.push(entry.name);
            } else if let Some(path) = self.files.get(&stat.ino)
                && marks::meaning(&entry.name) == marks::Meaning::Name
            {
                path::push(at, &entry.name);
                if path != at && self.cursor.shows(self.layer, at)? {
                    self.shown.insert(at.clone(), (self.layer, path.clone()));
                }
                at.truncate(len);
            }
        }
        drop(dir); // there may be more levels than files may be open
        for name in below {
            path::push(at, &name);
            self.add(at)?;
            at.truncate(len);
        }
        Ok(())
    }
}

/// The layer that is being made.
struct Built<'a> {
    stack: &'a Stack<'a>,
    root: OwnedFd,
    directories: BTreeSet<Vec<u8>>,
    /// Bytes of its files.
    size: u64,
}

impl Built<'_> {
    /// Makes a directory, and those on the way; their attributes come last.
    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd> {
        match sys::open_beneath(self.root.as_fd(), path, sys::O_DIRECTORY) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(failed("open", path)),
        }
        let (above, name) = path::split(path);
        let above = self.directory(above)?;
        rustix::fs::mkdirat(&above, name, Mode::RWXU).map_err(failed("make directory", path))?;
        self.directories.insert(path.to_vec());
        sys::open_at(above.as_fd(), name, sys::O_DIRECTORY).map_err(failed("open", path))
    }

    /// Copies each file once; all its names that show are links to the copy.
    fn links(&mut self, links: &Links) -> Result<()> {
        let mut files: BTreeMap<&File, BTreeSet<&[u8]>> = BTreeMap::new();
        for (name, file) in links {
            files.entry(file).or_default().insert(name);
        }
        let mut cursor = self.stack.cursor();
        for ((layer, path), mut names) in files {
            if cursor.shows(*layer, path)? {
                names.insert(path);
            }
            let Some(first) = names.pop_first() else { continue };
            self.copy(*layer, path, first)?;
            for name in names {
                self.link(first, name)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, copy: &[u8], path: &[u8]) -> Result<()> {
        let copy = sys::open_beneath(self.root.as_fd(), copy, sys::O_PATH);
        let copy = copy.map_err(failed("open", path))?;
        let (above, name) = path::split(path);
        let dir = self.directory(above)?;
        sys::link_fd(copy.as_fd(), dir.as_fd(), name).map_err(failed("link", path))
    }

    fn copy(&mut self, layer: usize, from: &[u8], to: &[u8]) -> Result<()> {
        let (object, stat) = self.stack.object(layer, from)?;
        let (above, name) = path::split(to);
        let dir = self.directory(above)?;
        match stat.kind() {
            FileType::RegularFile => {
                let data = sys::reopen(object.as_fd(), sys::O_READ);
                let data = data.map_err(failed("open", from))?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(failed("create", to))?;
                sys::copy_data(data.as_fd(), copy.as_fd(), stat.size, AfterCopy::NoSync)
                    .map_err(failed("copy", to))?;
                self.size += stat.size;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&object, c"", Vec::new())
                    .map_err(failed("read link", from))?;
                rustix::fs::symlinkat(target, &dir, name).map_err(failed("link", to))?;
            }
            kind => rustix::fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, stat.rdev)
                .map_err(failed("make node", to))?,
        }
        let copy = sys::open_at(dir.as_fd(), name, sys::O_PATH).map_err(failed("open", to))?;
        give_attributes(object.as_fd(), &stat, copy.as_fd(), to)
    }

    /// Gives directories their attributes, the deepest first.
    fn finish(&self) -> Result<()> {
        let mut cursor = self.stack.cursor();
        for path in self.directories.iter().rev() {
            let found = cursor.find(0, path)?;
            let top = found.first().map(|(layer, _)| *layer);
            if let Some(donor) = self.stack.listed(&found, path).or(top) {
                let (donor, stat) = self.stack.object(donor, path)?;
                let dir = sys::open_beneath(self.root.as_fd(), path, sys::O_DIRECTORY);
                let dir = dir.map_err(failed("open", path))?;
                give_attributes(donor.as_fd(), &stat, dir.as_fd(), path)?;
            }
        }
        Ok(())
    }
}

/// Owner, mode, all xattrs (those that keep owners too), time. Who loaded the original may do all
/// of it again.
fn give_attributes(
    from: BorrowedFd<'_>,
    stat: &Stat,
    to: BorrowedFd<'_>,
    path: &[u8],
) -> Result<()> {
    let (user, group) = (Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)));
    rustix::fs::chownat(to, c"", user, group, AtFlags::EMPTY_PATH)
        .map_err(failed("chown", path))?;
    private_xattr::copy_with(from, to, |name| Some(name.to_vec().into()))
        .map_err(failed("copy xattrs to", path))?;
    if stat.kind() != FileType::Symlink {
        sys::chmod(to, stat.mode).map_err(failed("chmod", path))?;
    }
    let time = Some(TimeChange::At(stat.mtime));
    sys::set_times(to, time, time).map_err(failed("set times of", path))
}
