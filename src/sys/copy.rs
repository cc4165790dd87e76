//! Copying a file's data: shared extents where the filesystem can, else in the kernel,
//! else through a buffer; holes stay holes.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::retry_on_intr;

use super::{Errno, Result, checked};

/// What is done after a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCopy {
    /// It is synced at once, so the disk may write what has been copied while more is.
    Sync,
    /// It is not, or later with others.
    NoSync,
}

/// Bytes moved by one copy_file_range(2), so that a kill or an error is noticed in time, and the disk
/// has something to write soon.
const KERNEL_CHUNK: usize = 8 << 20;
/// Bytes of the buffer where the kernel cannot copy by itself.
const BUFFER_SIZE: usize = 1 << 20;

/// Bytes of a block of nearly all filesystems.
const SMALL: usize = 4096;

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Copies the first `size` bytes of `from` into the empty file `to`, whose size becomes `size`.
pub fn copy_data(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
    after: AfterCopy,
) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    if size <= SMALL as u64 {
        return copy_small(from, to, size);
    }
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return rustix::fs::ftruncate(to, size);
    }
    let mut copy = Copy { from, to, after, given: 0 };
    let (mut position, mut copied) = (0, 0);
    while let Some((start, end)) = next_extent(from, position, size)? {
        copied = copy.range(start, end)?;
        position = end;
    }
    if copied == size {
        return Ok(());
    }
    rustix::fs::ftruncate(to, size)
}

/// As [`copy_data`], for a file of one block: it is a hole, or has none.
fn copy_small(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<()> {
    let mut buffer = [0; SMALL];
    let mut bytes = &mut buffer[..usize::try_from(size).unwrap_or(SMALL)];
    let mut read = 0;
    while read < bytes.len() {
        match retry_on_intr(|| rustix::io::pread(from, &mut bytes[read..], read as u64))? {
            0 => bytes = &mut bytes[..read],
            got => read += got,
        }
    }
    if bytes.len() as u64 != size || is_zero(bytes) {
        rustix::fs::ftruncate(to, size)?;
    }
    if is_zero(bytes) { Ok(()) } else { write_all(to, bytes, 0) }
}

fn write_all(to: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match retry_on_intr(|| rustix::io::pwrite(to, &bytes[done..], at + done as u64))? {
            0 => return Err(Errno::IO),
            written => done += written,
        }
    }
    Ok(())
}

/// The next run of data at or after `position` and below `size`, or `None` if only a hole is left.
fn next_extent(from: BorrowedFd<'_>, position: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if position >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((position, size))),
        Err(errno) => return Err(errno),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(size))))
}

/// Whether there is no byte but zeros from `start` to `end`.
pub fn is_zero_between(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<bool> {
    let mut buffer = Vec::new();
    let mut position = start;
    while let Some((data, data_end)) = next_extent(file, position, end)? {
        position = data;
        while position < data_end {
            buffer.resize(BUFFER_SIZE, 0);
            let want = usize::try_from(data_end - position).unwrap_or(usize::MAX).min(BUFFER_SIZE);
            let got = rustix::io::pread(file, &mut buffer[..want], position)?;
            if !is_zero(&buffer[..got]) {
                return Ok(false);
            }
            if got == 0 {
                return Ok(true);
            }
            position += got as u64;
        }
    }
    Ok(true)
}

/// A copy under way.
struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    after: AfterCopy,
    /// Where that ends which the disk has been given.
    given: u64,
}

impl Copy<'_> {
    /// Copies what is there from `start` to `end`; returns where that ends.
    fn range(&mut self, start: u64, end: u64) -> Result<u64> {
        let (from, to) = (self.from, self.to);
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let len = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(KERNEL_CHUNK);
            let (input, output) = (Some(&mut read_at), Some(&mut write_at));
            match rustix::fs::copy_file_range(from, input, to, output, len) {
                Ok(0) => break,
                Ok(_) => self.reached(write_at)?,
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    return self.buffered(read_at, end);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(write_at)
    }

    fn buffered(&mut self, start: u64, end: u64) -> Result<u64> {
        let mut buffer = vec![0; BUFFER_SIZE];
        let mut position = start;
        while position < end {
            let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(BUFFER_SIZE);
            let got = rustix::io::pread(self.from, &mut buffer[..want], position)?;
            if got == 0 {
                break;
            }
            write_all(self.to, &buffer[..got], position)?;
            position += got as u64;
            self.reached(position)?;
        }
        Ok(position)
    }

    /// Gives the disk what has been copied up to `end`, if that is worth it.
    fn reached(&mut self, end: u64) -> Result<()> {
        if self.after == AfterCopy::Sync && end - self.given >= KERNEL_CHUNK as u64 {
            start_writing(self.to, self.given, end - self.given)?;
            self.given = end;
        }
        Ok(())
    }
}

/// Has the disk begin to write a part of a file, which is not waited for.
fn start_writing(file: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let (start, len) = (start.cast_signed(), len.cast_signed());
    // SAFETY: sync_file_range(2) takes numbers alone.
    let started =
        unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
    match checked(started) {
        // The filesystem has no such thing.
        Err(Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => Ok(()),
        // What it cannot write now the sync might not tell.
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_sparse_file_stays_sparse() {
        let mut from = tempfile::tempfile().unwrap();
        from.set_len(8 << 20).unwrap();
        from.seek(std::io::SeekFrom::Start(4 << 20)).unwrap();
        from.write_all(b"island").unwrap();
        let mut to = tempfile::tempfile().unwrap();
        copy_data(from.as_fd(), to.as_fd(), 8 << 20, AfterCopy::NoSync).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 8 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut all = Vec::new();
        to.rewind().unwrap();
        to.read_to_end(&mut all).unwrap();
        assert_eq!(&all[4 << 20..(4 << 20) + 6], b"island");
        assert!(is_zero(&all[..4 << 20]));
    }

    #[test]
    fn a_small_file_is_copied_and_a_small_hole_stays_one() {
        for (text, size) in [("some text", 9), ("", 700), ("ends early", 12)] {
            let mut from = tempfile::tempfile().unwrap();
            from.write_all(text.as_bytes()).unwrap();
            from.set_len(size).unwrap();
            let mut to = tempfile::tempfile().unwrap();
            copy_data(from.as_fd(), to.as_fd(), size, AfterCopy::Sync).unwrap();
            let mut all = Vec::new();
            to.rewind().unwrap();
            to.read_to_end(&mut all).unwrap();
            let mut expected = text.as_bytes().to_vec();
            expected.resize(size as usize, 0);
            assert_eq!(all, expected);
            assert!(!text.is_empty() || to.metadata().unwrap().blocks() == 0);
        }
    }

    #[test]
    fn a_file_of_several_steps_is_copied_whole() {
        let bytes: Vec<u8> = (0..2 * KERNEL_CHUNK + 5).map(|at| (at / 999) as u8 | 1).collect();
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(&bytes).unwrap();
        for after in [AfterCopy::Sync, AfterCopy::NoSync] {
            let mut to = tempfile::tempfile().unwrap();
            copy_data(from.as_fd(), to.as_fd(), bytes.len() as u64, after).unwrap();
            let mut all = Vec::new();
            to.rewind().unwrap();
            to.read_to_end(&mut all).unwrap();
            assert!(all == bytes);
            let mut copy = Copy { from: from.as_fd(), to: to.as_fd(), after, given: 0 };
            assert_eq!(copy.buffered(0, bytes.len() as u64), Ok(bytes.len() as u64));
            let given = if after == AfterCopy::Sync { 2 * KERNEL_CHUNK as u64 } else { 0 };
            assert_eq!(copy.given, given);
        }
    }

    #[test]
    fn a_shorter_size_cuts_the_copy() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(b"0123456789").unwrap();
        let mut to = tempfile::tempfile().unwrap();
        copy_data(from.as_fd(), to.as_fd(), 4, AfterCopy::NoSync).unwrap();
        let mut all = String::new();
        to.rewind().unwrap();
        to.read_to_string(&mut all).unwrap();
        assert_eq!(all, "0123");
    }
}
