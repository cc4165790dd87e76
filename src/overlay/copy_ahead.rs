//! Copying up before it is asked for.
//!
//! `chmod -R` and its like change the files of a directory in the order in which they are listed, or
//! in that of their names, and wait for the disk at each, which must have a copy before it gets its name.
//! So when some were copied up in such an order, threads beside copy the next ones, at the same time, so
//! that the disk syncs them together. These copies have no name, and nobody sees them; who comes to such a file
//! finds its copy made, and gives it its name. One that nobody comes to goes with its descriptor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::Overlay;
use super::copy_up::{Copy, Extent};
use super::error::{Context, Result};
use super::inode::Inode;
use super::listing::{Entry, Hashing, Listing, Name};
use crate::layers::number::Ino;
use crate::layers::redirect;
use crate::layers::upper::Upper;
use crate::sys::{FileType, Stat, Timestamp};

/// Files copied up in order, after which the next ones are copied ahead.
const LEAST_RUN: u32 = 3;
/// Files copied up whose names grow, after which they are taken to come in the order of their names.
const LEAST_GROWING: u32 = 4;
/// Names of a directory up to which it is worth to sort them.
const MOST_SORTED: usize = 20_000;
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

/// In which order files are come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// That of the directory's listing.
    Listing,
    /// That of their names, which is a shell's, and that of most lists.
    Names,
}

/// How far the files of a directory were copied up in an order.
#[derive(Debug)]
pub(super) struct Run {
    order: Order,
    /// How many, one after the other.
    length: u32,
    /// The file that comes next.
    next: Option<Name>,
    /// How many after the last are being copied, or were, and the last of these.
    ahead: usize,
    to: Name,
    /// Files copied up since then that are not in order: by somebody else, maybe.
    strays: u32,
    /// The last one that came, and how many came before it with names that grow, itself included.
    last: Name,
    growing: u32,
    /// The directory's files by their names, once that was asked for.
    sorted: Option<Box<[Name]>>,
}

impl Run {
    /// Of a first file.
    fn of(name: Name) -> Self {
        Self {
            order: Order::Listing,
            length: 1,
            next: None,
            ahead: 0,
            to: name.clone(),
            strays: 0,
            last: name,
            growing: 1,
            sorted: None,
        }
    }

    fn is_long(&self) -> bool {
        self.length >= LEAST_RUN
    }

    /// How many files are to be ahead of the last.
    fn wanted_ahead(&self) -> usize {
        match self.length.checked_sub(LEAST_RUN) {
            Some(more) => MOST_AHEAD.min(FIRST_AHEAD << more.min(MOST_AHEAD.ilog2())),
            None => 0,
        }
    }

    /// Begins anew.
    fn begin(&mut self, name: &Name, order: Order, length: u32) {
        (self.order, self.length) = (order, length);
        (self.ahead, self.strays) = (0, 0);
        self.to = name.clone();
    }
}

fn is_lower_file(entry: &Entry) -> bool {
    entry.kind == FileType::RegularFile && !entry.in_upper()
}

/// Those of a directory's files that are not upper's, in an order.
struct LowerFiles<'a> {
    hashing: &'a Hashing,
    names: &'a Listing,
    order: Order,
    /// Of [`Order::Names`].
    sorted: &'a [Name],
}

impl<'a> LowerFiles<'a> {
    /// From this name on, which itself may be gone.
    fn from(&self, name: &[u8]) -> Box<dyn Iterator<Item = &'a Entry> + 'a> {
        let (hashing, names, sorted) = (self.hashing, self.names, self.sorted);
        match self.order {
            Order::Listing => {
                let entries = names.after(hashing.cookie(name) - 1).map(|(_, entry)| entry);
                Box::new(entries.take(FAR).filter(|entry| is_lower_file(entry)))
            }
            Order::Names => {
                let begin = sorted.partition_point(|other| **other < *name);
                let near = sorted[begin..].iter().take(FAR);
                let entries = near.filter_map(|name| names.get(hashing, name));
                Box::new(entries.filter(|entry| is_lower_file(entry)))
            }
        }
    }

    fn comes_before(&self, name: &[u8], other: &[u8]) -> bool {
        match self.order {
            Order::Listing => self.hashing.cookie(name) < self.hashing.cookie(other),
            Order::Names => name < other,
        }
    }

    /// Whether `name` is the next one or would be, if others were not upper's or gone by now.
    fn is_next(&self, next: &[u8], name: &[u8]) -> bool {
        let is_before = |other: &[u8]| self.comes_before(other, name);
        next == name
            || is_before(next) && !self.from(next).next().is_some_and(|e| is_before(&e.name))
    }

    fn is_first(&self, name: &[u8]) -> bool {
        let first = match self.order {
            Order::Listing => {
                self.names.after(0).take(FAR).map(|(_, e)| e).find(|entry| is_lower_file(entry))
            }
            Order::Names => self.from(b"").next(),
        };
        first.is_some_and(|first| self.comes_before(name, &first.name))
    }
}

impl Listing {
    /// Notes that the file `name` was copied up; the one before, maybe in another directory, was in a long
    /// run of this order. Returns the files to copy ahead.
    fn copied_up(&mut self, hashing: &Hashing, name: &Name, was_in: Option<Order>) -> Vec<Name> {
        // By their names files of a new directory are come to, if at all, from its first one on.
        let was_in = was_in.filter(|order| self.run.is_none() || *order == Order::Listing);
        let mut run = self.run.take().unwrap_or_else(|| Box::new(Run::of(name.clone())));
        let comes_next = self.goes_on(hashing, &mut run, name, was_in);
        let ahead = if comes_next { self.next_after(hashing, &mut run, name) } else { Vec::new() };
        self.run = Some(run);
        ahead
    }

    /// The files of a run, in this order.
    fn lower_files<'a>(
        &'a self,
        hashing: &'a Hashing,
        run: &'a Run,
        order: Order,
    ) -> LowerFiles<'a> {
        let sorted = run.sorted.as_deref().unwrap_or_default();
        LowerFiles { hashing, names: self, order, sorted }
    }

    /// Whether `name` belongs to the run, or begins another one.
    fn goes_on(
        &self,
        hashing: &Hashing,
        run: &mut Run,
        name: &Name,
        was_in: Option<Order>,
    ) -> bool {
        run.growing = if run.last < *name { run.growing + 1 } else { 1 };
        run.last = name.clone();
        // That file may be gone meanwhile, or copied up by somebody else.
        let files = self.lower_files(hashing, run, run.order);
        if run.next.as_ref().is_some_and(|next| files.is_next(next, name)) {
            run.length = run.length.saturating_add(1);
            run.ahead = run.ahead.saturating_sub(1);
            run.strays = 0;
        } else if run.is_long() && run.next.is_some() && run.strays < MOST_STRAYS {
            run.strays += 1;
            return false;
        } else {
            let by_name = was_in == Some(Order::Names) || run.growing >= LEAST_GROWING;
            let order = if by_name && self.sort(run) { Order::Names } else { Order::Listing };
            let is_first = self.lower_files(hashing, run, order).is_first(name);
            let length = if is_first && was_in == Some(order) { LEAST_RUN } else { 1 };
            run.begin(name, order, length);
        }
        true
    }

    /// The files to copy ahead after `name`, to which a run has come.
    fn next_after(&self, hashing: &Hashing, run: &mut Run, name: &Name) -> Vec<Name> {
        let files = self.lower_files(hashing, run, run.order);
        let next = files.from(name).next().map(|entry| entry.name.clone());
        let wanted = run.wanted_ahead();
        let mut ahead = Vec::new();
        // Many at a time: a thread that has something to do needs no waking.
        if run.ahead <= wanted / 2 {
            let last = if files.comes_before(&run.to, name) { name } else { &run.to };
            let names = files.from(last).map(|entry| &entry.name).filter(|name| *name != last);
            ahead.extend(names.take(wanted - run.ahead).cloned());
        }
        run.next = next;
        if run.next.is_none() && run.is_long() {
            run.sorted = None; // it was the last one
        }
        run.ahead += ahead.len();
        if let Some(last) = ahead.last() {
            run.to = last.clone();
        }
        ahead
    }

    /// Sorts the directory's files, unless they are too many.
    fn sort(&self, run: &mut Run) -> bool {
        if run.sorted.is_none() && self.len() <= MOST_SORTED {
            let files = self.after(0).filter(|(_, entry)| is_lower_file(entry));
            let mut sorted: Box<[_]> = files.map(|(_, entry)| entry.name.clone()).collect();
            sorted.sort_unstable();
            run.sorted = Some(sorted);
        }
        run.sorted.is_some()
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
    /// The order of the long run in which the last file was copied up.
    long_run: Mutex<Option<Order>>,
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
        let Some(entry) = names.get(&self.hashing, name) else { return Vec::new() };
        let name = entry.name.clone();
        let was_in = *self.copies_ahead.long_run.lock();
        let next = names.copied_up(&self.hashing, &name, was_in);
        let is_in = names.run.as_ref().filter(|run| run.is_long()).map(|run| run.order);
        *self.copies_ahead.long_run.lock() = is_in;
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
        /// Its files, in an order.
        files: Vec<Name>,
    }

    impl Directory {
        /// Of so many lower files.
        fn new(count: usize, order: Order) -> Self {
            let hashing = Hashing::default();
            let entries = (0..count).map(|n| Entry {
                name: Name::from(format!("f{n}").as_bytes()),
                kind: FileType::RegularFile,
                sources: Sources::of(LayerIndex::Lower(0)),
                covers: false,
            });
            let names = Listing::of(&hashing, entries);
            let mut files: Vec<_> = names.after(0).map(|(_, entry)| entry.name.clone()).collect();
            if order == Order::Names {
                files.sort();
            }
            Self { hashing, names, files }
        }

        fn listed(count: usize) -> Self {
            Self::new(count, Order::Listing)
        }

        fn remove(&mut self, n: usize) {
            self.names.remove(&self.hashing, &self.files[n]);
        }

        /// Copies the n-th file up; which ones are to be copied ahead.
        fn copy_up(&mut self, n: usize, was_in: Option<Order>) -> Vec<usize> {
            let name = self.files[n].clone();
            let entry = self.names.get_mut(&self.hashing, &name).unwrap();
            entry.sources = Sources::of(LayerIndex::Upper);
            let ahead = self.names.copied_up(&self.hashing, &name, was_in);
            let place = |name: &Name| self.files.iter().position(|other| other == name).unwrap();
            ahead.iter().map(place).collect()
        }
    }

    const LISTED: Option<Order> = Some(Order::Listing);

    #[test]
    fn those_after_a_run_are_copied_ahead_each_once() {
        let mut dir = Directory::listed(500);
        assert!(dir.copy_up(0, None).is_empty());
        assert!(dir.copy_up(1, None).is_empty());
        let mut ahead = dir.copy_up(2, None);
        assert_eq!(ahead, [3, 4]);
        for n in 3..500 {
            ahead.extend(dir.copy_up(n, None));
            assert!(ahead.len() <= n - 2 + MOST_AHEAD);
            assert!(ahead.len() > (n - 2 + MOST_AHEAD / 2).min(496) || n < 10, "{n}: {ahead:?}");
        }
        assert_eq!(ahead, (3..500).collect::<Vec<_>>());
    }

    #[test]
    fn without_order_none_is() {
        let mut dir = Directory::listed(100);
        for n in (0..100).step_by(2).chain((1..100).rev().step_by(2)) {
            assert!(dir.copy_up(n, LISTED.filter(|_| n > 0)).is_empty(), "{n}");
        }
    }

    #[test]
    fn a_few_others_do_not_end_a_run_and_many_do() {
        let mut dir = Directory::listed(200);
        let mut ahead: Vec<usize> = (0..10).flat_map(|n| dir.copy_up(n, None)).collect();
        for n in [150, 170, 169] {
            assert!(dir.copy_up(n, LISTED).is_empty());
        }
        dir.remove(10);
        ahead.extend((11..100).flat_map(|n| dir.copy_up(n, None)));
        assert!(ahead.len() > 100 && ahead.iter().is_sorted() && !ahead.contains(&150));
        for n in (180..199).rev() {
            assert!(dir.copy_up(n, LISTED).is_empty());
        }
        assert!(dir.copy_up(140, LISTED).is_empty());
        assert!(dir.copy_up(141, LISTED).is_empty());
        assert_eq!(dir.copy_up(142, LISTED), [143, 144]);
    }

    #[test]
    fn after_a_run_that_of_the_next_directory_is_known_at_its_first_file() {
        assert_eq!(Directory::listed(100).copy_up(0, LISTED), [1, 2]);
        assert!(Directory::listed(100).copy_up(0, None).is_empty());
        assert!(Directory::listed(100).copy_up(1, LISTED).is_empty());
        assert!(Directory::listed(1).copy_up(0, LISTED).is_empty());
    }

    #[test]
    fn what_is_upper_s_already_is_passed_over() {
        let mut dir = Directory::listed(10);
        [3, 5].into_iter().for_each(|n| drop(dir.copy_up(n, None)));
        [0, 1].into_iter().for_each(|n| drop(dir.copy_up(n, None)));
        assert_eq!(dir.copy_up(2, None), [4, 6]);
        assert_eq!(dir.copy_up(4, None), [7, 8, 9]);
    }

    #[test]
    fn a_run_by_names_is_known_after_some_files() {
        let mut dir = Directory::new(300, Order::Names);
        let before = LEAST_GROWING as usize + 1;
        (0..before).for_each(|n| assert!(dir.copy_up(n, None).is_empty(), "{n}"));
        let mut ahead = Vec::new();
        for n in before..100 {
            ahead.extend(dir.copy_up(n, None));
        }
        dir.remove(100);
        (101..300).for_each(|n| ahead.extend(dir.copy_up(n, None)));
        assert_eq!(ahead, (before + 1..300).collect::<Vec<_>>());
        // In the next directory it goes on.
        assert_eq!(Directory::new(9, Order::Names).copy_up(0, Some(Order::Names)), [1, 2]);
        assert!(Directory::new(9, Order::Names).copy_up(1, Some(Order::Names)).is_empty());
        assert!(Directory::new(1, Order::Names).copy_up(0, Some(Order::Names)).is_empty());
    }

    #[test]
    fn who_goes_on_by_the_listing_after_some_names_that_grew_is_followed() {
        let mut dir = Directory::new(300, Order::Names);
        (0..4).for_each(|n| drop(dir.copy_up(n * 3, None)));
        assert_eq!(dir.names.run.as_ref().unwrap().order, Order::Names);
        let listed = dir.names.after(0).map(|(_, entry)| entry.name.clone());
        let listed: Vec<_> = listed.filter(|name| !dir.files[..12].contains(name)).collect();
        let place = |name: &Name| dir.files.iter().position(|other| other == name).unwrap();
        let places: Vec<_> = listed.iter().map(place).collect();
        let ahead: Vec<_> = places[..40].iter().flat_map(|n| dir.copy_up(*n, None)).collect();
        assert!(ahead.len() > 40, "{ahead:?}");
    }
}
