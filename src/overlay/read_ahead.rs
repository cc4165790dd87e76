//! Reading directories before they are asked for.
//!
//! Who walks a tree lists a directory, then one below it or beside it, and waits for the disk at each.
//! So when one is listed whose parent was listed before, the next ones are read meanwhile: their
//! merged names, which are kept, and the inodes of these, which the layer's filesystem keeps.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Overlay;
use super::error::{Context, Result};
use super::inode::Inode;
use super::listing::{Cookie, LayerIndex};
use super::lookup::part_of;
use super::state::Link;
use crate::layers::number::Ino;
use crate::sys::{self, FileType};

/// Directories below the one that is listed, and after it in its parent, that are read.
const DIRECTORIES: usize = 4;
/// Bytes that a directory has in all layers, more than which are not read for nothing, maybe: on ext4
/// some two thousand names. One that has none is empty, or its filesystem does not tell.
const TOO_LARGE: u64 = 64 << 10;
/// Layers of a directory, more than which would take descriptors from others.
const TOO_MANY_LAYERS: usize = 16;

impl Overlay {
    /// Whether to list `dir` now looks like walking the tree, so that [`read_ahead`](Self::read_ahead)
    /// pays: it was not listed yet, but its parent was. To be asked before it is listed.
    pub fn seems_walked(&self, dir: Ino) -> bool {
        // With a merged index there is nothing to wait for.
        self.merged.is_none()
            && self.inode(dir).is_ok_and(|dir| {
                let was_listed = |dir: &Inode| dir.accesses.was_listed();
                !was_listed(&dir) && dir.any_link().is_some_and(|link| was_listed(&link.parent))
            })
    }

    /// Reads the directories that a walk comes to next, which has listed `dir`, as long as it `goes_on`.
    pub fn read_ahead(&self, dir: Ino, goes_on: impl Fn() -> bool + Copy) {
        let Ok(dir) = self.inode(dir) else { return };
        self.read_ahead_in(&dir, 0, goes_on);
        if let Some(Link { parent, name }) = dir.any_link() {
            self.read_ahead_in(&parent, self.hashing.cookie(&name), goes_on);
        }
    }

    /// Reads the first directories of `parent` after `cookie`. Who asks for one that cannot be read is
    /// told why.
    fn read_ahead_in(
        &self,
        parent: &Arc<Inode>,
        cookie: Cookie,
        goes_on: impl Fn() -> bool + Copy,
    ) {
        let Ok(listing) = self.listing(parent) else { return };
        let names: Vec<_> = listing
            .after(cookie)
            .filter(|(_, entry)| entry.kind == FileType::Directory)
            .take(DIRECTORIES)
            .map(|(_, entry)| entry.name.clone())
            .collect();
        drop(listing);
        for name in names.iter().take_while(|_| goes_on()) {
            let Ok(dir) = self.known(parent, name) else { continue };
            if dir.dir.try_read().is_some_and(|names| names.is_none())
                && let Err(error) = self.read_whole(&dir, goes_on)
            {
                log::debug!("read {} ahead: {error}", name.escape_ascii());
            }
        }
    }

    fn read_whole(&self, dir: &Arc<Inode>, goes_on: impl Fn() -> bool) -> Result<()> {
        let (parts, in_upper) = {
            let state = dir.state.read();
            (state.lower_dirs(), state.upper.is_some())
        };
        if parts.len() > TOO_MANY_LAYERS {
            return Ok(());
        }
        let mut fds = parts.iter().map(|part| self.lower_dir(part)).collect::<Result<Vec<_>>>()?;
        if in_upper {
            fds.push(self.upper_dir(dir)?);
        }
        let mut size: u64 = 0;
        for fd in fds {
            let in_layer = sys::fstat(fd.as_fd()).context("stat", b"")?.size;
            size = size.saturating_add(if in_layer == 0 { TOO_LARGE } else { in_layer });
        }
        if size > TOO_LARGE {
            return Ok(());
        }
        let entries: Vec<_> = self.listing(dir)?.after(0).map(|(_, entry)| entry.clone()).collect();
        for entry in entries.iter().take_while(|_| goes_on()) {
            let looked_at = match entry.sources.top() {
                LayerIndex::Lower(layer) => self.stat_lower(part_of(&parts, layer)?, entry),
                LayerIndex::Upper => {
                    sys::statx_at(self.upper_dir(dir)?.as_fd(), &entry.name).context("stat", b"")
                }
            };
            let _ = looked_at; // one that is gone by now is not the last
        }
        Ok(())
    }
}
