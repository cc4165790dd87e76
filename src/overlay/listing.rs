//! The names of one merged directory: what the layers say together, in memory.
//!
//! A listing is read from all contributing layers at once and then kept true by the
//! operations themselves (the union is the only writer), so a lookup and a readdir can
//! never disagree, and a name that is missing costs no system call.
//!
//! Entries are ordered by a 63-bit hash of the name, which is also the readdir cookie.
//! So a cookie stays good whatever happens to other names, and a directory that changes
//! while it is read neither repeats nor skips a name that stays. The hash is keyed per
//! process: nobody can prepare names that collide.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Deref;
use std::{fmt, iter};

use thin_vec::ThinVec;
use triomphe::ThinArc;

use super::copy_ahead::Run;
use crate::sys::FileType;

/// Place of a layer in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerIndex {
    /// The writable layer.
    Upper,
    /// The n-th lower layer, 0 on top.
    Lower(u16),
}

/// A file's name. There are as many as files are known, so who needs one shares it, by one pointer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(ThinArc<(), u8>);

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.slice
    }
}

impl From<&[u8]> for Name {
    fn from(name: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice((), name))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// The layers that make a name, top first: one for a file, all that merge for a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    top: LayerIndex,
    /// Empty but for some directories.
    below: ThinVec<LayerIndex>,
}

impl Sources {
    /// Of one layer.
    pub(super) fn of(top: LayerIndex) -> Self {
        Self { top, below: ThinVec::new() }
    }

    pub(super) fn top(&self) -> LayerIndex {
        self.top
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = LayerIndex> {
        iter::once(self.top).chain(self.below.iter().copied())
    }

    /// Adds a layer below all others.
    pub(super) fn push(&mut self, below: LayerIndex) {
        self.below.push(below);
    }

    /// Adds a layer above all others.
    pub(super) fn put_on_top(&mut self, top: LayerIndex) {
        self.below.insert(0, self.top);
        self.top = top;
    }
}

/// Where a name comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The name.
    pub(super) name: Name,
    /// Its type in the topmost layer that has it.
    pub(super) kind: FileType,
    /// The layers that make it.
    pub(super) sources: Sources,
    /// Upper has it, and a lower layer has a name that would show if upper's went.
    pub(super) covers: bool,
}

impl Entry {
    /// A name that exists in upper only.
    pub(super) fn upper(name: &[u8], kind: FileType, covers: bool) -> Self {
        Self { name: name.into(), kind, sources: Sources::of(LayerIndex::Upper), covers }
    }

    /// Whether upper has the name.
    pub(super) fn in_upper(&self) -> bool {
        self.sources.top() == LayerIndex::Upper
    }

    /// Whether deleting the name needs a whiteout.
    pub(super) fn needs_whiteout(&self) -> bool {
        self.covers || !self.in_upper()
    }
}

/// Position in a directory stream; names come in the order of their cookies.
pub type Cookie = u64;
/// The first cookie of a name; below are the stream's start, `.` and `..`.
pub(super) const FIRST_COOKIE: Cookie = 16;

/// The names of one merged directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    entries: BTreeMap<Cookie, Entry>,
    /// Some name sits at another cookie than its hash: look-ups must search.
    displaced: bool,
    /// Upper's directory is known to have no ACL that what is made in it inherits.
    pub(super) bequeaths_nothing: bool,
    /// How its files are copied up.
    pub(super) run: Option<Box<Run>>,
}

/// Hashes names to cookies; one per mount.
#[derive(Debug, Default)]
pub(super) struct Hashing(Keys);

#[cfg(not(test))]
type Keys = std::hash::RandomState;
/// Unit tests see the same order each time.
#[cfg(test)]
type Keys = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

impl Hashing {
    /// Where a name comes in a listing, if no other has its hash.
    pub(super) fn cookie(&self, name: &[u8]) -> Cookie {
        // 63 bits: the offset of a directory stream is signed.
        (self.0.hash_one(name) >> 1).max(FIRST_COOKIE)
    }
}

impl Listing {
    /// Of these names, all different. Takes less memory than to insert them one by one.
    pub(super) fn of(hashing: &Hashing, entries: impl Iterator<Item = Entry>) -> Self {
        Self::placed(hashing, entries.map(|e| (hashing.cookie(&e.name), e)).collect())
    }

    /// Of names with their hashes, which may be the same.
    fn placed(hashing: &Hashing, mut placed: Vec<(Cookie, Entry)>) -> Self {
        placed.sort_unstable_by_key(|(cookie, _)| *cookie);
        let (mut last, mut displaced) = (None, Vec::new());
        let has_place = |(cookie, entry): (Cookie, Entry)| {
            if last.replace(cookie) == Some(cookie) {
                displaced.push(entry);
                return None;
            }
            Some((cookie, entry))
        };
        let entries = placed.into_iter().filter_map(has_place).collect();
        let mut listing = Self { entries, ..Self::default() };
        displaced.into_iter().for_each(|entry| listing.insert(hashing, entry));
        listing
    }

    /// The entry of `name`.
    pub(super) fn get(&self, hashing: &Hashing, name: &[u8]) -> Option<&Entry> {
        let cookie = self.find(hashing, name)?;
        self.entries.get(&cookie)
    }

    /// The entry of `name`, to be changed.
    pub(super) fn get_mut(&mut self, hashing: &Hashing, name: &[u8]) -> Option<&mut Entry> {
        let cookie = self.find(hashing, name)?;
        self.entries.get_mut(&cookie)
    }

    /// Adds an entry, replacing one of the same name.
    pub(super) fn insert(&mut self, hashing: &Hashing, entry: Entry) {
        if let Some(cookie) = self.find(hashing, &entry.name) {
            self.entries.insert(cookie, entry);
            return;
        }
        let wanted = hashing.cookie(&entry.name);
        let mut cookie = wanted;
        while self.entries.contains_key(&cookie) {
            cookie = if cookie >= i64::MAX as u64 { FIRST_COOKIE } else { cookie + 1 };
        }
        self.displaced |= cookie != wanted;
        self.entries.insert(cookie, entry);
    }

    /// Removes the entry of `name`.
    pub(super) fn remove(&mut self, hashing: &Hashing, name: &[u8]) -> Option<Entry> {
        let cookie = self.find(hashing, name)?;
        self.entries.remove(&cookie)
    }

    /// Notes that all names are upper's and that no lower layer shows any more.
    pub(super) fn settle(&mut self) {
        for entry in self.entries.values_mut() {
            entry.sources = Sources::of(LayerIndex::Upper);
            entry.covers = false;
        }
    }

    /// How many names the directory has.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the directory has no names.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries after `cookie`.
    pub(super) fn after(&self, cookie: Cookie) -> impl Iterator<Item = (Cookie, &Entry)> {
        let from = cookie.saturating_add(1).max(FIRST_COOKIE);
        self.entries.range(from..).map(|(cookie, entry)| (*cookie, entry))
    }

    /// The cookie of `name`.
    pub(super) fn find(&self, hashing: &Hashing, name: &[u8]) -> Option<Cookie> {
        let cookie = hashing.cookie(name);
        match self.entries.get(&cookie) {
            Some(entry) if &*entry.name == name => Some(cookie),
            _ if self.displaced => {
                self.entries.iter().find(|(_, e)| &*e.name == name).map(|(cookie, _)| *cookie)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry::upper(name.as_bytes(), FileType::RegularFile, false)
    }

    #[test]
    fn a_changing_directory_neither_skips_nor_repeats() {
        let hashing = Hashing::default();
        let mut listing = Listing::default();
        for n in 0..1000 {
            listing.insert(&hashing, entry(&format!("stays{n}")));
            listing.insert(&hashing, entry(&format!("goes{n}")));
        }
        let mut seen = Vec::new();
        let mut cookie = 0;
        loop {
            let found = listing.after(cookie).next().map(|(c, e)| (c, e.name.clone()));
            let Some((next, name)) = found else { break };
            cookie = next;
            let n = seen.len();
            listing.remove(&hashing, format!("goes{n}").as_bytes());
            listing.insert(&hashing, entry(&format!("new{n}")));
            if name.starts_with(b"stays") {
                seen.push(name);
            }
            assert!(n <= 1000);
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn names_of_one_hash_are_all_there() {
        let hashing = Hashing::default();
        let home = hashing.cookie(b"late");
        let placed = vec![(home, entry("squatter")), (home, entry("late")), (home, entry("last"))];
        let listing = Listing::placed(&hashing, placed);
        assert_eq!(listing.len(), 3);
        for name in ["late", "last"] {
            assert_eq!(&*listing.get(&hashing, name.as_bytes()).unwrap().name, name.as_bytes());
        }
    }

    #[test]
    fn a_displaced_name_is_found() {
        let hashing = Hashing::default();
        let mut listing = Listing::default();
        let home = hashing.cookie(b"late");
        listing.entries.insert(home, entry("squatter"));
        listing.insert(&hashing, entry("late"));
        assert_eq!(listing.entries.len(), 2);
        assert_eq!(&*listing.get(&hashing, b"late").unwrap().name, b"late");
        assert!(listing.remove(&hashing, b"late").is_some());
        assert!(listing.get(&hashing, b"late").is_none());
    }
}
