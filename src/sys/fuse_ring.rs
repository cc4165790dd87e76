//! FUSE over io_uring: requests come to memory of the process, and replies leave from there
//! (`Documentation/filesystems/fuse/fuse-io-uring.rst` of the kernel).
//!
//! The kernel has a queue for each processor. An entry of a queue is a header and a buffer for data,
//! which belong to the kernel while it waits for a request, and to this process while it answers
//! one: one io_uring_enter(2) hands the reply over and waits for the next request.
//!
//! ```text
//! header   in_out   128 bytes   the header of the request, of the reply
//!          op       128         the structure of the request's kind
//!          entry     32         which reply it is, and how large
//! payload                       what follows the structure; all of the reply but its header
//! ```

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use memmap2::MmapMut;
use parking_lot::Mutex;
use rustix::event::EventfdFlags;

use super::{Errno, Result};

/// `enum fuse_uring_cmd`
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Where the parts of the header are (`struct fuse_uring_req_header`).
const HEADER_SIZE: usize = 288;
const IN_OUT: Range<usize> = 0..128;
const OP: Range<usize> = 128..256;
const COMMIT_ID: Range<usize> = 264..272;
const PAYLOAD_SIZE: Range<usize> = 272..276;

/// Where the command has what it is about (`struct fuse_uring_cmd_req`).
const CMD_COMMIT_ID: Range<usize> = 8..16;
const CMD_QUEUE: Range<usize> = 16..18;
/// The size of that place in an entry of the submission queue.
const CMD_SIZE: usize = 80;
/// Where an entry of the submission queue has its address and its length
/// (`struct io_uring_sqe`), which for a registration are those of two parts of memory.
const SQE_ADDR: usize = 16;
const SQE_LEN: usize = 24;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// How long to wait for the kernel to have memory again.
const A_WHILE: Duration = Duration::from_millis(1);

/// What the completion of the event has in the place of an entry's number.
const EVENT: u64 = u64::MAX;

/// Some entries of queues, served by the thread that made it.
pub struct FuseRing {
    /// First, for it is to be closed before the memory of the entries goes.
    ring: Ring,
    device: Arc<OwnedFd>,
    entries: Vec<Entry>,
    returns: Arc<Returns>,
}

/// Entries that were answered elsewhere and come back.
struct Returns {
    event: OwnedFd,
    done: Mutex<Vec<Done>>,
}

/// An entry, the header of its reply, and how many bytes follow.
type Done = (usize, Vec<u8>, usize);

struct Entry {
    queue: u16,
    is_lent: bool,
    memory: Arc<Memory>,
}

/// Both allocated. They are pointers, for the kernel writes there while nothing here refers to them.
struct Memory {
    header: *mut [u8; HEADER_SIZE],
    payload: *mut [u8],
    /// Both again, for the registration.
    parts: [libc::iovec; 2],
    /// What `payload` points to.
    _map: MmapMut,
}

// SAFETY: the memory is its own; who refers to what is in it says so at each place.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(payload_size: usize) -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(payload_size)?;
        let payload = &raw mut map[..];
        let header = Box::into_raw(Box::new([0; HEADER_SIZE]));
        let part = |base: *mut u8, len| libc::iovec { iov_base: base.cast(), iov_len: len };
        let parts = [part(header.cast(), HEADER_SIZE), part(payload.cast(), payload_size)];
        Ok(Self { header, payload, parts, _map: map })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by Box::into_raw, and freed nowhere else. The kernel writes there, and to the
        // payload, only in io_uring_enter(2) of the thread that has the ring, which is closed: what was
        // left to do then is told that the thread is gone, and copies nothing.
        drop(unsafe { Box::from_raw(self.header) });
    }
}

/// A request that has come.
pub struct RingRequest<'a> {
    /// The header of the request.
    pub header: &'a [u8],
    /// The structure of its kind.
    pub structure: &'a [u8],
    /// Whatever follows that, in its beginning; all of it takes the reply.
    pub payload: &'a mut [u8],
    /// How many bytes of that the request has.
    pub payload_size: usize,
}

/// A request that is answered in another thread than the ring's.
pub struct Lent {
    index: usize,
    memory: Arc<Memory>,
    returns: Arc<Returns>,
}

impl Lent {
    /// The request.
    pub fn request(&mut self) -> RingRequest<'_> {
        // SAFETY: the ring does not touch a lent entry before it comes back, nor does the kernel,
        // and `self` is the only one that has it.
        unsafe { request(&self.memory) }
    }

    /// Has the ring hand over the reply: this header, and so many bytes of the payload.
    pub fn reply(self, reply_header: &[u8], size: usize) -> Result<()> {
        self.returns.done.lock().push((self.index, reply_header.to_vec(), size));
        loop {
            match rustix::io::write(&self.returns.event, &1u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

/// The request in an entry's memory.
///
/// # Safety
///
/// Nothing else may refer to what is in there while the result lives, and the kernel must not have it.
unsafe fn request(memory: &Memory) -> RingRequest<'_> {
    // SAFETY: it is allocated; for the rest see above.
    let header = unsafe { &*memory.header };
    // SAFETY: as above.
    let payload = unsafe { &mut *memory.payload };
    let size = u32::from_ne_bytes(field(header, PAYLOAD_SIZE)) as usize;
    let payload_size = size.min(payload.len());
    RingRequest { header: &header[IN_OUT], structure: &header[OP], payload, payload_size }
}

/// Whether the process may make such rings (io_uring_setup(2)).
pub fn has_io_uring() -> bool {
    new_ring(1).inspect_err(|error| log::debug!("no io_uring: {error}")).is_ok()
}

fn new_ring(entries: usize) -> std::io::Result<Ring> {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    // One thread waits, and whatever there is to do is done when it does.
    let mut builder = Ring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(entries.max(1))
}

impl FuseRing {
    /// Registers so many entries of each of these queues, for replies of at most `payload_size`
    /// bytes. The kernel refuses a size below that which was agreed upon.
    pub fn new(
        device: Arc<OwnedFd>,
        queues: &[u16],
        entries_each: usize,
        payload_size: usize,
    ) -> std::io::Result<Self> {
        let count = queues.len() * entries_each;
        let ring = new_ring(count + 1)?;
        let all = queues.iter().flat_map(|queue| std::iter::repeat_n(*queue, entries_each));
        let entry = |queue| {
            Ok(Entry { queue, is_lent: false, memory: Arc::new(Memory::new(payload_size)?) })
        };
        let entries = all.map(entry).collect::<std::io::Result<_>>()?;
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let returns = Arc::new(Returns { event, done: Mutex::default() });
        let mut new = Self { ring, device, entries, returns };
        new.await_returns()?;
        (0..count).try_for_each(|index| new.push(index, REGISTER, 0))?;
        new.ring.submit()?;
        Ok(new)
    }

    /// Waits for a request, and tells which entry has it; none when the mount has ended.
    ///
    /// Replies that wait are handed over by that, and those of lent entries.
    pub fn wait(&mut self) -> std::io::Result<Option<usize>> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The kernel is short of memory.
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => std::thread::sleep(A_WHILE),
                    _ => return Err(error),
                },
            }
            let Some(completion) = self.ring.completion().next() else { continue };
            let is_event = completion.user_data() == EVENT;
            match completion.result() {
                0.. if is_event => self.take_returns()?,
                0.. => return Ok(Some(completion.user_data() as usize)),
                error => match Errno::from_raw_os_error(-error) {
                    // The connection has ended, and NOENT: with it the request that is replied to.
                    Errno::NOTCONN
                    | Errno::CONNABORTED
                    | Errno::CANCELED
                    | Errno::NODEV
                    | Errno::NOENT => return Ok(None),
                    errno => return Err(errno.into()),
                },
            }
        }
    }

    /// The request that the entry has.
    pub fn request(&mut self, index: usize) -> RingRequest<'_> {
        let entry = &self.entries[index];
        assert!(!entry.is_lent, "entry {index} is lent");
        // SAFETY: the entry is not lent, and `self`, which alone has it then, is borrowed mutably;
        // the kernel does not write there before the entry is pushed again and the ring is entered.
        unsafe { request(&entry.memory) }
    }

    /// Lends an entry that has a request to who answers it in another thread.
    pub fn lend(&mut self, index: usize) -> Lent {
        let entry = &mut self.entries[index];
        assert!(!entry.is_lent, "entry {index} is lent");
        entry.is_lent = true;
        let memory = Arc::clone(&entry.memory);
        Lent { index, memory, returns: Arc::clone(&self.returns) }
    }

    /// Has the next [`wait`](Self::wait) hand over the reply of an entry: this header, and so many
    /// bytes of its payload.
    pub fn reply(&mut self, index: usize, reply_header: &[u8], size: usize) -> std::io::Result<()> {
        let entry = &self.entries[index];
        assert!(!entry.is_lent, "entry {index} is lent");
        // SAFETY: as in `request`.
        let header = unsafe { &mut *entry.memory.header };
        header[..reply_header.len()].copy_from_slice(reply_header);
        let size = u32::try_from(size).map_err(std::io::Error::other)?;
        header[PAYLOAD_SIZE].copy_from_slice(&size.to_ne_bytes());
        let commit_id = u64::from_ne_bytes(field(header, COMMIT_ID));
        self.push(index, COMMIT_AND_FETCH, commit_id)
    }

    /// Has the ring wait for lent entries, too.
    fn await_returns(&mut self) -> std::io::Result<()> {
        let event = types::Fd(self.returns.event.as_raw_fd());
        let poll = opcode::PollAdd::new(event, libc::POLLIN as u32).build().user_data(EVENT);
        // SAFETY: the descriptor is open as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&poll.into()) };
        pushed.map_err(std::io::Error::other) // never full, see `push`
    }

    /// Replies for what was lent and is done.
    fn take_returns(&mut self) -> std::io::Result<()> {
        let mut count = [0; 8];
        match rustix::io::read(&self.returns.event, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.await_returns()?;
        let done = std::mem::take(&mut *self.returns.done.lock());
        done.into_iter().try_for_each(|(index, header, size)| {
            self.entries[index].is_lent = false; // who had it pushed that when it was done
            self.reply(index, &header, size)
        })
    }

    fn push(&mut self, index: usize, command: u32, commit_id: u64) -> std::io::Result<()> {
        let entry = &self.entries[index];
        let mut data = [0; CMD_SIZE];
        data[CMD_COMMIT_ID].copy_from_slice(&commit_id.to_ne_bytes());
        data[CMD_QUEUE].copy_from_slice(&entry.queue.to_ne_bytes());
        let device = types::Fd(self.device.as_raw_fd());
        let submission = opcode::UringCmd80::new(device, command).cmd(data).build();
        let mut submission = submission.user_data(index as u64);
        if command == REGISTER {
            set_parts(&mut submission, &entry.memory.parts);
        }
        // SAFETY: the device is open as long as the ring, and what the entry points to is there
        // until the ring is closed.
        let pushed = unsafe { self.ring.submission().push(&submission) };
        pushed.map_err(std::io::Error::other) // never full: it has a place for each entry, and one
    }
}

/// A number in a header.
fn field<const N: usize>(header: &[u8; HEADER_SIZE], at: Range<usize>) -> [u8; N] {
    std::array::from_fn(|n| header[at.start + n])
}

/// Has a submission name two parts of memory, for which `io_uring` has no call.
fn set_parts(submission: &mut squeue::Entry128, parts: &[libc::iovec; 2]) {
    let bytes: *mut u8 = (&raw mut *submission).cast();
    // SAFETY: it is a `struct io_uring_sqe` of 128 bytes, which has a u64 there, aligned.
    let addr = unsafe { bytes.add(SQE_ADDR) };
    // SAFETY: as above.
    unsafe { addr.cast::<u64>().write(parts.as_ptr().expose_provenance() as u64) };
    // SAFETY: there it has a u32, aligned.
    let len = unsafe { bytes.add(SQE_LEN) };
    // SAFETY: as above.
    unsafe { len.cast::<u32>().write(2) };
}

impl std::fmt::Debug for FuseRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FuseRing({} entries)", self.entries.len())
    }
}
