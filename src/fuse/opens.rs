//! Opens that go past the daemon (FUSE_PASSTHROUGH, mount option `io=passthrough`): the kernel
//! reads and writes the real file itself, through its page cache, which all mounts share.
//!
//! All opens of an inode at a time are of one kind, for the kernel mixes no two, and no two files:
//!
//! - *passthrough*: a file that has its data in upper, which is one file for as long as it is known;
//!   and any file of a union without an upper.
//! - *cached*: a lower file that could be copied up while it is open. Who has it open then sees the
//!   new data, which a descriptor of the lower file could not show. So no lower file is ever opened
//!   for who writes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::device::Backing;
use crate::layers::number::Ino;

/// The inodes that are open.
#[derive(Debug, Default)]
pub(super) struct Opens(Mutex<HashMap<Ino, Open>>);

#[derive(Debug)]
struct Open {
    /// The real file, if the kernel uses it itself.
    backing: Option<Arc<Backing>>,
    count: u64,
    /// Bytes that the daemon has read for them.
    read: u64,
}

impl Opens {
    /// Counts one more open of an inode, the first of which is as `choose` says.
    pub(super) fn open(
        &self,
        ino: Ino,
        choose: impl FnOnce() -> Option<Backing>,
    ) -> Option<Arc<Backing>> {
        let mut opens = self.0.lock();
        let new = || Open { backing: choose().map(Arc::new), count: 0, read: 0 };
        let open = opens.entry(ino).or_insert_with(new);
        open.count += 1;
        open.backing.clone()
    }

    /// Counts bytes that the daemon reads.
    pub(super) fn count_read(&self, ino: Ino, bytes: usize) {
        if let Some(open) = self.0.lock().get_mut(&ino) {
            open.read = open.read.saturating_add(bytes as u64);
        }
    }

    /// Counts an open that has ended. If it was the last, returns how much the daemon has read for all.
    pub(super) fn release(&self, ino: Ino) -> Option<u64> {
        let mut opens = self.0.lock();
        let open = opens.get_mut(&ino)?;
        open.count -= 1;
        let ended = (open.count == 0).then(|| opens.remove(&ino)).flatten();
        drop(opens);
        let read = ended.as_ref().map(|open| open.read);
        drop(ended); // tells the kernel
        read
    }

    /// Whether the kernel writes the file itself at present.
    pub(super) fn is_passthrough(&self, ino: Ino) -> bool {
        self.0.lock().get(&ino).is_some_and(|open| open.backing.is_some())
    }
}
