//! A file mapped into memory for reading.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The content of a file that does not change.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps all of the file, which nobody may change or cut while it is mapped.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: such files appear by a rename, complete, and are replaced by another rename,
        // which leaves what is mapped as it is; they lie where only their owner goes.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
