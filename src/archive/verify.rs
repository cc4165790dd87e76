//! Whether a layer on disk is what its DiffID says: its tar is written again, hashed, and read
//! beside the files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use sha2::Sha256;

use super::limits::Limits;
use super::pack::{Off, Packer};
use super::progress::Silent;
use super::tar::{Entry, Kind, Reader, Sparse, Xattrs};
use super::tar_split::{Piece, Pieces};
use super::unpack::{Lacking, Replaced, What, may_be_given};
use super::{Error, Result};
use crate::layers::acl;
use crate::layers::override_stat::OverrideXattr;
use crate::layers::{marks, path, private_xattr};
use crate::store::Store;
use crate::store::blobs::blobs_of;
use crate::store::digest::{DiffId, Digest, ImageId};
use crate::store::layer_files::LayerFiles;
use crate::sys::{self, Errno, FileType, Stat, Timestamp};

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

/// Hashes the blobs that are kept for an image, and its manifest: whether each is what it was.
pub fn verify_blobs(store: &Store, image: &ImageId) -> Result<Vec<(Digest, bool)>> {
    let Some(manifest) = store.manifest_digest(image)? else { return Ok(Vec::new()) };
    let Some(text) = store.kept_manifest(image)? else { return Ok(vec![(manifest, false)]) };
    let is_whole = |blob: Digest| {
        let path = store.kept_blob(&blob);
        let file = File::open(&path).ok();
        let found = file.and_then(|file| super::hash(file, "", &Silent).ok());
        found == Some(blob)
    };
    let blobs = blobs_of(&text).into_iter().map(|blob| (blob, is_whole(blob)));
    Ok(blobs.chain([(manifest, true)]).collect())
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
    /// All that the tar makes, and where it was compared, its inode.
    known: HashMap<Vec<u8>, Option<u64>>,
    /// Inodes of what was compared.
    inodes: HashSet<u64>,
    /// What was replaced and had no data to keep: hard links to it stay.
    gone: HashSet<Vec<u8>>,
    /// Inodes of files that were replaced: hard links to them stay.
    replaced_inodes: HashSet<u64>,
    lacking: Lacking,
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
        let home = sys::open_dir(files.home()).map_err(failed)?;
        let inode = |path: String| {
            let file = sys::open_beneath(home.as_fd(), path.as_bytes(), sys::O_PATH);
            file.and_then(sys::fstat).ok().map(|stat| stat.ino)
        };
        let implied = files.implied()?;
        let replaced_inodes = replaced.files().filter_map(inode).collect();
        let lacking = Lacking::read(files.home())
            .map_err(|e| Error::io("read", files.home().display(), e))?;
        Ok(Self {
            root,
            record: Pieces::new(BufReader::new(record)),
            directories: implied.iter().map(|path| (path.clone(), implied_entry(path))).collect(),
            replaced,
            links: files.links()?.into_keys().collect(),
            overrides,
            known: implied.into_iter().chain([Vec::new()]).map(|path| (path, None)).collect(),
            inodes: HashSet::new(),
            gone: HashSet::new(),
            replaced_inodes,
            lacking,
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
        self.known.insert(path.clone(), None);
        if entry.kind == Kind::Directory {
            self.directories.insert(path, entry);
            return Ok(());
        }
        self.forget_directories(&path);
        if let Some(kept) = self.replaced.next(&path) {
            if kept.is_none() {
                self.gone.insert(path);
            }
            return Ok(());
        }
        if self.lacking.has(What::Device, &path) {
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
        self.known.insert(path.to_vec(), Some(stat.ino));
        if entry.kind == Kind::HardLink {
            if let Some(reason) = self.link_difference(entry, path, &stat) {
                self.off(path, reason);
            }
            return Ok(()); // else it is what its target is
        }
        self.inodes.insert(stat.ino);
        if self.lacking.has(What::Owner, path) {
            (stat.uid, stat.gid) = (entry.uid, entry.gid);
            stat.mode = stat.mode & !0o7777 | entry.mode;
        }
        if self.lacking.has(What::Time, path) {
            stat.mtime = entry.mtime;
        }
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
        } else if let Some(sparse) = &entry.sparse
            && real == FileType::RegularFile
            && !holes_are_zero(object, sparse).map_err(failed("read"))?
        {
            self.off(path, "its content has changed");
        }
        let held = |name: &[u8]| self.overrides.and_then(|xattr| xattr.held_name(name));
        let mut told = HashSet::new();
        let mut differing = Vec::new();
        for (name, value) in &*entry.xattrs {
            told.extend([Cow::Borrowed(&name[..])].into_iter().chain(held(name)));
            if private_xattr::is_private(name)
                || self.lacking.has(What::Xattr(name), path)
                // Linux takes an empty one, and has none then.
                || &name[..] == b"security.capability" && value.is_empty()
            {
                continue;
            }
            let value = match &name[..] {
                acl::ACCESS => acl::with_mode(value, real_mode).map(Cow::Owned),
                _ => Some(Cow::Borrowed(value)),
            };
            let Some(value) = value else { continue };
            let has = |name: &[u8]| sys::get_xattr(object.as_fd(), name).is_ok_and(|v| v == *value);
            if !has(name) && !held(name).is_some_and(|held| has(&held)) {
                differing.push(format!("its xattr {} differs", name.escape_ascii()));
            }
        }
        let listed = match sys::list_xattrs(object.as_fd()) {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            listed => listed.map_err(failed("list xattrs of"))?,
        };
        for name in private_xattr::names(&listed) {
            let is_own = self.overrides.is_some_and(|xattr| xattr.is_stat(name));
            if !told.contains(name) && !is_own && may_be_given(name) {
                differing.push(format!("the layer gives it no xattr {}", name.escape_ascii()));
            }
        }
        differing.iter().for_each(|reason| self.off(path, reason));
        Ok(())
    }

    /// How a hard link differs from one; the file that it is one of is compared by its own entry.
    fn link_difference(&self, entry: &Entry, path: &[u8], stat: &Stat) -> Option<&'static str> {
        if self.links.contains(path) {
            // It stands for a file of a layer below.
            let is_empty_file = stat.kind() == FileType::RegularFile && stat.size == 0;
            return (!is_empty_file).then_some("it is not the empty file that a link is here");
        }
        let (_, name) = path::split(path);
        if marks::meaning(name) != marks::Meaning::Name {
            return None; // a mark is one whatever it is
        }
        let target =
            entry.link.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
        let target = target.collect::<Vec<_>>().join(&b'/');
        let is_linked = match self.known.get(&target) {
            Some(Some(inode)) => *inode == stat.ino,
            // Its path leads through symlinks.
            _ => self.inodes.contains(&stat.ino),
        };
        let is_linked =
            is_linked || self.replaced_inodes.contains(&stat.ino) || self.gone.contains(&target);
        (!is_linked).then_some("it is another file than its link's target")
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
            if !self.known.contains_key(&at[..]) {
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

/// What a directory is that no entry lists: root's, 0755, 1970.
fn implied_entry(path: &[u8]) -> Entry {
    Entry {
        path: path.to_vec(),
        link: Vec::new(),
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        sparse: None,
        mtime: Timestamp { secs: 0, nanos: 0 },
        device: (0, 0),
        xattrs: Xattrs::default(),
    }
}

/// Whether a sparse file is zero outside of its extents.
fn holes_are_zero(object: &OwnedFd, sparse: &Sparse) -> sys::Result<bool> {
    let file = sys::reopen(object.as_fd(), sys::O_READ)?;
    let mut position = 0;
    for (offset, len) in sparse.extents.iter().chain([&(sparse.size, 0)]) {
        if !sys::is_zero_between(file.as_fd(), position, *offset)? {
            return Ok(false);
        }
        position = offset.saturating_add(*len);
    }
    Ok(true)
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
