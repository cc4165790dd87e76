//! A connection to the kernel over which a union is served.

use std::io;
use std::sync::{Arc, mpsc};

use super::crew::Crew;
use super::device::{self, Device};
use super::init::{self, Agreed, Disagreement};
use super::ops::Ops;
use super::ring::{Queues, Rings};

/// Threads that read the device when all others wait for a disk.
const MOST: usize = 256;

/// Both sides have agreed; requests wait until it [runs](Self::run).
#[derive(Debug)]
pub(super) struct Session {
    device: Device,
    ops: Arc<Ops>,
    threads: usize,
    agreed: Agreed,
    queues: Option<Queues>,
}

impl Session {
    /// Agrees with the kernel. Requests come by io_uring where there are `queues` and the kernel
    /// offers it.
    pub(super) fn new(
        device: Device,
        ops: Ops,
        threads: usize,
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
        let (device, ops) = (self.device.clone(), Arc::clone(&self.ops));
        let work =
            move |crew: &Crew, member| device::work(&device, &ops, payload_size, crew, member);
        // Beside rings it answers what nobody waits for.
        let least = if self.has_ring() { 1 } else { self.threads };
        Crew::new("requests", least, MOST, errors.clone(), work).start()?;
        if let Some(queues) = &self.queues {
            let (device, ops) = (self.device.clone(), Arc::clone(&self.ops));
            Rings::new(device, ops, payload_size, errors.clone()).start(queues, self.threads)?;
        }
        drop(errors);
        // Closed, that is no error, when all have ended.
        ended.recv().map_or(Ok(()), Err)
    }
}
