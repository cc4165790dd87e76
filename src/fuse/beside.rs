//! Operations that run beside the workers: what copies a large file, or waits for a disk, has a
//! thread of its own, so that it keeps no worker from answering others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::overlay::Overlay;

/// So many at a time; each is one that a process waits for.
const MAX_BESIDE: usize = 256;

/// How many run now.
#[derive(Debug, Default)]
pub(super) struct Beside(Arc<AtomicUsize>);

impl Beside {
    /// Whether an operation is worth a thread and may have one.
    pub(super) fn has_room_for(&self, takes_long: bool) -> bool {
        takes_long && self.0.load(Ordering::Relaxed) < MAX_BESIDE
    }

    /// Runs the operation in a thread of its own; where there is none to be had, here.
    pub(super) fn run(
        &self,
        overlay: &Arc<Overlay>,
        operation: impl FnOnce(&Overlay) + Send + 'static,
    ) {
        let (theirs, count) = (Arc::clone(overlay), Arc::clone(&self.0));
        count.fetch_add(1, Ordering::Relaxed);
        let operation = Arc::new(Mutex::new(Some(operation)));
        let slot = Arc::clone(&operation);
        let thread = std::thread::Builder::new().name("beside".into());
        let spawned = thread.spawn(move || {
            let operation = slot.lock().take();
            operation.into_iter().for_each(|operation| operation(&theirs));
            drop(theirs);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            log::debug!("no thread for an operation: {error}");
            self.0.fetch_sub(1, Ordering::Relaxed);
            let operation = operation.lock().take();
            operation.into_iter().for_each(|operation| operation(overlay));
        }
    }
}
