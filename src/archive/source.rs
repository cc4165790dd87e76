//! Where the parts of an image lie: an archive, indexed, or an OCI layout folder.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::compression::{self, Compression, read_full};
use super::limits::{self, Limits, RATIO_FREE};
use super::tar::{BLOCK, Kind, Reader, begins_tar};
use super::{Error, Result};
use crate::layers::path;
use crate::store::digest::Digest;
use crate::sys;

/// Links to links in an archive that are followed, at most.
const MAX_LINKS: usize = 16;
/// Files in an archive (not in its layers), at most: their names are kept in memory.
const MAX_PARTS: usize = 100_000;
/// Bytes of their names and link targets together, at most.
const MAX_NAMES: usize = 16 << 20;
/// How many times the largest document all of them together may be.
const ALL_DOCUMENTS: u64 = 4;
/// Bytes that are read ahead while an archive is indexed: a header, and what follows a short one.
const INDEX_BUFFER: usize = 8192;

/// Where an archive comes from.
pub enum Input<'a> {
    /// A file; one that can be sought in is read where it lies.
    File(File),
    /// A pipe or the like.
    Stream(Box<dyn Read + 'a>),
}

/// The parts of images by their paths.
#[derive(Debug)]
pub(super) struct Source {
    place: Place,
    limits: Limits,
    /// Bytes of documents so far.
    documents: AtomicU64,
}

#[derive(Debug)]
enum Place {
    /// A tar that can be sought in: the archive itself, or a copy without a name.
    Archive {
        /// The tar.
        file: File,
        /// Whether it is a copy, which ends with the load.
        is_copy: bool,
        /// Path -> what is there.
        entries: HashMap<Vec<u8>, Part>,
    },
    /// An OCI layout folder.
    Layout(OwnedFd),
}

/// What an archive has under a path.
#[derive(Debug)]
enum Part {
    /// Data at this offset, of this size.
    Data { offset: u64, size: u64 },
    /// The same as another path.
    Link(Vec<u8>),
}

impl Source {
    fn new(place: Place, limits: Limits) -> Self {
        Self { place, limits, documents: AtomicU64::new(0) }
    }

    /// Opens an OCI layout folder.
    pub(super) fn layout(path: &Path, limits: Limits) -> Result<Self> {
        let dir = sys::open_dir(path).map_err(|e| Error::io("open", path.display(), e.into()))?;
        Ok(Self::new(Place::Layout(dir), limits))
    }

    /// Indexes an archive; one that is compressed, or a stream, is first copied into a file in
    /// `staging`.
    pub(super) fn archive(input: Input<'_>, staging: &Path, limits: Limits) -> Result<Self> {
        let failed = |e| Error::io("read", "the archive", e);
        let input: Box<dyn Read + '_> = match input {
            Input::Stream(stream) => stream,
            Input::File(file) => {
                let mut block = [0; BLOCK];
                let is_file = file.metadata().map_err(failed)?.is_file();
                let len = if is_file { file.read_at(&mut block, 0).map_err(failed)? } else { 0 };
                // As with a stream, what has a magic is compressed, whatever else it may be.
                let is_plain = compression::sniff(&block) == Compression::None;
                if len == BLOCK && is_plain && begins_tar(&block) {
                    let entries = index(&file, limits)?;
                    return Ok(Self::new(Place::Archive { file, is_copy: false, entries }, limits));
                }
                Box::new(file)
            }
        };
        let spool = |e| Error::io("write", staging.display(), e);
        let mut file = tempfile::tempfile_in(staging).map_err(spool)?;
        let count = Cell::new(0);
        let mut plain = compression::decoder(Counted { input, count: &count }, "the archive")?;
        let mut block = [0; BLOCK];
        let len = read_full(&mut plain, &mut block).map_err(failed)?;
        if len < BLOCK || !begins_tar(&block) {
            return Err(Error::NotATar);
        }
        let mut whole = io::Cursor::new(block).chain(plain);
        copy(&mut whole, &mut file, staging, |bytes| {
            limits.check(limits::Name::Bytes, bytes)?;
            let ratio = if bytes > RATIO_FREE { bytes / count.get().max(1) } else { 0 };
            limits.check(limits::Name::Ratio, ratio)
        })?;
        let entries = index(&file, limits)?;
        Ok(Self::new(Place::Archive { file, is_copy: true, entries }, limits))
    }

    /// A source of one part, called "layer": a tar that may be compressed.
    pub(super) fn single(input: Input<'_>, staging: &Path, limits: Limits) -> Result<Self> {
        let (file, is_copy) = match input {
            Input::File(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => (file, false),
            Input::File(file) => {
                return Self::single(Input::Stream(Box::new(file)), staging, limits);
            }
            Input::Stream(mut stream) => {
                let failed = |e| Error::io("write", staging.display(), e);
                let mut file = tempfile::tempfile_in(staging).map_err(failed)?;
                copy(&mut stream, &mut file, staging, |bytes| {
                    limits.check(limits::Name::Bytes, bytes)
                })?;
                (file, true)
            }
        };
        let size = file.metadata().map_err(|e| Error::io("read", "the archive", e))?.len();
        let entries = [(b"layer".to_vec(), Part::Data { offset: 0, size })].into();
        Ok(Self::new(Place::Archive { file, is_copy, entries }, limits))
    }

    /// Everything was read: a copy need not reach the disk.
    pub(super) fn discard_copy(&self) -> Result<()> {
        match &self.place {
            Place::Archive { file, is_copy: true, .. } => {
                file.set_len(0).map_err(|e| Error::io("truncate", "the archive's copy", e))
            }
            Place::Archive { .. } | Place::Layout(_) => Ok(()),
        }
    }

    /// What tells whether two paths name the same data: where it lies.
    pub(super) fn identity(&self, path: &str) -> Result<(u64, u64)> {
        match &self.place {
            Place::Archive { .. } => self.find(path).ok_or_else(|| Error::Missing(path.to_owned())),
            Place::Layout(dir) => {
                let fd = self.open_blob(dir, path)?;
                let stat = sys::fstat(&fd).map_err(|e| Error::io("stat", path, e.into()))?;
                Ok((stat.dev, stat.ino))
            }
        }
    }

    /// Bytes of what lies under this path.
    pub(super) fn size(&self, path: &str) -> Result<u64> {
        match &self.place {
            Place::Archive { .. } => Ok(self.identity(path)?.1),
            Place::Layout(dir) => {
                let fd = self.open_blob(dir, path)?;
                let stat = sys::fstat(&fd).map_err(|e| Error::io("stat", path, e.into()))?;
                Ok(stat.size)
            }
        }
    }

    /// Opens a regular file of a layout folder: no symlink is followed, no FIFO waited for.
    fn open_blob(&self, dir: &OwnedFd, path: &str) -> Result<OwnedFd> {
        let fd = match sys::open_beneath(dir.as_fd(), path.as_bytes(), sys::O_READ) {
            Ok(fd) => fd,
            Err(sys::Errno::NOENT) => return Err(Error::Missing(path.to_owned())),
            Err(sys::Errno::LOOP) => {
                return Err(Error::Unsupported(format!("{path}: a symlink in an image layout")));
            }
            Err(errno) => return Err(Error::io("open", path, errno.into())),
        };
        let stat = sys::fstat(&fd).map_err(|e| Error::io("stat", path, e.into()))?;
        match stat.kind() {
            sys::FileType::RegularFile => Ok(fd),
            _ => Err(Error::Unsupported(format!("{path}: not a regular file"))),
        }
    }

    /// Whether there is something under this path.
    pub(super) fn has(&self, path: &str) -> bool {
        match &self.place {
            Place::Archive { .. } => self.find(path).is_some(),
            Place::Layout(dir) => {
                sys::open_beneath(dir.as_fd(), path.as_bytes(), sys::O_PATH).is_ok()
            }
        }
    }

    /// Follows an archive's links.
    fn find(&self, path: &str) -> Option<(u64, u64)> {
        let Place::Archive { entries, .. } = &self.place else { return None };
        let mut path = normalized(path.as_bytes());
        for _ in 0..MAX_LINKS {
            match entries.get(&path)? {
                Part::Data { offset, size } => return Some((*offset, *size)),
                Part::Link(target) => path.clone_from(target),
            }
        }
        None
    }

    /// A reader of what lies under this path.
    pub(super) fn open(&self, path: &str) -> Result<Box<dyn Read + Send + '_>> {
        match &self.place {
            Place::Archive { file, .. } => {
                let (offset, size) =
                    self.find(path).ok_or_else(|| Error::Missing(path.to_owned()))?;
                Ok(Box::new(Window { file, position: offset, end: offset + size }))
            }
            Place::Layout(dir) => Ok(Box::new(File::from(self.open_blob(dir, path)?))),
        }
    }

    /// A whole manifest, index or config.
    pub(super) fn document(&self, path: &str) -> Result<Vec<u8>> {
        let size = self.size(path)?;
        self.limits.check(limits::Name::Document, size).map_err(|e| e.of(path))?;
        let all = size + self.documents.fetch_add(size, Ordering::Relaxed);
        self.limits
            .check(limits::Name::Document, all / ALL_DOCUMENTS)
            .map_err(|e| e.of("all manifests and configs together"))?;
        let mut bytes = Vec::new();
        let mut reader = self.open(path)?.take(size + 1);
        reader.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        match bytes.len() as u64 {
            found if found == size => Ok(bytes),
            found => Err(Error::Size { what: path.to_owned(), expected: size, found }),
        }
    }

    /// A document that must have this digest.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = blob_path(digest);
        let bytes = self.document(&path)?;
        verify(&path, *digest, &bytes)?;
        Ok(bytes)
    }
}

/// Where an OCI layout keeps a blob.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(super) fn verify(what: &str, expected: Digest, bytes: &[u8]) -> Result<()> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(Error::Digest { what: what.to_owned(), expected, found })
}

/// Counts what is read.
struct Counted<'a, R> {
    input: R,
    count: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.count.set(self.count.get() + len as u64);
        Ok(len)
    }
}

/// Copies, telling a failing read from a failing write; `check` is asked of the bytes so far.
fn copy(
    from: &mut impl Read,
    to: &mut File,
    place: &Path,
    check: impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let len = read_full(from, &mut buffer).map_err(|e| Error::io("read", "the archive", e))?;
        if len == 0 {
            return Ok(());
        }
        done += len as u64;
        check(done)?;
        io::Write::write_all(to, &buffer[..len])
            .map_err(|e| Error::io("write", place.display(), e))?;
    }
}

fn index(file: &File, limits: Limits) -> Result<HashMap<Vec<u8>, Part>> {
    let end = file.metadata().map_err(|e| Error::io("read", "the archive", e))?.len();
    let window = Window { file, position: 0, end };
    // Those are the layers' limits; an archive of layers has its own.
    let of_archives = Limits::default();
    let limits = limits
        .with(limits::Name::Path, of_archives.of(limits::Name::Path))
        .with(limits::Name::Entries, of_archives.of(limits::Name::Entries));
    let mut reader = Reader::new(BufReader::with_capacity(INDEX_BUFFER, window), limits);
    let (mut entries, mut names) = (HashMap::new(), 0);
    while let Some(entry) = reader.next_entry()? {
        names += entry.path.len() + entry.link.len();
        if names > MAX_NAMES {
            let limit = format!("the names in the archive have over {MAX_NAMES} bytes");
            return Err(Error::Unsupported(limit));
        }
        let path = normalized(&entry.path);
        let part = match entry.kind {
            Kind::File => {
                let offset = reader.position();
                if offset.saturating_add(entry.size) > end {
                    return Err(Error::Truncated("an entry's data"));
                }
                reader.seek_over_data()?;
                if entry.sparse.is_some() {
                    return Err(Error::entry(&entry.path, "a sparse file as a part of an image"));
                }
                Part::Data { offset, size: entry.size }
            }
            Kind::HardLink => Part::Link(normalized(&entry.link)),
            // A symlink's target is relative to where it stands.
            Kind::Symlink => {
                let (dir, _) = path::split(&path);
                Part::Link(normalized(&[dir, b"/", &entry.link].concat()))
            }
            _ => continue,
        };
        entries.insert(path, part);
        if entries.len() > MAX_PARTS {
            return Err(Error::Unsupported(format!("the archive has over {MAX_PARTS} files")));
        }
    }
    Ok(entries)
}

/// The path without `.`, empty components and what `..` cancels.
fn normalized(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b"/"[..])
}

/// A part of a file.
#[derive(Debug)]
struct Window<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let len = self.file.read_at(&mut buffer[..want], self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl io::Seek for Window<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let position = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.end.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let position = position.ok_or(io::ErrorKind::InvalidInput)?;
        self.position = position.min(self.end); // padding that is cut off
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let table: [(&[u8], &[u8]); 5] = [
            (b"./a/b", b"a/b"),
            (b"/a//b/", b"a/b"),
            (b"a/../../../etc/passwd", b"etc/passwd"),
            (b"x/../y", b"y"),
            (b"", b""),
        ];
        for (path, expected) in table {
            assert_eq!(normalized(path), expected, "{}", path.escape_ascii());
        }
    }
}
