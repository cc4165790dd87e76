//! Whether a layer on disk is what its DiffID says: its tar is written again, hashed, and read
//! beside the files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use sha2::Sha256;

use super::limits::Limits;
use super::pack::{Off, Packer};
use super::tar::{Entry, Kind, Reader};
use super::tar_split::{Piece, Pieces};
use super::unpack::Replaced;
use super::{Error, Result};
use crate::layers::acl;
use crate::layers::override_stat::OverrideXattr;
use crate::layers::{path, private_xattr};
use crate::store::Store;
use crate::store::digest::{DiffId, Digest};
use crate::store::layer_files::LayerFiles;
use crate::sys::{self, Errno, FileType, Stat};

/// A file of a layer that is not what the layer's tar says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where it is, below the layer's directory; empty for the layer as a whole.
    pub path: Vec<u8>,
    /// What is wrong.
    pub reason: String,
}

/// Hashes what lies on disk of a layer; what is off, or nothing.
pub fn verify_layer(store: &Store, diff: &DiffId) -> Result<Vec<Finding>> {
    let files = store.layer_files(diff);
    let packer = Packer::open(&files)?;
    let (from, mut to) = io::pipe().map_err(|e| Error::io("make", "a pipe", e))?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut off = Vec::new();
            let written = packer.write(&mut to, &mut |found| {
                off.push(found);
                Ok(())
            });
            written.map(|()| off)
        });
        let mut checked = Checker::open(&files)?.check(from);
        let off = writer
            .join()
            .map_err(|_| Error::io("read", "the layer", io::Error::other("a thread panicked")))?;
        if let Ok((_, findings)) = &mut checked {
            let told = off?.into_iter().map(|Off { path, reason }| Finding { path, reason });
            findings.splice(..0, told);
        }
        let (found, mut findings) = checked?;
        findings.dedup_by(|a, b| a.path == b.path);
        if found != *diff && findings.is_empty() {
            let reason = format!("its record is damaged: the tar's DiffID is {found}");
            findings.push(Finding { path: Vec::new(), reason });
        }
        Ok(findings)
    })
}

/// Compares entries of a tar with what was unpacked.
struct Checker {
    root: OwnedFd,
    /// Where each entry was unpacked.
    record: Pieces<BufReader<File>>,
    /// Directories so far: a later entry may list one again, or replace it.
    directories: BTreeMap<Vec<u8>, Entry>,
    replaced: Replaced,
    /// Files that stand for hard links into layers below.
    links: HashSet<Vec<u8>>,
    overrides: Option<OverrideXattr>,
    /// All that the tar makes.
    known: HashSet<Vec<u8>>,
    findings: Vec<Finding>,
}

impl Checker {
    fn open(files: &LayerFiles) -> Result<Self> {
        let failed = |e: Errno| Error::io("open", files.diff().display(), e.into());
        let root = sys::open_dir(&files.diff()).map_err(failed)?;
        let overrides = OverrideXattr::of_layer(root.as_fd()).map_err(failed)?;
        let record = File::open(files.tar_split())
            .map_err(|e| Error::io("open", files.tar_split().display(), e))?;
        let replaced = Replaced::read(files.home())
            .map_err(|e| Error::io("read", files.home().display(), e))?;
        Ok(Self {
            root,
            record: Pieces::new(BufReader::new(record)),
            directories: BTreeMap::new(),
            replaced,
            links: files.links()?.into_keys().collect(),
            overrides,
            known: files.implied()?.into_iter().chain([Vec::new()]).collect(),
            findings: Vec::new(),
        })
    }

    fn check(mut self, tar: impl Read) -> Result<(DiffId, Vec<Finding>)> {
        // What was loaded was within some limits.
        let limits = Limits::none();
        let mut reader = Reader::new(Hashing { inner: tar, hash: Sha256::default() }, limits);
        loop {
            match reader.next_entry() {
                Ok(Some(entry)) => self.check_entry(entry)?,
                Ok(None) => break,
                Err(error) => {
                    let reason = format!("its record is damaged: {error}");
                    self.findings.push(Finding { path: Vec::new(), reason });
                    break;
                }
            }
        }
        for (path, entry) in std::mem::take(&mut self.directories) {
            self.check_object(&entry, &path)?;
        }
        let mut hashing = reader.into_inner();
        io::copy(&mut hashing, &mut io::sink()).map_err(|e| Error::io("read", "the layer", e))?;
        self.find_strangers(&mut Vec::new())?;
        Ok((DiffId(Digest::from_hash(hashing.hash)), self.findings))
    }

    fn check_entry(&mut self, entry: Entry) -> Result<()> {
        let Some(path) = self.next_place()? else {
            self.off(&entry.path, "the record has no place for it");
            return Ok(());
        };
        self.known.insert(path.clone());
        if entry.kind == Kind::Directory {
            self.directories.insert(path, entry);
            return Ok(());
        }
        self.forget_directories(&path);
        if self.replaced.next(&path).is_some() || self.links.contains(&path) {
            return Ok(());
        }
        self.check_object(&entry, &path)
    }

    /// No directory is left where something else was unpacked, nor below.
    fn forget_directories(&mut self, path: &[u8]) {
        self.directories.remove(path);
        let below = [path, b"/"].concat();
        let from = self.directories.range(below.clone()..).map(|(path, _)| path);
        let gone: Vec<_> = from.take_while(|path| path.starts_with(&below)).cloned().collect();
        for path in gone {
            self.directories.remove(&path);
        }
    }

    /// Where the next entry was unpacked; the root is an empty path.
    fn next_place(&mut self) -> Result<Option<Vec<u8>>> {
        for piece in &mut self.record {
            if let Piece::File(file) =
                piece.map_err(|e| Error::io("read", "tar-split.json.gz", e))?
            {
                let path = file.path.strip_suffix(b"/").unwrap_or(&file.path);
                return Ok(Some(if path == b"." { Vec::new() } else { path.to_vec() }));
            }
        }
        Ok(None)
    }

    fn check_object(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        match sys::open_beneath(self.root.as_fd(), path, sys::O_PATH) {
            Ok(object) => self.compare(entry, path, &object),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.off(path, "it is missing");
                Ok(())
            }
            Err(errno) => Err(Error::io("open", path.escape_ascii(), errno.into())),
        }
    }

    fn compare(&mut self, entry: &Entry, path: &[u8], object: &OwnedFd) -> Result<()> {
        let failed = |op: &'static str| {
            let path = path.escape_ascii().to_string();
            move |e: Errno| Error::io(op, path, e.into())
        };
        let mut stat = sys::fstat(object).map_err(failed("stat"))?;
        let (real, real_mode) = (stat.kind(), stat.permissions());
        if let Some(xattr) = self.overrides {
            if xattr.is_for(real) {
                if let Some(kept) = xattr.read(object.as_fd()).map_err(failed("read xattrs of"))? {
                    kept.apply(&mut stat);
                    kept.apply_type(&mut stat);
                }
            } else if real == FileType::Symlink {
                (stat.uid, stat.gid) = (0, 0);
            }
        }
        if let Some(reason) = difference(entry, &stat) {
            self.off(path, &reason);
        } else if entry.kind == Kind::Symlink
            && read_target(object, real) != Some(entry.link.clone())
        {
            self.off(path, "it leads elsewhere");
        }
        let is_link = entry.kind == Kind::HardLink; // its xattrs are those of the other entry
        for (name, value) in entry.xattrs.iter().filter(|_| !is_link) {
            let value = match &name[..] {
                acl::ACCESS => acl::with_mode(value, real_mode).map(Cow::Owned),
                _ => Some(Cow::Borrowed(value)),
            };
            let Some(value) = value else { continue };
            let held = self.overrides.and_then(|xattr| xattr.held_name(name));
            let has = |name: &[u8]| sys::get_xattr(object.as_fd(), name).is_ok_and(|v| v == *value);
            let is_kept = has(name) || held.is_some_and(|held| has(&held));
            if !private_xattr::is_private(name) && !is_kept {
                self.off(path, &format!("its xattr {} differs", name.escape_ascii()));
            }
        }
        Ok(())
    }

    fn off(&mut self, path: &[u8], reason: &str) {
        self.findings.push(Finding { path: path.to_vec(), reason: reason.to_owned() });
    }

    /// What is there though no entry made it.
    fn find_strangers(&mut self, at: &mut Vec<u8>) -> Result<()> {
        let dir = sys::open_beneath(self.root.as_fd(), at, sys::O_DIRECTORY);
        let entries = dir.and_then(|dir| sys::read_dir(dir.as_fd()));
        for entry in entries.map_err(|e| Error::io("read", at.escape_ascii(), e.into()))? {
            let before = at.len();
            path::push(at, &entry.name);
            if !self.known.contains(&at[..]) {
                self.off(at, "the layer has no such file");
            } else if self.is_directory(at) {
                self.find_strangers(at)?;
            }
            at.truncate(before);
        }
        Ok(())
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        let object = sys::open_beneath(self.root.as_fd(), path, sys::O_PATH);
        object.and_then(sys::fstat).is_ok_and(|stat| stat.kind() == FileType::Directory)
    }
}

/// How a file differs from its entry; a hard link is compared by the entry that it is of.
fn difference(entry: &Entry, stat: &Stat) -> Option<String> {
    let kind = match entry.kind {
        Kind::File => FileType::RegularFile,
        Kind::HardLink => return None,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Directory => FileType::Directory,
        Kind::Fifo => FileType::Fifo,
    };
    let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.size);
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
    if stat.kind() != kind {
        return Some("it is of another type".to_owned());
    } else if entry.kind != Kind::Symlink && stat.permissions() != entry.mode {
        return Some(format!("its mode is {:04o}, not {:04o}", stat.permissions(), entry.mode));
    } else if (stat.uid, stat.gid) != (entry.uid, entry.gid) {
        let (found, told) = ((stat.uid, stat.gid), (entry.uid, entry.gid));
        return Some(format!("its owner is {}:{}, not {}:{}", found.0, found.1, told.0, told.1));
    } else if entry.kind == Kind::File && stat.size != size {
        return Some(format!("it has {} bytes, not {size}", stat.size));
    } else if stat.mtime != entry.mtime {
        return Some("its time of change differs".to_owned());
    } else if is_device && stat.rdev != device {
        return Some("it is another device".to_owned());
    }
    None
}

/// The target of a symlink, or of what stands for one.
fn read_target(object: &OwnedFd, real: FileType) -> Option<Vec<u8>> {
    if real == FileType::Symlink {
        return Some(rustix::fs::readlinkat(object, c"", Vec::new()).ok()?.into_bytes());
    }
    let mut target = Vec::new();
    let file = std::fs::File::from(sys::reopen(object.as_fd(), sys::O_READ).ok()?);
    file.take(1 << 20).read_to_end(&mut target).ok()?;
    Some(target)
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        sha2::Digest::update(&mut self.hash, &buffer[..len]);
        Ok(len)
    }
}
