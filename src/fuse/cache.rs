//! What the kernel has cached of a mount, and is told to drop.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use super::MountConfig;
use super::attach::MountFlag;
use super::device::Device;
use crate::layers::number::Ino;
use crate::overlay::Stale;
use crate::sys;

/// Inodes whose pages wait to be dropped.
const MAX_WAITING: usize = 64;

/// The kernel's side of a mount.
#[derive(Debug)]
pub(super) struct KernelCache {
    device: Device,
    /// Whether it pays to drop listings: not where times of access never change, for the kernel
    /// mounted read-only, nor where it asks for attributes at each time.
    drops_listings: bool,
    /// To the thread that drops pages, which the first ones start.
    pages: Mutex<Option<SyncSender<Ino>>>,
}

impl KernelCache {
    pub(super) fn new(device: Device, config: &MountConfig) -> Self {
        let is_read_only = config.flags.contains(&MountFlag::ReadOnly);
        let drops_listings = !is_read_only && config.timeout.is_none_or(|ttl| !ttl.is_zero());
        Self { device, drops_listings, pages: Mutex::default() }
    }

    /// Has the kernel drop what is stale; false if it will not.
    ///
    /// A listing lies in pages, as data does, and the kernel waits for who holds one: a getdents(2) whose
    /// buffer is a page of this very mount, maybe, which takes a READ. So no worker does that. Who has a
    /// page of another mount that never answers can keep that thread waiting, and so the others'
    /// listings in the kernel, which costs them requests.
    pub(super) fn drop_stale(&self, stale: Stale) -> bool {
        match stale {
            Stale::Attributes(ino) => {
                drop_cached(&self.device, ino, ATTRIBUTES_ALONE);
                true
            }
            Stale::Listing(ino) => self.drops_listings && self.queue_pages(ino),
            Stale::Data(ino) => self.queue_pages(ino),
        }
    }

    fn queue_pages(&self, ino: Ino) -> bool {
        let mut pages = self.pages.lock();
        if pages.is_none() {
            *pages = start(self.device.clone());
        }
        pages.as_ref().is_some_and(|pages| pages.try_send(ino).is_ok())
    }
}

/// In the place of an offset.
const ATTRIBUTES_ALONE: i64 = -1;
const ALL_PAGES: i64 = 0;

fn drop_cached(device: &Device, ino: Ino, offset: i64) {
    // An inode that the kernel has forgotten has nothing to be told.
    if let Err(error) = device.invalidate(ino, offset) {
        log::debug!("tell the kernel of {}: {error}", ino.0);
    }
}

/// Starts the thread that drops pages. It ends with the mount, when the sender goes.
fn start(device: Device) -> Option<SyncSender<Ino>> {
    let (sender, inodes): (_, Receiver<Ino>) = sync_channel(MAX_WAITING);
    let drop_all = move || {
        sys::run_as_usual();
        inodes.iter().for_each(|ino| drop_cached(&device, ino, ALL_PAGES));
    };
    let spawned = std::thread::Builder::new().name("pages".into()).spawn(drop_all);
    spawned.inspect_err(|error| log::debug!("no thread to drop pages: {error}")).ok()?;
    Some(sender)
}
