//! Threads for what nobody waits for: to read ahead of who walks the tree, to have the disk write
//! behind who writes.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::sys;

/// Jobs that may wait; what comes beyond is not done.
const MAX_WAITING: usize = 16;

/// What it does with a job, as long as the second says that the mount goes on.
type Work<J> = Arc<dyn Fn(J, &dyn Fn() -> bool) + Send + Sync>;

/// Such a thread, which the first job starts.
pub(super) struct Helper<J> {
    name: &'static str,
    work: Work<J>,
    /// `None` inside if there is none to be had.
    thread: OnceLock<Option<Thread<J>>>,
}

struct Thread<J> {
    jobs: SyncSender<J>,
    ended: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl<J: Send + 'static> Helper<J> {
    pub(super) fn new(
        name: &'static str,
        work: impl Fn(J, &dyn Fn() -> bool) + Send + Sync + 'static,
    ) -> Self {
        Self { name, work: Arc::new(work), thread: OnceLock::new() }
    }

    /// Has it do this, unless it has enough to do.
    pub(super) fn give(&self, job: J) {
        if let Some(thread) = self.thread.get_or_init(|| self.start()) {
            let _ = thread.jobs.try_send(job);
        }
    }

    fn start(&self) -> Option<Thread<J>> {
        let (sender, jobs) = sync_channel(MAX_WAITING);
        let ended = Arc::new(AtomicBool::new(false));
        let (work, has_ended) = (Arc::clone(&self.work), Arc::clone(&ended));
        let do_all = move || {
            sys::run_as_usual();
            let goes_on = || !has_ended.load(Ordering::Relaxed);
            jobs.iter().take_while(|_| goes_on()).for_each(|job| work(job, &goes_on));
        };
        let spawned = std::thread::Builder::new().name(self.name.into()).spawn(do_all);
        let handle = spawned.inspect_err(|error| log::debug!("no thread {}: {error}", self.name));
        Some(Thread { jobs: sender, ended, handle: handle.ok()? })
    }
}

/// The union is complete when its mount is gone: the thread must not have it any more.
impl<J> Drop for Helper<J> {
    fn drop(&mut self) {
        let Some(Some(Thread { jobs, ended, handle })) = self.thread.take() else { return };
        ended.store(true, Ordering::Relaxed);
        drop(jobs);
        if handle.join().is_err() {
            log::error!("the thread {} panicked", self.name);
        }
    }
}

impl<J> fmt::Debug for Helper<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Helper({})", self.name)
    }
}
