//! On which processor a thread runs, and with which priority (sched(7)).

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CpuSet, Pid};

use super::{Errno, Result};

/// A processor's number.
pub type Processor = u16;

/// Where threads of the process may run that were placed nowhere: as it was when the first one was
/// placed.
static PROCESSORS: OnceLock<CpuSet> = OnceLock::new();

/// Whether this program has raised the priority of a thread, so that new threads may have it too.
static WAS_RAISED: AtomicBool = AtomicBool::new(false);
/// Nice values (setpriority(2)).
const USUAL: i32 = 0;
const RAISED: i32 = -10;

/// Has a thread of the process, and threads that it starts, run on one processor, or with none wherever
/// the process could before.
pub fn place_thread(thread: Pid, place: Option<Processor>) -> Result<()> {
    if PROCESSORS.get().is_none() {
        let _ = PROCESSORS.set(rustix::thread::sched_getaffinity(None)?); // others set the same
    }
    let all = PROCESSORS.get().ok_or(Errno::INVAL)?;
    let Some(number) = place.map(usize::from) else {
        return rustix::thread::sched_setaffinity(Some(thread), all);
    };
    if number >= CpuSet::MAX_CPU || !all.is_set(number) {
        return Err(Errno::INVAL);
    }
    let mut only = CpuSet::new();
    only.set(number);
    rustix::thread::sched_setaffinity(Some(thread), &only)
}

/// Raises the priority of a thread of the process, and of threads that it starts, to a nice value of
/// -10, if it has 0 and the process may: with CAP_SYS_NICE in the first user namespace, or where
/// RLIMIT_NICE allows it.
pub fn raise_priority(thread: Pid) {
    change_priority(thread, USUAL, RAISED); // another value is what somebody wants
}

/// Takes back what [`raise_priority`] did, also where it was inherited from who started the thread;
/// whether it was raised.
pub fn lower_priority(thread: Pid) -> bool {
    WAS_RAISED.load(Ordering::Relaxed) && change_priority(thread, RAISED, USUAL)
}

fn change_priority(thread: Pid, from: i32, to: i32) -> bool {
    let changed = rustix::process::getpriority_process(Some(thread)).and_then(|now| {
        if now == from {
            WAS_RAISED.fetch_or(to == RAISED, Ordering::Relaxed); // before a thread may inherit it
            rustix::process::setpriority_process(Some(thread), to)?;
        }
        Ok(now == from)
    });
    changed.inspect_err(|errno| log::debug!("a nice value of {to}: {errno}")).unwrap_or(false)
}

/// Has the calling thread run wherever the process could, with the usual priority: also one that
/// was started by another that does not.
pub fn run_as_usual() {
    let this = rustix::thread::gettid();
    if PROCESSORS.get().is_some()
        && let Err(errno) = place_thread(this, None)
    {
        log::debug!("run on all processors: {errno}");
    }
    lower_priority(this);
}

/// As long as it lives, the thread that made it has the usual priority, for it keeps a processor
/// from others.
#[derive(Debug)]
pub struct LongWork {
    was_raised: bool,
    /// It belongs to the thread.
    _not_send: PhantomData<*const ()>,
}

impl LongWork {
    /// Begins now.
    pub fn begin() -> Self {
        let was_raised = lower_priority(rustix::thread::gettid());
        Self { was_raised, _not_send: PhantomData }
    }
}

impl Drop for LongWork {
    fn drop(&mut self) {
        if self.was_raised {
            raise_priority(rustix::thread::gettid());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_run_on() -> Vec<usize> {
        let set = rustix::thread::sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|number| set.is_set(*number)).collect()
    }

    /// In a thread of its own, whose state is lost then.
    fn aside(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_thread_is_placed_and_freed() {
        aside(|| {
            let all = may_run_on();
            let last = *all.last().unwrap();
            let this = rustix::thread::gettid();
            place_thread(this, Some(last as u16)).unwrap();
            assert_eq!(may_run_on(), [last]);
            let of_started = std::thread::spawn(|| {
                run_as_usual();
                may_run_on()
            });
            assert_eq!(of_started.join().unwrap(), all);
            assert_eq!(place_thread(this, Some(u16::MAX)), Err(Errno::INVAL));
            assert_eq!(may_run_on(), [last]);
            place_thread(this, None).unwrap();
            assert_eq!(may_run_on(), all);
        });
    }

    #[test]
    fn long_work_has_the_usual_priority() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        aside(move || {
            let before = nice();
            raise_priority(rustix::thread::gettid());
            let raised = nice();
            let may = rustix::process::setpriority_process(None, RAISED).is_ok();
            assert_eq!(raised, if before == USUAL && may { RAISED } else { before });
            rustix::process::setpriority_process(None, raised).unwrap();
            let long = LongWork::begin();
            assert_eq!(nice(), before);
            drop(long);
            assert_eq!(nice(), raised);
            let of_started = std::thread::spawn(move || {
                run_as_usual();
                nice()
            });
            assert_eq!(of_started.join().unwrap(), before);
        });
    }
}
