//! Inodes without a name: how they stay reachable for those who have them open.
//!
//! A descriptor is the quick way, but descriptors are few: the process may have 1,024. Beyond
//! a share of them, a file is *parked* instead: it keeps a name in workdir until the kernel
//! forgets it. Workdir is emptied at mount, so a crash leaves nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::layers::upper::Parked;
use crate::sys;

/// Keeps a nameless inode's file in upper.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// By an open descriptor.
    Open(Arc<HeldFd>),
    /// By a name in workdir.
    Parked(Arc<Parked>),
}

impl Held {
    /// A descriptor of the file; `O_PATH`, or open for data.
    pub(super) fn fd(&self) -> sys::Result<Arc<OwnedFd>> {
        match self {
            Self::Open(held) => Ok(Arc::clone(&held.fd)),
            Self::Parked(parked) => parked.open().map(Arc::new),
        }
    }

    /// How many links of the file are the union's own.
    pub(super) fn own_links(&self) -> u32 {
        match self {
            Self::Open(_) => 0,
            Self::Parked(_) => 1,
        }
    }
}

/// A held descriptor, counted.
#[derive(Debug)]
pub(super) struct HeldFd {
    fd: Arc<OwnedFd>,
    count: Arc<AtomicUsize>,
}

impl Drop for HeldFd {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The descriptors held at present, and how many may be.
#[derive(Debug)]
pub(super) struct HeldFds {
    count: Arc<AtomicUsize>,
    limit: usize,
}

impl HeldFds {
    pub(super) fn new(limit: usize) -> Self {
        Self { count: Arc::default(), limit }
    }

    /// Whether one more descriptor is within the limit.
    pub(super) fn has_room(&self) -> bool {
        self.count.load(Ordering::Relaxed) < self.limit
    }

    pub(super) fn hold(&self, fd: Arc<OwnedFd>) -> Held {
        self.count.fetch_add(1, Ordering::Relaxed);
        Held::Open(Arc::new(HeldFd { fd, count: Arc::clone(&self.count) }))
    }
}
