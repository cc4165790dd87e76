//! Where the parts of an image lie: an archive, indexed, or an OCI layout folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::compression::{self, read_full};
use super::tar::{BLOCK, Kind, Reader, begins_tar};
use super::{Error, MAX_DOCUMENT, Result};
use crate::store::digest::Digest;
use crate::sys;

/// Links to links in an archive that are followed, at most.
const MAX_LINKS: usize = 16;
/// Entries in an archive (not in its layers), at most.
const MAX_ENTRIES: usize = 100_000;

/// The parts of images by their paths.
#[derive(Debug)]
pub(super) enum Source {
    /// A tar, decompressed into a file without a name.
    Archive {
        /// The tar.
        file: File,
        /// Path -> what is there.
        entries: HashMap<Vec<u8>, Part>,
    },
    /// An OCI layout folder.
    Layout(OwnedFd),
}

/// What an archive has under a path.
#[derive(Debug)]
pub(super) enum Part {
    /// Data at this offset, of this size.
    Data { offset: u64, size: u64 },
    /// The same as another path.
    Link(Vec<u8>),
}

impl Source {
    /// Opens an OCI layout folder.
    pub(super) fn layout(path: &Path) -> Result<Self> {
        let fd = sys::open_dir(path).map_err(|e| Error::io("open", path.display(), e.into()))?;
        Ok(Self::Layout(fd))
    }

    /// Reads an archive to its end, into a file in `staging`, and indexes it.
    pub(super) fn archive(input: impl Read, staging: &Path) -> Result<Self> {
        let spool = |e| Error::io("write", staging.display(), e);
        let mut file = tempfile::tempfile_in(staging).map_err(spool)?;
        let mut plain = compression::decoder(input, "the archive")?;
        let mut block = [0; BLOCK];
        let len =
            read_full(&mut plain, &mut block).map_err(|e| Error::io("read", "the archive", e))?;
        if len < BLOCK || !begins_tar(&block) {
            return Err(Error::NotATar);
        }
        let mut whole = io::Cursor::new(block).chain(plain);
        copy(&mut whole, &mut file, staging)?;
        let entries = index(&file)?;
        Ok(Self::Archive { file, entries })
    }

    /// Whether there is something under this path.
    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Self::Archive { .. } => self.find(path).is_some(),
            Self::Layout(dir) => {
                sys::open_beneath(dir.as_fd(), path.as_bytes(), sys::O_PATH).is_ok()
            }
        }
    }

    /// Follows an archive's links.
    fn find(&self, path: &str) -> Option<(u64, u64)> {
        let Self::Archive { entries, .. } = self else { return None };
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
    pub(super) fn open(&self, path: &str) -> Result<Box<dyn Read + '_>> {
        match self {
            Self::Archive { file, .. } => {
                let (offset, size) =
                    self.find(path).ok_or_else(|| Error::Missing(path.to_owned()))?;
                Ok(Box::new(Window { file, position: offset, end: offset + size }))
            }
            Self::Layout(dir) => {
                let fd = sys::open_beneath(dir.as_fd(), path.as_bytes(), sys::O_READ);
                match fd {
                    Ok(fd) => Ok(Box::new(BufReader::new(File::from(fd)))),
                    Err(sys::Errno::NOENT) => Err(Error::Missing(path.to_owned())),
                    Err(errno) => Err(Error::io("open", path, errno.into())),
                }
            }
        }
    }

    /// A whole manifest, index or config.
    pub(super) fn document(&self, path: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.open(path)?.take(MAX_DOCUMENT + 1);
        reader.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::Unsupported(format!(
                "{path} is larger than the limit of {MAX_DOCUMENT} bytes"
            )));
        }
        Ok(bytes)
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

/// Copies, telling a failing read from a failing write.
fn copy(from: &mut impl Read, to: &mut File, place: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = read_full(from, &mut buffer).map_err(|e| Error::io("read", "the archive", e))?;
        if len == 0 {
            return Ok(());
        }
        io::Write::write_all(to, &buffer[..len])
            .map_err(|e| Error::io("write", place.display(), e))?;
    }
}

fn index(file: &File) -> Result<HashMap<Vec<u8>, Part>> {
    let end = file.metadata().map_err(|e| Error::io("read", "the archive", e))?.len();
    let mut reader = Reader::new(BufReader::new(Window { file, position: 0, end }));
    let mut entries = HashMap::new();
    while let Some(entry) = reader.next_entry()? {
        let path = normalized(&entry.path);
        let part = match entry.kind {
            Kind::File => {
                let offset = reader.position();
                if offset + entry.size > end {
                    return Err(Error::Truncated("an entry's data"));
                }
                Part::Data { offset, size: entry.size }
            }
            Kind::HardLink => Part::Link(normalized(&entry.link)),
            // A symlink's target is relative to where it stands.
            Kind::Symlink => {
                let dir = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
                Part::Link(normalized(&[dir, b"/", &entry.link].concat()))
            }
            _ => continue,
        };
        entries.insert(path, part);
        if entries.len() > MAX_ENTRIES {
            return Err(Error::Unsupported(format!("the archive has over {MAX_ENTRIES} entries")));
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
