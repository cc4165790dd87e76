//! The writable layer: the upper directory and its workdir.
//!
//! ```text
//! UPPER/             the changeset, always a valid one: names, `.wh.` marks
//! WORK/tmp/          what is being built; a link or rename publishes it; emptied at mount
//! WORK/index/        see [`super::index`]
//! WORK/spent/        see [`super::index`]
//! WORK/origins       see [`super::index`]
//! WORK/volatile      see [`super::volatile`]
//! WORK/lock          locked (flock) while mounted; says by whom
//! ```
//!
//! Invariant: nothing becomes visible in upper but by one link(2), mkdir(2), open(2) or
//! rename(2) of something complete.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::index::Index;
use super::redirect::Namespace;
use super::{Error, marks};
use crate::sys::{self, Errno, FileType, Ignoring};

/// How long a mount waits for the lock of a daemon that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The upper directory, its workdir and its index.
#[derive(Debug)]
pub struct Upper {
    root: OwnedFd,
    is_rich: AtomicBool,
    tmp: Arc<OwnedFd>,
    index: Index,
    next_temp: AtomicU64,
    /// Whether its filesystem has files without a name (`O_TMPFILE`) that are synced all the same.
    has_nameless: AtomicBool,
    /// Hold the locks until dropped.
    _locks: (File, OwnedFd),
}

impl Upper {
    /// Opens upper and workdir, takes the lock for `holder` and clears what a crash left.
    pub fn open(
        upper: &Path,
        work: &Path,
        namespace: Namespace,
        holder: &str,
    ) -> Result<Self, Error> {
        let root = sys::open_dir(upper).map_err(Error::io("open upper", upper))?;
        let work_fd = sys::open_dir(work).map_err(Error::io("open workdir", work))?;
        check_places(upper, &root, work, &work_fd)?;
        let locks = (take_lock(upper, work, &work_fd, holder)?, lock_upper(upper, &root)?);
        let tmp = open_tmp(&work_fd).map_err(Error::io("prepare workdir", work))?;
        let index = Index::open(work_fd.as_fd()).map_err(Error::io("open the index in", work))?;
        let is_rich =
            namespace.is_rich(root.as_fd()).map_err(Error::of_pointers(namespace, upper))?;
        Ok(Self {
            root,
            is_rich: is_rich.into(),
            index,
            next_temp: AtomicU64::new(0),
            has_nameless: syncs_nameless(&tmp).into(),
            tmp: Arc::new(tmp),
            _locks: locks,
        })
    }

    /// The upper directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether it may hold pointers (see [`super::redirect`]).
    pub fn is_rich(&self) -> bool {
        self.is_rich.load(Ordering::Relaxed)
    }

    /// Allows it to hold pointers; false if its filesystem cannot.
    pub fn make_rich(&self, namespace: Namespace) -> bool {
        if let Err(errno) = namespace.make_rich(self.root()) {
            log::warn!("upper takes no xattrs ({errno}): renaming directories copies them");
            return false;
        }
        self.is_rich.store(true, Ordering::Relaxed);
        true
    }

    /// The index in workdir.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// A fresh name in workdir; whatever is made under it goes with the guard, unless published.
    pub fn temp(&self) -> Temp<'_> {
        let name = format!("{:x}", self.next_temp.fetch_add(1, Ordering::Relaxed));
        Temp { dir: self.tmp.as_fd(), name: name.into_bytes(), armed: true }
    }

    /// Creates a regular file without a name, to be linked to one in upper: what a crash leaves of
    /// it is nothing, and it is synced without workdir. `None` where that cannot be.
    pub fn nameless_file(&self, mode: u32) -> sys::Result<Option<OwnedFd>> {
        if !self.has_nameless() {
            return Ok(None);
        }
        let flags = sys::O_READWRITE | OFlags::TMPFILE;
        match rustix::fs::openat(&self.tmp, c".", flags, Mode::from_raw_mode(mode)) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                self.has_nameless.store(false, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Whether files can be made without a name, as far as is known.
    pub fn has_nameless(&self) -> bool {
        self.has_nameless.load(Ordering::Relaxed)
    }

    /// Gives a file a name in workdir for as long as the guard lives.
    pub fn park(&self, file: BorrowedFd<'_>) -> sys::Result<Parked> {
        let temp = self.temp();
        sys::link_fd(file, temp.dir, &temp.name)?;
        Ok(self.keep(temp))
    }

    /// Keeps what was built in workdir under its name there for as long as the guard lives.
    pub fn keep(&self, mut temp: Temp<'_>) -> Parked {
        temp.armed = false;
        Parked { dir: Arc::clone(&self.tmp), name: std::mem::take(&mut temp.name) }
    }

    /// Removes `name` of `dir`; a directory with what is in it.
    pub fn discard(&self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => self.discard_dir(dir, name),
            result => result,
        }
    }

    /// Moves `name` of `dir`, a directory in upper, out of sight and removes it with its marks.
    pub fn discard_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        let trash = self.temp();
        let moved = sys::open_at(dir, name, sys::O_DIRECTORY)?;
        sys::with_write_permission(moved.as_fd(), || {
            rustix::fs::renameat(dir, name, trash.dir, &trash.name[..])
        })
    }

    /// Makes the whiteout of `name` in `dir`; one that is there already is kept.
    pub fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        let mark = marks::whiteout_of(name);
        if mark.content.is_empty() {
            return make_mark(dir, &mark.file_name);
        }
        let mut temp = self.temp();
        let fd = temp.create_file()?;
        rustix::io::write(&fd, &mark.content)?;
        // The mark hides nothing without its content, should the machine crash.
        rustix::fs::fsync(&fd)?;
        temp.publish(dir, &mark.file_name)
    }

    /// Removes the whiteout of `name` in `dir`, if there is one, in each form that hides a name.
    pub fn drop_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        Self::drop_mark(dir, &marks::whiteout_of(name).file_name)
    }

    /// Removes a mark, if it is there; it may be of any type.
    pub fn drop_mark(dir: BorrowedFd<'_>, mark: &[u8]) -> sys::Result<()> {
        remove_tree(dir, mark)
    }

    /// Makes the directory opaque: nothing of the layers below shows in it.
    pub fn make_opaque(dir: BorrowedFd<'_>) -> sys::Result<()> {
        make_mark(dir, marks::OPAQUE)
    }
}

/// Whether fsync(2) of a file without a name makes it durable, as of one with a name: btrfs logs none
/// of it, so that an fsync of the directory that it is linked to later would have an empty file
/// after a crash; of others it is not known.
fn syncs_nameless(dir: &OwnedFd) -> bool {
    const EXT: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::fstatfs(dir).is_ok_and(|fs| [EXT, XFS, TMPFS].contains(&fs.f_type))
}

/// Creates an empty mark file; one that exists is as good.
fn make_mark(dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Something under construction in workdir; removed on drop unless published.
#[derive(Debug)]
pub struct Temp<'a> {
    dir: BorrowedFd<'a>,
    name: Vec<u8>,
    armed: bool,
}

impl Temp<'_> {
    /// The directory to make it in.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir
    }

    /// The name to make it under.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Creates it as a regular file for who mounts alone, open for reading and writing.
    pub fn create_file(&self) -> sys::Result<OwnedFd> {
        self.create_file_of_mode(0o600)
    }

    /// As [`create_file`](Self::create_file), with this mode.
    pub fn create_file_of_mode(&self, mode: u32) -> sys::Result<OwnedFd> {
        let flags = sys::O_READWRITE | OFlags::CREATE | OFlags::EXCL;
        rustix::fs::openat(self.dir, &self.name[..], flags, Mode::from_raw_mode(mode))
    }

    /// Renames it to `name` in `dir`, replacing a file or an empty directory there.
    pub fn publish(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
        rustix::fs::renameat(self.dir, &self.name[..], dir, name)?;
        self.armed = false;
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(errno) = remove_tree(self.dir, &self.name)
        {
            log::warn!("remove workdir's {}: {errno}", self.name.escape_ascii());
        }
    }
}

/// A file that has a name in workdir alone; the name goes with the guard.
#[derive(Debug)]
pub struct Parked {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
}

impl Parked {
    /// Opens the file, `O_PATH`.
    pub fn open(&self) -> sys::Result<OwnedFd> {
        sys::open_at(self.dir.as_fd(), &self.name, sys::O_PATH)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Err(errno) = rustix::fs::unlinkat(&self.dir, &self.name[..], AtFlags::empty()) {
            log::warn!("remove workdir's {}: {errno}", self.name.escape_ascii());
        }
    }
}

/// Removes `name` and what lies below it; a name that is not there is removed already.
fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    let sub = sys::open_at(dir, name, sys::O_DIRECTORY)?;
    // Its mode may forbid that to an ordinary user; should this fail, the rest says why.
    let _ = sys::chmod(sub.as_fd(), 0o700);
    for entry in sys::read_dir(sub.as_fd())? {
        if entry.kind == FileType::Directory {
            remove_tree(sub.as_fd(), &entry.name)?;
        } else {
            rustix::fs::unlinkat(&sub, &entry.name[..], AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn check_places(upper: &Path, root: &OwnedFd, work: &Path, work_fd: &OwnedFd) -> Result<(), Error> {
    let shown = || (upper.display().to_string(), work.display().to_string());
    let mount_of = |fd: &OwnedFd, path: &Path| {
        let mask = rustix::fs::StatxFlags::MNT_ID | rustix::fs::StatxFlags::BASIC_STATS;
        rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)
            .map(|x| (x.stx_dev_major, x.stx_dev_minor, x.stx_mnt_id))
            .map_err(Error::io("stat", path))
    };
    if mount_of(root, upper)? != mount_of(work_fd, work)? {
        let (upper, work) = shown();
        return Err(Error::WorkElsewhere { upper, work });
    }
    let real = |path: &Path| {
        std::fs::canonicalize(path)
            .map_err(|e| Error::io("resolve", path)(Errno::from_io_error(&e).unwrap_or(Errno::IO)))
    };
    let (real_upper, real_work) = (real(upper)?, real(work)?);
    if real_upper.starts_with(&real_work) || real_work.starts_with(&real_upper) {
        let (upper, work) = shown();
        return Err(Error::WorkInsideUpper { upper, work });
    }
    Ok(())
}

fn take_lock(upper: &Path, work: &Path, work_fd: &OwnedFd, holder: &str) -> Result<File, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(work_fd, "lock", flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::io("write workdir", work))?;
    let mut file = File::from(fd);
    match wait_for_lock(&file) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder); // only to say who: the refusal stands
            return Err(Error::Busy {
                upper: upper.display().to_string(),
                holder: holder.trim_end().to_owned(),
            });
        }
        Err(errno) => return Err(Error::io("lock workdir", work)(errno)),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{holder}"));
    written.map_err(|e| {
        Error::io("write workdir's lock", work)(Errno::from_io_error(&e).unwrap_or(Errno::IO))
    })?;
    Ok(file)
}

/// Locks the upper directory itself, for a mount of the same upper with another workdir.
fn lock_upper(upper: &Path, root: &OwnedFd) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(root, c".", flags, Mode::empty())
        .map_err(Error::io("open upper", upper))?;
    match wait_for_lock(&fd) {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(Error::Busy {
            upper: upper.display().to_string(),
            holder: format!("{} with another workdir", flock_holder(&fd)),
        }),
        Err(errno) => Err(Error::io("lock upper", upper)(errno)),
    }
}

/// Who holds the flock(2) on an open file, in words (see proc_locks(5)).
fn flock_holder(file: &OwnedFd) -> String {
    let pid = || -> Option<String> {
        let stat = sys::fstat(file).ok()?;
        let (major, minor) = (rustix::fs::major(stat.dev), rustix::fs::minor(stat.dev));
        let place = format!("{major:02x}:{minor:02x}:{}", stat.ino);
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let words = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut ours = words.filter(|words| words.get(1) == Some(&"FLOCK"));
        ours.find(|words| words.get(5) == Some(&&place[..])).map(|words| words[4].to_owned())
    };
    pid().map_or_else(|| "a mount".to_owned(), |pid| format!("pid {pid}, mounted"))
}

/// Who holds the lock of `work`, or `None` if nobody does.
pub fn lock_holder(work: &Path) -> Option<String> {
    let mut file = File::open(work.join("lock")).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        _ => return None,
    }
    let mut holder = String::new();
    file.read_to_string(&mut holder).ok()?;
    Some(holder.trim_end().to_owned())
}

/// Opens WORK/tmp and removes what a crashed daemon left there.
fn open_tmp(work: &OwnedFd) -> sys::Result<OwnedFd> {
    match rustix::fs::mkdirat(work, "tmp", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let tmp = sys::open_at(work.as_fd(), b"tmp", sys::O_DIRECTORY)?;
    for entry in sys::read_dir(tmp.as_fd())? {
        remove_tree(tmp.as_fd(), &entry.name)?;
    }
    // What is built here must not inherit the workdir's ACL.
    for acl in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
        match sys::remove_xattr(tmp.as_fd(), acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(tmp)
}

/// Takes the lock of a workdir, waiting a moment for a daemon that is just ending; `None` if
/// it was never mounted. EWOULDBLOCK if it is held.
pub fn try_lock(work: &Path) -> sys::Result<Option<File>> {
    let file = open_lock(work)?;
    file.as_ref().map_or(Ok(()), wait_for_lock)?;
    Ok(file)
}

/// [`try_lock`] without waiting.
pub fn try_lock_now(work: &Path) -> sys::Result<Option<File>> {
    let file = open_lock(work)?;
    let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    file.as_ref().map_or(Ok(()), lock)?;
    Ok(file)
}

fn open_lock(work: &Path) -> sys::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(work.join("lock"), flags, Mode::empty());
    Ok(opened.ignoring(Errno::NOENT)?.map(File::from))
}

fn wait_for_lock(file: impl AsFd) -> sys::Result<()> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < give_up => std::thread::sleep(LOCK_POLL),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(upper: &Path, work: &Path, holder: &str) -> Result<Upper, Error> {
        Upper::open(upper, work, Namespace::of_this_process(), holder)
    }

    fn dirs() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        (dir, upper, work)
    }

    #[test]
    fn a_second_mount_is_refused_and_names_the_first() {
        let (_dir, upper, work) = dirs();
        let first = open(&upper, &work, "pid 1 on /first").unwrap();
        let error = open(&upper, &work, "second").unwrap_err().to_string();
        assert!(error.contains("pid 1 on /first"), "{error}");
        assert_eq!(lock_holder(&work).as_deref(), Some("pid 1 on /first"));
        drop(first);
        assert_eq!(lock_holder(&work), None);
        open(&upper, &work, "second").unwrap();
    }

    #[test]
    fn what_a_crash_left_in_workdir_goes() {
        let (_dir, upper, work) = dirs();
        std::fs::create_dir_all(work.join("tmp/0/below")).unwrap();
        std::fs::write(work.join("tmp/1"), "half").unwrap();
        let opened = open(&upper, &work, "me").unwrap();
        assert_eq!(std::fs::read_dir(work.join("tmp")).unwrap().count(), 0);
        let temp = opened.temp();
        temp.create_file().unwrap();
        drop(temp);
        assert_eq!(std::fs::read_dir(work.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_file_without_a_name_gets_one_or_leaves_nothing() {
        let (_dir, upper, work) = dirs();
        let opened = open(&upper, &work, "me").unwrap();
        let Some(file) = opened.nameless_file(0o640).unwrap() else {
            return eprintln!("skipped: no O_TMPFILE");
        };
        rustix::io::write(&file, b"text").unwrap();
        sys::link_fd(file.as_fd(), opened.root(), b"name").unwrap();
        let again = sys::link_fd(file.as_fd(), opened.root(), b"name");
        assert_eq!(again, Err(Errno::EXIST), "it replaces nothing");
        assert_eq!(std::fs::read(upper.join("name")).unwrap(), b"text");
        assert_eq!(std::fs::read_dir(work.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn work_inside_upper_is_refused() {
        let (_dir, upper, _) = dirs();
        let inside = upper.join("work");
        std::fs::create_dir(&inside).unwrap();
        let error = open(&upper, &inside, "me").unwrap_err();
        assert!(matches!(error, Error::WorkInsideUpper { .. }), "{error}");
    }
}
