//! One private mount for all layers of a stack that lie in one directory.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::sys::{self, Stat};

/// Layers, at least, for which a shared mount is made: a mount costs as much as a few look-ups.
const MIN_SHARED: usize = 4;

/// A private mount of a directory that all layers lie in.
pub(super) struct SharedMount {
    mount: OwnedFd,
    /// The mount that it is a copy of.
    of_mount: u64,
    directory: PathBuf,
    layers: Vec<Place>,
}

/// Where a layer lies, and what it is.
struct Place {
    path: PathBuf,
    mount: u64,
    device: u64,
    inode: u64,
}

impl SharedMount {
    /// None if there are few layers, or it is not allowed.
    pub(super) fn of(paths: &[PathBuf]) -> Option<Self> {
        if paths.len() < MIN_SHARED {
            return None;
        }
        let layers =
            paths.iter().map(|path| Place::of(path)).collect::<sys::Result<Vec<_>>>().ok()?;
        let mut directory = layers.first()?.path.as_path();
        while !layers.iter().all(|layer| layer.path.starts_with(directory)) {
            directory = directory.parent()?;
        }
        let dir = sys::open_dir(directory).ok()?;
        let (_, of_mount) = sys::fstat_in_mount(dir.as_fd()).ok()?;
        let mount = sys::clone_mount(dir.as_fd()).ok()?;
        let directory = directory.to_owned();
        Some(Self { mount, of_mount, directory, layers })
    }

    /// Opens a layer, and tells its root's attributes; none if it is not there, for something is
    /// mounted on the way to it.
    pub(super) fn open(&self, n: usize) -> Option<(OwnedFd, Stat)> {
        let layer = &self.layers[n];
        if layer.mount != self.of_mount {
            return None;
        }
        let below = layer.path.strip_prefix(&self.directory).ok()?.as_os_str().as_bytes();
        let root = sys::open_beneath(self.mount.as_fd(), below, sys::O_DIRECTORY).ok()?;
        let stat = sys::fstat(&root).ok()?;
        ((stat.dev, stat.ino) == (layer.device, layer.inode)).then_some((root, stat))
    }

    /// A layer's path without symlinks.
    pub(super) fn path(&self, n: usize) -> &Path {
        &self.layers[n].path
    }
}

impl Place {
    fn of(path: &Path) -> sys::Result<Self> {
        let dir = sys::open_dir(path)?;
        let (stat, mount) = sys::fstat_in_mount(dir.as_fd())?;
        let path = rustix::fs::readlink(sys::proc_path(dir.as_fd()), Vec::new())?;
        let path = PathBuf::from(OsString::from_vec(path.into_bytes()));
        Ok(Self { path, mount, device: stat.dev, inode: stat.ino })
    }
}
