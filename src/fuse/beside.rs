//! Operations that run beside the workers: what copies a large file has a thread of its own, and
//! so has what waits for a disk where half of the workers do, so that others are answered.
//!
//! A thread that is done waits a while for the next one: `chmod -R` brings thousands, one after
//! the other. While it waits it holds nothing of the union, which ends when the mount does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::overlay::{Overlay, Wait};

/// So many at a time; each is one that a process waits for.
const MAX_BESIDE: usize = 256;
/// How long a thread waits for the next operation.
const IDLE: Duration = Duration::from_secs(2);
/// How long the end of the mount waits for operations that go on, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

type Operation = Box<dyn FnOnce() + Send>;

/// The threads beside the workers.
pub(super) struct Beside {
    shared: Arc<Shared>,
    /// Workers that wait for a disk, and how many may.
    waiting: AtomicUsize,
    may_wait: usize,
}

/// Where an operation runs.
pub(super) enum Place<'a> {
    /// In the worker that has it, which may be one that others cannot have meanwhile.
    Here(Option<Waiting<'a>>),
    /// In a thread of its own.
    Beside,
}

/// A worker that waits for a disk.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

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
        write!(f, "Beside({})", self.shared.count.load(Ordering::Relaxed))
    }
}

impl Beside {
    /// For so many workers.
    pub(super) fn new(workers: usize) -> Self {
        Self { shared: Arc::default(), waiting: AtomicUsize::new(0), may_wait: workers / 2 }
    }

    /// Where an operation that waits so runs. To pass it to another thread takes as long as a
    /// request; so half of the workers wait for disks themselves, and the others go on answering.
    pub(super) fn place(&self, wait: Wait) -> Place<'_> {
        if wait == Wait::Nothing || self.shared.count.load(Ordering::Relaxed) >= MAX_BESIDE {
            return Place::Here(None);
        }
        if wait == Wait::Disk {
            let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
            let guard = Waiting(&self.waiting);
            if waiting < self.may_wait {
                return Place::Here(Some(guard));
            }
        }
        Place::Beside
    }

    /// Runs the operation in another thread; where there is none to be had, here.
    pub(super) fn run(
        &self,
        overlay: &Arc<Overlay>,
        operation: impl FnOnce(&Overlay) + Send + 'static,
    ) {
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        let theirs = Arc::clone(overlay);
        let mut queue = self.shared.queue.lock();
        queue.waiting.push_back(Box::new(move || operation(&theirs)));
        if queue.waiting.len() <= queue.idle {
            self.shared.more.notify_one();
            return;
        }
        drop(queue);
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("beside".into());
        if let Err(error) = thread.spawn(move || shared.serve()) {
            log::debug!("no thread for an operation: {error}");
            let operation = self.shared.queue.lock().waiting.pop_front();
            operation.into_iter().for_each(|operation| self.shared.run(operation));
        }
    }
}

/// What goes on is finished: the union is complete when its mount is gone.
impl Drop for Beside {
    fn drop(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while self.shared.count.load(Ordering::Acquire) > 0 && Instant::now() < give_up {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_workers_wait_for_disks() {
        let beside = Beside::new(4);
        let waits = || beside.place(Wait::Disk);
        let (first, second) = (waits(), waits());
        assert!(matches!((&first, &second), (Place::Here(Some(_)), Place::Here(Some(_)))));
        assert!(matches!(waits(), Place::Beside));
        assert!(matches!(beside.place(Wait::Copy), Place::Beside));
        assert!(matches!(beside.place(Wait::Nothing), Place::Here(None)));
        drop(first);
        assert!(matches!(waits(), Place::Here(Some(_))));
        // One that answers all does not wait at all.
        assert!(matches!(Beside::new(1).place(Wait::Disk), Place::Beside));
    }
}
