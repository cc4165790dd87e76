//! What operations are done on: a directory that is reached through the kernel. It may be
//! plain, a plyfs mount, or a mount of the kernel's overlayfs.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::fs::{Timespec, Timestamps, Uid, XattrFlags};
use walkdir::DirEntryExt;

use crate::op::{How, Op, SLOTS};

/// What an operation gave: what was read, or the errno.
pub type Outcome = Result<Vec<u8>, i32>;

/// Something that operations are done on.
pub trait Subject {
    fn apply(&mut self, op: &Op) -> Outcome;
    /// The whole tree, a line for each path.
    fn snapshot(&self) -> Vec<String>;
}

/// The xattr that operations set.
pub const XATTR: &str = "user.model";

type Res<T> = rustix::io::Result<T>;

/// How a directory's tree is taken down and put up again; a plain one is always there.
pub trait Mounting {
    fn remount(&mut self) {}
    fn stack(&mut self) {}
}

/// No mount at all.
pub struct Plain;

impl Mounting for Plain {}

/// A directory reached by paths.
pub struct Directory<M> {
    pub root: PathBuf,
    pub mounting: M,
    open: [Option<OwnedFd>; SLOTS],
}

impl<M> Directory<M> {
    pub fn new(root: PathBuf, mounting: M) -> Self {
        Self { root, mounting, open: [const { None }; SLOTS] }
    }

    /// The directory that holds the last name of `path`; no step through a symlink.
    fn parent<'a>(&self, path: &'a str) -> Res<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty())?;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        Ok((rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?, name))
    }

    fn file(&self, path: &str, flags: OFlags) -> Res<OwnedFd> {
        let (dir, name) = self.parent(path)?;
        let kind = FileType::from_raw_mode(
            rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode,
        );
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(rustix::io::Errno::ISDIR),
            _ => return Err(rustix::io::Errno::INVAL),
        }
        rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
    }

    fn slot(&self, slot: usize) -> Res<&OwnedFd> {
        self.open[slot].as_ref().ok_or(rustix::io::Errno::BADF)
    }

    fn proc_path(&self, path: &str) -> Res<PathBuf> {
        self.parent(path)?;
        Ok(self.root.join(path))
    }

    fn try_apply(&mut self, op: &Op) -> Res<Vec<u8>> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        match op {
            Op::Create(path) => {
                let (dir, name) = self.parent(path)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
            }
            Op::Write(path, at, byte) => {
                rustix::io::pwrite(self.file(path, OFlags::WRONLY)?, &[*byte], *at)?;
            }
            Op::Truncate(path, size) => {
                rustix::fs::ftruncate(self.file(path, OFlags::WRONLY)?, *size)?;
            }
            Op::Chmod(path, mode) => {
                let (dir, name) = self.parent(path)?;
                let stat = rustix::fs::statat(&dir, name, nofollow)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                    return Err(rustix::io::Errno::LOOP);
                }
                rustix::fs::chmodat(dir, name, Mode::from_raw_mode(*mode), AtFlags::empty())?;
            }
            Op::Chown(path, uid, gid) => {
                let (dir, name) = self.parent(path)?;
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::chownat(dir, name, uid, gid, nofollow)?;
            }
            Op::SetTime(path, secs) => {
                let (dir, name) = self.parent(path)?;
                let time = Timespec { tv_sec: *secs, tv_nsec: 77 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(dir, name, &times, nofollow)?;
            }
            Op::SetXattr(path, byte) => {
                let path = self.proc_path(path)?;
                rustix::fs::lsetxattr(path, XATTR, &[*byte], XattrFlags::empty())?;
            }
            Op::RemoveXattr(path) => rustix::fs::lremovexattr(self.proc_path(path)?, XATTR)?,
            Op::Mkdir(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
            }
            Op::Fifo(path) => {
                let (dir, name) = self.parent(path)?;
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0)?;
            }
            Op::Symlink(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::symlinkat("f", dir, name)?;
            }
            Op::Unlink(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            }
            Op::Rmdir(path) => {
                let (dir, name) = self.parent(path)?;
                rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
            }
            Op::Rename(from, to, how) => {
                let ((dir, name), (new_dir, new_name)) = (self.parent(from)?, self.parent(to)?);
                let flags = match how {
                    How::Replace => RenameFlags::empty(),
                    How::NoReplace => RenameFlags::NOREPLACE,
                    How::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(dir, name, new_dir, new_name, flags)?;
            }
            Op::Link(from, to) => {
                let ((dir, name), (new_dir, new_name)) = (self.parent(from)?, self.parent(to)?);
                rustix::fs::linkat(dir, name, new_dir, new_name, AtFlags::empty())?;
            }
            Op::Open(slot, path) => {
                let fd = self.file(path, OFlags::RDWR)?;
                self.open[*slot] = Some(fd);
            }
            Op::OpenWrite(slot, at, byte) => {
                rustix::io::pwrite(self.slot(*slot)?, &[*byte], *at)?;
            }
            Op::OpenTruncate(slot, size) => rustix::fs::ftruncate(self.slot(*slot)?, *size)?,
            Op::OpenChmod(slot, mode) => {
                rustix::fs::fchmod(self.slot(*slot)?, Mode::from_raw_mode(*mode))?;
            }
            Op::OpenPunch(slot, at, len) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.slot(*slot)?, flags, *at, *len)?;
            }
            Op::OpenRead(slot) => {
                let fd = self.slot(*slot)?;
                let mut data = vec![0; 256];
                let len = rustix::io::pread(fd, &mut data, 0)?;
                data.truncate(len);
                let stat = rustix::fs::fstat(fd)?;
                let told = format!(" mode {:o} links {}", stat.st_mode, stat.st_nlink);
                data.extend_from_slice(told.as_bytes());
                return Ok(data);
            }
            Op::Close(slot) => self.open[*slot] = None,
            Op::Remount | Op::Stack => unreachable!("the mounting's"),
        }
        Ok(Vec::new())
    }
}

impl<M: Mounting> Subject for Directory<M> {
    fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Remount | Op::Stack => self.open = [const { None }; SLOTS],
            _ => return self.try_apply(op).map_err(rustix::io::Errno::raw_os_error),
        }
        match op {
            Op::Remount => self.mounting.remount(),
            _ => self.mounting.stack(),
        }
        Ok(Vec::new())
    }

    fn snapshot(&self) -> Vec<String> {
        snapshot(&self.root)
    }
}

/// One path's line.
pub struct Facts<'a> {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub mtime: (i64, u32),
    pub ino: u64,
    /// What a file or a symlink holds.
    pub content: &'a [u8],
    pub xattr: Option<Vec<u8>>,
}

/// The lines of a tree; paths must come sorted.
#[derive(Default)]
pub struct Lines {
    lines: Vec<String>,
    /// Inode -> the first name that showed it.
    first: Vec<(u64, String)>,
}

impl Lines {
    pub fn add(&mut self, path: &str, facts: &Facts<'_>) {
        let content = match facts.content.len() {
            ..100 => facts.content.escape_ascii().to_string(),
            len => format!("{len} bytes, sum {:x}", sum(facts.content)),
        };
        let mut line = format!(
            "{path} {:?} {:o} {}:{} {content}",
            facts.kind,
            facts.mode & 0o7777,
            facts.uid,
            facts.gid,
        );
        // What happened during the run has a time of its own on each side.
        if facts.mtime.0 < 1_000_000_000 {
            line += &format!(" mtime {}.{}", facts.mtime.0, facts.mtime.1);
        }
        if let Some(value) = &facts.xattr {
            line += &format!(" xattr {}", value.escape_ascii());
        }
        if facts.kind != FileType::Directory {
            let known = self.first.iter().find(|(ino, _)| *ino == facts.ino);
            let first = known.map_or(path, |(_, first)| first).to_owned();
            line += &format!(" links {} first {first}", facts.nlink);
            self.first.push((facts.ino, first));
        }
        self.lines.push(line);
    }

    pub fn finish(mut self) -> Vec<String> {
        self.lines.sort();
        self.lines
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// All that a real tree shows.
pub fn snapshot(root: &Path) -> Vec<String> {
    let mut lines = Lines::default();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().display().to_string();
        let m = entry.path().symlink_metadata().unwrap();
        let content = match m.file_type() {
            kind if kind.is_file() => fs::read(entry.path()).unwrap(),
            kind if kind.is_symlink() => {
                fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec()
            }
            kind if kind.is_char_device() => m.rdev().to_string().into_bytes(),
            _ => Vec::new(),
        };
        assert_eq!(m.ino(), entry.ino(), "readdir and stat differ on {path}");
        lines.add(
            &path,
            &Facts {
                kind: FileType::from_raw_mode(m.mode()),
                mode: m.mode(),
                uid: m.uid(),
                gid: m.gid(),
                nlink: m.nlink(),
                mtime: (m.mtime(), m.mtime_nsec() as u32),
                ino: m.ino(),
                content: &content,
                xattr: xattr(entry.path()),
            },
        );
    }
    lines.finish()
}

fn xattr(path: &Path) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut value = vec![0; 64];
    let len = rustix::fs::lgetxattr(&*path, XATTR, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

/// Gives everything below `root` an old time that depends on its path alone: so a disturbed
/// one shows, and a tree agrees with the layers that it is the union of.
pub fn age(root: &Path) {
    for entry in walkdir::WalkDir::new(root).contents_first(true).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes();
        let time = Timespec { tv_sec: (sum(path) % 100_000) as i64, tv_nsec: 5 };
        let times = Timestamps { last_access: time, last_modification: time };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, entry.path(), &times, nofollow).unwrap();
    }
}
