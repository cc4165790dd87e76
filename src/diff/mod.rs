//! What a writable layer changes: added, changed and deleted paths, as `docker diff` tells them.
//!
//! The lowers alone are taken as one union, "before"; upper is walked beside it. A whiteout
//! is a deletion; an opaque directory deletes every name before that it has not itself.
//! Below a redirected directory, the tree with upper on top, "after", is compared instead.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use crate::layers::index::Index;
use crate::layers::lower::{LayerDir, read_layer_dir};
use crate::layers::marks;
use crate::layers::number::Ino;
use crate::layers::redirect::Namespace;
use crate::overlay::{MountOptions, Overlay, UpperOptions};
use crate::sys::{self, Errno, FileType, Stat};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Added,
    /// It was, and it or something in it is different.
    Changed,
    /// It is not there any more.
    Deleted,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "A",
            Self::Changed => "C",
            Self::Deleted => "D",
        })
    }
}

/// Why the changes could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layers cannot be opened.
    #[error(transparent)]
    Layers(#[from] crate::layers::Error),
    /// A tree cannot be read.
    #[error("{path}: {cause}")]
    Tree {
        /// Where, escaped.
        path: String,
        /// What failed.
        cause: crate::overlay::Error,
    },
    /// Upper cannot be read.
    #[error("read upper's {path}: {errno}")]
    Upper {
        /// Where, escaped.
        path: String,
        /// How it failed.
        errno: Errno,
    },
}

/// The changes of `upper` over `lowers` (topmost first), by absolute path.
pub fn changes(
    lowers: Vec<std::path::PathBuf>,
    upper: &UpperOptions,
) -> Result<BTreeMap<Vec<u8>, Change>, Error> {
    let with_upper = std::iter::once(upper.upper.clone()).chain(lowers.iter().cloned());
    let after = Overlay::open(&MountOptions::new(with_upper.collect()))?;
    let mut options = MountOptions::new(lowers);
    options.lower_devices = true; // they are an image's
    let before = Overlay::open(&options)?;
    let root = sys::open_dir(&upper.upper)
        .map_err(|errno| Error::Upper { path: upper.upper.display().to_string(), errno })?;
    let work = sys::open_dir(&upper.work)
        .map_err(|errno| Error::Upper { path: upper.work.display().to_string(), errno })?;
    let is_real = Index::real_devices(work.as_fd())
        .map_err(|errno| Error::Upper { path: "workdir".to_owned(), errno })?;
    let namespace = Namespace::of_this_process();
    let mut walk = Walk { before, after, is_real: &is_real, namespace, changes: BTreeMap::new() };
    walk.directory(root, Some(Ino::ROOT), b"")?;
    Ok(walk.changes)
}

struct Walk<'a> {
    before: Overlay,
    after: Overlay,
    namespace: Namespace,
    is_real: &'a dyn Fn(&Stat) -> bool,
    changes: BTreeMap<Vec<u8>, Change>,
}

impl Walk<'_> {
    /// Compares a directory of upper with the one before, if there was one. Iterates, for a
    /// tree may be deeper than the stack.
    fn directory(&mut self, dir: OwnedFd, before: Option<Ino>, path: &[u8]) -> Result<(), Error> {
        let mut todo = vec![(dir, before, path.to_vec())];
        while let Some((dir, before, path)) = todo.pop() {
            let has_redirect = self.namespace.has_redirect(dir.as_fd());
            if has_redirect.map_err(|errno| upper_error(&path, errno))? {
                self.redirected(&path, before)?;
                continue;
            }
            let found = read_layer_dir(dir.as_fd(), self.is_real)
                .map_err(|errno| upper_error(&path, errno))?;
            self.deletions(&found, before, &path)?;
            for entry in found.entries {
                let name = marks::unescape(&entry.name);
                let at = [&path, &b"/"[..], &name].concat();
                let old = self.lookup(before, &name, &at)?;
                let change = if old.is_some() { Change::Changed } else { Change::Added };
                self.changes.insert(at.clone(), change);
                if entry.kind == FileType::Directory {
                    let below = sys::open_at(dir.as_fd(), &entry.name, sys::O_DIRECTORY);
                    let below = below.map_err(|errno| upper_error(&at, errno))?;
                    let old = old.filter(|(_, kind)| *kind == FileType::Directory);
                    todo.push((below, old.map(|(ino, _)| ino), at));
                }
            }
        }
        Ok(())
    }

    /// Compares all that a redirected directory shows with what was there before.
    fn redirected(&mut self, path: &[u8], before: Option<Ino>) -> Result<(), Error> {
        let mut after = Ino::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let found = self.after.lookup(after, name);
            after = found.map_err(|cause| tree_error(path, cause))?.ino;
        }
        let mut todo = vec![(after, before, path.to_vec())];
        while let Some((after, before, path)) = todo.pop() {
            let names = names(&self.after, after, &path)?;
            for (name, ino, kind) in &names {
                let at = [&path, &b"/"[..], name].concat();
                let old = self.lookup(before, name, &at)?;
                let change = if old.is_some() { Change::Changed } else { Change::Added };
                self.changes.insert(at.clone(), change);
                if *kind == FileType::Directory {
                    let old = old.filter(|(_, kind)| *kind == FileType::Directory);
                    todo.push((*ino, old.map(|(ino, _)| ino), at));
                }
            }
            let Some(before) = before else { continue };
            for (name, ..) in crate::diff::names(&self.before, before, &path)? {
                if !names.iter().any(|(kept, ..)| *kept == name) {
                    self.changes.insert([&path, &b"/"[..], &name].concat(), Change::Deleted);
                }
            }
        }
        Ok(())
    }

    fn deletions(
        &mut self,
        found: &LayerDir,
        before: Option<Ino>,
        path: &[u8],
    ) -> Result<(), Error> {
        let Some(before) = before else {
            return Ok(());
        };
        let shown = |name: &[u8]| Box::from(&*marks::unescape(name));
        let mut gone: Vec<Box<[u8]>> = found.whiteouts.iter().map(|name| shown(name)).collect();
        if found.opaque {
            gone.extend(names(&self.before, before, path)?.into_iter().map(|(name, ..)| name));
        }
        for name in gone {
            let at = [path, &b"/"[..], &name].concat();
            let has_own = found.entries.iter().any(|entry| shown(&entry.name) == name);
            if !has_own && self.lookup(Some(before), &name, &at)?.is_some() {
                self.changes.insert(at, Change::Deleted);
            }
        }
        Ok(())
    }

    fn lookup(
        &self,
        dir: Option<Ino>,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<(Ino, FileType)>, Error> {
        let Some(dir) = dir else { return Ok(None) };
        match self.before.lookup(dir, name) {
            Ok(attr) => Ok(Some((attr.ino, attr.kind))),
            Err(crate::overlay::Error::NotFound) => Ok(None),
            Err(cause) => Err(tree_error(path, cause)),
        }
    }
}

type Name = (Box<[u8]>, Ino, FileType);

/// What a directory of a union shows.
fn names(tree: &Overlay, dir: Ino, path: &[u8]) -> Result<Vec<Name>, Error> {
    let mut names = Vec::new();
    let after_dots = 2;
    tree.readdir(dir, after_dots, |entry| {
        names.push((entry.name.clone(), entry.ino, entry.kind));
        true
    })
    .map_err(|cause| tree_error(path, cause))?;
    Ok(names)
}

fn tree_error(path: &[u8], cause: crate::overlay::Error) -> Error {
    Error::Tree { path: path.escape_ascii().to_string(), cause }
}

fn upper_error(path: &[u8], errno: Errno) -> Error {
    Error::Upper { path: path.escape_ascii().to_string(), errno }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn added_changed_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for made in ["lower/d/sub", "lower/o", "upper/d", "upper/o", "upper/new", "work"] {
            fs::create_dir_all(path(made)).unwrap();
        }
        for file in ["lower/keep", "lower/gone", "lower/d/f", "lower/o/old", "lower/o/both"] {
            fs::write(path(file), "").unwrap();
        }
        for file in [
            "upper/.wh.gone",
            "upper/.wh.never",
            "upper/d/f",
            "upper/d/.wh.sub",
            "upper/new/x",
            "upper/o/.wh..wh..opq",
            "upper/o/both",
        ] {
            fs::write(path(file), "").unwrap();
        }
        let places = UpperOptions { upper: path("upper"), work: path("work") };
        let found: Vec<String> = changes(vec![path("lower")], &places)
            .unwrap()
            .iter()
            .map(|(path, change)| format!("{change} {}", String::from_utf8_lossy(path)))
            .collect();
        let expected = [
            "C /d",
            "C /d/f",
            "D /d/sub",
            "D /gone",
            "A /new",
            "A /new/x",
            "C /o",
            "C /o/both",
            "D /o/old",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn below_a_redirected_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for made in ["lower/d/sub", "lower/o", "upper", "work"] {
            fs::create_dir_all(path(made)).unwrap();
        }
        for file in ["lower/d/f", "lower/d/sub/g", "lower/o/old"] {
            fs::write(path(file), "").unwrap();
        }
        let places = UpperOptions { upper: path("upper"), work: path("work") };
        let mut options = MountOptions::new(vec![path("lower")]);
        options.upper = Some(places.clone());
        options.form = crate::overlay::UpperForm::Rich;
        let tree = Overlay::open(&options).unwrap();
        let rename = |from: &[u8], to: &[u8]| {
            let replace = crate::overlay::RenameMode::Replace;
            tree.rename(Ino::ROOT, from, Ino::ROOT, to, replace).unwrap();
        };
        // Over a name of the lower layer, once that is empty.
        let o = tree.lookup(Ino::ROOT, b"o").unwrap().ino;
        tree.unlink(o, b"old").unwrap();
        rename(b"d", b"new");
        let new = tree.lookup(Ino::ROOT, b"new").unwrap().ino;
        tree.unlink(new, b"f").unwrap();
        rename(b"new", b"o");
        drop(tree);
        let found: Vec<String> = changes(vec![path("lower")], &places)
            .unwrap()
            .iter()
            .map(|(path, change)| format!("{change} {}", String::from_utf8_lossy(path)))
            .collect();
        assert_eq!(found, ["D /d", "C /o", "D /o/old", "A /o/sub", "A /o/sub/g"]);
    }
}
