//! Opens that go past the daemon (FUSE_PASSTHROUGH, mount option `io=passthrough`): the kernel
//! reads and writes the real file itself, through its page cache, which all mounts share.
//!
//! All opens of a node at a time are of one kind, for the kernel mixes no two, and no two files:
//!
//! - *passthrough*: a file that has its data in upper, which is one file for as long as it is known;
//!   any file of a union without an upper; and a large lower file that is only read.
//! - *cached*: any other lower file, which could be copied up while it is open. Who has it open then
//!   sees the new data. So no lower file is ever opened for who writes.
//!
//! A file that is written while the kernel reads it from its layer gets a second node, of the same
//! `st_ino`, whose opens are never of a lower file. Who comes to the first is told ESTALE, at which the
//! kernel looks the path up again, and finds the second. Who had the file open before goes on reading
//! what it was, as on the kernel's overlayfs. Of a file with two nodes the kernel is to believe nothing
//! it was told, for it knows of a change by one node only.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::device::Backing;
use crate::layers::number::Ino;

/// The number by which the kernel asks for an inode: that of the inode, unless it is a second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node(pub(super) u64);

impl Node {
    fn first(ino: Ino) -> Self {
        Self(ino.0)
    }
}

/// A real file that the kernel is to use itself.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) backing: Backing,
    /// It is a lower file that could be copied up.
    pub(super) may_change: bool,
}

/// What is open, and the nodes of what is known.
#[derive(Debug, Default)]
pub(super) struct Opens {
    table: Mutex<Table>,
    has_seconds: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    opens: HashMap<Node, Open>,
    /// They stay: one for each lower file at most.
    seconds: HashMap<Ino, Node>,
    inos: HashMap<Node, Ino>,
}

#[derive(Debug, Default)]
struct Open {
    passed: Option<Arc<Passed>>,
    count: u64,
}

/// An inode that may be written as long as this lives.
#[derive(Debug)]
pub(super) struct Written<'a> {
    opens: &'a Opens,
    node: Node,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.opens.release(self.node);
    }
}

impl Opens {
    /// The inode behind a node.
    pub(super) fn ino(&self, node: Node) -> Ino {
        let known = self.has_seconds().then(|| self.table.lock().inos.get(&node).copied());
        known.flatten().unwrap_or(Ino(node.0))
    }

    /// By which node the kernel should ask for an inode from now on, and whether it has two.
    pub(super) fn node(&self, ino: Ino) -> (Node, bool) {
        let second = self.has_seconds().then(|| self.table.lock().seconds.get(&ino).copied());
        second.flatten().map_or((Node::first(ino), false), |second| (second, true))
    }

    fn has_seconds(&self) -> bool {
        self.has_seconds.load(Ordering::Acquire)
    }

    /// Counts one more open, for who only reads, or not; the first is as `choose` says, which is told
    /// whether it may be a lower file that could be copied up.
    pub(super) fn open(
        &self,
        node: Node,
        only_reads: bool,
        choose: impl FnOnce(bool) -> Option<Passed>,
    ) -> Result<Option<Arc<Passed>>, Errno> {
        let mut table = self.table.lock();
        if !only_reads {
            self.begin_writing(&mut table, node)?;
        } else if table.has_second(node) {
            return Err(Errno::STALE);
        }
        let may_change = only_reads && !table.inos.contains_key(&node);
        let new = || Open { passed: choose(may_change).map(Arc::new), count: 0 };
        let open = table.opens.entry(node).or_insert_with(new);
        open.count += 1;
        Ok(open.passed.clone())
    }

    /// Counts an open by who writes without one.
    pub(super) fn write(&self, node: Node) -> Result<Written<'_>, Errno> {
        let mut table = self.table.lock();
        self.begin_writing(&mut table, node)?;
        table.opens.entry(node).or_default().count += 1;
        Ok(Written { opens: self, node })
    }

    /// Fails with ESTALE if it has to be by the second node.
    fn begin_writing(&self, table: &mut Table, node: Node) -> Result<(), Errno> {
        if !table.has_second(node) {
            let passed = table.opens.get(&node).and_then(|open| open.passed.as_ref());
            if !passed.is_some_and(|passed| passed.may_change) {
                return Ok(());
            }
            log::warn!(
                "inode {} is written: who has it open for reading goes on reading the lower file",
                node.0
            );
            table.add_second(Ino(node.0));
            self.has_seconds.store(true, Ordering::Release);
        }
        Err(Errno::STALE)
    }

    /// Counts an open that has ended.
    pub(super) fn release(&self, node: Node) {
        let mut table = self.table.lock();
        let Some(open) = table.opens.get_mut(&node) else { return };
        open.count -= 1;
        let ended = (open.count == 0).then(|| table.opens.remove(&node));
        drop(table);
        drop(ended); // tells the kernel
    }

    /// Whether the kernel writes the file itself at present.
    pub(super) fn is_passthrough(&self, node: Node) -> bool {
        self.table.lock().opens.get(&node).is_some_and(|open| open.passed.is_some())
    }
}

impl Table {
    /// Whether it is the first of two.
    fn has_second(&self, node: Node) -> bool {
        self.seconds.contains_key(&Ino(node.0))
    }

    fn add_second(&mut self, ino: Ino) {
        let second = Node(Ino::NOBODYS + self.seconds.len() as u64);
        self.seconds.insert(ino, second);
        self.inos.insert(second, ino);
    }
}
