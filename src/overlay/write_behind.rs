//! Having the disk write a large file while more of it comes.
//!
//! What is written to a file is in memory twice: in the mount's page cache, and in that of upper's
//! filesystem, which has it written at an fsync(2), or some time later. Of a file that grows and
//! grows, the disk writes what has come meanwhile, and that leaves the second page cache: it takes
//! half of the memory, and an fsync finds little to do. A file that is written over and over is left
//! to upper's filesystem, which may write it once for many times; a volatile mount writes as little
//! as it can.

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
/// Bytes up to which a file is not large. What was given to the disk is looked at once more a step
/// later, when it has been written.
const LARGE_FILE: u64 = 2 * STEP;

/// A file of upper that has grown.
#[derive(Debug)]
pub struct Grown {
    file: Arc<OwnedFd>,
    end: u64,
}

impl Grown {
    /// Has the disk write the last step, and drops the one before, without waiting for either.
    pub fn write_out(&self) {
        let from = self.end - LARGE_FILE;
        // POSIX_FADV_DONTNEED begins to write what is dirty, and drops what is not.
        let given =
            rustix::fs::fadvise(&self.file, from, NonZeroU64::new(LARGE_FILE), Advice::DontNeed);
        best_effort("give what was written to the disk", given);
    }
}

impl Overlay {
    /// After so many bytes were written at `offset`: the file, if a step of it is to be given to the
    /// disk.
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
