//! A request, taken apart.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::InHeader;
use super::crew::{Crew, Waiting};
use super::near::{Apart, Joined};
use crate::layers::number::Ino;
use crate::overlay::{Owner, Wait};
use crate::sys::{Caller, LongWork};

/// A request of the kernel.
pub(super) struct Request<'a> {
    pub(super) header: &'a InHeader,
    pub(super) body: Body<'a>,
    pub(super) by: By<'a>,
}

/// Who answers a request.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    /// A thread that reads the device, which others do, too; all are where who asks is, maybe.
    Member(&'a Crew, Option<&'a Joined<'a>>),
    /// A thread of a ring that has one request at a time: no other is stuck behind it.
    Steady,
    /// A thread of a ring that has others behind this one.
    Dispatcher,
    /// The thread to which such a one gave it.
    Beside,
}

/// What a thread holds while its answer waits.
pub(super) struct Waits<'a> {
    _waiting: Option<Waiting<'a>>,
    _apart: Option<Apart<'a>>,
    _long: Option<LongWork>,
}

/// The request is to be answered in another thread, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere;

/// What follows the header: the structure of its kind, if that has one, then names and data.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    /// One after the other, as read(2) of the device brings them.
    Whole(&'a [u8]),
    /// Each in a place of its own, as a ring brings them.
    Apart { structure: &'a [u8], rest: &'a [u8] },
}

/// A message that is shorter than it should be, or not well formed.
const MALFORMED: Errno = Errno::INVAL;

impl<'a> Request<'a> {
    /// The inode that it is about.
    pub(super) fn ino(&self) -> Ino {
        Ino(self.header.nodeid)
    }

    /// The structure of its kind.
    pub(super) fn structure<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, Errno> {
        self.split().map(|(structure, _)| structure)
    }

    /// The structure of its kind, and what follows it.
    pub(super) fn split<T>(&self) -> Result<(T, &'a [u8]), Errno>
    where
        T: FromBytes + KnownLayout + Immutable,
    {
        match self.body {
            Body::Whole(body) => T::read_from_prefix(body).map_err(|_| MALFORMED),
            Body::Apart { structure, rest } => {
                let (structure, _) = T::read_from_prefix(structure).map_err(|_| MALFORMED)?;
                Ok((structure, rest))
            }
        }
    }

    /// What there is, for a kind that has no structure.
    pub(super) fn unstructured(&self) -> &'a [u8] {
        match self.body {
            Body::Whole(body) => body,
            Body::Apart { rest, .. } => rest,
        }
    }

    pub(super) fn owner(&self) -> Owner {
        Owner { uid: self.header.uid, gid: self.header.gid }
    }

    pub(super) fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid, pid: self.header.pid }
    }

    /// To be held while the answer waits so: others are answered meanwhile. To be asked for before
    /// anything is changed, or put into the reply.
    pub(super) fn waits(&self, wait: Wait) -> Result<Waits<'a>, Elsewhere> {
        let is_long = wait == Wait::Copy;
        Ok(match self.by {
            By::Member(crew, joined) => Waits {
                _waiting: crew.waits(wait),
                _apart: joined.filter(|_| is_long).map(Joined::apart),
                _long: None,
            },
            By::Dispatcher if wait != Wait::Nothing => return Err(Elsewhere),
            By::Steady | By::Dispatcher | By::Beside => {
                Waits { _waiting: None, _apart: None, _long: is_long.then(LongWork::begin) }
            }
        })
    }
}

impl Request<'_> {
    /// Fails if others are stuck behind this one, so that it must not wait for anything.
    pub(super) fn may_wait(&self) -> Result<(), Elsewhere> {
        if matches!(self.by, By::Dispatcher) { Err(Elsewhere) } else { Ok(()) }
    }
}

/// A name, which ends with a NUL, and what follows it.
pub(super) fn name(bytes: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(MALFORMED)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_nul() {
        assert_eq!(name(b"a\0bc\0"), Ok((&b"a"[..], &b"bc\0"[..])));
        assert_eq!(name(b"\0"), Ok((&b""[..], &b""[..])));
        assert_eq!(name(b"a"), Err(MALFORMED));
        assert_eq!(name(b""), Err(MALFORMED));
    }

    #[test]
    fn who_has_others_behind_does_not_wait() {
        let header = InHeader::default();
        let request = |by| Request { header: &header, body: Body::Whole(&[]), by };
        let dispatcher = request(By::Dispatcher);
        assert!(dispatcher.waits(Wait::Nothing).is_ok());
        assert!(dispatcher.waits(Wait::Disk).is_err() && dispatcher.waits(Wait::Copy).is_err());
        assert!(dispatcher.may_wait().is_err());
        for by in [By::Steady, By::Beside] {
            assert!(request(by).waits(Wait::Copy).is_ok() && request(by).may_wait().is_ok());
        }
    }

    #[test]
    fn who_copies_for_a_ring_has_the_usual_priority() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let copy = move || {
            let before = nice();
            crate::sys::raise_priority(rustix::thread::gettid());
            let raised = nice();
            let header = InHeader::default();
            let request = Request { header: &header, body: Body::Whole(&[]), by: By::Steady };
            let disk = request.waits(Wait::Disk);
            assert_eq!(nice(), raised);
            drop(disk);
            let copies = request.waits(Wait::Copy);
            assert_eq!(nice(), before);
            drop(copies);
            assert_eq!(nice(), raised);
        };
        std::thread::spawn(copy).join().unwrap();
    }

    #[test]
    fn both_forms_of_a_body_say_the_same() {
        use super::super::abi::RenameIn;
        let header = InHeader::default();
        let newdir = 7u64.to_ne_bytes();
        let whole: Vec<u8> = newdir.iter().chain(b"a\0b\0").copied().collect();
        let mut padded = [0; 128];
        padded[..8].copy_from_slice(&newdir);
        let bodies = [Body::Whole(&whole), Body::Apart { structure: &padded, rest: &whole[8..] }];
        for body in bodies {
            let request = Request { header: &header, body, by: By::Beside };
            let (structure, rest) = request.split::<RenameIn>().unwrap();
            assert_eq!((structure.newdir, rest), (7, &b"a\0b\0"[..]));
        }
        let request = Request { header: &header, body: Body::Whole(&whole[..5]), by: By::Beside };
        assert_eq!(request.structure::<RenameIn>().unwrap_err(), MALFORMED);
    }
}
