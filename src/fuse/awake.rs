//! Processors that wait for the next request without going to sleep (`idle=poll`).
//!
//! A request wakes a thread of the daemon, and its reply wakes the program; where both processors
//! sleep meanwhile, to wake them takes most of a round trip. Linux lets a process say which latency
//! it bears (`Documentation/power/pm_qos_interface.rst`): while it holds `/dev/cpu_dma_latency` open
//! with 0 in it, idle processors poll. That costs power, and a virtual machine's host processor
//! time, so it is asked for only as long as requests follow one another closely. It ends with the
//! process, however that ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// Bearable microseconds that ask for polling, and those that ask for nothing (the kernel's
/// PM_QOS_CPU_LATENCY_DEFAULT_VALUE).
const POLL: i32 = 0;
const WHATEVER: i32 = 2_000_000_000;

/// Requests after which it is looked whether they follow one another closely, and how fast that is.
const BURST: u64 = 64;
const IS_CLOSE: Duration = Duration::from_millis(20);
/// How often it is looked whether they still do, and how many requests that are at least: with
/// fewer, polling saves less than a tenth of the time.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const STILL_CLOSE: u64 = 16;

/// Keeps processors awake while requests follow one another closely.
#[derive(Debug)]
pub(super) struct Awake {
    shared: Arc<Shared>,
    /// Started by the first burst; `None` inside if there is no thread to be had.
    keeper: OnceLock<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    device: File,
    requests: AtomicU64,
    polls: AtomicBool,
    ended: AtomicBool,
}

impl Awake {
    /// Fails for who may not ask for it, which is everybody but root on most systems.
    pub(super) fn new() -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(DEVICE)?;
        let (requests, polls, ended) =
            (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { device, requests, polls, ended });
        Ok(Self { shared, keeper: OnceLock::new() })
    }

    /// Notes that a request has come.
    pub(super) fn note(&self) {
        let before = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if before % BURST != BURST - 1 || self.shared.polls.load(Ordering::Relaxed) {
            return;
        }
        let keeper = self.keeper.get_or_init(|| {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("awake".into());
            let spawned = thread.spawn(move || {
                crate::sys::run_as_usual();
                shared.keep();
            });
            spawned.inspect_err(|error| log::warn!("idle=poll: no thread: {error}")).ok()
        });
        if let Some(keeper) = keeper {
            keeper.thread().unpark();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(Some(keeper)) = self.keeper.take() {
            keeper.thread().unpark();
            if keeper.join().is_err() {
                log::error!("the thread of idle=poll panicked");
            }
        }
    }
}

impl Shared {
    /// Looks at each burst, until the mount ends.
    fn keep(&self) {
        let mut last: Option<Instant> = None;
        loop {
            std::thread::park();
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let now = Instant::now();
            if last.is_none_or(|last| now - last >= IS_CLOSE) {
                last = Some(now);
                continue;
            }
            last = None;
            if let Err(error) = self.poll() {
                return log::warn!("idle=poll: {error}");
            }
        }
    }

    /// Has processors poll until requests come seldom.
    fn poll(&self) -> io::Result<()> {
        self.ask_for(POLL)?;
        self.polls.store(true, Ordering::Relaxed);
        let mut seen = self.requests.load(Ordering::Relaxed);
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
            let now = self.requests.load(Ordering::Relaxed);
            if now - seen < STILL_CLOSE {
                break;
            }
            seen = now;
        }
        self.polls.store(false, Ordering::Relaxed);
        self.ask_for(WHATEVER)
    }

    fn ask_for(&self, latency: i32) -> io::Result<()> {
        (&self.device).write_all(&latency.to_ne_bytes())
    }
}
