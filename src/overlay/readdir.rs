//! Reading a merged directory.

use super::Overlay;
use super::attr::Attr;
use super::error::{Error, Result};
use super::listing::Cookie;
use crate::layers::marks;
use crate::layers::number::Ino;

/// A name as a directory stream gives it.
#[derive(Debug)]
pub struct DirEntry {
    /// The name; `.` and `..` come first.
    pub name: Box<[u8]>,
    /// Its attributes.
    pub attr: Attr,
    /// Where the stream goes on after it.
    pub cookie: Cookie,
    /// Whether a reference was counted that must be taken back with
    /// [`Overlay::forget`] if the entry is not passed on.
    pub counted: bool,
}

/// Cookies of `.` and `..`.
const DOT: Cookie = 1;
const DOT_DOT: Cookie = 2;
/// Names taken under the directory's lock at a time.
const BATCH: usize = 128;

impl Overlay {
    /// Gives the names after `cookie` (0 for the start) to `take` until it returns false.
    ///
    /// An entry that `take` returned false for was not taken: its reference is taken back.
    /// A name that vanishes meanwhile is left out.
    pub fn readdir(
        &self,
        dir: Ino,
        mut cookie: Cookie,
        mut take: impl FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let inode = self.inode(dir)?;
        if cookie < DOT {
            let attr = self.getattr(dir)?;
            if !take(&DirEntry { name: b"."[..].into(), attr, cookie: DOT, counted: false }) {
                return Ok(());
            }
        }
        if cookie < DOT_DOT {
            let parent = inode.any_link().map_or(dir, |link| link.parent.ino);
            let attr = self.getattr(parent)?;
            let name = b".."[..].into();
            if !take(&DirEntry { name, attr, cookie: DOT_DOT, counted: false }) {
                return Ok(());
            }
        }
        let mut taken = 0;
        loop {
            let batch: Vec<_> = self
                .listing(&inode)?
                .after(cookie)
                .take(BATCH)
                .map(|(cookie, entry)| (cookie, entry.name.clone()))
                .collect();
            if batch.is_empty() {
                return Ok(());
            }
            for (next, name) in batch {
                cookie = next;
                let attr = match self.lookup_held(&inode, &name) {
                    Ok(attr) => attr,
                    Err(Error::NotFound) => continue,
                    // What was taken is passed on; the next call meets the error first.
                    Err(_) if taken > 0 => return Ok(()),
                    Err(error) => return Err(error),
                };
                taken += 1;
                let name = marks::unescape(&name).into();
                let ino = attr.ino;
                if !take(&DirEntry { name, attr, cookie, counted: true }) {
                    self.forget(ino, 1);
                    return Ok(());
                }
            }
        }
    }
}
