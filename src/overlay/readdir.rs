//! Reading a merged directory.

use super::Overlay;
use super::attr::Attr;
use super::error::{Error, Result};
use super::listing::Cookie;
use crate::layers::marks;
use crate::layers::number::Ino;
use crate::sys::FileType;

/// A name as a directory stream gives it.
#[derive(Debug)]
pub struct DirEntry {
    /// The name; `.` and `..` come first.
    pub name: Box<[u8]>,
    /// Its number; one of nothing if it could not be looked at.
    pub ino: Ino,
    /// Its type.
    pub kind: FileType,
    /// Its attributes, if it could be looked at; `.` and `..` have none here.
    pub attr: Option<Attr>,
    /// Where the stream goes on after it.
    pub cookie: Cookie,
    /// Whether a reference was counted that must be taken back with
    /// [`Overlay::forget`] if the entry is not passed on.
    pub counted: bool,
}

/// Cookies of `.` and `..`.
const DOT: Cookie = 1;
const DOT_DOT: Cookie = 2;
/// The number of a name that could not be looked at: not 0, which some take for no entry.
const NOBODY: Ino = Ino(u64::MAX);
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
        let begin = cookie;
        if begin == 0 {
            inode.accesses.begin_listing();
            self.was_accessed(&inode);
        }
        if cookie < DOT && !take(&DirEntry::dot(b".", dir, DOT)) {
            return Ok(());
        }
        if cookie < DOT_DOT {
            let parent = inode.any_link().map_or(dir, |link| link.parent.ino);
            if !take(&DirEntry::dot(b"..", parent, DOT_DOT)) {
                return Ok(());
            }
        }
        loop {
            let batch: Vec<_> = self
                .listing(&inode)?
                .after(cookie)
                .take(BATCH)
                .map(|(cookie, entry)| (cookie, entry.name.clone(), entry.kind))
                .collect();
            if batch.is_empty() {
                if cookie == begin {
                    inode.accesses.end_listing(); // this answer is empty
                }
                return Ok(());
            }
            for (next, held_name, kind) in batch {
                cookie = next;
                let name = marks::unescape(&held_name).into();
                let entry = match self.lookup_held(&inode, &held_name) {
                    Ok(attr) => DirEntry {
                        name,
                        ino: attr.ino,
                        kind: attr.kind,
                        attr: Some(attr),
                        cookie,
                        counted: true,
                    },
                    Err(Error::NotFound) => continue,
                    // One that cannot be looked at is there nevertheless: a look-up says why.
                    Err(error) => {
                        log::debug!("look at {}: {error}", held_name.escape_ascii());
                        DirEntry { name, ino: NOBODY, kind, attr: None, cookie, counted: false }
                    }
                };
                if !take(&entry) {
                    if entry.counted {
                        self.forget(entry.ino, 1);
                    }
                    return Ok(());
                }
            }
        }
    }
}

impl DirEntry {
    /// `.` and `..`, of which the kernel takes no attributes.
    fn dot(name: &[u8], ino: Ino, cookie: Cookie) -> Self {
        let kind = FileType::Directory;
        Self { name: name.into(), ino, kind, attr: None, cookie, counted: false }
    }
}
