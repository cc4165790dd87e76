//! The directories of a layer that is being unpacked: finding them by the paths of a tar.
//!
//! A path resolves as in a chroot into the layer: symlinks that the layer itself has are followed,
//! and lead nowhere else. Tars list what is in a directory together, so the last ones stay open.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use lru::LruCache;
use rustix::fs::{OFlags, ResolveFlags};

use super::{Error, Result};
use crate::sys::{self, Errno};

/// Directories that stay open.
const OPEN: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// An open directory of the layer.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) fd: OwnedFd,
    /// Its path without symlinks; empty for the root.
    pub(crate) path: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Directories {
    root: Rc<Directory>,
    /// By the paths that the tar has for them.
    open: LruCache<Vec<u8>, Rc<Directory>>,
}

impl Directories {
    pub(crate) fn new(root: OwnedFd) -> Self {
        let root = Rc::new(Directory { fd: root, path: Vec::new() });
        Self { root, open: LruCache::new(OPEN) }
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.fd.as_fd()
    }

    /// The directory at this path, if there is one.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Directory>>> {
        if path.is_empty() {
            return Ok(Some(Rc::clone(&self.root)));
        }
        if let Some(known) = self.open.get(path) {
            return Ok(Some(Rc::clone(known)));
        }
        let found = match sys::open_beneath(self.root(), path, sys::O_DIRECTORY) {
            Ok(fd) => Some(Directory { fd, path: path.to_vec() }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.follow(path)?,
            Err(errno) => return Err(Error::io("open", path.escape_ascii(), errno.into())),
        };
        Ok(found.map(|found| self.keep(path, found)))
    }

    pub(crate) fn keep(&mut self, path: &[u8], directory: Directory) -> Rc<Directory> {
        let directory = Rc::new(directory);
        self.open.put(path.to_vec(), Rc::clone(&directory));
        directory
    }

    /// A directory or symlink is gone: paths may lead elsewhere.
    pub(crate) fn forget_all(&mut self) {
        self.open.clear();
    }

    /// Opens a directory as a chroot into the layer would; `None` if it is not there.
    fn follow(&self, path: &[u8]) -> Result<Option<Directory>> {
        let failed = |errno: Errno| Error::io("open", path.escape_ascii(), errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = match sys::resolve_in(self.root(), path, flags, resolve) {
            Ok(fd) => fd,
            // Beyond PATH_MAX there is no way through a symlink, for anybody.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                return Ok(None);
            }
            Err(errno) => return Err(failed(errno)),
        };
        let place = |fd: BorrowedFd<'_>| {
            rustix::fs::readlink(sys::proc_path(fd), Vec::new()).map(std::ffi::CString::into_bytes)
        };
        let root = place(self.root()).map_err(failed)?;
        let real = place(fd.as_fd()).map_err(failed)?;
        let inside = real.strip_prefix(&root[..]).ok_or_else(|| failed(Errno::XDEV))?;
        let path = inside.strip_prefix(b"/").unwrap_or(inside).to_vec();
        Ok(Some(Directory { fd, path }))
    }
}
