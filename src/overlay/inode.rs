//! Inodes of the union and the table of those that the kernel knows.
//!
//! An inode is kept while the kernel holds a reference (lookups) or a known child needs it
//! to find its way (a child's link holds its parent). So it outlives its last name.

use std::borrow::Borrow;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::listing::{Listing, Name};
use super::state::{Link, LowerData, State, UpperFile};
use super::watcher::Accesses;
use crate::layers::number::Ino;
use crate::sys::FileType;

/// One file of the union.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) ino: Ino,
    /// As it is shown; a regular file may stand for it (see `ownership.rs`).
    pub(super) kind: FileType,
    /// References of the kernel; changed with the table's shard locked.
    lookups: AtomicU64,
    pub(super) copy_up: Mutex<()>,
    pub(super) state: RwLock<State>,
    /// Held shared while attributes in upper are read or changed; alone while they are read to be
    /// changed, or a whole copy takes the place of a metacopy that has them.
    pub(super) attrs: RwLock<()>,
    /// Whether upper's file was synced with all there is to it.
    pub(super) synced: AtomicBool,
    /// Whether all known names of a changed file are upper's.
    pub(super) linked: AtomicBool,
    /// A directory's (see `watcher.rs`).
    pub(super) accesses: Accesses,
    /// A directory's names, once they were needed. Held while a name of it is changed.
    pub(super) dir: RwLock<Option<Box<Listing>>>,
}

impl Inode {
    pub(super) fn new(ino: Ino, kind: FileType, state: State) -> Self {
        Self {
            ino,
            kind,
            lookups: AtomicU64::new(0),
            copy_up: Mutex::new(()),
            state: RwLock::new(state),
            attrs: RwLock::new(()),
            synced: AtomicBool::new(false),
            linked: AtomicBool::new(false),
            accesses: Accesses::default(),
            dir: RwLock::new(None),
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Whether it has a file in upper.
    pub(super) fn in_upper(&self) -> bool {
        self.state.read().upper.is_some()
    }

    /// Whether its file in upper has the data too.
    pub(super) fn has_data_in_upper(&self) -> bool {
        let state = self.state.read();
        state.upper.is_some() && state.data.is_none()
    }

    /// A name by which it can be reached now.
    pub(super) fn any_link(&self) -> Option<Link> {
        self.state.read().links.first().cloned()
    }

    /// Notes that it has another file in upper, and maybe no data below any more.
    pub(super) fn set_upper(&self, upper: Arc<UpperFile>, data: Option<Arc<LowerData>>) {
        let mut state = self.state.write();
        state.upper = Some(upper);
        state.data = data;
        self.synced.store(false, Ordering::Relaxed);
    }

    /// Notes that upper's file of this number was synced with all there is to it.
    pub(super) fn set_synced(&self, file: u64) {
        let state = self.state.read();
        if state.upper.as_ref().is_some_and(|upper| upper.ino == file) {
            self.synced.store(true, Ordering::Relaxed);
        }
    }

    /// Undoes what was done to hold it, for it did not lose its name after all.
    pub(super) fn let_go(&self) {
        let mut state = self.state.write();
        if !state.links.is_empty()
            && let Some(upper) = &mut state.upper
        {
            *upper = UpperFile::named(upper.ino);
        }
    }

    /// Notes that it is known as `name` in `parent`.
    pub(super) fn add_link(&self, parent: &Arc<Inode>, name: &Name) {
        let known = self.state.read().links.iter().any(|link| link.is(parent, name));
        if known {
            return;
        }
        let mut state = self.state.write();
        if !state.links.iter().any(|link| link.is(parent, name)) {
            state.links.push(Link { parent: Arc::clone(parent), name: name.clone() });
            self.linked.store(false, Ordering::Release);
        }
    }

    /// As [`add_link`](Self::add_link), for a name that was not there.
    pub(super) fn add_new_link(&self, parent: &Arc<Self>, name: &[u8]) {
        let link = Link { parent: Arc::clone(parent), name: name.into() };
        self.state.write().links.push(link);
    }

    /// Notes that `name` in `parent` is not its name any more.
    pub(super) fn remove_link(&self, parent: &Inode, name: &[u8]) {
        self.state.write().links.retain(|link| !link.is(parent, name));
    }
}

const SHARDS: usize = 64;
/// How many inodes that could not be dropped yet are looked at again per forget.
const LIMBO_BATCH: usize = 16;
/// How many dropped inodes are a megabyte or more, and how often that is looked at.
const WORTH_TRIMMING: usize = 4096;
const LOOK_EVERY: usize = 1024;

type Shard = Mutex<HashSet<ByNumber>>;

/// An inode that its number stands for.
#[derive(Debug)]
struct ByNumber(Arc<Inode>);

impl Borrow<Ino> for ByNumber {
    fn borrow(&self) -> &Ino {
        &self.0.ino
    }
}

impl Hash for ByNumber {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.ino.hash(state);
    }
}

impl PartialEq for ByNumber {
    fn eq(&self, other: &Self) -> bool {
        self.0.ino == other.0.ino
    }
}

impl Eq for ByNumber {}

/// The inodes that the kernel, or a known inode below them, refers to.
#[derive(Debug)]
pub(super) struct InodeTable {
    shards: Box<[Shard]>,
    /// Unreferenced by the kernel, but in use when last looked at.
    limbo: Mutex<Limbo>,
    /// Inodes dropped since memory was last given back.
    dropped: AtomicUsize,
}

/// A queue in which each number stands once.
#[derive(Debug, Default)]
struct Limbo {
    queue: VecDeque<Ino>,
    members: HashSet<Ino>,
}

impl Limbo {
    fn push(&mut self, ino: Ino) {
        if self.members.insert(ino) {
            self.queue.push_back(ino);
        }
    }

    fn take(&mut self, count: usize) -> Vec<Ino> {
        let count = count.min(self.queue.len());
        let taken: Vec<Ino> = self.queue.drain(..count).collect();
        for ino in &taken {
            self.members.remove(ino);
        }
        taken
    }
}

impl InodeTable {
    pub(super) fn new(root: &Arc<Inode>) -> Self {
        let table = Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            limbo: Mutex::default(),
            dropped: AtomicUsize::new(0),
        };
        root.lookups.store(1, Ordering::Relaxed); // the kernel never forgets the root
        table.shard(root.ino).lock().insert(ByNumber(Arc::clone(root)));
        table
    }

    fn shard(&self, ino: Ino) -> &Shard {
        &self.shards[(ino.0 ^ ino.0 >> 17) as usize % SHARDS]
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.shard(ino).lock().get(&ino).map(|known| Arc::clone(&known.0))
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The inode of this number, made if it is not known, with one more lookup counted.
    pub(super) fn intern(&self, ino: Ino, make: impl FnOnce() -> Inode) -> Arc<Inode> {
        let mut shard = self.shard(ino).lock();
        let inode = match shard.get(&ino) {
            Some(known) => Arc::clone(&known.0),
            None => {
                let made = Arc::new(make());
                shard.insert(ByNumber(Arc::clone(&made)));
                made
            }
        };
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        inode
    }

    /// Counts one more lookup of an inode that the table gave out.
    pub(super) fn count_lookup(&self, inode: &Arc<Inode>) {
        let mut shard = self.shard(inode.ino).lock();
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        if !shard.contains(&inode.ino) {
            shard.insert(ByNumber(Arc::clone(inode)));
        }
    }

    /// Takes back `count` lookups; returns the inodes that are not known any more.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> Vec<Arc<Inode>> {
        let mut dropped = Vec::new();
        {
            let shard = self.shard(ino).lock();
            let Some(ByNumber(inode)) = shard.get(&ino) else {
                return dropped;
            };
            let before = inode.lookups.load(Ordering::Relaxed);
            inode.lookups.store(before.saturating_sub(count), Ordering::Relaxed);
            if before > count {
                return dropped;
            }
        }
        self.drop_unused(ino, &mut dropped);
        let again = self.limbo.lock().take(LIMBO_BATCH);
        for ino in again {
            self.drop_unused(ino, &mut dropped);
        }
        dropped
    }

    /// Whether so many were dropped, of `more` just now, that their memory is worth giving back.
    pub(super) fn has_shrunk_by(&self, more: usize) -> bool {
        let dropped = self.dropped.fetch_add(more, Ordering::Relaxed) + more;
        let is_due = (dropped - more) / LOOK_EVERY != dropped / LOOK_EVERY;
        let has_shrunk = is_due && dropped >= WORTH_TRIMMING && dropped > self.len();
        if has_shrunk {
            self.dropped.store(0, Ordering::Relaxed);
            self.shards.iter().for_each(|shard| shard.lock().shrink_to_fit());
        }
        has_shrunk
    }

    /// Drops the inode if nothing refers to it, and then its parents likewise.
    fn drop_unused(&self, ino: Ino, dropped: &mut Vec<Arc<Inode>>) {
        let mut next = vec![ino];
        while let Some(ino) = next.pop() {
            let mut shard = self.shard(ino).lock();
            let Some(ByNumber(inode)) = shard.get(&ino) else {
                continue;
            };
            if inode.lookups.load(Ordering::Relaxed) > 0 {
                continue;
            }
            if Arc::strong_count(inode) > 1 {
                drop(shard);
                self.look_again(ino);
                continue;
            }
            let inode = shard.take(&ino);
            drop(shard);
            if let Some(ByNumber(inode)) = inode {
                // It must not hold its parent any more, who is looked at next.
                let links = std::mem::take(&mut inode.state.write().links);
                next.extend(links.iter().map(|link| link.parent.ino));
                dropped.push(inode);
            }
        }
    }

    /// Notes an inode that is in use: by a child, whose drop leads here again, or by an
    /// operation, which does not.
    fn look_again(&self, ino: Ino) {
        self.limbo.lock().push(ino);
    }
}

/// A chain of parents as long as a path must not be dropped by recursion.
impl Drop for InodeTable {
    fn drop(&mut self) {
        let known: Vec<Arc<Inode>> = self
            .shards
            .iter()
            .flat_map(|shard| std::mem::take(&mut *shard.lock()))
            .map(|known| known.0)
            .collect();
        for inode in &known {
            let links = std::mem::take(&mut inode.state.write().links);
            drop(links); // the parents are all in `known` still
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Links;
    use super::*;

    fn file(ino: u64, parent: &Arc<Inode>) -> Inode {
        let link = Link { parent: Arc::clone(parent), name: Name::from(&b"x"[..]) };
        let state = State { links: Links::One(link), ..State::default() };
        Inode::new(Ino(ino), FileType::Directory, state)
    }

    #[test]
    fn a_parent_stays_as_long_as_its_child() {
        let root = Arc::new(Inode::new(Ino::ROOT, FileType::Directory, State::default()));
        let table = InodeTable::new(&root);
        let parent = table.intern(Ino(10), || file(10, &root));
        drop(table.intern(Ino(11), || file(11, &parent)));
        drop(parent);
        assert!(table.forget(Ino(10), 1).is_empty());
        assert!(table.get(Ino(10)).is_some());
        let gone: Vec<Ino> = table.forget(Ino(11), 1).iter().map(|inode| inode.ino).collect();
        assert_eq!(gone, [Ino(11), Ino(10)]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_deep_tree_is_dropped_without_recursion() {
        let root = Arc::new(Inode::new(Ino::ROOT, FileType::Directory, State::default()));
        let table = InodeTable::new(&root);
        let mut parent = root;
        for n in 10..200_010 {
            parent = table.intern(Ino(n), || file(n, &parent));
        }
        drop(parent);
        drop(table);
    }

    #[test]
    fn lookups_are_counted() {
        let root = Arc::new(Inode::new(Ino::ROOT, FileType::Directory, State::default()));
        let table = InodeTable::new(&root);
        drop(table.intern(Ino(10), || file(10, &root)));
        drop(table.intern(Ino(10), || unreachable!()));
        assert!(table.forget(Ino(10), 1).is_empty());
        assert_eq!(table.forget(Ino(10), 1).len(), 1);
    }
}
