//! Operations that run beside the workers: what copies a large file, or waits for a disk, has a
//! thread of its own, so that it keeps no worker from answering others.
//!
//! A thread that is done waits a while for the next one: `chmod -R` brings thousands, one after
//! the other. While it waits it holds nothing of the union, which ends when the mount does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::overlay::Overlay;

/// So many at a time; each is one that a process waits for.
const MAX_BESIDE: usize = 256;
/// How long a thread waits for the next operation.
const IDLE: Duration = Duration::from_secs(2);
/// How long the end of the mount waits for operations that go on, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

type Operation = Box<dyn FnOnce() + Send>;

/// The threads beside the workers.
#[derive(Default)]
pub(super) struct Beside(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Operations that run or wait for a thread.
    count: AtomicUsize,
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Operation>,
    /// Threads that wait for an operation, or will look for one next.
    idle: usize,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Beside({})", self.0.count.load(Ordering::Relaxed))
    }
}

impl Beside {
    /// Whether an operation is worth a thread and may have one.
    pub(super) fn has_room_for(&self, takes_long: bool) -> bool {
        takes_long && self.0.count.load(Ordering::Relaxed) < MAX_BESIDE
    }

    /// Runs the operation in another thread; where there is none to be had, here.
    pub(super) fn run(
        &self,
        overlay: &Arc<Overlay>,
        operation: impl FnOnce(&Overlay) + Send + 'static,
    ) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        let theirs = Arc::clone(overlay);
        let mut queue = self.0.queue.lock();
        queue.waiting.push_back(Box::new(move || operation(&theirs)));
        if queue.waiting.len() <= queue.idle {
            self.0.more.notify_one();
            return;
        }
        drop(queue);
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("beside".into());
        if let Err(error) = thread.spawn(move || shared.serve()) {
            log::debug!("no thread for an operation: {error}");
            let operation = self.0.queue.lock().waiting.pop_front();
            operation.into_iter().for_each(|operation| self.0.run(operation));
        }
    }
}

/// What goes on is finished: the union is complete when its mount is gone.
impl Drop for Beside {
    fn drop(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while self.0.count.load(Ordering::Acquire) > 0 && Instant::now() < give_up {
            std::thread::sleep(POLL);
        }
    }
}

impl Shared {
    fn run(&self, operation: Operation) {
        operation();
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// Runs operations until there was none for a while.
    fn serve(&self) {
        while let Some(operation) = self.next() {
            self.run(operation);
        }
    }

    fn next(&self) -> Option<Operation> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(operation) = queue.waiting.pop_front() {
                return Some(operation);
            }
            queue.idle += 1;
            let waited = self.more.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.waiting.is_empty() {
                return None;
            }
        }
    }
}
