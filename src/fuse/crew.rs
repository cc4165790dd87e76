//! The threads that answer the requests of one source: the device, or a processor's ring.
//!
//! Each takes a request, answers it and takes the next one. Who read the device and is going to wait for
//! a disk or to copy a large file says so before: if all others wait, one more thread starts. It ends
//! when it is one too many. (Threads of rings are as many as they were, see `ring.rs`.)

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};

use crate::overlay::Wait;

type Work = Box<dyn Fn(&Crew, Member) -> io::Result<()> + Send + Sync>;

/// What a thread of a crew is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// One of those that are always there.
    Regular,
    /// One that came when all others waited.
    Extra,
}

/// The threads.
pub(super) struct Crew {
    name: &'static str,
    /// What each does, until the mount ends or it [is one too many](Self::may_go).
    work: Work,
    least: usize,
    most: usize,
    /// Threads, and those that do not wait for a disk.
    count: AtomicUsize,
    free: AtomicUsize,
    /// Where errors are told; it is closed when the last thread has ended.
    errors: Sender<io::Error>,
    this: Weak<Self>,
}

/// A thread that waits for a disk.
pub(super) struct Waiting<'a>(&'a Crew);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::AcqRel);
    }
}

impl Crew {
    /// Of `least` threads when it has started, and `most` when all others wait.
    pub(super) fn new(
        name: &'static str,
        least: usize,
        most: usize,
        errors: Sender<io::Error>,
        work: impl Fn(&Self, Member) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name,
            work: Box::new(work),
            least,
            most,
            count: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
            errors,
            this: Weak::clone(this),
        })
    }

    /// Starts the threads, which keep the crew.
    pub(super) fn start(&self) -> io::Result<()> {
        (0..self.least).try_for_each(|_| self.hire(Member::Regular))
    }

    /// To be held while a thread waits so.
    pub(super) fn waits(&self, wait: Wait) -> Option<Waiting<'_>> {
        if wait == Wait::Nothing {
            return None;
        }
        let free = self.free.fetch_sub(1, Ordering::AcqRel);
        let waiting = Waiting(self);
        if free <= 1 && self.count.load(Ordering::Acquire) < self.most {
            let hired = self.hire(Member::Extra);
            hired.unwrap_or_else(|error| log::debug!("no thread for more requests: {error}"));
        }
        Some(waiting)
    }

    /// Whether the calling thread may end, and then must, for enough others are free.
    pub(super) fn may_go(&self) -> bool {
        let one_less = |free: usize| (free > self.least).then(|| free - 1);
        let goes = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok();
        if goes {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        goes
    }

    fn hire(&self, member: Member) -> io::Result<()> {
        let crew = self.this.upgrade().ok_or_else(|| io::Error::other("the mount has ended"))?;
        self.count.fetch_add(1, Ordering::AcqRel);
        self.free.fetch_add(1, Ordering::AcqRel);
        let thread = std::thread::Builder::new().name(self.name.into());
        let spawned = thread.spawn(move || {
            let panicked = |_| Err(io::Error::other("a thread that answers requests panicked"));
            let work = AssertUnwindSafe(|| (crew.work)(&crew, member));
            if let Err(error) = catch_unwind(work).unwrap_or_else(panicked) {
                let _ = crew.errors.send(error); // nobody listens any more: the process ends
            }
        });
        spawned.map(drop).inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.free.fetch_sub(1, Ordering::AcqRel);
        })
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crew({}, {:?} threads)", self.name, self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use super::*;

    fn counts(crew: &Crew) -> (usize, usize) {
        (crew.count.load(Ordering::Relaxed), crew.free.load(Ordering::Relaxed))
    }

    #[test]
    fn one_more_starts_when_nobody_would_be_left() {
        let end = Arc::new(Barrier::new(3 + 1));
        let (errors, ended) = mpsc::channel();
        let ends = Arc::clone(&end);
        let crew = Crew::new("test", 2, 3, errors, move |_, _| {
            ends.wait();
            Ok(())
        });
        crew.start().unwrap();
        assert_eq!(counts(&crew), (2, 2));
        assert!(crew.waits(Wait::Nothing).is_none());
        let first = crew.waits(Wait::Disk);
        assert_eq!(counts(&crew), (2, 1));
        let second = crew.waits(Wait::Copy);
        assert_eq!(counts(&crew), (3, 1));
        let third = crew.waits(Wait::Disk); // that is the most
        assert_eq!(counts(&crew), (3, 0));
        assert!(!crew.may_go());
        drop((first, second, third));
        assert_eq!(counts(&crew), (3, 3));
        assert!(crew.may_go());
        assert!(!crew.may_go());
        end.wait();
        drop(crew);
        assert!(ended.recv().is_err(), "the channel closes with the last thread");
    }

    #[test]
    fn errors_are_told() {
        let (errors, ended) = mpsc::channel();
        let crew =
            Crew::new("test", 1, 1, errors, |_, _| Err(io::Error::from_raw_os_error(libc::EIO)));
        crew.start().unwrap();
        assert_eq!(ended.recv().unwrap().raw_os_error(), Some(libc::EIO));
    }
}
