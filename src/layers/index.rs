//! What upper cannot say by itself, kept in workdir: which lower file an upper file came
//! from, which upper file stands for a lower one that has several names, and which 0:0
//! device in upper is a real one and no whiteout.
//!
//! ```text
//! WORK/index/<number in hex>   a hard link to the copied-up file whose origin has this number;
//!                              only for origins that have several names in their layer
//! WORK/spent/<number in hex>   a hard link to the upper file that this number was made of, while
//!                              another file shows it: so upper gives the number to no third
//! WORK/origins                 32-byte records, little-endian, the last one of a key wins:
//!                                upper inode u64 | origin u64 | birth secs i64 | nanos u32 | left u32
//! ```
//!
//! With `upper inode` non-zero, the record says that this upper inode shows the number
//! `origin`, or, if `origin` is 0, that it is a real 0:0 device, or, if it is all ones, that it
//! is gone; the birth time guards against an inode number that upper gave away again.
//! `left` counts the names of the origin that still lie in its layer and show this file, and the
//! time beside it, where `upper inode` is zero, is that at which the last one was removed; it
//! is meaningful for origins of several names, whose visible link count is
//! `st_nlink - 1 (the index) + left`.
//!
//! The log is synced for devices and for origins of several names: else, after a crash of the
//! machine (not of the daemon), an inode number may fall back to upper's own. The links in
//! `index/` are as durable as upper itself.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::number::Ino;
use crate::sys::{self, Errno, Ignoring, Stat, Timestamp};

const RECORD: usize = 32;
const LOG_NAME: &str = "origins";
const LOG_NAME_NEW: &str = "origins.new";
const O_LOG: OFlags =
    OFlags::WRONLY.union(OFlags::APPEND).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The log is rewritten when it has this many times the records needed, at mount and, if it
/// is longer than [`LONG_LOG`], while mounted.
const SLACK: usize = 2;
const LONG_LOG: usize = 1 << 16;

/// The index of one workdir.
#[derive(Debug)]
pub struct Index {
    work: OwnedFd,
    dir: OwnedFd,
    spent: OwnedFd,
    log: Mutex<Log>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Log {
    file: Arc<File>,
    /// Records in the file.
    records: usize,
}

#[derive(Debug, Default)]
struct Known {
    /// Upper inode -> its birth and the number it shows.
    origins: HashMap<u64, (Timestamp, Ino)>,
    /// Origin of several names -> how many of them still show the file from their layer.
    left: HashMap<Ino, Left>,
    /// Upper inodes that are real 0:0 devices -> their birth.
    devices: HashMap<u64, Timestamp>,
    /// Origins with a link in `index/`.
    linked: HashSet<Ino>,
    /// Origins with a link in `spent/`.
    spent: HashSet<Ino>,
}

/// The names of an origin that still lie in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// How many show the file.
    pub names: u32,
    /// When the last one was removed, which is a change of the file; or 0.
    pub removed: Timestamp,
}

struct Record {
    upper: u64,
    origin: Ino,
    birth: Timestamp,
    left: u32,
}

/// `origin` of a record that says: a real 0:0 device.
const DEVICE: Ino = Ino(0);
/// `origin` of a record that says: this upper inode is gone.
const GONE: Ino = Ino(u64::MAX);
/// `left` of a record that says nothing of it.
const LEFT_UNSAID: u32 = u32::MAX;

impl Index {
    /// Opens or makes the index below `work`.
    pub fn open(work: BorrowedFd<'_>) -> sys::Result<Self> {
        let (dir, linked) = open_links(work, b"index")?;
        let (spent, was_spent) = open_links(work, b"spent")?;
        let mut known = Known { linked, spent: was_spent, ..Known::default() };
        let mut records = read_log(work, &mut known)?;
        drop_unneeded_spent(&spent, &mut known)?;
        if records > SLACK * (known.needed() + 1) {
            rewrite_log(work, &known)?;
            records = known.needed();
        }
        let file = open_log(work)?;
        let work = sys::open_at(work, b".", sys::O_DIRECTORY)?;
        Ok(Self {
            work,
            dir,
            spent,
            log: Mutex::new(Log { file: Arc::new(file), records }),
            known: Mutex::new(known),
        })
    }

    /// Tells the real 0:0 devices of the upper layer that `work` belongs to, without holding
    /// the index.
    pub fn real_devices(work: BorrowedFd<'_>) -> sys::Result<impl Fn(&Stat) -> bool> {
        let mut known = Known::default();
        read_log(work, &mut known)?;
        Ok(move |stat: &Stat| known.is_device(stat))
    }

    /// The number that the upper file `upper` shows instead of its own, if it was copied up.
    pub fn origin(&self, upper: &Stat) -> Option<Ino> {
        let known = self.known.lock();
        let (birth, origin) = known.origins.get(&upper.ino)?;
        (*birth == upper.btime.unwrap_or_default()).then_some(*origin)
    }

    /// Records that the upper file `upper` shows the number `origin`.
    pub fn record_origin(&self, upper: &Stat, origin: Ino) -> sys::Result<()> {
        let birth = upper.btime.unwrap_or_default();
        self.known.lock().origins.insert(upper.ino, (birth, origin));
        if upper.btime.is_none() {
            return Ok(()); // nothing would tell a reused inode number from this one
        }
        self.append(&Record { upper: upper.ino, origin, birth, left: LEFT_UNSAID })
    }

    /// Whether the upper file `upper`, a 0:0 device, is a real one.
    pub fn is_device(&self, upper: &Stat) -> bool {
        self.known.lock().is_device(upper)
    }

    /// Records that the upper file `upper`, a 0:0 device, is a real one.
    ///
    /// # Errors
    /// EPERM if upper's filesystem records no birth times, which make the record safe.
    pub fn record_device(&self, upper: &Stat) -> sys::Result<()> {
        let birth = upper.btime.ok_or(Errno::PERM)?;
        self.known.lock().devices.insert(upper.ino, birth);
        self.append(&Record { upper: upper.ino, origin: DEVICE, birth, left: LEFT_UNSAID })?;
        self.sync()
    }

    /// Forgets an upper inode that showed `origin` and is gone, if that is what is known of its
    /// number: another file may have it by now.
    pub fn forget_origin(&self, upper_ino: u64, origin: Ino) -> sys::Result<()> {
        // Locked from here on, so that what is recorded of the number's next file comes after.
        let mut log = self.log.lock();
        {
            let mut known = self.known.lock();
            let is_known = |(_, known): &(Timestamp, Ino)| *known == origin;
            let was_known = known.origins.get(&upper_ino).is_some_and(is_known);
            let was_device = known.devices.remove(&upper_ino).is_some();
            if was_known {
                known.origins.remove(&upper_ino);
            } else if !was_device {
                return Ok(());
            }
        }
        let birth = Timestamp::default();
        let gone = Record { upper: upper_ino, origin: GONE, birth, left: LEFT_UNSAID };
        self.append_to(&mut log, &gone)
    }

    /// Lets a spent number go, once nothing is known by it any more and no file shows it.
    pub fn drop_spent(&self, origin: Ino) -> sys::Result<()> {
        {
            let mut known = self.known.lock();
            let is_shown = known.spent.contains(&origin)
                && known.origins.values().any(|(_, shown)| *shown == origin);
            if is_shown || !known.spent.remove(&origin) {
                return Ok(());
            }
        }
        let name = Self::link_name(origin);
        rustix::fs::unlinkat(&self.spent, &name[..], AtFlags::empty())
            .ignoring(Errno::NOENT)
            .map(drop)
    }

    /// Keeps the upper file `upper`, whose number is `origin`, from going when another file takes
    /// its place that shows the number further on.
    pub fn keep_spent(&self, upper: BorrowedFd<'_>, origin: Ino) -> sys::Result<()> {
        match sys::link_fd(upper, self.spent.as_fd(), &Self::link_name(origin)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.known.lock().spent.insert(origin);
        Ok(())
    }

    /// The origin's names that still lie in its layer, if that was ever changed.
    pub fn left(&self, origin: Ino) -> Option<Left> {
        self.known.lock().left.get(&origin).copied()
    }

    /// Records that all the `names` of the origin lie in its layer, if nothing else is known.
    pub fn start_count(&self, origin: Ino, names: u32) -> sys::Result<()> {
        let new = Left { names, removed: Timestamp::default() };
        let left = *self.known.lock().left.entry(origin).or_insert(new);
        self.append(&Record::of_left(origin, left))
    }

    /// Records that one name less of the origin, which had `names` at first, lies in its layer:
    /// `removed` at this time, or upper's now.
    pub fn count_down(
        &self,
        origin: Ino,
        names: u32,
        removed: Option<Timestamp>,
    ) -> sys::Result<()> {
        let mut log = self.log.lock();
        let left = {
            let mut known = self.known.lock();
            let new = Left { names, removed: Timestamp::default() };
            let left = known.left.entry(origin).or_insert(new);
            left.names = left.names.saturating_sub(1);
            left.removed = removed.unwrap_or(left.removed);
            *left
        };
        self.append_to(&mut log, &Record::of_left(origin, left))
    }

    /// Makes all that was recorded durable.
    pub fn sync(&self) -> sys::Result<()> {
        // Others record meanwhile. Should they write the log anew, that one is synced, too.
        let file = Arc::clone(&self.log.lock().file);
        rustix::fs::fdatasync(&*file)
    }

    /// Whether an upper file stands for this lower file of several names.
    pub fn is_linked(&self, origin: Ino) -> bool {
        self.known.lock().linked.contains(&origin)
    }

    /// The directory of the links.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The link's name for `origin`.
    pub fn link_name(origin: Ino) -> Vec<u8> {
        format!("{:016x}", origin.0).into_bytes()
    }

    /// Makes the upper file behind `fd` stand for `origin`.
    pub fn link(&self, fd: BorrowedFd<'_>, origin: Ino) -> sys::Result<()> {
        let name = Self::link_name(origin);
        // A link left by a copy-up that a crash cut short has no name in upper: replace it.
        rustix::fs::unlinkat(&self.dir, &name[..], AtFlags::empty()).ignoring(Errno::NOENT)?;
        sys::link_fd(fd, self.dir(), &name)?;
        self.known.lock().linked.insert(origin);
        Ok(())
    }

    /// Drops the link for `origin`, whose last visible name is gone.
    pub fn unlink(&self, origin: Ino) -> sys::Result<()> {
        let name = Self::link_name(origin);
        rustix::fs::unlinkat(&self.dir, &name[..], AtFlags::empty()).ignoring(Errno::NOENT)?;
        self.known.lock().linked.remove(&origin);
        Ok(())
    }

    /// Drops what is known of an upper file that showed `origin`: the link, if it `has_link`, and then
    /// its number, for as long as there is a link the file stands for the origin.
    pub fn drop_copy(&self, upper_ino: u64, origin: Ino, has_link: bool) -> sys::Result<()> {
        if has_link {
            self.unlink(origin)?;
        }
        self.forget_origin(upper_ino, origin)
    }

    fn append(&self, record: &Record) -> sys::Result<()> {
        self.append_to(&mut self.log.lock(), record)
    }

    fn append_to(&self, log: &mut Log, record: &Record) -> sys::Result<()> {
        if log.records >= LONG_LOG {
            let known = self.known.lock();
            if log.records > SLACK * known.needed() {
                let file = rewrite_log(self.work.as_fd(), &known)?;
                *log = Log { file: Arc::new(file), records: known.needed() };
            }
        }
        (&*log.file)
            .write_all(&record.encode())
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        log.records += 1;
        Ok(())
    }
}

/// Opens or makes a directory of links below `work`; with the numbers that it has.
fn open_links(work: BorrowedFd<'_>, name: &[u8]) -> sys::Result<(OwnedFd, HashSet<Ino>)> {
    match rustix::fs::mkdirat(work, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let dir = sys::open_at(work, name, sys::O_DIRECTORY)?;
    let names = sys::read_dir(dir.as_fd())?;
    let numbers = names.iter().filter_map(|entry| parse_link_name(&entry.name)).collect();
    Ok((dir, numbers))
}

/// Removes the spent links of numbers that no file shows, and those that a crash left beside the
/// file's own name, before another took its place.
fn drop_unneeded_spent(spent: &OwnedFd, known: &mut Known) -> sys::Result<()> {
    let shown: HashSet<Ino> = known.origins.values().map(|(_, origin)| *origin).collect();
    for origin in std::mem::take(&mut known.spent) {
        let name = Index::link_name(origin);
        if shown.contains(&origin) && sys::statx_at(spent.as_fd(), &name)?.nlink == 1 {
            known.spent.insert(origin);
        } else {
            rustix::fs::unlinkat(spent, &name[..], AtFlags::empty())?;
        }
    }
    Ok(())
}

fn open_log(work: BorrowedFd<'_>) -> sys::Result<File> {
    let log = rustix::fs::openat(work, LOG_NAME, O_LOG | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
    // A torn last record would put all that follow it out of step.
    let size = sys::fstat(&log)?.size;
    rustix::fs::ftruncate(&log, size - size % RECORD as u64)?;
    Ok(log.into())
}

fn parse_link_name(name: &[u8]) -> Option<Ino> {
    let text = std::str::from_utf8(name).ok()?;
    u64::from_str_radix(text, 16).ok().map(Ino)
}

/// Applies the log to `known` and returns how many records it has.
fn read_log(work: BorrowedFd<'_>, known: &mut Known) -> sys::Result<usize> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(work, LOG_NAME, flags, Mode::empty());
    let Some(fd) = opened.ignoring(Errno::NOENT)? else {
        return Ok(0);
    };
    let mut bytes = Vec::new();
    File::from(fd)
        .read_to_end(&mut bytes)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let whole = bytes.chunks_exact(RECORD); // a torn last record is left out
    let count = whole.len();
    whole.map(Record::decode).for_each(|record| known.apply(&record));
    Ok(count)
}

/// Writes a log that says what is known and nothing twice, in place of the one that is there.
fn rewrite_log(work: BorrowedFd<'_>, known: &Known) -> sys::Result<File> {
    let mut bytes = Vec::new();
    for (upper, (birth, origin)) in &known.origins {
        let record = Record { upper: *upper, origin: *origin, birth: *birth, left: LEFT_UNSAID };
        bytes.extend_from_slice(&record.encode());
    }
    for (upper, birth) in &known.devices {
        let record = Record { upper: *upper, origin: DEVICE, birth: *birth, left: LEFT_UNSAID };
        bytes.extend_from_slice(&record.encode());
    }
    for (origin, left) in &known.left {
        let record = Record::of_left(*origin, *left);
        bytes.extend_from_slice(&record.encode());
    }
    let flags = O_LOG | OFlags::CREATE | OFlags::TRUNC;
    let fd = rustix::fs::openat(work, LOG_NAME_NEW, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(fd);
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    rustix::fs::renameat(work, LOG_NAME_NEW, work, LOG_NAME)?;
    // What is recorded from now on is synced in this file alone.
    let dir = sys::open_at(work, b".", OFlags::RDONLY | OFlags::CLOEXEC)?;
    rustix::fs::fsync(&dir)?;
    Ok(file)
}

impl Known {
    /// Records that say all of it.
    fn needed(&self) -> usize {
        self.origins.len() + self.left.len() + self.devices.len()
    }

    fn is_device(&self, upper: &Stat) -> bool {
        upper.btime.is_some() && self.devices.get(&upper.ino) == upper.btime.as_ref()
    }

    fn apply(&mut self, record: &Record) {
        if record.upper != 0 && record.origin == GONE {
            self.origins.remove(&record.upper);
            self.devices.remove(&record.upper);
        } else if record.upper != 0 && record.origin == DEVICE {
            self.devices.insert(record.upper, record.birth);
        } else if record.upper != 0 {
            self.origins.insert(record.upper, (record.birth, record.origin));
        } else if record.left != LEFT_UNSAID {
            self.left.insert(record.origin, Left { names: record.left, removed: record.birth });
        }
    }
}

impl Record {
    fn of_left(origin: Ino, left: Left) -> Self {
        Self { upper: 0, origin, birth: left.removed, left: left.names }
    }

    fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.upper.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.origin.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.birth.secs.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.birth.nanos.to_le_bytes());
        bytes[28..].copy_from_slice(&self.left.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let word = |at: usize| -> [u8; 8] { std::array::from_fn(|i| bytes[at + i]) };
        let half = |at: usize| -> [u8; 4] { std::array::from_fn(|i| bytes[at + i]) };
        Self {
            upper: u64::from_le_bytes(word(0)),
            origin: Ino(u64::from_le_bytes(word(8))),
            birth: Timestamp {
                secs: i64::from_le_bytes(word(16)),
                nanos: u32::from_le_bytes(half(24)),
            },
            left: u32::from_le_bytes(half(28)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_does_not_grow_without_end() {
        let work = tempfile::tempdir().unwrap();
        let fd = sys::open_dir(work.path()).unwrap();
        let index = Index::open(fd.as_fd()).unwrap();
        for _ in 0..3 * LONG_LOG {
            index.count_down(Ino(5), 4 * LONG_LOG as u32, None).unwrap();
        }
        let size = std::fs::metadata(work.path().join(LOG_NAME)).unwrap().len();
        assert!(size <= ((LONG_LOG + 1) * RECORD) as u64, "{size}");
        drop(index);
        let last = LONG_LOG as u32;
        assert_eq!(Index::open(fd.as_fd()).unwrap().left(Ino(5)).unwrap().names, last);
    }

    #[test]
    fn origins_and_counts_outlive_the_mount() {
        let work = tempfile::tempdir().unwrap();
        let file = work.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fd = sys::open_dir(work.path()).unwrap();
        let stat = sys::statx_at(fd.as_fd(), b"file").unwrap();
        let index = Index::open(fd.as_fd()).unwrap();
        assert_eq!(index.origin(&stat), None);
        index.record_origin(&stat, Ino(77)).unwrap();
        let time = Timestamp { secs: 7, nanos: 8 };
        index.start_count(Ino(77), 5).unwrap();
        assert_eq!(
            (index.count_down(Ino(77), 9, None), index.count_down(Ino(77), 9, Some(time))),
            (Ok(()), Ok(()))
        );
        let opened = File::open(&file).unwrap();
        index.link(opened.as_fd(), Ino(77)).unwrap();
        assert_eq!(index.record_device(&stat).is_ok(), stat.btime.is_some());
        (&*index.log.lock().file).write_all(b"torn").unwrap();
        drop(index);
        let torn = Index::open(fd.as_fd()).unwrap();
        torn.count_down(Ino(78), 10, None).unwrap();
        drop(torn);

        let again = Index::open(fd.as_fd()).unwrap();
        if stat.btime.is_some() {
            assert_eq!(again.origin(&stat), Some(Ino(77)));
            assert!(again.is_device(&stat));
        }
        let reborn = Stat { btime: Some(Timestamp { secs: 1, nanos: 1 }), ..stat };
        assert_eq!(again.origin(&reborn), None);
        assert!(!again.is_device(&reborn));
        assert_eq!(again.left(Ino(77)), Some(Left { names: 3, removed: time }));
        assert_eq!(again.left(Ino(78)).unwrap().names, 9);
        assert!(again.is_linked(Ino(77)));
        again.unlink(Ino(77)).unwrap();
        assert!(!Index::open(fd.as_fd()).unwrap().is_linked(Ino(77)));
    }
}
