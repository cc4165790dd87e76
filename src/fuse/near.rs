//! Answering on the processor of who asks.
//!
//! Of the threads that read the device, the kernel wakes the one that waited longest, wherever that
//! ran last: mostly on a processor that sleeps, as does that of who asked when the reply wakes it. To
//! wake a sleeping processor takes longer than to answer. So as long as one program asks alone, one
//! thing after the other, all threads stay on its processor. Where several ask, or one moves much
//! data, which two processors do faster, or waits for a disk, they run anywhere.
//!
//! The scheduler may move who asks away at each reply, for its processor is busy with whom it was
//! woken by. It does not where the daemon's threads have a higher priority and are in the program's
//! group (`cli/daemon.rs`): it has had more than its share then, and is not taken off the queue of its
//! processor while it waits (EEVDF's delayed dequeue, Linux 6.12). Where it moves too often, threads
//! run anywhere for a while.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::thread::Pid;

use super::Priority;
use crate::sys::{self, Processor};

/// Requests after which it is looked where their program runs.
const WINDOW: u32 = 16;
/// Of those, how many may come from another program than the one before, move much data, or wait.
const MOST_STRANGE: u32 = 4;
/// Requests in a row from which on a program counts.
const ROW: u32 = 2;
/// Bytes of a request or reply that are much.
const MUCH: usize = 32 << 10;
/// What takes so long waits for a disk: who asked has gone to sleep, and a processor with it.
const WAITED: Duration = Duration::from_micros(100);

/// A program that is elsewhere than at the last look adds to it, one that is not takes from it. It
/// moves too often at the limit.
const MOVED: u32 = 2;
const TOO_RESTLESS: u32 = 8;
/// Windows for which threads then run anywhere: at first, and at most.
const PAUSE: u32 = 128;
const LONGEST_PAUSE: u32 = 4096;

/// Where the threads that read the device run.
#[derive(Debug)]
pub(super) struct Near {
    priority: Priority,
    threads: Mutex<Threads>,
    watch: Mutex<Watch>,
}

#[derive(Debug, Default)]
struct Threads {
    all: Vec<Pid>,
    /// Where they stay; none: anywhere.
    place: Option<Place>,
}

/// Where a program runs, and threads that answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    processor: Processor,
    /// Of a program that has lowered its own priority they do not raise theirs.
    raises: bool,
}

/// A thread that goes where all go, as long as this lives.
#[derive(Debug)]
pub(super) struct Joined<'a> {
    near: &'a Near,
    thread: Pid,
}

/// A thread that does something that takes long: as long as this lives it runs as usual.
#[derive(Debug)]
pub(super) struct Apart<'a>(&'a Joined<'a>);

/// What is seen of who asks.
#[derive(Debug)]
struct Watch {
    client: Option<Client>,
    /// Requests that came from it one after the other.
    row: u32,
    /// Of this window: requests, and those of others, with much data, or that waited.
    seen: u32,
    strange: u32,
    restless: u32,
    /// Whether threads stay where it is.
    is_near: bool,
    /// Windows to go until threads may stay somewhere again, and how many that are the next time.
    pause: u32,
    next_pause: u32,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            client: None,
            row: 0,
            seen: 0,
            strange: 0,
            restless: TOO_RESTLESS / 2,
            is_near: false,
            pause: 0,
            next_pause: PAUSE,
        }
    }
}

impl Near {
    pub(super) fn new(priority: Priority) -> Self {
        Self { priority, threads: Mutex::default(), watch: Mutex::default() }
    }

    /// Has the calling thread go where all go.
    pub(super) fn join(&self) -> Joined<'_> {
        let thread = rustix::thread::gettid();
        self.add(thread);
        Joined { near: self, thread }
    }

    fn add(&self, thread: Pid) {
        let mut threads = self.threads.lock();
        threads.all.push(thread);
        if threads.place.is_some() && !self.put(thread, threads.place) {
            self.put(thread, None);
        }
    }

    fn remove(&self, gone: Pid) {
        self.threads.lock().all.retain(|thread| *thread != gone);
    }

    /// Notes that a request of this thread was answered, 0 of one that cannot be seen here: so many bytes
    /// came, or went, and so long it took.
    pub(super) fn note(&self, thread: u32, bytes: usize, took: Duration) {
        // Two at a time are not one program alone; the next request counts again.
        let Some(mut watch) = self.watch.try_lock() else { return };
        let is_strange = bytes > MUCH || took > WAITED;
        if let Some(place) = watch.decide(thread, is_strange, Client::place) {
            watch.is_near = self.go(place);
        }
    }

    /// All at once: each that is elsewhere would draw who asks there. Whether they are at a place now.
    fn go(&self, to: Option<Place>) -> bool {
        let mut threads = self.threads.lock();
        if threads.place == to {
            return to.is_some();
        }
        threads.place = to;
        let all_are_there = threads.all.iter().all(|thread| self.put(*thread, to));
        if !all_are_there {
            // The process may not run there.
            threads.place = None;
            for thread in &threads.all {
                self.put(*thread, None);
            }
        }
        threads.place.is_some()
    }

    /// Whether the thread is there now.
    fn put(&self, thread: Pid, place: Option<Place>) -> bool {
        let placed = sys::place_thread(thread, place.map(|place| place.processor));
        let is_there = placed
            .inspect_err(|errno| log::debug!("have a thread run on {place:?}: {errno}"))
            .is_ok();
        match place {
            Some(Place { raises: true, .. }) if is_there && self.priority == Priority::High => {
                sys::raise_priority(thread);
            }
            _ => {
                sys::lower_priority(thread);
            }
        }
        is_there
    }
}

impl Joined<'_> {
    /// Begins something that takes long.
    pub(super) fn apart(&self) -> Apart<'_> {
        self.near.remove(self.thread);
        sys::run_as_usual();
        Apart(self)
    }
}

impl Drop for Apart<'_> {
    fn drop(&mut self) {
        self.0.near.add(self.0.thread);
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.near.remove(self.thread);
    }
}

impl Watch {
    /// Where threads are to stay from now on, if that may have changed.
    fn decide(
        &mut self,
        thread: u32,
        is_strange: bool,
        look: impl FnOnce(&mut Client) -> Option<Place>,
    ) -> Option<Option<Place>> {
        self.seen += 1;
        self.row = self.row.saturating_add(1);
        self.strange += u32::from(is_strange);
        if thread == 0 {
            self.client = None;
            self.strange += 1;
        } else if self.client.as_ref().is_none_or(|client| client.thread != thread) {
            self.client = Some(Client { thread, stat: None, last: None });
            self.row = 1;
            self.strange += 1;
        }
        if self.strange > MOST_STRANGE {
            (self.seen, self.strange) = (0, 0);
            return Some(None);
        }
        let is_over = self.seen >= WINDOW;
        if is_over {
            (self.seen, self.strange) = (0, 0);
            self.pause = self.pause.saturating_sub(1);
        }
        let client = self.client.as_mut()?;
        // Who comes after another that was followed.
        let is_next = self.is_near && self.row == ROW && client.last.is_none();
        if self.pause > 0 || self.row < ROW || !(is_over || is_next) {
            return None;
        }
        let Some(now) = look(client) else { return Some(None) };
        match client.last.replace(now.processor) {
            None => {}
            Some(last) if last == now.processor => {
                self.restless = self.restless.saturating_sub(1);
                if self.restless == 0 {
                    self.next_pause = PAUSE;
                }
            }
            Some(_) => self.restless += MOVED,
        }
        if self.restless < TOO_RESTLESS {
            return Some(Some(now));
        }
        self.restless = TOO_RESTLESS / 2;
        self.pause = self.next_pause;
        self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        Some(None)
    }
}

/// A thread of a program that asks.
#[derive(Debug)]
struct Client {
    thread: u32,
    /// `/proc/TID/stat`
    stat: Option<File>,
    /// Where it was at the last look.
    last: Option<Processor>,
}

impl Client {
    /// Where it runs, or ran last; nothing if that cannot be seen.
    fn place(&mut self) -> Option<Place> {
        if self.stat.is_none() {
            self.stat = File::open(format!("/proc/{}/stat", self.thread)).ok();
        }
        let mut text = [0; 1024];
        let Ok(size) = self.stat.as_ref()?.read_at(&mut text, 0) else {
            self.stat = None; // another one has its number now, maybe
            return None;
        };
        place_in(&text[..size])
    }
}

/// The processor and the priority in a line of `/proc/TID/stat` (proc_pid_stat(5)).
fn place_in(stat: &[u8]) -> Option<Place> {
    // The second field is a name in parentheses, in which there may be anything.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let nice: i32 = fields.nth(19 - 3)?.parse().ok()?;
    let processor = fields.nth(39 - 20)?.parse().ok()?;
    Some(Place { processor, raises: nice <= 0 })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::thread::CpuSet;

    use super::super::abi::InHeader;
    use super::super::crew::Crew;
    use super::super::request::{Body, By, Request};
    use super::*;
    use crate::overlay::Wait;

    fn at(processor: Processor) -> Place {
        Place { processor, raises: true }
    }

    /// What `requests` of one thread on a processor say, the last that says something.
    fn ask(near: &Near, requests: u32, thread: u32, processor: Processor) -> Option<Processor> {
        for _ in 0..requests {
            let mut watch = near.watch.lock();
            if let Some(place) = watch.decide(thread, false, |_| Some(at(processor))) {
                watch.is_near = near.go(place);
            }
        }
        near.threads.lock().place.map(|place| place.processor)
    }

    #[test]
    fn one_client_is_followed() {
        let near = Near::new(Priority::Normal);
        assert_eq!(ask(&near, WINDOW - 1, 7, 3), None);
        assert_eq!(ask(&near, 1, 7, 3), Some(3));
        assert_eq!(ask(&near, WINDOW, 7, 5), Some(5));
        assert_eq!(ask(&near, 1, 8, 1), Some(5));
        assert_eq!(ask(&near, 1, 8, 1), Some(1), "another one");
    }

    #[test]
    fn several_clients_and_much_data_are_not() {
        let near = Near::new(Priority::Normal);
        assert_eq!(ask(&near, WINDOW, 7, 3), Some(3));
        for thread in 0..MOST_STRANGE {
            ask(&near, 1, thread, 3);
        }
        assert_eq!(ask(&near, 1, 7, 3), None);
        assert_eq!(ask(&near, WINDOW, 7, 3), Some(3));
        for _ in 0..=MOST_STRANGE {
            near.note(7, MUCH + 1, Duration::ZERO);
        }
        assert_eq!(ask(&near, 1, 7, 3), None);
        assert_eq!(ask(&near, WINDOW, 7, 3), Some(3));
        assert_eq!(ask(&near, WINDOW, 0, 3), None, "who cannot be seen");
    }

    #[test]
    fn who_moves_too_often_is_left_alone_for_a_while() {
        let near = Near::new(Priority::Normal);
        assert_eq!(ask(&near, WINDOW, 7, 0), Some(0));
        let moves = (1..).take_while(|n| ask(&near, WINDOW, 7, n % 2).is_some()).count();
        assert!(moves <= 4, "{moves}");
        assert_eq!(ask(&near, WINDOW * (PAUSE - 1), 7, 0), None);
        assert_eq!(ask(&near, WINDOW, 7, 0), Some(0));
        for n in 0..20_000 {
            ask(&near, WINDOW, 7, n % 2);
        }
        assert_eq!(near.watch.lock().next_pause, LONGEST_PAUSE);
        ask(&near, WINDOW * (LONGEST_PAUSE + TOO_RESTLESS), 7, 0);
        assert_eq!(near.watch.lock().next_pause, PAUSE, "it stayed");
    }

    #[test]
    fn who_works_long_is_apart() {
        let near = Near::new(Priority::Normal);
        let header = InHeader::default();
        let crew = Crew::new("test", 1, 1, mpsc::channel().0, |_, _| Ok(()));
        crew.start().unwrap();
        let may_run_on = || {
            let set = rustix::thread::sched_getaffinity(None).unwrap();
            (0..CpuSet::MAX_CPU).filter(|number| set.is_set(*number)).collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let all = may_run_on();
                let (first, last) = (all[0] as Processor, *all.last().unwrap() as Processor);
                let joined = near.join();
                let by = By::Member(&crew, Some(&joined));
                let request = Request { header: &header, body: Body::Whole(&[]), by };
                near.go(Some(at(first)));
                assert_eq!(may_run_on(), [usize::from(first)]);
                drop(request.waits(Wait::Disk));
                assert_eq!(may_run_on(), [usize::from(first)]);
                let apart = request.waits(Wait::Copy);
                assert_eq!(may_run_on(), all);
                near.go(Some(at(last)));
                assert_eq!(may_run_on(), all);
                drop(apart);
                assert_eq!(may_run_on(), [usize::from(last)]);
                near.go(None);
                assert_eq!(may_run_on(), all);
                assert!(!near.go(Some(at(Processor::MAX))), "there is no such processor");
                assert_eq!(may_run_on(), all);
                drop(joined);
                near.go(Some(at(first)));
                assert_eq!(may_run_on(), all);
            });
        });
    }

    #[test]
    fn the_processor_is_found() {
        let line = |nice: &str, processor: &str| {
            let zeros = |count| "0 ".repeat(count);
            format!("7 (a) b) S {}{nice} {}{processor} 0 0\n", zeros(19 - 4), zeros(39 - 20))
        };
        assert_eq!(place_in(line("0", "11").as_bytes()), Some(at(11)));
        let lowered = Place { processor: 3, raises: false };
        assert_eq!(place_in(line("19", "3").as_bytes()), Some(lowered));
        assert_eq!(place_in(b"7 (a) S 0"), None);
        let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let mut client = Client { thread, stat: None, last: None };
        assert!(usize::from(client.place().unwrap().processor) < CpuSet::MAX_CPU);
        let mut nobody = Client { thread: 0, stat: None, last: None };
        assert_eq!(nobody.place(), None);
    }
}
