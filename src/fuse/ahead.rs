//! The thread that reads directories ahead of who walks the tree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::layers::number::Ino;
use crate::overlay::Overlay;
use crate::sys;

/// Listings after which there is something to be read; what comes beyond is left to who asks.
const MAX_WAITING: usize = 16;

/// The thread, which the first listing starts; `None` inside if there is none to be had.
#[derive(Debug, Default)]
pub(super) struct Ahead(OnceLock<Option<Reader>>);

#[derive(Debug)]
struct Reader {
    listed: SyncSender<Ino>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Ahead {
    /// Has it read what comes after `dir`, unless it has enough to do.
    pub(super) fn read(&self, overlay: &Arc<Overlay>, dir: Ino) {
        if let Some(reader) = self.0.get_or_init(|| start(Arc::clone(overlay))) {
            let _ = reader.listed.try_send(dir);
        }
    }
}

/// The union is complete when its mount is gone: the thread must not have it any more.
impl Drop for Ahead {
    fn drop(&mut self) {
        let Some(Some(Reader { listed, ended, thread })) = self.0.take() else { return };
        ended.store(true, Ordering::Relaxed);
        drop(listed);
        if thread.join().is_err() {
            log::error!("the thread that reads ahead panicked");
        }
    }
}

fn start(overlay: Arc<Overlay>) -> Option<Reader> {
    let (sender, listed): (_, Receiver<Ino>) = sync_channel(MAX_WAITING);
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&ended);
    let read_all = move || {
        sys::run_as_usual();
        let goes_on = || !has_ended.load(Ordering::Relaxed);
        listed.iter().take_while(|_| goes_on()).for_each(|dir| overlay.read_ahead(dir, goes_on));
    };
    let spawned = std::thread::Builder::new().name("ahead".into()).spawn(read_all);
    let thread = spawned.inspect_err(|error| log::debug!("no thread to read ahead: {error}"));
    Some(Reader { listed: sender, ended, thread: thread.ok()? })
}
