//! The merged index of the lowers: using it, and making it.
//!
//! A directory that the index knows has parts that say so (`LowerDir::merged`): all of them, as the
//! stack has them. Where upper cuts the lower layers off, or points elsewhere, there are no such
//! parts, and the layers are asked as if there were no index.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::Overlay;
use super::error::{Context, Result};
use super::inode::Inode;
use super::listing::{self, LayerIndex};
use super::state::{Below, LowerDir, Parts};
use crate::layers::lower::Lower;
use crate::layers::merged_index::{Builder, Entry, LayerRoot, MergedIndex, NewEntry};
use crate::sys::{self, Errno, FileType, Stat};

/// Inodes that are held at a time while an index is made.
const MAX_HELD: usize = 100_000;
/// Bytes of a directory, in all layers, that may hold more names than that.
const MAX_SIZE: u64 = 4 << 20;

/// An index, and the devices that its layers lie on.
#[derive(Debug)]
pub(super) struct Merged {
    index: MergedIndex,
    devices: Vec<u64>,
}

impl Merged {
    /// Opens the index at `path`, if it is that of these layers, with owners out of their override
    /// xattrs if `overrides`.
    pub(super) fn open(
        path: Option<&Path>,
        lowers: &[Lower],
        overrides: bool,
    ) -> std::result::Result<Option<Self>, crate::layers::Error> {
        let Some(path) = path else { return Ok(None) };
        let error = |errno| crate::layers::Error::io("read", path)(errno);
        if lowers.iter().any(Lower::is_rich) {
            return Ok(None);
        }
        let index = MergedIndex::open(path, &roots_of(lowers))
            .map_err(|cause| error(Errno::from_io_error(&cause).unwrap_or(Errno::IO)))?;
        let devices = lowers.iter().map(|lower| lower.stat().dev).collect();
        let index = index.filter(|index| index.has_overrides() == overrides);
        Ok(index.map(|index| Self { index, devices }))
    }
}

/// By what an index knows the layers that it was made of.
fn roots_of(lowers: &[Lower]) -> Vec<LayerRoot> {
    lowers.iter().map(|lower| LayerRoot::of(lower.stat())).collect()
}

impl Overlay {
    /// Whether the lowers' merged index is used.
    pub fn is_indexed_stack(&self) -> bool {
        self.merged.is_some()
    }

    /// What the index has of a directory with these parts.
    pub(super) fn merged_entries(
        &self,
        parts: &[Arc<LowerDir>],
    ) -> Option<impl Iterator<Item = Entry<'_>>> {
        let dir = parts.first()?.merged?;
        Some(self.merged.as_ref()?.index.entries(dir))
    }

    /// What the index has of a name in a directory with these parts.
    pub(super) fn merged_entry(&self, parts: &[Arc<LowerDir>], name: &[u8]) -> Option<Entry<'_>> {
        let dir = parts.first()?.merged?;
        self.merged.as_ref()?.index.find(dir, name)
    }

    /// The attributes of an entry's file.
    pub(super) fn stat_of(&self, entry: &Entry<'_>) -> Stat {
        let devices = self.merged.as_ref().map(|merged| &merged.devices[..]).unwrap_or_default();
        entry.stat(devices.get(usize::from(entry.top())).copied().unwrap_or_default())
    }

    /// The attributes of an inode that is in the lower layers alone, if the index has them.
    pub(super) fn stat_by_index(&self, inode: &Inode) -> Option<Stat> {
        let merged = self.merged.as_ref()?;
        let state = inode.state.read();
        if state.upper.is_some() {
            return None;
        }
        let entry = match &state.below {
            Below::File(file) => merged.index.find(file.dir.merged?, &file.name)?,
            Below::Directories(parts) => merged.index.own_entry(parts.first()?.merged?)?,
        };
        Some(self.stat_of(&entry))
    }

    /// Whether the attributes of an inode are those of the index, with what its override xattr says.
    pub(super) fn is_held_by_index(&self, inode: &Inode) -> bool {
        if self.merged.is_none() {
            return false;
        }
        let state = inode.state.read();
        let is_known = match &state.below {
            Below::File(file) => file.dir.merged.is_some(),
            Below::Directories(parts) => parts.first().is_some_and(|part| part.merged.is_some()),
        };
        is_known && state.upper.is_none()
    }

    /// Writes the index of the lowers; false if they can have none: what is mounted in one, is
    /// larger than the index's numbers, or has more in a directory, or directories at one depth,
    /// than memory is to be spent on. `scratch` is a directory for unnamed files.
    pub fn build_index(&self, out: &mut impl Write, scratch: &Path) -> Result<bool> {
        let roots = roots_of(&self.lowers);
        if self.upper.is_some() || roots.is_empty() || self.lowers.iter().any(Lower::is_rich) {
            return Ok(false);
        }
        let root = self.shown(&self.root, *self.lowers[0].stat())?;
        let devices: Vec<u64> = self.lowers.iter().map(|lower| lower.stat().dev).collect();
        let written = |e: io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        let has_overrides = self.owners.overrides.is_some();
        let builder = Builder::new(roots, &root, has_overrides, scratch).map_err(written);
        let mut builder = builder.context("write an index in", scratch.as_os_str().as_bytes())?;
        let mut next = vec![(Arc::clone(&self.root), 0)];
        while !next.is_empty() {
            let mut below = Vec::new();
            for (dir, own) in std::mem::take(&mut next) {
                let Some(names) = self.looked_at(&dir, &devices)? else { return Ok(false) };
                let first = builder.count();
                let added = builder.add_directory(own, names.iter().map(Found::entry));
                added.map_err(written).context("write", b"the index")?;
                for (n, found) in names.into_iter().enumerate() {
                    match found.stat.kind() == FileType::Directory {
                        true if below.len() >= MAX_HELD => return Ok(false),
                        true => below.push((found.inode, first + n as u32)),
                        false => self.release(found.inode),
                    }
                }
                if dir.ino != self.root.ino {
                    self.release(dir);
                }
            }
            next = below;
        }
        builder.finish(out).map_err(written).context("write", b"the index")
    }

    /// All that is in a directory, sorted by name; `None` if something is not the layer's own.
    fn looked_at(&self, dir: &Arc<Inode>, devices: &[u64]) -> Result<Option<Vec<Found>>> {
        let parts = match &dir.state.read().below {
            Below::Directories(parts) => parts.clone(),
            Below::File(_) => Parts::default(),
        };
        let mut size = 0;
        for part in parts.iter() {
            size += sys::fstat(&*self.lower_dir(part)?).context("stat", &part.path)?.size;
        }
        if size > MAX_SIZE {
            return Ok(None);
        }
        let names: Vec<listing::Entry> =
            self.listing(dir)?.after(0).map(|(_, entry)| entry.clone()).collect();
        if names.len() > MAX_HELD {
            return Ok(None);
        }
        let mut found = Vec::with_capacity(names.len());
        for entry in names {
            let (inode, stat) = self.instantiate(dir, &entry)?;
            let layers: Vec<u16> = entry.sources.iter().filter_map(lower).collect();
            let top = layers.first().map(|top| devices[usize::from(*top)]);
            match stat.filter(|stat| Some(stat.dev) == top) {
                Some(stat) => {
                    let stat = self.shown(&inode, stat)?;
                    found.push(Found { entry, inode, layers, stat });
                }
                None => return Ok(None),
            }
        }
        found.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        Ok(Some(found))
    }

    /// Takes a reference back that [`instantiate`](Self::instantiate) counted.
    fn release(&self, inode: Arc<Inode>) {
        let ino = inode.ino;
        drop(inode);
        self.forget(ino, 1);
    }
}

/// A name that is to be in the index.
struct Found {
    entry: listing::Entry,
    inode: Arc<Inode>,
    layers: Vec<u16>,
    stat: Stat,
}

impl Found {
    fn entry(&self) -> NewEntry<'_> {
        NewEntry { name: &self.entry.name, layers: &self.layers, stat: &self.stat }
    }
}

fn lower(layer: LayerIndex) -> Option<u16> {
    match layer {
        LayerIndex::Upper => None,
        LayerIndex::Lower(layer) => Some(layer),
    }
}
