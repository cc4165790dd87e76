//! The union itself as a subject, without /dev/fuse.

use plyfs::layers::number::Ino;
use plyfs::overlay::{NodeKind, RenameMode, Result, SetAttr, WriteFlags};
use plyfs::sys::{FileType, TimeChange, Timestamp};

use crate::common::union::Union;
use crate::op::{How, Op, SLOTS};
use crate::subject::{Facts, Lines, Outcome, Subject, XATTR};

/// A union, and the inodes that a program would have open.
pub struct InProcess {
    pub union: Union,
    open: [Option<Ino>; SLOTS],
}

impl InProcess {
    pub fn new(union: Union) -> Self {
        Self { union, open: [None; SLOTS] }
    }

    fn close(&mut self, slot: usize) {
        if let Some(ino) = self.open[slot].take() {
            self.union.overlay().forget(ino, 1);
        }
    }

    fn change(&self, path: &str, change: &SetAttr) -> Result<()> {
        self.union.overlay().setattr(self.union.ino(path)?, change).map(drop)
    }

    fn try_apply(&mut self, op: &Op) -> std::result::Result<Vec<u8>, i32> {
        let errno = |error: plyfs::overlay::Error| error.errno().raw_os_error();
        let kind = |path: &str| self.union.stat(path).map(|attr| attr.kind).map_err(errno);
        let opened = |slot: usize| self.open[slot].ok_or(libc::EBADF);
        let u = &self.union;
        let o = u.overlay();
        match op {
            Op::Create(path) => u.create(path, ""),
            Op::Write(path, at, byte) => u.write(path, *at, &char::from(*byte).to_string()),
            Op::Truncate(path, size) => u.truncate(path, *size),
            Op::Chmod(path, mode) => match kind(path)? {
                FileType::Symlink => return Err(libc::ELOOP),
                _ => u.chmod(path, *mode),
            },
            Op::Chown(path, uid, gid) => {
                let owner = SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() };
                self.change(path, &owner)
            }
            Op::SetTime(path, secs) => {
                let time = Some(TimeChange::At(Timestamp { secs: *secs, nanos: 77 }));
                self.change(path, &SetAttr { atime: time, mtime: time, ..SetAttr::default() })
            }
            Op::SetXattr(path, byte) => {
                let ino = u.ino(path).map_err(errno)?;
                match kind(path)? {
                    FileType::RegularFile | FileType::Directory => {
                        o.set_xattr(ino, XATTR.as_bytes(), &[*byte], 0)
                    }
                    _ => return Err(libc::EPERM),
                }
            }
            Op::RemoveXattr(path) => {
                let ino = u.ino(path).map_err(errno)?;
                o.remove_xattr(ino, XATTR.as_bytes())
            }
            Op::Mkdir(path) => u.mkdir(path),
            Op::Fifo(path) => {
                u.make(path, NodeKind::Special { kind: FileType::Fifo, rdev: 0 }, 0o644).map(drop)
            }
            Op::Symlink(path) => u.symlink(path, "f"),
            Op::Unlink(path) => u.unlink(path),
            Op::Rmdir(path) => u.rmdir(path),
            Op::Rename(from, to, how) => {
                let how = match how {
                    How::Replace => RenameMode::Replace,
                    How::NoReplace => RenameMode::NoReplace,
                    How::Exchange => RenameMode::Exchange,
                };
                u.rename_with(from, to, how)
            }
            Op::Link(from, to) => match kind(from)? {
                FileType::Directory => return Err(libc::EPERM),
                _ => u.link(from, to),
            },
            Op::Open(slot, path) => match kind(path)? {
                FileType::RegularFile => {
                    let ino = u.ino(path).map_err(errno)?;
                    self.close(*slot);
                    self.open[*slot] = Some(ino);
                    Ok(())
                }
                FileType::Directory => return Err(libc::EISDIR),
                _ => return Err(libc::EINVAL),
            },
            Op::OpenWrite(slot, at, byte) => {
                o.write(opened(*slot)?, *at, &[*byte], WriteFlags::default()).map(drop)
            }
            Op::OpenTruncate(slot, size) => {
                let change = SetAttr { size: Some(*size), ..SetAttr::default() };
                o.setattr(opened(*slot)?, &change).map(drop)
            }
            Op::OpenChmod(slot, mode) => {
                let change = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                o.setattr(opened(*slot)?, &change).map(drop)
            }
            Op::OpenPunch(slot, at, len) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                o.fallocate(opened(*slot)?, mode, *at, *len, WriteFlags::default())
            }
            Op::OpenRead(slot) => {
                let ino = opened(*slot)?;
                let mut data = vec![0; 256];
                let len = o.read(ino, 0, &mut data).map_err(errno)?;
                data.truncate(len);
                let stat = o.getattr(ino).map_err(errno)?.stat;
                let told = format!(" mode {:o} links {}", stat.mode, stat.nlink);
                data.extend_from_slice(told.as_bytes());
                return Ok(data);
            }
            Op::Close(slot) => {
                self.close(*slot);
                Ok(())
            }
            Op::Remount => {
                self.open = [None; SLOTS];
                self.union.remount();
                Ok(())
            }
            Op::Stack => {
                self.open = [None; SLOTS];
                self.union.stack();
                Ok(())
            }
        }
        .map(|()| Vec::new())
        .map_err(errno)
    }
}

impl Subject for InProcess {
    fn apply(&mut self, op: &Op) -> Outcome {
        self.try_apply(op)
    }

    fn snapshot(&self) -> Vec<String> {
        let mut paths = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            for (name, attr) in self.union.list(&dir) {
                let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                if attr.kind == FileType::Directory {
                    todo.push(path.clone());
                }
                paths.push(path);
            }
        }
        // As a walk of a real tree meets them.
        paths.sort_by_key(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
        let o = self.union.overlay();
        let mut lines = Lines::default();
        for path in paths {
            let attr = self.union.stat(&path).unwrap();
            let content = match attr.kind {
                FileType::RegularFile => {
                    let mut data = vec![0; attr.stat.size as usize + 1];
                    let len = o.read(attr.ino, 0, &mut data).unwrap();
                    data.truncate(len);
                    data
                }
                FileType::Symlink => o.readlink(attr.ino).unwrap(),
                FileType::CharacterDevice => attr.stat.rdev.to_string().into_bytes(),
                _ => Vec::new(),
            };
            lines.add(
                &path,
                &Facts {
                    kind: attr.kind,
                    mode: attr.stat.mode,
                    uid: attr.stat.uid,
                    gid: attr.stat.gid,
                    nlink: u64::from(attr.stat.nlink),
                    mtime: (attr.stat.mtime.secs, attr.stat.mtime.nanos),
                    ino: attr.ino.0,
                    content: &content,
                    xattr: o.get_xattr(attr.ino, XATTR.as_bytes()).ok(),
                },
            );
            // References that the walk counted are as those of a kernel that remembers.
        }
        lines.finish()
    }
}
