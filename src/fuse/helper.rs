//! Threads for what nobody waits for: to read ahead of who walks the tree, to copy ahead of who changes
//! it, to have the disk write behind who writes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::sys;

/// Jobs that may wait; what comes beyond is not done.
const MAX_WAITING: usize = 32;

/// What it does with a job, as long as the second says that the mount goes on.
type Work<J> = dyn Fn(J, &dyn Fn() -> bool) + Send + Sync;

/// Such threads, which the first job starts.
pub(super) struct Helper<J> {
    name: &'static str,
    count: usize,
    shared: Arc<Shared<J>>,
    threads: OnceLock<Vec<JoinHandle<()>>>,
}

struct Shared<J> {
    work: Box<Work<J>>,
    jobs: Mutex<VecDeque<J>>,
    /// That there is one, or that the mount has ended.
    news: Condvar,
    ended: AtomicBool,
}

impl<J: Send + 'static> Helper<J> {
    /// Of `count` threads.
    pub(super) fn new(
        name: &'static str,
        count: usize,
        work: impl Fn(J, &dyn Fn() -> bool) + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            work: Box::new(work),
            jobs: Mutex::default(),
            news: Condvar::new(),
            ended: AtomicBool::new(false),
        };
        Self { name, count, shared: Arc::new(shared), threads: OnceLock::new() }
    }

    /// Has it do these, unless it has enough to do.
    pub(super) fn give(&self, new: impl IntoIterator<Item = J>) {
        let start = || (0..self.count).filter_map(|_| self.start()).collect();
        if self.threads.get_or_init(start).is_empty() {
            return;
        }
        let mut jobs = self.shared.jobs.lock();
        let room = MAX_WAITING.saturating_sub(jobs.len());
        let before = jobs.len();
        jobs.extend(new.into_iter().take(room));
        let more = jobs.len() - before;
        drop(jobs);
        for _ in 0..more.min(self.count) {
            self.shared.news.notify_one();
        }
    }

    fn start(&self) -> Option<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(self.name.into());
        let spawned = thread.spawn(move || shared.do_all());
        spawned.inspect_err(|error| log::debug!("no thread {}: {error}", self.name)).ok()
    }
}

impl<J> Shared<J> {
    /// Does what comes, until the mount has ended.
    fn do_all(&self) {
        sys::run_as_usual();
        let goes_on = || !self.ended.load(Ordering::Relaxed);
        while let Some(job) = self.next() {
            (self.work)(job, &goes_on);
        }
    }

    fn next(&self) -> Option<J> {
        let mut jobs = self.jobs.lock();
        loop {
            if self.ended.load(Ordering::Relaxed) {
                return None;
            }
            match jobs.pop_front() {
                Some(job) => return Some(job),
                None => self.news.wait(&mut jobs),
            }
        }
    }
}

/// The union is complete when its mount is gone: the threads must not have it any more.
impl<J> Drop for Helper<J> {
    fn drop(&mut self) {
        // Not between a thread's look at this and its wait.
        let jobs = self.shared.jobs.lock();
        self.shared.ended.store(true, Ordering::Relaxed);
        drop(jobs);
        self.shared.news.notify_all();
        for handle in self.threads.take().into_iter().flatten() {
            if handle.join().is_err() {
                log::error!("a thread {} panicked", self.name);
            }
        }
    }
}

impl<J> fmt::Debug for Helper<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Helper({})", self.name)
    }
}
