//! Having the disk write a large file while more of it comes.
//!
//! What is written to a file is in memory twice: in the mount's page cache, and in that of upper's
//! filesystem, which has it written at an fsync(2), or some time later. Of a file that grows and
//! grows, the disk writes meanwhile what has come, and what it has written leaves the second page
//! cache: the file takes less memory, and an fsync finds little to do. A file that is written over and
//! over is left to upper's filesystem, which may write it once for many times, and so is one that is
//! not that large, and may be gone soon; a volatile mount writes as little as it can.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Advice;

use super::Overlay;
use super::error::best_effort;
use super::real::Access;
use crate::layers::number::Ino;
use crate::sys;

/// Bytes written at a time of a file that is large, probably.
const LARGE_WRITE: usize = 128 << 10;
/// Bytes after which the disk is given what has come.
const STEP: u64 = 8 << 20;
/// Bytes from which on a file is large.
const LARGE_FILE: u64 = 64 << 20;

/// A file of upper that has grown.
#[derive(Debug)]
pub struct Grown {
    file: Arc<OwnedFd>,
    end: u64,
}

impl Grown {
    /// Has the disk write what has come, and drops what it has written.
    pub fn write_out(&self) {
        // POSIX_FADV_DONTNEED begins to write what is dirty, and drops what is not.
        let all = NonZeroU64::new(self.end);
        let given = rustix::fs::fadvise(&self.file, 0, all, Advice::DontNeed);
        best_effort("give what was written to the disk", given);
    }
}

impl Overlay {
    /// After so many bytes were written at `offset`: the file, if it has grown a step that is to be given
    /// to the disk.
    pub fn grown(&self, ino: Ino, offset: u64, written: usize) -> Option<Grown> {
        let written_to = offset + written as u64;
        let end = written_to / STEP * STEP;
        if self.volatile.is_some() || written < LARGE_WRITE || end < LARGE_FILE || end <= offset {
            return None;
        }
        let file = self.data(&self.inode(ino).ok()?, Access::Write).ok()?;
        let size = sys::fstat(&file).ok()?.size;
        (size == written_to).then_some(Grown { file, end })
    }
}
