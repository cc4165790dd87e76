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

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use super::layer_files::LayerFiles;
use super::{Error, Result, Store};
use crate::layers::{marks, private_xattr};
use crate::sys::{self, Errno, FileType, Stat, TimeChange};

impl Store {
    /// Builds, at `at`, what the layers with these homes take from one another, the topmost first;
    /// false if that is nothing.
    ///
    /// # Errors
    /// `BadLink` if a hard link leads to nothing that the layers have.
    pub(crate) fn build_inherited(&self, homes: &[PathBuf], at: &Path) -> Result<bool> {
        Stack::open(homes)?.build(at)
    }
}

/// A layer of the stack.
struct Layer {
    root: OwnedFd,
    implied: HashSet<Vec<u8>>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The layers, the topmost first.
struct Stack {
    layers: Vec<Layer>,
}

/// An object of a layer.
struct Found {
    layer: usize,
    object: OwnedFd,
    stat: Stat,
}

/// Hard links that show, and the layer and path of the file of each.
type Links = BTreeMap<Vec<u8>, (usize, Vec<u8>)>;

fn failed(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    let path = path.escape_ascii().to_string();
    move |errno| Error::Io { op, path, cause: errno.into() }
}

impl Stack {
    fn open(homes: &[PathBuf]) -> Result<Self> {
        let open = |home: &PathBuf| -> Result<Layer> {
            let files = LayerFiles::new(home);
            let path = files.diff();
            let root = sys::open_dir(&path);
            let root = root.map_err(failed("open", path.as_os_str().as_bytes()))?;
            let implied = files.implied()?.into_iter().collect();
            Ok(Layer { root, implied, links: files.links()? })
        };
        Ok(Self { layers: homes.iter().map(open).collect::<Result<_>>()? })
    }

    /// What the layers from `first` down have of a path: what merges into a directory, or the one
    /// object that shows.
    fn find(&self, first: usize, path: &[u8]) -> Result<Vec<Found>> {
        let mut found: Vec<Found> = Vec::new();
        for (n, layer) in self.layers.iter().enumerate().skip(first) {
            match sys::open_beneath(layer.root.as_fd(), path, sys::O_PATH) {
                Ok(object) => {
                    let stat = sys::fstat(&object).map_err(failed("stat", path))?;
                    let is_dir = stat.kind() == FileType::Directory;
                    if is_dir || found.is_empty() {
                        found.push(Found { layer: n, object, stat });
                    }
                    if !is_dir {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break, // not a directory on the way
                Err(errno) => return Err(failed("open", path)(errno)),
            }
            if hides(layer.root.as_fd(), path) {
                break;
            }
        }
        Ok(found)
    }

    /// Builds the layer at `home`; false if there is nothing to put into it.
    fn build(&self, home: &Path) -> Result<bool> {
        let directories = self.directories()?;
        let links = self.shown_links()?;
        if directories.is_empty() && links.is_empty() {
            return Ok(false);
        }
        let diff = home.join("diff");
        let make = fs::create_dir(home).and_then(|()| fs::create_dir(&diff));
        make.map_err(super::io_error("make", &diff))?;
        let root = sys::open_dir(&diff).map_err(failed("open", b"diff"))?;
        let mut built = Built { stack: self, root, directories: BTreeSet::new() };
        for path in &directories {
            built.directory(path)?;
        }
        built.links(&links)?;
        built.finish()?;
        Ok(true)
    }

    /// Directories that show what no tar lists, though one below does.
    fn directories(&self) -> Result<Vec<Vec<u8>>> {
        let mut wanted = Vec::new();
        for (n, layer) in self.layers.iter().enumerate() {
            for path in &layer.implied {
                let found = self.find(0, path)?;
                let shows = found.first().is_some_and(|top| top.layer == n);
                if shows && self.listed(&found, path).is_some_and(|donor| donor.layer != n) {
                    wanted.push(path.clone());
                }
            }
        }
        wanted.sort();
        Ok(wanted)
    }

    /// The topmost of the directories that its layer's tar lists.
    fn listed<'a>(&self, found: &'a [Found], path: &[u8]) -> Option<&'a Found> {
        found.iter().find(|at| {
            at.stat.kind() == FileType::Directory && !self.layers[at.layer].implied.contains(path)
        })
    }

    /// Names that show a file which a hard link from a layer above leads to, and the layer and
    /// path of that file: the links, and the other names that it has in its own layer.
    fn shown_links(&self) -> Result<Links> {
        let mut shown = BTreeMap::new();
        // By layer: files with several names, of which one stands for all.
        let mut several: BTreeMap<usize, HashMap<u64, Vec<u8>>> = BTreeMap::new();
        for (n, layer) in self.layers.iter().enumerate() {
            for (name, target) in &layer.links {
                let (at, mut path) = self.resolve(n, target)?;
                if !self.shows(n, name)? {
                    continue;
                }
                let stat = self.stat(at, &path)?;
                if stat.nlink > 1 {
                    path = several.entry(at).or_default().entry(stat.ino).or_insert(path).clone();
                }
                shown.insert(name.clone(), (at, path));
            }
        }
        for (layer, files) in &several {
            self.add_other_names(*layer, files, &mut Vec::new(), &mut shown)?;
        }
        Ok(shown)
    }

    /// Adds names in a layer's directory, and below it, that show one of these files (by inode).
    fn add_other_names(
        &self,
        layer: usize,
        files: &HashMap<u64, Vec<u8>>,
        at: &mut Vec<u8>,
        shown: &mut Links,
    ) -> Result<()> {
        let root = self.layers[layer].root.as_fd();
        let dir = sys::open_beneath(root, at, sys::O_DIRECTORY).map_err(failed("open", at))?;
        let entries = sys::read_dir(dir.as_fd()).map_err(failed("read", at))?;
        drop(dir);
        for entry in entries {
            let before = at.len();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(&entry.name);
            let stat = self.stat(layer, at)?;
            if stat.kind() == FileType::Directory {
                self.add_other_names(layer, files, at, shown)?;
            } else if let Some(path) = files.get(&stat.ino)
                && path != at
                && marks::meaning(&entry.name) == marks::Meaning::Name
                && self.shows(layer, at)?
            {
                shown.insert(at.clone(), (layer, path.clone()));
            }
            at.truncate(before);
        }
        Ok(())
    }

    fn stat(&self, layer: usize, path: &[u8]) -> Result<Stat> {
        let object = sys::open_beneath(self.layers[layer].root.as_fd(), path, sys::O_PATH);
        object.and_then(sys::fstat).map_err(failed("stat", path))
    }

    fn shows(&self, layer: usize, path: &[u8]) -> Result<bool> {
        Ok(self.find(0, path)?.first().is_some_and(|top| top.layer == layer))
    }

    /// Where the file lies that layers below `layer` show at `target`.
    fn resolve(&self, layer: usize, target: &[u8]) -> Result<(usize, Vec<u8>)> {
        let (mut above, mut target) = (layer, target.to_vec());
        loop {
            let found = self.find(above + 1, &target)?;
            let bad = |reason| Error::BadLink { target: target.escape_ascii().to_string(), reason };
            let file = found.first().ok_or_else(|| bad("nothing"))?;
            if file.stat.kind() == FileType::Directory {
                return Err(bad("a directory"));
            }
            match self.layers[file.layer].links.get(&target) {
                Some(next) => (above, target) = (file.layer, next.clone()),
                None => return Ok((file.layer, target)),
            }
        }
    }
}

/// The layer that is being made.
struct Built<'a> {
    stack: &'a Stack,
    root: OwnedFd,
    directories: BTreeSet<Vec<u8>>,
}

impl Built<'_> {
    /// Makes a directory, and those on the way; their attributes come last.
    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let mut at = sys::reopen(self.root.as_fd(), OFlags::PATH | OFlags::CLOEXEC)
            .map_err(failed("open", path))?;
        self.directories.insert(Vec::new());
        let mut done = Vec::new();
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(name);
            match rustix::fs::mkdirat(&at, name, Mode::RWXU) {
                Err(Errno::EXIST) => {}
                result => result.map_err(failed("make directory", &done))?,
            }
            at = sys::open_at(at.as_fd(), name, sys::O_DIRECTORY).map_err(failed("open", &done))?;
            self.directories.insert(done.clone());
        }
        Ok(at)
    }

    /// Copies each file once; all its names that show are links to the copy.
    fn links(&mut self, links: &Links) -> Result<()> {
        let mut copies: HashMap<&(usize, Vec<u8>), OwnedFd> = HashMap::new();
        for (name, file) in links {
            if !copies.contains_key(file) {
                let (layer, path) = file;
                let first = match self.stack.shows(*layer, path)? {
                    true => path,
                    false => name,
                };
                copies.insert(file, self.copy(*layer, path, first)?);
                if first == name {
                    continue;
                }
            }
            self.link(&copies[file], name)?;
        }
        Ok(())
    }

    fn split<'p>(&mut self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let slash = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = match slash {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        Ok((self.directory(parent)?, name))
    }

    fn link(&mut self, copy: &OwnedFd, path: &[u8]) -> Result<()> {
        let (dir, name) = self.split(path)?;
        sys::link_fd(copy.as_fd(), dir.as_fd(), name).map_err(failed("link", path))
    }

    fn copy(&mut self, layer: usize, from: &[u8], to: &[u8]) -> Result<OwnedFd> {
        let root = self.stack.layers[layer].root.as_fd();
        let object = sys::open_beneath(root, from, sys::O_PATH).map_err(failed("open", from))?;
        let stat = sys::fstat(&object).map_err(failed("stat", from))?;
        let (dir, name) = self.split(to)?;
        match stat.kind() {
            FileType::RegularFile => {
                let data = sys::reopen(object.as_fd(), sys::O_READ);
                let data = data.map_err(failed("open", from))?;
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(failed("create", to))?;
                sys::copy_data(data.as_fd(), copy.as_fd(), stat.size)
                    .map_err(failed("copy", to))?;
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
        give_attributes(object.as_fd(), &stat, copy.as_fd(), to)?;
        Ok(copy)
    }

    /// Gives directories their attributes, the deepest first, and syncs.
    fn finish(&self) -> Result<()> {
        for path in self.directories.iter().rev() {
            let found = self.stack.find(0, path)?;
            let donor = self.stack.listed(&found, path).or(found.first());
            let dir = sys::open_beneath(self.root.as_fd(), path, sys::O_DIRECTORY);
            let dir = dir.map_err(failed("open", path))?;
            if let Some(donor) = donor {
                give_attributes(donor.object.as_fd(), &donor.stat, dir.as_fd(), path)?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = sys::reopen(self.root.as_fd(), flags).map(File::from);
        root.and_then(|root| rustix::fs::syncfs(&root)).map_err(failed("sync", b"inherited"))
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

/// Whether a layer's marks hide a path in the layers below it. (An opaque mark hides what is in a
/// directory, not the directory itself.)
fn hides(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    let mut parent = Vec::new();
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let Ok(dir) = sys::open_beneath(root, &parent, sys::O_DIRECTORY) else { return false };
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
