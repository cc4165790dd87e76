//! /dev/fuse: requests are read from it, replies and messages are written to it.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, InvalInodeOut, MIN_READ_BUFFER, NOTIFY_INVAL_INODE, Opcode, OutHeader};
use super::crew::{Crew, Member};
use super::near::Near;
use super::ops::{Ops, Served};
use super::request::{Body, By, Request};
use crate::layers::number::Ino;
use crate::sys;

pub(super) const PATH: &str = "/dev/fuse";
/// Of the structure that comes with a WRITE, and everything else but data.
const HEADERS: usize = 4096;

/// A descriptor of the connection to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Device(Arc<OwnedFd>);

impl Device {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        Self(Arc::new(descriptor))
    }

    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Reads the next request; none when the mount has ended.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&*self.0, &mut *buffer) {
                Ok(size) => return Ok(Some(size)),
                // NOENT: who asked was interrupted before it was read.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes a reply or a message. The kernel takes all or nothing.
    pub(super) fn send(&self, header: &OutHeader, body: &[u8]) -> rustix::io::Result<()> {
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
        rustix::io::writev(&*self.0, &parts).map(drop)
    }

    /// A descriptor of its own for a thread: the kernel keeps what that answers apart.
    fn clone_for_thread(&self) -> io::Result<Self> {
        let new = OpenOptions::new().read(true).write(true).open(PATH)?;
        sys::clone_fuse_device(new.as_fd(), self.0.as_fd())?;
        Ok(Self::new(new.into()))
    }

    /// Has the kernel drop what it has cached of an inode: attributes, and pages from `offset` on,
    /// unless that is negative.
    pub(super) fn invalidate(&self, ino: Ino, offset: i64) -> rustix::io::Result<()> {
        let header = OutHeader {
            len: (size_of::<OutHeader>() + size_of::<InvalInodeOut>()) as u32,
            error: NOTIFY_INVAL_INODE,
            unique: 0,
        };
        let what = InvalInodeOut { ino: ino.0, off: offset, len: 0 };
        self.send(&header, what.as_bytes())
    }

    /// Lets the kernel read and write a file itself.
    pub(super) fn open_backing(&self, file: BorrowedFd<'_>) -> rustix::io::Result<Backing> {
        let number = sys::open_backing(self.0.as_fd(), file)?;
        Ok(Backing { device: self.clone(), number })
    }
}

/// A file that the kernel reads and writes itself.
#[derive(Debug)]
pub(super) struct Backing {
    device: Device,
    pub(super) number: u32,
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(errno) = sys::close_backing(self.device.0.as_fd(), self.number) {
            log::debug!("close backing file {}: {errno}", self.number);
        }
    }
}

/// Answers what is read from the device until the mount ends, or the crew has threads to spare; `near`
/// who asks, unless there is nobody who waits for an answer.
pub(super) fn work(
    device: &Device,
    ops: &Ops,
    payload_size: usize,
    near: Option<&Near>,
    crew: &Crew,
    member: Member,
) -> io::Result<()> {
    let own = device.clone_for_thread().inspect_err(|error| log::debug!("clone {PATH}: {error}"));
    let device = own.as_ref().unwrap_or(device);
    let mut input = vec![0; (payload_size + HEADERS).max(MIN_READ_BUFFER)];
    let mut payload = vec![0; payload_size];
    let joined = near.map(Near::join);
    while member == Member::Regular || !crew.may_go() {
        let Some(size) = device.receive(&mut input)? else { return Ok(()) };
        let begin = Instant::now();
        let message = &input[..size];
        let (header, body) = InHeader::read_from_prefix(message)
            .map_err(|_| io::Error::other("a request without a header"))?;
        let by = By::Member(crew, joined.as_ref());
        let request = Request { header: &header, body: Body::Whole(body), by };
        let Served::Reply(reply) = ops.serve(&request, &mut payload) else { continue };
        let took = begin.elapsed();
        match device.send(&reply, &payload[..reply.body_len()]) {
            // NOENT: who asked has gone.
            Ok(()) | Err(Errno::NOENT) => {
                let bytes = size.max(reply.body_len());
                // Nobody waits for a RELEASE.
                let near = near.filter(|_| header.opcode != Opcode::Release as u32);
                near.inspect(|near| near.note(header.pid, bytes, took));
            }
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => {
                log::error!("reply: {errno}");
                // If the kernel still waits for one.
                let _ = device.send(&OutHeader::error(reply.unique, Errno::IO), &[]);
            }
        }
    }
    Ok(())
}
