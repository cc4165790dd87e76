//! The union: a stack of lower layers and one upper layer as one tree.
//!
//! Written in the words of the kernel's overlayfs, without FUSE types, so that every
//! operation runs in a test without /dev/fuse.
//!
//! ```text
//!            Ino ──> InodeTable ──> Inode ─┬─ state    where it lies: links, upper, lowers
//!                                          ├─ dir      a directory's merged names (Listing)
//!                                          ├─ copy_up  one copy-up at a time
//!                                          └─ attrs    attributes in upper, against being replaced
//! ```
//!
//! # Invariants
//!
//! - A lower layer is never written. Lower files are opened read-only, in `real.rs` alone.
//! - An inode is one file: names of one lower file share it, through copy-up too.
//! - A plain upper is a valid changeset at any instant; each change is published by one call.
//! - The union is the only writer of upper while it is mounted.
//!
//! # Lock order
//!
//! 1. `Inode::copy_up` of a file, then of its parent, up to the root
//! 2. `Inode::dir` of one directory; of two in the order of their numbers
//! 3. `Inode::attrs` of a file, then of its parent
//! 4. `Inode::state`; never two at once
//! 5. leaves: the inode table's shards, the fd cache, the copies made ahead, the index
//!
//! No lock is tree-wide. Only `copy_up` is held while data is copied, so only those who
//! need that very copy wait. A lock of step 4 or 5 is never held across a system call,
//! but for the index's append to its log.

mod attr;
mod copy_ahead;
mod copy_up;
mod create;
mod error;
mod fd_cache;
mod file;
mod flags;
mod held;
mod indexing;
mod inode;
mod listing;
mod lookup;
mod merge;
mod metacopy;
mod mount_options;
mod ownership;
mod read_ahead;
mod readdir;
mod real;
mod remove;
mod rename;
mod state;
mod suidgid;
mod watcher;
mod write_behind;
mod xattr;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

pub use attr::{Attr, Owner, SetAttr, StatFs};
pub use copy_ahead::ToCopy;
pub use copy_up::Wait;
pub use create::{Node, NodeKind};
pub use error::{Error, Result};
pub use file::{Keeps, Seek, WriteFlags};
pub use listing::{Cookie, LayerIndex};
pub use mount_options::{Atime, MountOptions, UpperForm, UpperOptions};
pub use ownership::{Overrides, Ownership};
pub use readdir::DirEntry;
pub use rename::RenameMode;
pub use suidgid::SuidGid;
pub use watcher::Stale;
pub use write_behind::Grown;

use crate::layers::lower::Lower;
use crate::layers::marks;
use crate::layers::number::{Ino, Numbering};
use crate::layers::override_stat::OverrideXattr;
use crate::layers::redirect::Namespace;
use crate::layers::upper::Upper;
use crate::layers::volatile::{self, Volatile};
use copy_ahead::CopiesAhead;
use error::Context;
use fd_cache::FdCache;
use held::HeldFds;
use indexing::Merged;
use inode::{Inode, InodeTable};
use listing::Hashing;
use ownership::Owners;
use watcher::Watcher;

/// A mounted union.
///
/// Fields are dropped in this order: the lock on upper goes last.
#[derive(Debug)]
pub struct Overlay {
    root: Arc<Inode>,
    inodes: InodeTable,
    fds: FdCache,
    held: HeldFds,
    copies_ahead: CopiesAhead,
    numbering: Numbering,
    hashing: Hashing,
    atime: Atime,
    owners: Owners,
    acl: bool,
    lower_devices: bool,
    static_nlink: bool,
    watcher: Watcher,
    keeps: OnceLock<Keeps>,
    /// The xattrs in which rich layers hold their pointers.
    namespace: Namespace,
    /// Whether operations may leave pointers in upper.
    makes_pointers: bool,
    lowers: Vec<Lower>,
    /// What the lowers show together, if that is known beforehand.
    merged: Option<Merged>,
    /// Present if syncs are skipped.
    volatile: Option<Volatile>,
    upper: Option<Upper>,
}

impl Overlay {
    /// Opens the layers and takes the upper layer's lock.
    pub fn open(options: &MountOptions) -> std::result::Result<Self, crate::layers::Error> {
        let namespace = Namespace::of_this_process();
        let lowers = Lower::open_all(&options.lowers, namespace)?;
        if let Some(places) = &options.upper {
            refuse_overlap(&lowers, places)?;
        }
        let upper = match &options.upper {
            Some(places) => {
                Some(Upper::open(&places.upper, &places.work, namespace, &options.holder)?)
            }
            None => None,
        };
        let makes_pointers = match &upper {
            Some(upper) if options.form == UpperForm::Rich => upper.make_rich(namespace),
            _ => false,
        };
        let volatile = match &options.upper {
            Some(places) => prepare_syncs(places, options)?,
            None => None,
        };
        let owners = decide_owners(options, &lowers, upper.as_ref())?;
        let numbering = Numbering::default();
        let overrides = owners.overrides.is_some();
        let merged = Merged::open(options.merged_index.as_deref(), &lowers, overrides)?;
        let root = Self::root_inode(&lowers, upper.as_ref(), &numbering, merged.as_ref())?;
        let root = Arc::new(root);
        Ok(Self {
            lowers,
            merged,
            upper,
            volatile,
            atime: options.atime,
            acl: options.acl && owners.allow_acls(),
            owners,
            lower_devices: options.lower_devices,
            static_nlink: options.static_nlink,
            watcher: Watcher::default(),
            keeps: OnceLock::new(),
            namespace,
            makes_pointers,
            numbering,
            hashing: Hashing::default(),
            inodes: InodeTable::new(&root),
            fds: FdCache::new(options.max_open_files),
            held: HeldFds::new(options.max_open_files),
            copies_ahead: CopiesAhead::new(options.max_open_files),
            root,
        })
    }

    /// Whether the union has an upper layer.
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Whether files have access control lists (acl(5)).
    pub fn has_acls(&self) -> bool {
        self.acl
    }

    /// How many inodes are known at the moment, the root included.
    pub fn known_inodes(&self) -> usize {
        self.inodes.len()
    }

    /// The inode of a number that the kernel knows.
    fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.inodes.get(ino).ok_or(Error::Stale)
    }

    /// Whether syncs are skipped: to be asked only by who then skips one.
    fn skips_sync(&self) -> Result<bool> {
        let Some(volatile) = &self.volatile else {
            return Ok(false);
        };
        volatile.before_skipping().context("sync the marker of a volatile mount", b"")?;
        Ok(true)
    }

    fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::ReadOnly)
    }
}

/// Finds out whether the layers keep owners in xattrs: who asks for it has upper do so.
fn decide_owners(
    options: &MountOptions,
    lowers: &[Lower],
    upper: Option<&Upper>,
) -> std::result::Result<Owners, crate::layers::Error> {
    let error = crate::layers::Error::io("read xattrs of", std::path::Path::new("the layers"));
    let of_upper = upper.map(|upper| OverrideXattr::of_layer(upper.root()));
    let of_lowers = lowers.iter().map(|lower| Ok(lower.override_xattr()));
    Owners::new(&options.ownership, of_upper.into_iter().chain(of_lowers)).map_err(error)
}

/// Looks after the marker of volatile mounts, of the last one and of this one.
fn prepare_syncs(
    places: &UpperOptions,
    options: &MountOptions,
) -> std::result::Result<Option<Volatile>, crate::layers::Error> {
    let error = |op| crate::layers::Error::io(op, &places.work);
    let is_lost = volatile::was_cut_short(&places.work).map_err(error("read workdir"))?;
    if is_lost && !options.accept_loss {
        let upper = places.upper.display().to_string();
        return Err(crate::layers::Error::CutShort { upper });
    }
    let work = crate::sys::open_dir(&places.work).map_err(error("open workdir"))?;
    if options.volatile {
        return Volatile::mark(work).map(Some).map_err(error("write workdir"));
    }
    volatile::settle(&work).map_err(error("sync upper"))?;
    Ok(None)
}

/// Refuses an upper or workdir that is, holds, or lies in a lower layer.
fn refuse_overlap(
    lowers: &[Lower],
    places: &UpperOptions,
) -> std::result::Result<(), crate::layers::Error> {
    for place in [&places.upper, &places.work] {
        let Ok(real) = place.canonicalize() else { continue }; // opening it tells why
        for lower in lowers {
            let Ok(real_lower) = lower.real_path() else { continue };
            if real.starts_with(&real_lower) || real_lower.starts_with(&real) {
                return Err(crate::layers::Error::Overlap {
                    place: place.display().to_string(),
                    lower: lower.path().display().to_string(),
                });
            }
        }
    }
    Ok(())
}

/// The name by which the layers hold `name`; listings have that one.
fn held_name(name: &[u8]) -> Result<Cow<'_, [u8]>> {
    let held = marks::escape(name);
    if held.len() > marks::NAME_MAX {
        return Err(Error::NameTooLong);
    }
    Ok(held)
}
