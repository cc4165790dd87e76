//! Where an inode lies: its names, its file in upper, and what the lower layers have of it. There is
//! one for each file that the kernel knows, so it is small.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thin_vec::{ThinVec, thin_vec};
use triomphe::ThinArc;

use super::held::Held;
use super::inode::Inode;
use super::listing::Name;
use crate::layers::merged_index::DirId;
use crate::layers::path;
use crate::sys::Timestamp;

/// Distinguishes lower directories in the fd cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LowerDirId(u64);

/// A directory of a lower layer.
#[derive(Debug)]
pub(super) struct LowerDir {
    pub(super) id: LowerDirId,
    /// Which lower layer, 0 on top.
    pub(super) layer: u16,
    /// Path below the layer's root, empty for the root. Parts of one directory share it.
    pub(super) path: Arc<[u8]>,
    /// The merged directory that it is a part of, all of whose parts are known by the index.
    pub(super) merged: Option<DirId>,
}

impl LowerDir {
    pub(super) fn new(layer: u16, path: Arc<[u8]>, merged: Option<DirId>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = LowerDirId(NEXT.fetch_add(1, Ordering::Relaxed));
        Arc::new(Self { id, layer, path, merged })
    }

    /// The directory `name` in this one; `other` is its part in another layer.
    pub(super) fn child(
        &self,
        name: &[u8],
        merged: Option<DirId>,
        other: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let path = path::join(&self.path, name);
        let path = match other {
            Some(other) if *other.path == *path => Arc::clone(&other.path),
            _ => path.into(),
        };
        Self::new(self.layer, path, merged)
    }
}

/// A file that is not a directory, in a lower layer.
#[derive(Clone, Debug)]
pub(super) struct LowerFile {
    pub(super) dir: Arc<LowerDir>,
    pub(super) name: Name,
}

impl LowerFile {
    /// Path below the layer's root.
    pub(super) fn path(&self) -> Vec<u8> {
        path::join(&self.dir.path, &self.name)
    }

    /// The file at this path below the layer's root.
    pub(super) fn at(layer: u16, path: &[u8]) -> Self {
        let (dir, name) = path::split(path);
        Self { dir: LowerDir::new(layer, dir.into(), None), name: name.into() }
    }
}

/// A name of an inode in the merged tree.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) parent: Arc<Inode>,
    pub(super) name: Name,
}

impl Link {
    pub(super) fn is(&self, parent: &Inode, name: &[u8]) -> bool {
        self.parent.ino == parent.ino && &*self.name == name
    }
}

/// An inode's known names: mostly one.
#[derive(Debug)]
pub(super) enum Links {
    One(Link),
    Others(ThinVec<Link>),
}

impl Default for Links {
    fn default() -> Self {
        Self::Others(ThinVec::new())
    }
}

impl Deref for Links {
    type Target = [Link];

    fn deref(&self) -> &[Link] {
        match self {
            Self::One(link) => std::slice::from_ref(link),
            Self::Others(links) => links,
        }
    }
}

impl Links {
    pub(super) fn push(&mut self, link: Link) {
        *self = match std::mem::take(self) {
            Self::One(first) => Self::Others(thin_vec![first, link]),
            Self::Others(links) if links.is_empty() => Self::One(link),
            Self::Others(mut links) => {
                links.push(link);
                Self::Others(links)
            }
        };
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Link) -> bool) {
        match self {
            Self::One(link) if !keep(link) => *self = Self::default(),
            Self::One(_) => {}
            Self::Others(links) => links.retain(keep),
        }
    }
}

/// An inode's file in upper. Most inodes have none, and so one pointer for it.
#[derive(Clone, Debug)]
pub(super) struct UpperFile {
    /// Its inode number there, by which a path is verified.
    pub(super) ino: u64,
    /// What keeps it for as long as the inode is known, once it has no name any more.
    pub(super) held: Option<Held>,
}

impl UpperFile {
    /// One that has a name.
    pub(super) fn named(ino: u64) -> Arc<Self> {
        Arc::new(Self { ino, held: None })
    }
}

/// Where the data lies of a file that has only its attributes above (metacopy).
#[derive(Debug)]
pub(super) struct LowerData {
    pub(super) file: LowerFile,
    /// What the data takes, in 512-byte units.
    pub(super) blocks: u64,
    /// The file's size and time of change, by which it is known.
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
}

/// The directories that merge into one, topmost first.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(Option<ThinArc<(), Arc<LowerDir>>>);

impl Deref for Parts {
    type Target = [Arc<LowerDir>];

    fn deref(&self) -> &[Arc<LowerDir>] {
        self.0.as_ref().map_or(&[], |parts| &parts.slice)
    }
}

impl From<Vec<Arc<LowerDir>>> for Parts {
    fn from(parts: Vec<Arc<LowerDir>>) -> Self {
        Self((!parts.is_empty()).then(|| ThinArc::from_header_and_iter((), parts.into_iter())))
    }
}

/// What the lower layers have of an inode. A third variant would make it larger: there is one value
/// for another in what a file has.
#[derive(Debug)]
pub(super) enum Below {
    /// A file, also after its copy-up.
    File(LowerFile),
    /// The directories that merge into it; none of what was made in upper, a file too.
    Directories(Parts),
}

impl Default for Below {
    fn default() -> Self {
        Self::Directories(Parts::default())
    }
}

/// Where an inode lies.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Its known names; a directory has one, the root and deleted inodes have none.
    pub(super) links: Links,
    pub(super) upper: Option<Arc<UpperFile>>,
    pub(super) below: Below,
    /// For a metacopy: where its data lies.
    pub(super) data: Option<Arc<LowerData>>,
}

impl State {
    /// The lower layer's file, if it is or was one.
    pub(super) fn lower(&self) -> Option<LowerFile> {
        match &self.below {
            Below::File(file) => Some(file.clone()),
            Below::Directories(_) => None,
        }
    }

    /// The lower directories that merge into it, topmost first.
    pub(super) fn lower_dirs(&self) -> Parts {
        match &self.below {
            Below::Directories(parts) => parts.clone(),
            Below::File(_) => Parts::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::number::Ino;
    use crate::sys::FileType;

    #[test]
    fn names_come_and_go() {
        let parent = Arc::new(Inode::new(Ino::ROOT, FileType::Directory, State::default()));
        let link = |name: &str| Link { parent: Arc::clone(&parent), name: name.as_bytes().into() };
        let mut links = Links::default();
        assert!(links.is_empty());
        for names in ["a", "a b", "a b c"] {
            links.push(link(&names[names.len() - 1..]));
            let known: Vec<&[u8]> = links.iter().map(|link| &*link.name).collect();
            assert_eq!(known.join(&b' '), names.as_bytes());
        }
        links.retain(|link| *link.name != *b"b");
        assert_eq!(links.len(), 2);
        links.retain(|link| *link.name == *b"c");
        links.push(link("d"));
        assert_eq!(links.len(), 2);
        links.retain(|_| false);
        links.push(link("e"));
        links.retain(|link| *link.name != *b"e");
        assert!(links.is_empty());
    }

    /// A file in the lower layers has this much in memory, beside its name and its listing.
    #[test]
    fn an_inode_is_small() {
        assert_eq!(size_of::<Links>(), 16);
        assert_eq!(size_of::<Below>(), 16);
        assert!(size_of::<Inode>() <= 104, "{}", size_of::<Inode>());
    }
}
