//! What the layer's filesystem cannot be given and cannot keep aside.
//!
//! ```text
//! left-out    in the layer's home, NUL-separated and alternating: what, path
//! ```
//!
//! *what* is `owner`, `device`, `time`, or an xattr's name.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::AddAssign;
use std::path::Path;

/// The file in the layer's home.
const NAME: &str = "left-out";

/// What is left out, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files of other owners.
    pub owners: u64,
    /// Device nodes.
    pub devices: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Times that the filesystem cannot tell.
    pub times: u64,
}

impl LeftOut {
    /// Whether everything was kept.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.owners += other.owners;
        self.devices += other.devices;
        self.xattrs += other.xattrs;
        self.times += other.times;
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.owners, "owners"),
            (self.devices, "device nodes"),
            (self.xattrs, "xattrs"),
            (self.times, "times"),
        ];
        let parts: Vec<_> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{what} ({count})"))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

/// What of a file is left out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// Owner and mode.
    Owner,
    /// All of it: a device node.
    Device,
    /// Its time of change, as it is.
    Time,
    /// The xattr of this name.
    Xattr(&'a [u8]),
}

impl<'a> What<'a> {
    fn text(self) -> &'a [u8] {
        match self {
            What::Owner => b"owner",
            What::Device => b"device",
            What::Time => b"time",
            What::Xattr(name) => name,
        }
    }
}

/// Notes what is left out.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    home: &'a Path,
    list: Option<BufWriter<File>>,
    count: LeftOut,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(home: &'a Path) -> Self {
        Self { home, list: None, count: LeftOut::default() }
    }

    pub(super) fn note(&mut self, what: What<'_>, path: &[u8]) -> io::Result<()> {
        match what {
            What::Owner => self.count.owners += 1,
            What::Device => self.count.devices += 1,
            What::Time => self.count.times += 1,
            What::Xattr(_) => self.count.xattrs += 1,
        }
        let list = match &mut self.list {
            Some(list) => list,
            none => none.insert(BufWriter::new(File::create_new(self.home.join(NAME))?)),
        };
        for text in [what.text(), path] {
            list.write_all(text)?;
            list.write_all(b"\0")?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<LeftOut> {
        if let Some(mut list) = self.list {
            list.flush()?;
        }
        Ok(self.count)
    }
}

/// What a layer lacks.
#[derive(Debug, Default)]
pub(crate) struct Lacking(HashSet<(Vec<u8>, Vec<u8>)>);

impl Lacking {
    /// Reads a layer's list.
    pub(crate) fn read(home: &Path) -> io::Result<Self> {
        let text = match std::fs::read(home.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text?,
        };
        let words: Vec<&[u8]> = text.split(|b| *b == 0).collect();
        let pairs = words.chunks_exact(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec()));
        Ok(Self(pairs.collect()))
    }

    /// Whether the layer lacks this of a file.
    pub(crate) fn has(&self, what: What<'_>, path: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains(&(what.text().to_vec(), path.to_vec()))
    }
}
