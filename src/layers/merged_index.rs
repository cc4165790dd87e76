//! The merged tree of a stack of layers that never change: written once, mapped by each mount.
//!
//! It answers what a directory shows, and the attributes of all that is in it, with no system call
//! and at a cost that does not depend on the number of layers. The data stays where it is.
//!
//! ```text
//! header   magic | layers u32 | directories u32 | entries u32 | sources u32 | names u32
//!          flags u32     1: owners, modes and types are those that override xattrs say
//! layers   inode number u64 | mtime: seconds i64, nanoseconds u32 | 0 u32     of each layer's root
//! directories  first entry u32 | entries u32 | its own entry u32 | 0 u32      0 is the root
//! entries  name at u32 | its length u16 | top layer u16 | directory u32 | sources at u32
//!          sources u16 | kind u16 | 0 u32 | attributes [104 bytes]      sorted by name; 0 is the root's
//! sources  u16 ...                    the layers that merge into a directory, topmost first
//! names    bytes
//! ```
//!
//! All numbers are little-endian; layers are counted from the top. It belongs to layers whose roots
//! have the same inode numbers and times: a copied or changed stack has none.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use crate::sys::{FileType, Mapped, Stat, Timestamp};

const MAGIC: &[u8; 8] = b"plyfsmi1";
const HEADER: usize = 32;
const LAYER: usize = 24;
const DIRECTORY: usize = 16;
const ENTRY: usize = 24 + ATTRIBUTES;
const ATTRIBUTES: usize = 104;
/// `directory` of an entry that is none.
const NONE: u32 = u32::MAX;

/// A directory of the merged tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirId(u32);

impl DirId {
    /// The tree's root.
    pub const ROOT: Self = Self(0);
}

/// By which the root of a layer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRoot {
    ino: u64,
    mtime: Timestamp,
}

impl LayerRoot {
    /// The root with these attributes.
    pub fn of(stat: &Stat) -> Self {
        Self { ino: stat.ino, mtime: stat.mtime }
    }
}

/// A mapped index.
#[derive(Debug)]
pub struct MergedIndex {
    bytes: Mapped,
    directories: Section,
    entries: Section,
    sources: Section,
    names: Section,
    has_overrides: bool,
}

/// Flag: see above.
const OVERRIDES: u32 = 1;

/// Records of one size.
#[derive(Clone, Copy, Debug)]
struct Section {
    start: usize,
    count: usize,
    size: usize,
}

impl Section {
    fn end(self) -> Option<usize> {
        self.start.checked_add(self.count.checked_mul(self.size)?)
    }

    fn record(self, bytes: &[u8], n: usize) -> Option<&[u8]> {
        let start = self.start + (n < self.count).then_some(n)? * self.size;
        bytes.get(start..start + self.size)
    }
}

fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|n| record[at + n]))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| record[at + n]))
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| record[at + n]))
}

impl MergedIndex {
    /// Maps the index at `path`; `None` if it is not that of layers with these roots.
    pub fn open(path: &Path, layers: &[LayerRoot]) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Ok(Self::read(Mapped::new(&file)?, layers))
    }

    fn read(bytes: Mapped, layers: &[LayerRoot]) -> Option<Self> {
        let header = bytes.get(..HEADER).filter(|header| header.starts_with(MAGIC))?;
        let count = |n: usize| u32_at(header, MAGIC.len() + 4 * n) as usize;
        let section = |start, count, size| Section { start, count, size };
        let roots = section(HEADER, count(0), LAYER);
        let directories = section(roots.end()?, count(1), DIRECTORY);
        let entries = section(directories.end()?, count(2), ENTRY);
        let sources = section(entries.end()?, count(3), 2);
        let names = section(sources.end()?, count(4), 1);
        let is_whole = names.end()? == bytes.len();
        let root_of = |record: &[u8]| LayerRoot {
            ino: u64_at(record, 0),
            mtime: Timestamp { secs: u64_at(record, 8).cast_signed(), nanos: u32_at(record, 16) },
        };
        let found = (0..roots.count).map_while(|n| roots.record(&bytes, n)).map(root_of);
        let is_theirs = found.eq(layers.iter().copied());
        let has_overrides = count(5) as u32 & OVERRIDES != 0;
        let index = Self { bytes, directories, entries, sources, names, has_overrides };
        (is_whole && is_theirs).then_some(index)
    }

    /// Whether owners, modes and types are those that the layers' override xattrs say.
    pub fn has_overrides(&self) -> bool {
        self.has_overrides
    }

    /// The names in a directory.
    pub fn entries(&self, dir: DirId) -> impl Iterator<Item = Entry<'_>> {
        let (first, count) = self.extent(dir);
        (first..first + count).map_while(|n| self.entry(n))
    }

    /// The entry of a name in a directory.
    pub fn find(&self, dir: DirId, name: &[u8]) -> Option<Entry<'_>> {
        let (first, count) = self.extent(dir);
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = low.midpoint(high);
            let entry = self.entry(middle)?;
            match entry.name().cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(entry),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// A directory's own entry.
    pub fn own_entry(&self, dir: DirId) -> Option<Entry<'_>> {
        let record = self.directories.record(&self.bytes, dir.0 as usize)?;
        self.entry(u32_at(record, 8) as usize)
    }

    fn extent(&self, dir: DirId) -> (usize, usize) {
        match self.directories.record(&self.bytes, dir.0 as usize) {
            Some(record) => (u32_at(record, 0) as usize, u32_at(record, 4) as usize),
            None => (0, 0),
        }
    }

    fn entry(&self, n: usize) -> Option<Entry<'_>> {
        let record = self.entries.record(&self.bytes, n)?;
        Some(Entry { index: self, record })
    }
}

/// A name in the merged tree.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    index: &'a MergedIndex,
    record: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Its name, as the layers hold it.
    pub fn name(&self) -> &'a [u8] {
        let (at, len) = (u32_at(self.record, 0) as usize, usize::from(u16_at(self.record, 4)));
        let start = self.index.names.start + at;
        self.index.bytes.get(start..start + len).unwrap_or_default()
    }

    /// The topmost layer that has it.
    pub fn top(&self) -> u16 {
        u16_at(self.record, 6)
    }

    /// The directory that it is, if it is one.
    pub fn directory(&self) -> Option<DirId> {
        Some(u32_at(self.record, 8)).filter(|dir| *dir != NONE).map(DirId)
    }

    /// The layers that make it, topmost first.
    pub fn layers(&self) -> impl Iterator<Item = u16> {
        let (first, count) =
            (u32_at(self.record, 12) as usize, usize::from(u16_at(self.record, 16)));
        let below = (first..first + count)
            .map_while(|n| self.index.sources.record(&self.index.bytes, n))
            .map(|record| u16_at(record, 0));
        std::iter::once(self.top()).chain(below)
    }

    /// Its type in the topmost layer.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(u32::from(u16_at(self.record, 18)))
    }

    /// Its attributes there; `dev` is that layer's device.
    pub fn stat(&self, dev: u64) -> Stat {
        decode(&self.record[ENTRY - ATTRIBUTES..], dev)
    }
}

fn encode(stat: &Stat) -> [u8; ATTRIBUTES] {
    let mut record = [0; ATTRIBUTES];
    let btime = stat.btime.unwrap_or(Timestamp { secs: 0, nanos: NONE });
    let flags = u32::from(stat.immutable) | u32::from(stat.append_only) << 1;
    let times = [stat.atime, stat.mtime, stat.ctime, btime];
    let longs = [stat.ino, stat.size, stat.blocks, stat.rdev];
    let longs = longs.into_iter().chain(times.map(|time| time.secs.cast_unsigned()));
    let words = [stat.mode, stat.uid, stat.gid, stat.nlink, stat.blksize, flags];
    let words = words.into_iter().chain(times.map(|time| time.nanos));
    for (n, long) in longs.enumerate() {
        record[8 * n..8 * n + 8].copy_from_slice(&long.to_le_bytes());
    }
    for (n, word) in words.enumerate() {
        record[64 + 4 * n..68 + 4 * n].copy_from_slice(&word.to_le_bytes());
    }
    record
}

fn decode(record: &[u8], dev: u64) -> Stat {
    let (long, word) = (|n: usize| u64_at(record, 8 * n), |n: usize| u32_at(record, 64 + 4 * n));
    let time = |n: usize| Timestamp { secs: long(4 + n).cast_signed(), nanos: word(6 + n) };
    Stat {
        dev,
        ino: long(0),
        size: long(1),
        blocks: long(2),
        rdev: long(3),
        mode: word(0),
        uid: word(1),
        gid: word(2),
        nlink: word(3),
        blksize: word(4),
        immutable: word(5) & 1 != 0,
        append_only: word(5) & 2 != 0,
        atime: time(0),
        mtime: time(1),
        ctime: time(2),
        btime: Some(time(3)).filter(|time| time.nanos != NONE),
    }
}

/// An index that is being made: directories are added parents first, each with all its names. It
/// grows on disk, not in memory.
#[derive(Debug)]
pub struct Builder {
    layers: Vec<LayerRoot>,
    directories: Part,
    entries: Part,
    sources: Part,
    names: Part,
    /// Directories that have an entry.
    known: u32,
    has_overrides: bool,
}

/// A section that is being made.
#[derive(Debug)]
struct Part {
    file: BufWriter<File>,
    len: u64,
}

impl Part {
    fn new(scratch: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(tempfile::tempfile_in(scratch)?), len: 0 })
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn copy_to(self, out: &mut impl Write) -> io::Result<()> {
        let mut file = self.file.into_inner()?;
        file.rewind()?;
        io::copy(&mut file, out).map(drop)
    }
}

/// A name to be added.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// Its name, as the layers hold it.
    pub name: &'a [u8],
    /// The layers that make it, topmost first.
    pub layers: &'a [u16],
    /// Its attributes in the topmost.
    pub stat: &'a Stat,
}

impl Builder {
    /// An index of layers with these roots; the root directory has these attributes, which may be
    /// those of override xattrs. What is made lies in unnamed files in the directory `scratch`.
    pub fn new(
        layers: Vec<LayerRoot>,
        root: &Stat,
        has_overrides: bool,
        scratch: &Path,
    ) -> io::Result<Self> {
        let part = || Part::new(scratch);
        let (directories, entries, sources, names) = (part()?, part()?, part()?, part()?);
        let mut index =
            Self { layers, directories, entries, sources, names, known: 0, has_overrides };
        let all: Vec<u16> = (0..index.layers.len()).map(|n| n as u16).collect();
        index.add_entry(&NewEntry { name: b"", layers: &all, stat: root })?;
        Ok(index)
    }

    /// Adds the next directory in the order in which the entries of directories were added, the
    /// root first; its entries are sorted by name.
    pub fn add_directory<'a>(
        &mut self,
        own: u32,
        entries: impl Iterator<Item = NewEntry<'a>>,
    ) -> io::Result<()> {
        let first = self.count();
        for entry in entries {
            self.add_entry(&entry)?;
        }
        for word in [first, self.count() - first, own, 0] {
            self.directories.add(&word.to_le_bytes())?;
        }
        Ok(())
    }

    /// Entries so far: the number of the next one.
    pub fn count(&self) -> u32 {
        (self.entries.len / ENTRY as u64) as u32
    }

    fn add_entry(&mut self, entry: &NewEntry<'_>) -> io::Result<()> {
        let is_dir = entry.stat.kind() == FileType::Directory;
        let directory = if is_dir { self.known } else { NONE };
        self.known += u32::from(is_dir);
        let (top, below) = entry.layers.split_first().unwrap_or((&0, &[]));
        let mut record = Vec::with_capacity(ENTRY);
        record.extend_from_slice(&(self.names.len as u32).to_le_bytes());
        record.extend_from_slice(&(entry.name.len() as u16).to_le_bytes());
        record.extend_from_slice(&top.to_le_bytes());
        record.extend_from_slice(&directory.to_le_bytes());
        record.extend_from_slice(&((self.sources.len / 2) as u32).to_le_bytes());
        record.extend_from_slice(&(below.len() as u16).to_le_bytes());
        record.extend_from_slice(&(entry.stat.kind().as_raw_mode() as u16).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&encode(entry.stat));
        self.entries.add(&record)?;
        for layer in below {
            self.sources.add(&layer.to_le_bytes())?;
        }
        self.names.add(entry.name)
    }

    /// Writes the index; false if the tree is larger than its numbers, or a directory was not added.
    pub fn finish(self, out: &mut impl Write) -> io::Result<bool> {
        if self.directories.len / DIRECTORY as u64 != u64::from(self.known) {
            return Ok(false);
        }
        let counts = [
            self.layers.len() as u64,
            self.directories.len / DIRECTORY as u64,
            self.entries.len / ENTRY as u64,
            self.sources.len / 2,
            self.names.len,
            if self.has_overrides { u64::from(OVERRIDES) } else { 0 },
        ];
        let mut head = MAGIC.to_vec();
        for count in counts {
            let Ok(count) = u32::try_from(count) else { return Ok(false) };
            head.extend_from_slice(&count.to_le_bytes());
        }
        for root in &self.layers {
            head.extend_from_slice(&root.ino.to_le_bytes());
            head.extend_from_slice(&root.mtime.secs.to_le_bytes());
            head.extend_from_slice(&root.mtime.nanos.to_le_bytes());
            head.extend_from_slice(&[0; 4]);
        }
        out.write_all(&head)?;
        for part in [self.directories, self.entries, self.sources, self.names] {
            part.copy_to(out)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: FileType, ino: u64) -> Stat {
        let time = |secs| Timestamp { secs, nanos: 999_999_999 };
        Stat {
            dev: 7,
            ino,
            mode: kind.as_raw_mode() | 0o4755,
            nlink: 3,
            uid: 70_000,
            gid: 4_294_967_294,
            rdev: rustix::fs::makedev(259, 256),
            size: 1 << 40,
            blocks: 8,
            blksize: 4096,
            atime: time(-1),
            mtime: time(i64::MIN),
            ctime: time(1),
            btime: ino.is_multiple_of(2).then(|| time(2)),
            immutable: true,
            append_only: false,
        }
    }

    fn roots() -> Vec<LayerRoot> {
        (1..4).map(|n| LayerRoot::of(&stat(FileType::Directory, n))).collect()
    }

    fn built() -> Vec<u8> {
        let (dir, file) = (stat(FileType::Directory, 10), stat(FileType::RegularFile, 11));
        let scratch = tempfile::tempdir().unwrap();
        let mut builder = Builder::new(roots(), &dir, false, scratch.path()).unwrap();
        let entry = |name, layers, stat| NewEntry { name, layers, stat };
        let names = [entry(b"a", &[1], &file), entry(b"d", &[0, 2], &dir), entry(b"e", &[2], &dir)];
        builder.add_directory(0, names.into_iter()).unwrap();
        builder.add_directory(2, [entry(b"\xff", &[2], &file)].into_iter()).unwrap();
        builder.add_directory(3, std::iter::empty()).unwrap();
        let mut bytes = Vec::new();
        assert!(builder.finish(&mut bytes).unwrap());
        bytes
    }

    fn open(bytes: &[u8], layers: &[LayerRoot]) -> Option<MergedIndex> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        MergedIndex::open(file.path(), layers).unwrap()
    }

    #[test]
    fn what_was_added_is_found() {
        let index = open(&built(), &roots()).unwrap();
        let names: Vec<_> = index.entries(DirId::ROOT).map(|entry| entry.name()).collect();
        assert_eq!(names, [&b"a"[..], b"d", b"e"]);
        let d = index.find(DirId::ROOT, b"d").unwrap();
        assert_eq!(d.layers().collect::<Vec<_>>(), [0, 2]);
        let below = d.directory().unwrap();
        assert_eq!(index.own_entry(below).unwrap().name(), b"d");
        let file = index.find(below, b"\xff").unwrap();
        assert_eq!((file.top(), file.kind(), file.directory()), (2, FileType::RegularFile, None));
        let told = format!("{:?}", file.stat(7));
        assert_eq!(told, format!("{:?}", stat(FileType::RegularFile, 11)));
        assert!(index.find(below, b"d").is_none() && index.find(DirId::ROOT, b"aa").is_none());
        assert_eq!(index.own_entry(DirId::ROOT).unwrap().layers().count(), 3);
        assert_eq!(
            index.entries(index.find(DirId::ROOT, b"e").unwrap().directory().unwrap()).count(),
            0
        );
    }

    #[test]
    fn that_of_other_layers_or_a_cut_one_is_none() {
        let mut others = roots();
        others[1].ino += 1;
        assert!(open(&built(), &others).is_none());
        assert!(open(&built(), &roots()[..2]).is_none());
        let whole = built();
        for cut in [0, 8, HEADER, whole.len() - 1] {
            assert!(open(&whole[..cut], &roots()).is_none(), "{cut}");
        }
        let mut forged = whole.clone();
        forged[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(open(&forged, &roots()).is_none());
    }
}
