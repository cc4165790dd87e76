//! Files of a layer that a later entry of the same tar takes the place of.
//!
//! The tar that is written again has their data too, so they are kept beside the layer:
//!
//! ```text
//! replaced/<n>     a file that was replaced
//! replaced/list    a JSON line for each name that was: {"path": ..., "file": n or null}
//! ```
//!
//! The n-th line of a path is what its n-th entry in the tar made (a directory that is listed
//! again replaces nothing).

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sys;

/// The directory beside the layer's `diff`.
const NAME: &str = "replaced";

#[derive(Debug, Deserialize, Serialize)]
struct Line {
    path: Vec<u8>,
    file: Option<u64>,
}

/// What was replaced so far.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    home: &'a Path,
    open: Option<(OwnedFd, File)>,
    count: u64,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(home: &'a Path) -> Self {
        Self { home, open: None, count: 0 }
    }

    /// Takes the object `name` of `dir` out of the layer; what has no data goes.
    pub(super) fn take(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        has_data: bool,
    ) -> io::Result<()> {
        if self.open.is_none() {
            let at = self.home.join(NAME);
            fs::create_dir(&at)?;
            self.open = Some((sys::open_dir(&at)?, File::create_new(at.join("list"))?));
        }
        let Some((kept, list)) = &mut self.open else { return Ok(()) };
        let file = has_data.then_some(self.count);
        match file {
            Some(n) => rustix::fs::renameat(dir, name, kept.as_fd(), n.to_string())?,
            None => rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty())?,
        }
        self.count += u64::from(has_data);
        let mut line = serde_json::to_vec(&Line { path: path.to_vec(), file })?;
        line.push(b'\n');
        list.write_all(&line)
    }
}

/// The data of replaced files, in the order of the tar.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    by_path: HashMap<Vec<u8>, VecDeque<Option<u64>>>,
}

impl Replaced {
    /// Reads the list of a layer.
    pub(crate) fn read(home: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let list = match File::open(home.join(NAME).join("list")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            list => list?,
        };
        for line in BufReader::new(list).lines() {
            let line: Line = serde_json::from_str(&line?)?;
            found.by_path.entry(line.path).or_default().push_back(line.file);
        }
        Ok(found)
    }

    /// The files that are kept, as paths below the layer's home.
    pub(crate) fn files(&self) -> impl Iterator<Item = String> {
        self.by_path.values().flatten().flatten().map(|n| format!("{NAME}/{n}"))
    }

    /// What the next entry of this path made, if it was replaced: the path below the layer's home
    /// of the file that has its data, or `None` if it had none.
    pub(crate) fn next(&mut self, path: &[u8]) -> Option<Option<String>> {
        let file = self.by_path.get_mut(path)?.pop_front()?;
        Some(file.map(|n| format!("{NAME}/{n}")))
    }
}
