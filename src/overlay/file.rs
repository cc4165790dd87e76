//! A file's data: read, write, sync, allocate, seek. All addressed by inode; a lower file is
//! copied up at the first write.

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::error::{Context, Error, Result, best_effort};
use super::inode::Inode;
use super::ownership::read_target;
use super::real::{Access, OpenData};
use super::suidgid::SuidGid;
use super::watcher::Stale;
use super::{Atime, Overlay};
use crate::layers::number::Ino;
use crate::sys::{self, Errno};

/// What the kernel asks for of a file that is read on and on. Smaller files are the many that
/// containers share: those stay in memory for the layer.
const LARGE_READ: usize = 128 << 10;

/// How far back a page of the layer's filesystem may begin that ends where a read does.
const LARGEST_FOLIO: u64 = 4 << 20;

/// Bytes of a lower file from which on it is worth not to have it in memory for each mount.
const LARGE_FILE: u64 = 32 << 20;

/// Where a large lower file that was read stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// In the mount's page cache: who reads it again there asks nobody.
    Mount,
    /// In that of the layer's filesystem: other mounts find it there. The mount's goes when nobody has
    /// the file open any more, so this takes who tells of that.
    Layer,
}

/// Drops what was read up to `end` from the page cache of the layer's filesystem: the kernel keeps
/// it for the mount, and need not keep it twice.
fn forget_read(fd: &OwnedFd, end: u64) {
    let start = end.saturating_sub(LARGEST_FOLIO);
    let dropped = rustix::fs::fadvise(fd, start, NonZeroU64::new(end - start), Advice::DontNeed);
    best_effort("drop what was read", dropped);
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    /// What it does to setuid and setgid.
    pub suidgid: SuidGid,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data (SEEK_DATA).
    Data,
    /// The next hole, or the end (SEEK_HOLE).
    Hole,
}

impl Overlay {
    /// Reads up to `buffer.len()` bytes at `offset`; less only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        let data = self.open_data(&inode, Access::Read)?;
        let fd = &data.fd;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("read", b""),
            }
        }
        self.was_read(&inode, &data, offset, done);
        Ok(done)
    }

    /// As [`read`](Self::read), but nothing if it would have to wait for a disk.
    pub fn read_cached(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
        let inode = self.inode(ino)?;
        let data = self.open_data(&inode, Access::Read)?;
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut [IoSliceMut::new(&mut buffer[done..])];
            let at = offset + done as u64;
            match rustix::io::preadv2(&data.fd, rest, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // It is not cached, or the filesystem does not tell.
                Err(Errno::AGAIN | Errno::OPNOTSUPP) => return Ok(None),
                Err(errno) => return Err(errno).context("read", b""),
            }
        }
        self.was_read(&inode, &data, offset, done);
        Ok(Some(done))
    }

    /// What reading brings with it.
    fn was_read(&self, inode: &Inode, data: &OpenData, offset: u64, done: usize) {
        let OpenData { fd, in_upper } = data;
        if offset == 0 {
            self.was_accessed(inode);
        }
        let keeps = self.keeps.get().copied().unwrap_or(Keeps::Mount);
        if !in_upper && done >= LARGE_READ && keeps == Keeps::Mount {
            forget_read(fd, offset + done as u64);
        }
        if self.atime == Atime::Always && *in_upper {
            let marked = sys::set_times(fd.as_fd(), Some(sys::TimeChange::Now), None);
            best_effort("mark an access", marked);
        }
    }

    /// Sets where large lower files stay in memory, once.
    pub fn keep_large_files(&self, keeps: Keeps) {
        let set = self.keeps.set(keeps);
        debug_assert!(set.is_ok(), "called twice");
    }

    /// Nobody has `ino` open any more, and `bytes` of it were read since somebody had. A large lower file
    /// most of which was read leaves the mount's page cache, if the layer's is to keep it; not one of
    /// which parts were read, for it may be mapped again soon, as libraries are.
    pub fn was_closed(&self, ino: Ino, bytes: u64) {
        let is_kept = self.keeps.get() == Some(&Keeps::Layer) && bytes >= LARGE_FILE / 2;
        let Some(inode) = is_kept.then(|| self.inode(ino).ok()).flatten() else { return };
        let is_most = |size: u64| size >= LARGE_FILE && bytes >= size - size / 4;
        let was_read = self.getattr(ino).is_ok_and(|attr| is_most(attr.stat.size));
        if was_read && !inode.has_data_in_upper() {
            self.watcher.tell_of(Stale::Data(ino));
        }
    }

    /// Writes all of `data` at `offset`, unless an error stops it half-way: then what was
    /// written is counted, and the error comes with the next write.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], flags: WriteFlags) -> Result<usize> {
        let inode = self.inode(ino)?;
        let fd = match self.writable(&inode) {
            Err(Error::Io { errno: Errno::PERM, .. }) if inode.has_data_in_upper() => {
                return self.append(&inode, offset, data);
            }
            result => result?,
        };
        self.drop_privileges(&inode, fd.as_fd(), flags.suidgid)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&fd, &data[done..], offset + done as u64) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) if done == 0 => return Err(errno).context("write", b""),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes to a file that only grows: its descriptor must say so, and only the end will do.
    fn append(&self, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<usize> {
        let object = self.object(inode)?;
        let stat = sys::fstat(object.as_fd()).context("stat", b"")?;
        if !stat.append_only || offset != stat.size {
            return Err(Errno::PERM).context("write", b"");
        }
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let fd = sys::reopen(object.as_fd(), flags).context("open for appending", b"")?;
        rustix::io::write(&fd, data).context("append", b"")
    }

    /// The real file behind an inode, if it stays the same one for as long as the inode is known:
    /// one in upper, open for writing, or a lower one where there is no upper.
    pub fn backing(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        let inode = self.inode(ino).ok()?;
        let access = match self.upper {
            Some(_) if inode.has_data_in_upper() => Access::Write,
            Some(_) => return None,
            None => Access::Read,
        };
        let file = self.data(&inode, access);
        file.inspect_err(|error| log::debug!("no file for the kernel: {error}")).ok()
    }

    /// Whether a file's data lies in upper.
    pub fn has_data_in_upper(&self, ino: Ino) -> bool {
        self.inode(ino).is_ok_and(|inode| inode.has_data_in_upper())
    }

    fn writable(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        self.copy_up_to_write(inode, None)?;
        self.data(inode, Access::Write)
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        read_target(&*self.object(&self.inode(ino)?)?)
    }

    /// Makes a file's data durable; `data_only` leaves out what reading it does not need.
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        let inode = self.inode(ino)?;
        if !inode.in_upper() || self.skips_sync()? {
            return Ok(()); // a lower file has nothing that is not durable
        }
        let file = inode.state.read().upper.as_ref().map_or(0, |upper| upper.ino);
        let fd = if inode.is_dir() {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let dir = sys::open_at(self.upper_dir(&inode)?.as_fd(), b".", flags);
            Arc::new(dir.context("open", b".")?)
        } else if !inode.has_data_in_upper() {
            // A metacopy: its attributes are all that is new.
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            Arc::new(sys::reopen(self.object(&inode)?.as_fd(), flags).context("open", b"")?)
        } else {
            self.data(&inode, Access::Read)?
        };
        // Some filesystems let fdatasync(2) leave out the rename that gave the file its name: the
        // first sync is always whole.
        if data_only && inode.synced.load(Ordering::Relaxed) {
            return rustix::fs::fdatasync(&fd).context("sync", b"");
        }
        rustix::fs::fsync(&fd).context("sync", b"")?;
        inode.set_synced(file);
        Ok(())
    }

    /// fallocate(2), in all modes of the filesystem below.
    pub fn fallocate(
        &self,
        ino: Ino,
        mode: i32,
        offset: u64,
        len: u64,
        how: WriteFlags,
    ) -> Result<()> {
        let flags = FallocateFlags::from_bits(mode.cast_unsigned()).ok_or(Error::Io {
            op: "fallocate",
            name: String::new(),
            errno: Errno::OPNOTSUPP,
        })?;
        let inode = self.inode(ino)?;
        let fd = self.writable(&inode)?;
        self.drop_privileges(&inode, fd.as_fd(), how.suidgid)?;
        rustix::fs::fallocate(&fd, flags, offset, len).context("fallocate", b"")?;
        self.watcher.tell(ino);
        Ok(())
    }

    /// The offset of the next data or hole at or after `offset`.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        let inode = self.inode(ino)?;
        let fd = self.data(&inode, Access::Read)?;
        let from = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        // The descriptor is shared, but nothing uses its position.
        rustix::fs::seek(&fd, from).context("seek", b"")
    }

    /// copy_file_range(2) between two files of the union.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: usize,
        how: WriteFlags,
    ) -> Result<usize> {
        let (from, to) = (self.inode(from)?, self.inode(to)?);
        let out = self.writable(&to)?;
        self.drop_privileges(&to, out.as_fd(), how.suidgid)?;
        let input = self.data(&from, Access::Read)?;
        let (mut read_at, mut write_at) = (from_offset, to_offset);
        rustix::fs::copy_file_range(&input, Some(&mut read_at), &out, Some(&mut write_at), len)
            .context("copy range", b"")
    }
}
