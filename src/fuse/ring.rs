//! Requests by io_uring: each processor has a queue, and threads that answer what programs ask there.
//!
//! Who asks and who answers then share a processor, so that none must be woken, and a reply and the
//! next request take one system call. What nobody waits for (FORGET) still comes by the device.
//!
//! The kernel gives a request to the entry of a queue that was free last, and does not look at whether the
//! thread that has the entry is busy. So most threads have one entry; and each queue has a *dispatcher*
//! with the entries that are there for when all others are taken, which gives to threads beside it what
//! copies a file, syncs, or reads what is not in memory. A look-up or a listing that waits for a disk it
//! does not give away. (An entry that came later would not get what waits already.)

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use zerocopy::{FromBytes, IntoBytes};

use super::Priority;
use super::abi::{InHeader, Opcode, OutHeader, WriteOut};
use super::beside::Beside;
use super::crew::Crew;
use super::device::Device;
use super::ops::{Ops, Served};
use super::request::{Body, By, Request};
use crate::sys::{self, FuseRing, Lent, RingRequest};

/// Requests that a dispatcher can have at a time. What comes to a queue that has no entry left waits until
/// a request is answered.
const ENTRIES: usize = 32;
/// Of each processor that might come.
const OFFLINE_ENTRIES: usize = 2;
/// Threads of a processor at least, the dispatcher among them.
const LEAST: usize = 4;
/// Descriptors of a thread: its ring, and its event.
const DESCRIPTORS: usize = 2;

/// The processors for which the kernel has a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    online: Vec<u16>,
    /// That might come later: the kernel wants somebody to serve them.
    offline: Vec<u16>,
}

impl Queues {
    /// Those of this machine, if the kernel offers them and the process can have rings.
    pub(super) fn of_machine(threads: usize) -> Result<Self, &'static str> {
        // Where it cannot be read, INIT tells.
        if fs::read_to_string(SWITCH).is_ok_and(|switch| switch.trim() == "N") {
            return Err(NOT_OFFERED);
        }
        let list = |name: &str| {
            let text = fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).ok()?;
            parse_list(text.trim())
        };
        let lists = list("possible").zip(list("online"));
        let (possible, online) = lists.ok_or("no list of processors in /sys/devices/system/cpu")?;
        // The kernel numbers its queues from 0, without gaps.
        let all = 0..u16::try_from(possible.len()).unwrap_or(u16::MAX);
        let (online, offline) = all.partition(|number| online.contains(number));
        let queues = Self { online, offline };
        if queues.threads(threads) * DESCRIPTORS > sys::nofile_limit() / 4 {
            return Err("it takes two descriptors for each thread, and few may be open");
        }
        if !sys::has_io_uring() {
            return Err(
                "the process may not use io_uring (kernel.io_uring_disabled, or a container)",
            );
        }
        Ok(queues)
    }

    /// Threads of each processor, where there are to be so many at least.
    fn threads_each(&self, threads: usize) -> usize {
        threads.div_ceil(self.online.len().max(1)).max(LEAST)
    }

    fn threads(&self, threads: usize) -> usize {
        self.threads_each(threads) * self.online.len() + usize::from(!self.offline.is_empty())
    }
}

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// Why requests do not come by io_uring.
pub(super) const NOT_OFFERED: &str = "the kernel does not offer it: it takes Linux 6.14, and root to write Y to /sys/module/fuse/parameters/enable_uring";

/// A list of numbers as sysfs writes it: `0-3,8`.
fn parse_list(text: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        numbers.extend(range.0..=range.1);
    }
    Some(numbers)
}

/// What all threads of all rings need.
#[derive(Clone)]
pub(super) struct Rings {
    device: Device,
    ops: Arc<Ops>,
    payload_size: usize,
    priority: Priority,
    errors: Sender<io::Error>,
    beside: Beside,
}

impl Rings {
    pub(super) fn new(
        device: Device,
        ops: Arc<Ops>,
        payload_size: usize,
        priority: Priority,
        errors: Sender<io::Error>,
    ) -> Self {
        Self { device, ops, payload_size, priority, errors, beside: Beside::default() }
    }

    /// Starts the threads of all queues: as many as `threads`, and four for each at least.
    pub(super) fn start(&self, queues: &Queues, threads: usize) -> io::Result<()> {
        for number in &queues.online {
            let (rings, number) = (self.clone(), *number);
            let steady = queues.threads_each(threads) - 1;
            self.start_threads(1, move || {
                stay_on_processor(number);
                let ring = rings.ring(&[number], ENTRIES)?;
                // Whose entries come later are taken first.
                let theirs = rings.clone();
                rings.start_threads(steady, move || {
                    stay_on_processor(number);
                    theirs.answer_all(theirs.ring(&[number], 1)?, By::Steady)
                })?;
                rings.answer_all(ring, By::Dispatcher)
            })?;
        }
        if queues.offline.is_empty() {
            return Ok(());
        }
        let (rings, numbers) = (self.clone(), queues.offline.clone());
        self.start_threads(1, move || {
            rings.answer_all(rings.ring(&numbers, OFFLINE_ENTRIES)?, By::Dispatcher)
        })
    }

    fn start_threads(
        &self,
        count: usize,
        work: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<()> {
        let priority = self.priority;
        let work = move |_: &Crew, _| {
            if priority == Priority::High {
                sys::raise_priority(rustix::thread::gettid());
            }
            work()
        };
        Crew::new("ring", count, count, self.errors.clone(), work).start()
    }

    fn ring(&self, queues: &[u16], entries_each: usize) -> io::Result<FuseRing> {
        FuseRing::new(self.device.descriptor(), queues, entries_each, self.payload_size)
    }

    /// Answers what comes to a ring until the mount ends.
    fn answer_all(&self, mut ring: FuseRing, by: By<'_>) -> io::Result<()> {
        let mut aside = Vec::new();
        while let Some(index) = ring.wait()? {
            match answer(ring.request(index), &self.ops, by, &mut aside)? {
                Some(reply) => ring.reply(index, reply.as_bytes(), reply.body_len())?,
                None => self.answer_beside(ring.lend(index)),
            }
        }
        Ok(())
    }

    fn answer_beside(&self, mut lent: Lent) {
        // The union is complete when its mount is gone: that waits for whoever can tell errors.
        let rings = self.clone();
        self.beside.run(move || {
            let work = || answer(lent.request(), &rings.ops, By::Beside, &mut Vec::new());
            let answered = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(io::Error::other("a thread beside a ring panicked")));
            let told = answered.and_then(|reply| {
                let reply = reply.ok_or_else(|| io::Error::other("answered nowhere"))?;
                Ok(lent.reply(reply.as_bytes(), reply.body_len())?)
            });
            if let Err(error) = told {
                let _ = rings.errors.send(error); // nobody listens any more: the process ends
            }
        });
    }
}

fn stay_on_processor(number: u16) {
    if let Err(errno) = sys::place_thread(rustix::thread::gettid(), Some(number)) {
        log::debug!("stay on processor {number}: {errno}");
    }
}

/// Answers one request, in its place; nothing if another thread is to do that.
///
/// The reply's data takes the place of the request's: the smaller of both is put `aside`.
fn answer(
    request: RingRequest<'_>,
    ops: &Ops,
    by: By<'_>,
    aside: &mut Vec<u8>,
) -> io::Result<Option<OutHeader>> {
    let (header, _) = InHeader::read_from_prefix(request.header)
        .map_err(|_| io::Error::other("a request without a header"))?;
    let header = &header;
    let RingRequest { structure, payload, payload_size, .. } = request;
    aside.clear();
    let is_write = header.opcode == Opcode::Write as u32;
    let served = if is_write {
        aside.resize(size_of::<WriteOut>(), 0);
        let body = Body::Apart { structure, rest: &payload[..payload_size] };
        ops.serve(&Request { header, body, by }, aside)
    } else {
        aside.extend_from_slice(&payload[..payload_size]);
        let body = Body::Apart { structure, rest: aside };
        ops.serve(&Request { header, body, by }, payload)
    };
    let reply = match served {
        Served::Reply(reply) => reply,
        Served::Nothing => OutHeader::reply(header.unique, 0),
        Served::Elsewhere => return Ok(None),
    };
    if is_write {
        payload[..reply.body_len()].copy_from_slice(&aside[..reply.body_len()]);
    }
    Ok(Some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_list(""), None);
        assert_eq!(parse_list("0-x"), None);
    }
}
