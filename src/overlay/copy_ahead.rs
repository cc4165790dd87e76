//! Copying up before it is asked for.
//!
//! `chmod -R` and its like change the files of a directory in the order in which they are listed,
//! and wait for the disk at each, which must have a copy before it gets its name. So when some were
//! copied up in this order, threads beside copy the next ones, at the same time, so that the
//! disk syncs them together. These copies have no name, and nobody sees them; who comes to such a file
//! finds its copy made, and gives it its name. One that nobody comes to goes with its descriptor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Overlay;
use super::copy_up::{Copy, Extent};
use super::error::{Context, Result};
use super::inode::Inode;
use super::listing::{Cookie, Entry, Listing, Name};
use crate::layers::number::Ino;
use crate::layers::redirect;
use crate::layers::upper::Upper;
use crate::sys::{FileType, Stat, Timestamp};

/// Files copied up in order, after which the next ones are copied ahead.
const LEAST_RUN: u32 = 3;
/// Files copied ahead then, twice as many at the next file, and so on, up to the second.
const FIRST_AHEAD: usize = 2;
const MOST_AHEAD: usize = 32;
/// Copies kept at most, of all directories.
const MOST_KEPT: usize = 2 * MOST_AHEAD;
/// Files copied up in another order between two of a run, more than which end it.
const MOST_STRAYS: u32 = 16;
/// Names looked at for the next file that is not upper's.
const FAR: usize = 64;
/// Bytes of a file from which on its copy takes longer than the sync; a rich upper points to its data.
const TOO_LARGE: u64 = redirect::METACOPY_MIN;
/// Bytes and inodes that upper's filesystem must have free: what is made may be for nothing.
const LEAST_FREE: u64 = 256 << 20;
const LEAST_FREE_FILES: u64 = 1024;

/// How far the files of a directory were copied up in the order of its listing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    /// How many, one after the other.
    length: u32,
    /// The file that comes next.
    next: Option<Cookie>,
    /// How many after the last are being copied, or were, and the last of these.
    ahead: usize,
    to: Cookie,
    /// Files copied up since then that are not in order: by somebody else, maybe.
    strays: u32,
}

impl Run {
    fn is_long(self) -> bool {
        self.length >= LEAST_RUN
    }

    /// How many files are to be ahead of the last.
    fn wanted_ahead(self) -> usize {
        match self.length.checked_sub(LEAST_RUN) {
            Some(more) => MOST_AHEAD.min(FIRST_AHEAD << more.min(MOST_AHEAD.ilog2())),
            None => 0,
        }
    }
}

impl Listing {
    /// The files after `cookie` that are not upper's.
    fn lower_files(&self, cookie: Cookie) -> impl Iterator<Item = (Cookie, &Entry)> {
        let is_lower = |entry: &Entry| entry.kind == FileType::RegularFile && !entry.in_upper();
        self.after(cookie).take(FAR).filter(move |(_, entry)| is_lower(entry))
    }

    /// Notes that the file at `cookie` was copied up; the one before, maybe in another directory, may
    /// have been in a long run. Returns the files to copy ahead.
    fn copied_up(&mut self, cookie: Cookie, was_long: bool) -> Vec<Name> {
        let mut run = self.run;
        // That file may be gone meanwhile, or copied up by somebody else.
        let is_next = run.next.is_some_and(|next| {
            let mut before = self.lower_files(next - 1).take_while(|(other, _)| *other < cookie);
            next <= cookie && before.next().is_none()
        });
        if is_next {
            run.length = run.length.saturating_add(1);
            run.ahead = run.ahead.saturating_sub(1);
            run.strays = 0;
        } else if run.is_long() && run.next.is_some() && run.strays < MOST_STRAYS {
            self.run.strays += 1;
            return Vec::new();
        } else {
            let is_first = self.lower_files(0).next().is_some_and(|(first, _)| first > cookie);
            let length = if is_first && was_long { LEAST_RUN } else { 1 };
            run = Run { length, to: cookie, ..Run::default() };
        }
        run.next = self.lower_files(cookie).next().map(|(next, _)| next);
        let mut names = Vec::new();
        let wanted = run.wanted_ahead();
        // Many at a time: a thread that has something to do needs no waking.
        if run.ahead <= wanted / 2 {
            for (cookie, entry) in self.lower_files(run.to.max(cookie)).take(wanted - run.ahead) {
                run.to = cookie;
                run.ahead += 1;
                names.push(entry.name.clone());
            }
        }
        self.run = run;
        names
    }
}

/// A file that somebody comes to soon, probably.
#[derive(Debug)]
pub struct ToCopy {
    dir: Ino,
    name: Name,
}

/// Has files [copied ahead](Overlay::copy_ahead).
type Copier = Box<dyn Fn(Vec<ToCopy>) + Send + Sync>;

/// The copies that nobody came to yet.
#[derive(Default)]
pub(super) struct CopiesAhead {
    copier: OnceLock<Copier>,
    /// Whether the last file was copied up in a long run.
    in_long_run: AtomicBool,
    /// The oldest first.
    kept: Mutex<VecDeque<Kept>>,
    most_kept: usize,
}

#[derive(Debug)]
struct Kept {
    of: Ino,
    /// The lower file, as it was when it was copied.
    lower: Stat,
    copy: Copy<'static>,
}

impl CopiesAhead {
    /// Where the union keeps so many files open.
    pub(super) fn new(max_open_files: usize) -> Self {
        let most_kept = MOST_KEPT.min(max_open_files / 4);
        Self { most_kept, ..Self::default() }
    }

    /// The copy of a lower file that is still as it was.
    pub(super) fn take(&self, of: Ino, lower: &Stat) -> Option<Copy<'static>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|kept| kept.of == of)?;
        let taken = kept.remove(at)?;
        drop(kept);
        let is_good = is_unchanged(&taken.lower, lower)
            && (taken.lower.atime == lower.atime || taken.copy.set_times(lower).is_ok());
        is_good.then_some(taken.copy)
    }

    fn has(&self, of: Ino) -> bool {
        self.kept.lock().iter().any(|kept| kept.of == of)
    }

    fn keep(&self, new: Kept) {
        let mut kept = self.kept.lock();
        kept.push_back(new);
        let surplus = kept.len().saturating_sub(self.most_kept);
        let dropped: Vec<_> = kept.drain(..surplus).collect();
        drop(kept);
        drop(dropped); // which takes longer than others should wait
    }

    /// Has these files copied by threads beside.
    pub(super) fn ask_for(&self, files: Vec<ToCopy>) {
        if let Some(copier) = self.copier.get().filter(|_| !files.is_empty()) {
            copier(files);
        }
    }
}

impl fmt::Debug for CopiesAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopiesAhead({})", self.copier.get().is_some())
    }
}

/// But for the time of access, which reading it may have changed.
fn is_unchanged(before: &Stat, now: &Stat) -> bool {
    let what = |stat: &Stat| (stat.dev, stat.ino, stat.size, stat.mtime, stat.ctime);
    what(before) == what(now)
}

impl Overlay {
    /// Files that are to be [copied ahead](Self::copy_ahead) go to `copier`, which must not wait for them.
    /// To be called once.
    pub fn copies_ahead_by(&self, copier: impl Fn(Vec<ToCopy>) + Send + Sync + 'static) {
        let set = self.copies_ahead.copier.set(Box::new(copier));
        debug_assert!(set.is_ok(), "called twice");
    }

    /// Notes that `name` was copied up, in a directory that is locked. Returns the files to copy ahead.
    pub(super) fn next_to_copy(
        &self,
        dir: &Inode,
        names: Option<&mut Listing>,
        name: &[u8],
    ) -> Vec<ToCopy> {
        let syncs_together = self.copies_ahead.copier.get().is_some()
            && self.volatile.is_none()
            && self.upper.as_ref().is_some_and(Upper::has_nameless);
        let Some(names) = names.filter(|_| syncs_together) else { return Vec::new() };
        let Some(cookie) = names.find(&self.hashing, name) else { return Vec::new() };
        let in_long_run = &self.copies_ahead.in_long_run;
        let next = names.copied_up(cookie, in_long_run.load(Ordering::Relaxed));
        in_long_run.store(names.run.is_long(), Ordering::Relaxed);
        next.into_iter().map(|name| ToCopy { dir: dir.ino, name }).collect()
    }

    /// Makes the copy of a file that somebody comes to soon. Who comes to one that cannot be copied is
    /// told why.
    pub fn copy_ahead(&self, file: &ToCopy) {
        if let Err(error) = self.try_copy_ahead(file) {
            log::debug!("copy {} ahead: {error}", file.name.escape_ascii());
        }
    }

    fn try_copy_ahead(&self, file: &ToCopy) -> Result<()> {
        let inode = self.known(&self.inode(file.dir)?, &file.name)?;
        // If somebody came to it meanwhile, there is nothing to do.
        let Some(_one_at_a_time) = inode.copy_up.try_lock() else { return Ok(()) };
        let lower = self.stat_object(&inode)?;
        if self.copies_ahead.has(inode.ino) || !self.pays_ahead(&inode, &lower)? {
            return Ok(());
        }
        let copy = self.build_copy(&inode, &lower, Extent::All, Timestamp::now())?;
        if let Some(copy) = copy.nameless() {
            self.copies_ahead.keep(Kept { of: inode.ino, lower, copy });
        }
        Ok(())
    }

    fn pays_ahead(&self, inode: &Inode, lower: &Stat) -> Result<bool> {
        let is_plain = {
            let state = inode.state.read();
            inode.kind == FileType::RegularFile && state.upper.is_none() && state.data.is_none()
        };
        if !is_plain || lower.nlink > 1 || lower.size >= TOO_LARGE || lower.is_protected() {
            return Ok(false);
        }
        let room = rustix::fs::fstatvfs(self.upper()?.root()).context("statfs", b"")?;
        // Some filesystems do not count inodes.
        let has_inodes = room.f_files == 0 || room.f_favail >= LEAST_FREE_FILES;
        Ok(has_inodes && room.f_bavail.saturating_mul(room.f_frsize) >= LEAST_FREE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::listing::{Hashing, LayerIndex, Sources};
    use super::*;

    /// A directory whose files are copied up.
    struct Directory {
        hashing: Hashing,
        names: Listing,
        /// Of its files, in order.
        cookies: Vec<Cookie>,
    }

    impl Directory {
        /// Of so many lower files.
        fn new(count: usize) -> Self {
            let hashing = Hashing::default();
            let entries = (0..count).map(|n| Entry {
                name: Name::from(format!("f{n}").as_bytes()),
                kind: FileType::RegularFile,
                sources: Sources::of(LayerIndex::Lower(0)),
                covers: false,
            });
            let names = Listing::of(&hashing, entries);
            let cookies = names.after(0).map(|(cookie, _)| cookie).collect();
            Self { hashing, names, cookies }
        }

        fn name(&self, n: usize) -> Name {
            self.names.after(self.cookies[n] - 1).next().unwrap().1.name.clone()
        }

        /// Copies the n-th file up; which ones are to be copied ahead.
        fn copy_up(&mut self, n: usize, was_long: bool) -> Vec<usize> {
            let (cookie, name) = (self.cookies[n], self.name(n));
            let entry = self.names.get_mut(&self.hashing, &name).unwrap();
            entry.sources = Sources::of(LayerIndex::Upper);
            let ahead = self.names.copied_up(cookie, was_long);
            let cookie = |name: &Name| self.hashing.cookie(name);
            ahead.iter().map(|name| self.cookies.binary_search(&cookie(name)).unwrap()).collect()
        }
    }

    #[test]
    fn those_after_a_run_are_copied_ahead_each_once() {
        let mut dir = Directory::new(500);
        assert!(dir.copy_up(0, false).is_empty());
        assert!(dir.copy_up(1, false).is_empty());
        let mut ahead = dir.copy_up(2, false);
        assert_eq!(ahead, [3, 4]);
        for n in 3..500 {
            ahead.extend(dir.copy_up(n, false));
            assert!(ahead.len() <= n - 2 + MOST_AHEAD);
            assert!(ahead.len() > (n - 2 + MOST_AHEAD / 2).min(496) || n < 10, "{n}: {ahead:?}");
        }
        assert_eq!(ahead, (3..500).collect::<Vec<_>>());
    }

    #[test]
    fn without_order_none_is() {
        let mut dir = Directory::new(100);
        for n in (0..100).step_by(2).chain((1..100).rev().step_by(2)) {
            assert!(dir.copy_up(n, n > 0).is_empty(), "{n}");
        }
    }

    #[test]
    fn a_few_others_do_not_end_a_run_and_many_do() {
        let mut dir = Directory::new(200);
        let mut ahead: Vec<usize> = (0..10).flat_map(|n| dir.copy_up(n, false)).collect();
        for n in [150, 170, 169] {
            assert!(dir.copy_up(n, true).is_empty());
        }
        let gone = dir.name(10);
        dir.names.remove(&dir.hashing, &gone);
        ahead.extend((11..100).flat_map(|n| dir.copy_up(n, false)));
        assert!(ahead.len() > 100 && ahead.iter().is_sorted() && !ahead.contains(&150));
        for n in (180..199).rev() {
            assert!(dir.copy_up(n, true).is_empty());
        }
        assert!(dir.copy_up(140, true).is_empty());
        assert!(dir.copy_up(141, true).is_empty());
        assert_eq!(dir.copy_up(142, true), [143, 144]);
    }

    #[test]
    fn after_a_run_that_of_the_next_directory_is_known_at_its_first_file() {
        assert_eq!(Directory::new(100).copy_up(0, true), [1, 2]);
        assert!(Directory::new(100).copy_up(0, false).is_empty());
        assert!(Directory::new(100).copy_up(1, true).is_empty());
        assert!(Directory::new(1).copy_up(0, true).is_empty());
    }

    #[test]
    fn what_is_upper_s_already_is_passed_over() {
        let mut dir = Directory::new(10);
        [3, 5].into_iter().for_each(|n| drop(dir.copy_up(n, false)));
        [0, 1].into_iter().for_each(|n| drop(dir.copy_up(n, false)));
        assert_eq!(dir.copy_up(2, false), [4, 6]);
        assert_eq!(dir.copy_up(4, false), [7, 8, 9]);
    }
}
