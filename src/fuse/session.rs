//! A connection to the kernel over which a union is served.

use std::io;
use std::sync::{Arc, mpsc};

use super::Priority;
use super::crew::Crew;
use super::device::{self, Device};
use super::init::{self, Agreed, Disagreement};
use super::near::Near;
use super::ops::Ops;
use super::ring::{Queues, Rings};
use crate::sys;

/// Threads that read the device when all others wait for a disk.
const MOST: usize = 256;

/// The threads that answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threads {
    pub(super) count: usize,
    pub(super) priority: Priority,
}

/// Both sides have agreed; requests wait until it [runs](Self::run).
#[derive(Debug)]
pub(super) struct Session {
    device: Device,
    ops: Arc<Ops>,
    threads: Threads,
    agreed: Agreed,
    queues: Option<Queues>,
}

impl Session {
    /// Agrees with the kernel. Requests come by io_uring where there are `queues` and the kernel
    /// offers it.
    pub(super) fn new(
        device: Device,
        ops: Ops,
        threads: Threads,
        max_write: Option<u32>,
        queues: Option<Queues>,
    ) -> Result<Self, Disagreement> {
        let agreed = init::shake_hands(&device, &ops.terms(max_write, queues.is_some()))?;
        let queues = queues.filter(|_| agreed.ring);
        Ok(Self { device, ops: Arc::new(ops), threads, agreed, queues })
    }

    /// Whether requests come by io_uring.
    pub(super) fn has_ring(&self) -> bool {
        self.queues.is_some()
    }

    /// Answers the kernel until the tree is unmounted.
    ///
    /// Fails when a thread fails: what that had would never be answered. Others may be left then,
    /// and end with the process.
    pub(super) fn run(self) -> io::Result<()> {
        let (errors, ended) = mpsc::channel();
        let payload_size = self.agreed.payload_size;
        let Threads { count, priority } = self.threads;
        let (device, ops) = (self.device.clone(), Arc::clone(&self.ops));
        // Beside rings it answers what nobody waits for.
        let (least, near) = match self.has_ring() {
            true => (1, None),
            // It looks at who asks, and might have to end their memory then, which can wait for a WRITE.
            false => (count, (count > 1).then(|| Near::new(priority))),
        };
        let work = move |crew: &Crew, member| {
            sys::run_as_usual(); // other than who starts it, maybe
            device::work(&device, &ops, payload_size, near.as_ref(), crew, member)
        };
        Crew::new("requests", least, MOST, errors.clone(), work).start()?;
        if let Some(queues) = &self.queues {
            let (device, ops) = (self.device.clone(), Arc::clone(&self.ops));
            let rings = Rings::new(device, ops, payload_size, priority, errors.clone());
            rings.start(queues, count)?;
        }
        drop(errors);
        // Closed, that is no error, when all have ended.
        ended.recv().map_or(Ok(()), Err)
    }
}
