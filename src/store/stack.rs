//! What the layers of a stack have at a path, and which of them show there.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::layer_files::LayerFiles;
use super::{Error, Result};
use crate::layers::{marks, path};
use crate::sys::{self, Errno, FileType, Ignoring, Stat};

/// What is listed is held in memory: each path costs as much as so many look-ups.
pub(crate) const LISTED: u64 = 2;
/// So many levels of directories cost as much as one look-up more.
const LEVELS: u64 = 32;

/// A layer of the stack.
pub(super) struct Layer {
    pub(super) root: OwnedFd,
    /// Directories that its tar implies.
    pub(super) implied: HashSet<Vec<u8>>,
    /// Hard links into layers below: name and target.
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The layers, the topmost first.
pub(super) struct Stack<'a> {
    pub(super) layers: Vec<Layer>,
    /// See [`Error::TooManyLookups`].
    lookups: &'a Cell<u64>,
}

impl<'a> Stack<'a> {
    /// The layers with these homes, the topmost first. `lookups` are those that are left.
    pub(super) fn open(homes: &[PathBuf], lookups: &'a Cell<u64>) -> Result<Self> {
        let mut stack = Self { layers: Vec::with_capacity(homes.len()), lookups };
        for home in homes {
            let files = LayerFiles::new(home);
            let path = files.diff();
            let root = sys::open_dir(&path);
            let root = root.map_err(failed("open", path.as_os_str().as_bytes()))?;
            let (implied, links) = (files.implied()?, files.links()?);
            stack.count(LISTED * (implied.len() + links.len()) as u64)?;
            stack.layers.push(Layer { root, implied: implied.into_iter().collect(), links });
        }
        Ok(stack)
    }

    fn count(&self, lookups: u64) -> Result<()> {
        let left = self.lookups.get().checked_sub(lookups);
        self.lookups.set(left.ok_or(Error::TooManyLookups)?);
        Ok(())
    }

    /// Opens what a layer has at a path, as `O_PATH`.
    pub(super) fn object(&self, layer: usize, path: &[u8]) -> Result<(OwnedFd, Stat)> {
        let object = sys::open_beneath(self.layers[layer].root.as_fd(), path, sys::O_PATH);
        let object = object.map_err(failed("open", path))?;
        let stat = sys::fstat(&object).map_err(failed("stat", path))?;
        Ok((object, stat))
    }

    /// Answers for paths one after the other.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        let root = |layer: &Layer| Part {
            kind: Some(FileType::Directory),
            hides_here: false,
            hides_within: has_mark(layer.root.as_fd(), marks::OPAQUE),
        };
        let parts = self.layers.iter().enumerate().map(|(n, layer)| (n, root(layer))).collect();
        Cursor { stack: self, trail: vec![Step { path_len: 0, parts }], path: Vec::new() }
    }
}

/// What one layer has to say of a path.
#[derive(Clone, Copy)]
struct Part {
    /// What it has there.
    kind: Option<FileType>,
    /// Nothing of the layers below it shows at the path.
    hides_here: bool,
    /// Nothing of the layers below it shows inside the path.
    hides_within: bool,
}

/// A directory on the way to the cursor's path.
struct Step {
    /// Its path is so much of the cursor's.
    path_len: usize,
    /// The layers that have something to say of it, the topmost first.
    parts: Vec<(usize, Part)>,
}

/// Walks the stack path by path and remembers the way. In sorted order, all paths together cost
/// what their directories cost once.
pub(super) struct Cursor<'a> {
    stack: &'a Stack<'a>,
    path: Vec<u8>,
    /// The way from the root to `path`, never empty.
    trail: Vec<Step>,
}

impl Cursor<'_> {
    /// The layers from `first` down that show at a path, the topmost first, and what they have:
    /// directories that merge, or one object.
    pub(super) fn find(&mut self, first: usize, path: &[u8]) -> Result<Vec<(usize, FileType)>> {
        self.go_to(path)?;
        let mut found = Vec::new();
        let parts = self.trail.last().into_iter().flat_map(|step| &step.parts);
        for (layer, part) in parts.filter(|(layer, _)| *layer >= first) {
            match part.kind {
                Some(FileType::Directory) => found.push((*layer, FileType::Directory)),
                Some(kind) if found.is_empty() => found.push((*layer, kind)),
                _ => {}
            }
            if part.hides_here {
                break;
            }
        }
        Ok(found)
    }

    /// Whether it is this layer's object that shows at a path.
    pub(super) fn shows(&mut self, layer: usize, path: &[u8]) -> Result<bool> {
        Ok(self.find(0, path)?.first().is_some_and(|(top, _)| *top == layer))
    }

    fn go_to(&mut self, path: &[u8]) -> Result<()> {
        let is_on_way = |known: &[u8]| {
            let rest = path.strip_prefix(known);
            rest.is_some_and(|rest| known.is_empty() || rest.is_empty() || rest[0] == b'/')
        };
        while self.trail.len() > 1 && !is_on_way(&self.path) {
            self.trail.pop();
            self.path.truncate(self.trail.last().map_or(0, |step| step.path_len));
        }
        let rest = path[self.path.len()..].to_vec();
        for name in rest.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            self.descend(name)?;
        }
        Ok(())
    }

    fn descend(&mut self, name: &[u8]) -> Result<()> {
        let mut parts = Vec::new();
        let whiteout = marks::whiteout_of(name).file_name;
        let above = self.trail.last().into_iter().flat_map(|step| &step.parts);
        for &(layer, parent) in above {
            let mut part = Part {
                kind: None,
                hides_here: parent.hides_within,
                hides_within: parent.hides_within,
            };
            if parent.kind == Some(FileType::Directory) {
                self.stack.count(1 + self.trail.len() as u64 / LEVELS)?;
                let root = self.stack.layers[layer].root.as_fd();
                let opened;
                let dir = match &self.path[..] {
                    b"" => root,
                    path => {
                        opened = sys::open_beneath(root, path, sys::O_DIRECTORY);
                        opened.as_ref().map_err(|e| failed("open", path)(*e))?.as_fd()
                    }
                };
                let stat = sys::statx_at(dir, name).ignoring(Errno::NOENT);
                let kind = stat.map_err(failed("stat", name))?.map(|stat| stat.kind());
                let is_dir = kind == Some(FileType::Directory);
                part.kind = kind;
                part.hides_here |= kind.is_some() && !is_dir || has_mark(dir, &whiteout);
                part.hides_within |= part.hides_here
                    || is_dir && {
                        let dir = sys::open_at(dir, name, sys::O_DIRECTORY);
                        has_mark(dir.map_err(failed("open", name))?.as_fd(), marks::OPAQUE)
                    };
            }
            if part.kind.is_some() || part.hides_within {
                parts.push((layer, part));
            }
        }
        path::push(&mut self.path, name);
        self.trail.push(Step { path_len: self.path.len(), parts });
        Ok(())
    }
}

fn has_mark(dir: BorrowedFd<'_>, mark: &[u8]) -> bool {
    sys::statx_at(dir, mark).is_ok()
}

/// Adds operation and path to an error.
pub(super) fn failed(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    let path = path.escape_ascii().to_string();
    move |errno| Error::Io { op, path, cause: errno.into() }
}
