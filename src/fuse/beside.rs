//! Operations that run beside the threads of the rings: what waits where others would be stuck behind it.
//!
//! A thread that is done waits a while for the next one: `chmod -R` brings thousands, one after
//! the other.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys;

/// How long a thread waits for the next operation.
const IDLE: Duration = Duration::from_secs(2);

type Operation = Box<dyn FnOnce() + Send>;

/// The threads, of which there are as many as operations at a time.
#[derive(Clone, Default)]
pub(super) struct Beside(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Operation>,
    /// Threads that wait for an operation.
    idle: usize,
}

impl Beside {
    /// Runs the operation in another thread; where there is none to be had, here.
    pub(super) fn run(&self, operation: impl FnOnce() + Send + 'static) {
        let mut queue = self.0.queue.lock();
        queue.waiting.push_back(Box::new(operation));
        if queue.waiting.len() <= queue.idle {
            self.0.more.notify_one();
            return;
        }
        drop(queue);
        if let Err(error) = self.hire() {
            log::debug!("no thread for an operation: {error}");
            let operation = self.0.queue.lock().waiting.pop_front();
            operation.into_iter().for_each(|operation| operation());
        }
    }

    fn hire(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("beside".into());
        let work = move || {
            sys::run_as_usual();
            while let Some(operation) = shared.next() {
                operation();
            }
        };
        thread.spawn(work).map(drop)
    }
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Beside({} wait)", self.0.queue.lock().waiting.len())
    }
}

impl Shared {
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
