//! A reader of tar streams: ustar, pax (POSIX.1-2001), GNU and v7.
//!
//! Our own, because layers need what a general reader loses: names and xattr values are
//! bytes (a pax value may hold a newline), times have nanoseconds, and the size that frames
//! the data is decided in one place, so that the stream cannot be read out of step.
//!
//! Whoever wants to write the same stream again has it *recorded*: all bytes that are no data of
//! a file are kept aside.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read, Seek};

pub use header::begins_tar;
use header::{Header, checksum_fits, until_nul};
use pax::Pax;
pub use pax::Xattrs;
pub use sparse::Sparse;

use super::compression::read_full;
use super::limits::{Limits, Name};
use super::{Error, Result};
use crate::sys::Timestamp;

/// Everything in a tar comes in blocks of this many bytes.
pub const BLOCK: usize = 512;
/// Largest size of an entry's data: what a file can have (off_t), less a block for padding.
const MAX_SIZE: u64 = i64::MAX as u64 - BLOCK as u64;
/// Largest device numbers of Linux (kdev_t.h): beyond them mknod(2) makes another device.
const MAX_DEVICE: (u32, u32) = (0xfff, 0xf_ffff);
/// Bytes of an extended header beyond those of its paths and xattrs.
const MAX_OTHER: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with data.
    File,
    /// Another name of an entry.
    HardLink,
    /// A symlink.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
}

/// One entry's header, with all that extended headers said.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name as written, a path.
    pub path: Vec<u8>,
    /// Target of a symlink or hard link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Where the data belongs, if the file is sparse.
    pub sparse: Option<Sparse>,
    /// Time of last change.
    pub mtime: Timestamp,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// Reads a tar stream entry by entry; between two entries it is a reader of the data.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    limits: Limits,
    /// Data of the current entry that was not read yet.
    remaining: u64,
    /// Bytes of padding after it.
    padding: u64,
    /// Bytes read so far.
    position: u64,
    /// Entries and xattrs so far.
    entries: u64,
    global: Pax,
    /// What was read and is no data, if it is wanted.
    recorded: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads a stream from its beginning.
    pub fn new(inner: R, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            remaining: 0,
            padding: 0,
            position: 0,
            entries: 0,
            global: Pax::default(),
            recorded: None,
        }
    }

    /// As [`new`](Self::new); what is no data is recorded.
    pub fn recording(inner: R, limits: Limits) -> Self {
        Self { recorded: Some(Vec::new()), ..Self::new(inner, limits) }
    }

    /// What was recorded since it was last taken.
    pub fn take_recorded(&mut self) -> Vec<u8> {
        self.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Where in the stream the data of the current entry goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax = self.global.clone();
        let (mut extended, mut awaits_entry) = (0, false);
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return match awaits_entry {
                    false => Ok(None),
                    true => Err(Error::Truncated("the entry that an extended header is of")),
                };
            };
            let size = header.size(124..136).filter(|size| *size <= MAX_SIZE);
            let size = size.ok_or_else(|| Error::entry(&header.path(), "bad size"))?;
            if b"xgLK".contains(&header.flag()) {
                extended += size;
                self.check_extended(extended)?;
                awaits_entry |= header.flag() != b'g';
            }
            match header.flag() {
                b'x' => pax.apply(&self.read_extension(size)?)?,
                b'g' => {
                    let data = self.read_extension(size)?;
                    self.global.apply(&data)?;
                    if self.global.sparse.is_some() {
                        return Err(Error::entry(&header.path(), "a sparse map of all files"));
                    }
                    pax = self.global.clone();
                }
                b'L' => pax.path = Some(until_nul(&self.read_extension(size)?).to_vec()),
                b'K' => pax.link = Some(until_nul(&self.read_extension(size)?).to_vec()),
                _ => {
                    // Each xattr takes as long as a file; a global header may give them to all.
                    self.entries += 1 + pax.xattrs.len() as u64;
                    self.limits.check(Name::Entries, self.entries)?;
                    return self.entry(&header, size, pax).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, mut pax: Pax) -> Result<Entry> {
        self.limits.check(Name::Xattr, pax.xattr_bytes())?;
        let sparse_name = pax.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let path = sparse_name.or(pax.path).unwrap_or_else(|| header.path());
        let link = pax.link.unwrap_or_else(|| header.link());
        self.limits.check(Name::Path, path.len().max(link.len()) as u64)?;
        let bad = |what: &str| Error::entry(&path, format!("bad {what}"));
        let kind = header.kind(&path).map_err(|flag| {
            let shown = (flag as char).escape_default();
            Error::entry(&path, format!("unknown type {shown}"))
        })?;
        let size = pax.size.unwrap_or(size);
        if size > MAX_SIZE {
            return Err(bad("size"));
        }
        // Only files have data: other entries' sizes are noise, as GNU tar and Go's take them.
        let size = if kind == Kind::File { size } else { 0 };
        let field = |range, what: &str| header.number(range).ok_or_else(|| bad(what));
        let id = |range, what: &str| u32::try_from(field(range, what)?).map_err(|_| bad(what));
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = (id(329..337, "device")?, id(337..345, "device")?);
                if major > MAX_DEVICE.0 || minor > MAX_DEVICE.1 {
                    return Err(bad("device"));
                }
                (major, minor)
            }
            _ => (0, 0),
        };
        let mut entry = Entry {
            kind,
            mode: field(100..108, "mode")? as u32 & 0o7777,
            uid: pax.uid.map_or_else(|| id(108..116, "uid"), Ok)?,
            gid: pax.gid.map_or_else(|| id(116..124, "gid"), Ok)?,
            size,
            sparse: None,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Timestamp { secs: field(136..148, "time")?, nanos: 0 },
            },
            device,
            link,
            xattrs: pax.xattrs,
            path,
        };
        // No file can be this one's: chown(2) takes it for "as it is".
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(Error::entry(&entry.path, "bad owner"));
        }
        self.limits.check(Name::Bytes, size)?;
        self.start_data(size);
        if kind == Kind::File {
            entry.sparse = self.read_sparse(header, pax.sparse, &entry.path)?;
            entry.size = self.remaining;
        }
        let fits = |sparse: &Sparse| sparse.stored() == entry.size;
        if !entry.sparse.as_ref().is_none_or(fits) {
            return Err(Error::entry(&entry.path, "its sparse map is not of its data"));
        }
        Ok(entry)
    }

    /// The map of a sparse file; what of it lies before the data is read.
    fn read_sparse(
        &mut self,
        header: &Header,
        pax: Option<sparse::PaxSparse>,
        path: &[u8],
    ) -> Result<Option<Sparse>> {
        let sparse = match pax {
            None if header.flag() == b'S' => {
                // The map's blocks are not counted in the size: the data begins after them.
                Sparse::of_gnu(header, path, || self.read_block()?.ok_or(Error::Truncated("a map")))
                    .map(Some)?
            }
            None => None,
            Some(pax) => {
                let in_data = match pax.has_map_in_data() {
                    true => Some(self.read_map(path)?),
                    false => None,
                };
                Some(pax.finish(path, in_data)?)
            }
        };
        if let Some(sparse) = &sparse {
            self.limits.check(Name::Bytes, sparse.size)?;
        }
        Ok(sparse)
    }

    fn read_map(&mut self, path: &[u8]) -> Result<Vec<u64>> {
        let mut raw = Vec::new();
        let mut kept = Kept { from: self, raw: &mut raw };
        let numbers = sparse::read_map(&mut kept, path)?;
        if let Some(recorded) = &mut self.recorded {
            recorded.extend_from_slice(&raw);
        }
        Ok(numbers)
    }

    fn start_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_data(&mut self) -> Result<()> {
        let rest = self.remaining + self.padding;
        if rest == 0 {
            return Ok(());
        }
        let mut from = (&mut self.inner).take(rest);
        let skipped = match &mut self.recorded {
            Some(recorded) => from.read_to_end(recorded).map(|len| len as u64),
            None => io::copy(&mut from, &mut io::sink()),
        };
        let skipped = skipped.map_err(|e| Error::io("read", "the archive", e))?;
        self.position += skipped;
        // The last entry's padding may be cut off; its data may not.
        if skipped < self.remaining {
            return Err(Error::Truncated("an entry's data"));
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// The next block, recorded; `None` if there are no more bytes.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let len = read_full(&mut self.inner, &mut block)
            .map_err(|e| Error::io("read", "the archive", e))?;
        self.position += len as u64;
        if let Some(recorded) = &mut self.recorded {
            recorded.extend_from_slice(&block[..len]);
        }
        match len {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(Error::Truncated("an entry's header")),
        }
    }

    /// The next header, or `None` at the end: a block of zeros, or no more bytes.
    fn read_header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.read_block()? else { return Ok(None) };
        if crate::sys::is_zero(&block) {
            return Ok(None);
        }
        let fits = checksum_fits(&block);
        let header = Header(block);
        if !fits {
            return Err(Error::entry(&header.path(), "bad checksum"));
        }
        Ok(Some(header))
    }

    /// What the extended headers of one entry take is held in memory.
    fn check_extended(&self, size: u64) -> Result<()> {
        let limit =
            self.limits.of(Name::Xattr).max(self.limits.of(Name::Path)).saturating_add(MAX_OTHER);
        match size <= limit {
            true => Ok(()),
            false => Err(Error::Unsupported(format!(
                "extended tar headers of {size} bytes for one entry are over the limit of {limit} \
                 (limits xattr and path)"
            ))),
        }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>> {
        self.start_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(|e| Error::io("read", "the archive", e))?;
        if (data.len() as u64) < size {
            return Err(Error::Truncated("an extended header"));
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.extend_from_slice(&data);
        }
        Ok(data)
    }

    /// What the stream was read from.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Reads what follows the end of the archive: padding, or anything.
    pub fn read_tail(&mut self, buffer: &mut [u8]) -> Result<usize> {
        read_full(&mut self.inner, buffer).map_err(|e| Error::io("read", "the archive", e))
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Goes to the next entry without reading the data of this one.
    pub fn seek_over_data(&mut self) -> Result<()> {
        let rest = self.remaining + self.padding;
        let failed = |e| Error::io("read", "the archive", e);
        self.inner.seek_relative(rest.cast_signed()).map_err(failed)?;
        self.position += rest;
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }
}

/// Reads the data of the current entry; fails if the stream ends before it.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let len = self.inner.read(&mut buffer[..want])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= len as u64;
        self.position += len as u64;
        Ok(len)
    }
}

/// Reads data and keeps what was read.
struct Kept<'a, R> {
    from: &'a mut Reader<R>,
    raw: &'a mut Vec<u8>,
}

impl<R: Read> Read for Kept<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(buffer)?;
        self.raw.extend_from_slice(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    fn append(tar: &mut Vec<u8>, kind: u8, name: &str, data: &[u8], mtime: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(0);
        header.as_mut_bytes()[136..136 + mtime.len()].copy_from_slice(mtime);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }

    #[test]
    fn pax_values_are_bytes() {
        let mut pax = pax_record(b"SCHILY.xattr.security.capability", b"\x01\n=\x00\xff");
        pax.extend(pax_record(b"path", b"caf\xe9"));
        pax.extend(pax_record(b"mtime", b"-1.25"));
        pax.extend(pax_record(b"uid", b"4000000000"));
        let mut tar = Vec::new();
        append(&mut tar, b'x', "pax", &pax, b"");
        append(&mut tar, b'0', "plain", b"data", b"");
        append(&mut tar, b'0', "next", b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
        let mut reader = Reader::new(&tar[..], Limits::default());
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"caf\xe9");
        let capability = (b"security.capability".to_vec(), b"\x01\n=\x00\xff".to_vec());
        assert_eq!(*entry.xattrs, [capability].into());
        assert_eq!(entry.mtime, Timestamp { secs: -2, nanos: 750_000_000 });
        assert_eq!((entry.uid, entry.gid), (4_000_000_000, 2));
        let mut data = String::new();
        reader.read_to_string(&mut data).unwrap();
        assert_eq!(data, "data");
        let next = reader.next_entry().unwrap().unwrap();
        assert_eq!(next.path, b"next");
        assert_eq!(next.mtime, Timestamp { secs: -2, nanos: 0 });
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn long_names_of_gnu_tar() {
        let name = "d/".repeat(150) + "f";
        let mut tar = Vec::new();
        append(&mut tar, b'L', "././@LongLink", format!("{name}\0").as_bytes(), b"");
        append(&mut tar, b'0', "short", b"", b"");
        let entry = Reader::new(&tar[..], Limits::default()).next_entry().unwrap().unwrap();
        assert_eq!(entry.path, name.as_bytes());
    }

    #[test]
    fn a_pax_size_frames_the_data() {
        let mut tar = Vec::new();
        append(&mut tar, b'x', "pax", &pax_record(b"size", b"4"), b"");
        append(&mut tar, b'0', "file", b"", b"");
        tar.extend_from_slice(b"data");
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        append(&mut tar, b'0', "after", b"", b"");
        let mut reader = Reader::new(&tar[..], Limits::default());
        assert_eq!(reader.next_entry().unwrap().unwrap().size, 4);
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"after");
    }

    #[test]
    fn only_files_have_data() {
        let mut tar = Vec::new();
        append(&mut tar, b'0', "file", b"data", b"");
        append(&mut tar, b'1', "link", b"", b"");
        let at = tar.len() - BLOCK;
        tar[at + 124..at + 135].copy_from_slice(b"00000000005");
        let mut header = tar::Header::from_byte_slice(&tar[at..]).clone();
        header.set_cksum();
        tar[at..].copy_from_slice(header.as_bytes());
        append(&mut tar, b'0', "after", b"", b"");
        let mut reader = Reader::new(&tar[..], Limits::default());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(entry.path);
        }
        assert_eq!(names, [&b"file"[..], b"link", b"after"]);
    }

    #[test]
    fn devices_that_linux_has_not_are_refused() {
        let table: [(std::ops::Range<usize>, &[u8], bool); 4] = [
            (329..337, b"0007777\0", true),
            (329..337, b"0010000\0", false),
            (337..345, b"3777777\0", true),
            (337..345, b"4000000\0", false),
        ];
        for (field, number, is_good) in table {
            let mut tar = Vec::new();
            append(&mut tar, b'3', "device", b"", b"");
            tar[field].copy_from_slice(number);
            let mut header = tar::Header::from_byte_slice(&tar).clone();
            header.set_cksum();
            let entry = Reader::new(&header.as_bytes()[..], Limits::default()).next_entry();
            assert_eq!(entry.is_ok(), is_good, "{}", number.escape_ascii());
        }
    }

    #[test]
    fn damage_is_noticed() {
        let mut tar = Vec::new();
        append(&mut tar, b'0', "file", &[7; 600], b"");
        for len in [100, 512 + 100, 512 + 599] {
            let mut reader = Reader::new(&tar[..len], Limits::default());
            let result = reader.next_entry().and_then(|_| reader.next_entry());
            assert!(matches!(result, Err(Error::Truncated(_))), "{len}: {result:?}");
        }
        tar[3] ^= 1;
        let result = Reader::new(&tar[..], Limits::default()).next_entry();
        assert!(result.unwrap_err().to_string().contains("checksum"));
    }
}
