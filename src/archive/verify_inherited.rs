//! Whether what an image's layers take from one another (see `store::inherited`) is what it was: it
//! is made again and compared.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use super::verify::Finding;
use super::{Error, Result};
use crate::layers::{path, private_xattr};
use crate::store::Store;
use crate::store::digest::ImageId;
use crate::sys::{self, Errno, FileType};

/// Bytes that are compared at a time.
const BUFFER_SIZE: usize = 128 * 1024;

/// Compares; what is off, or nothing.
pub fn verify_inherited(store: &Store, image: &ImageId) -> Result<Vec<Finding>> {
    let whole = |reason: &str| vec![Finding { path: Vec::new(), reason: reason.to_owned() }];
    let diffs = store.config(image)?.diff_ids().map_err(|e| Error::document("image config", e))?;
    let Some(top) = store.chain_ids(image)?.pop() else { return Ok(Vec::new()) };
    let homes: Vec<_> =
        diffs.iter().rev().map(|diff| store.layer_files(diff).home().to_owned()).collect();
    let mut staging = None;
    let mut at = || {
        let staging = staging.insert(store.staging()?);
        Ok(staging.path().join("inherited"))
    };
    let built = store.build_inherited(&homes, &mut at, &Cell::new(u64::MAX))?;
    match (built, store.inherited(&top)?) {
        (None, None) => Ok(Vec::new()),
        (Some(built), Some(dir)) => {
            let open = |dir: &std::path::Path| {
                sys::open_dir(dir).map_err(|e| Error::io("open", dir.display(), e.into()))
            };
            let (expected, found) = (open(&built.join("diff"))?, open(&dir)?);
            let mut pair = Pair { expected, found, findings: Vec::new() };
            pair.compare(&mut Vec::new())?;
            Ok(pair.findings)
        }
        _ => Ok(whole("its record of what layers take from one another is wrong")),
    }
}

/// Two trees that should be the same.
struct Pair {
    expected: OwnedFd,
    found: OwnedFd,
    findings: Vec<Finding>,
}

impl Pair {
    /// Compares what is at this path, and below it.
    fn compare(&mut self, at: &mut Vec<u8>) -> Result<()> {
        let failed = |e: Errno| Error::io("compare", at.escape_ascii(), e.into());
        let expected = sys::open_beneath(self.expected.as_fd(), at, sys::O_PATH).map_err(failed)?;
        let found = match sys::open_beneath(self.found.as_fd(), at, sys::O_PATH) {
            Err(Errno::NOENT) => {
                self.off(at, "it is missing");
                return Ok(());
            }
            found => found.map_err(failed)?,
        };
        if let Some(reason) = difference(&expected, &found).map_err(failed)? {
            self.off(at, reason);
            return Ok(());
        }
        if sys::fstat(&expected).map_err(failed)?.kind() != FileType::Directory {
            return Ok(());
        }
        let names = |dir: &OwnedFd| -> sys::Result<BTreeSet<_>> {
            Ok(sys::read_dir(dir.as_fd())?.into_iter().map(|entry| entry.name).collect())
        };
        let (wanted, there) = (names(&expected).map_err(failed)?, names(&found).map_err(failed)?);
        drop((expected, found));
        let len = at.len();
        for name in there.difference(&wanted) {
            path::push(at, name);
            self.off(at, "no layer has such a file");
            at.truncate(len);
        }
        for name in &wanted {
            path::push(at, name);
            self.compare(at)?;
            at.truncate(len);
        }
        Ok(())
    }

    fn off(&mut self, at: &[u8], reason: &str) {
        self.findings.push(Finding { path: at.to_vec(), reason: reason.to_owned() });
    }
}

fn difference(expected: &OwnedFd, found: &OwnedFd) -> sys::Result<Option<&'static str>> {
    let (a, b) = (sys::fstat(expected)?, sys::fstat(found)?);
    let (is_dir, is_file) = (a.kind() == FileType::Directory, a.kind() == FileType::RegularFile);
    Ok(if a.kind() != b.kind() || a.rdev != b.rdev {
        Some("it is of another type")
    } else if a.mode != b.mode {
        Some("its mode differs")
    } else if (a.uid, a.gid) != (b.uid, b.gid) {
        Some("its owner differs")
    } else if a.mtime != b.mtime {
        Some("its time of change differs")
    } else if !is_dir && (a.size, a.nlink) != (b.size, b.nlink) {
        Some("its size or number of names differs")
    } else if xattrs(expected)? != xattrs(found)? {
        Some("its xattrs differ")
    } else if is_file && !is_same_data(expected, found)? {
        Some("its content has changed")
    } else if a.kind() == FileType::Symlink && target(expected)? != target(found)? {
        Some("it leads elsewhere")
    } else {
        None
    })
}

fn xattrs(object: &OwnedFd) -> sys::Result<BTreeSet<(Vec<u8>, Vec<u8>)>> {
    let list = match sys::list_xattrs(object.as_fd()) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeSet::new()),
        list => list?,
    };
    let value = |name: &[u8]| Ok((name.to_vec(), sys::get_xattr(object.as_fd(), name)?));
    private_xattr::names(&list).map(value).collect()
}

fn target(object: &OwnedFd) -> sys::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(object, c"", Vec::new())?.into_bytes())
}

fn is_same_data(expected: &OwnedFd, found: &OwnedFd) -> sys::Result<bool> {
    let open = |object: &OwnedFd| sys::reopen(object.as_fd(), sys::O_READ).map(File::from);
    let (mut a, mut b) = (open(expected)?, open(found)?);
    let (mut from_a, mut from_b) = (vec![0; BUFFER_SIZE], vec![0; BUFFER_SIZE]);
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    loop {
        let len = a.read(&mut from_a).map_err(errno)?;
        match b.read_exact(&mut from_b[..len]) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            result => result.map_err(errno)?,
        }
        if from_a[..len] != from_b[..len] {
            return Ok(false);
        }
        if len == 0 {
            return Ok(true);
        }
    }
}
