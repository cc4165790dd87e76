//! A reply, as bytes for the kernel.

use std::time::Duration;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi::{Attr, AttrOut, DirEnt, EntryOut};
use crate::layers::number::Ino;
use crate::sys::FileType;

/// Names in a listing begin at multiples of it.
const ALIGNMENT: usize = 8;

/// What a request is answered with, but for the header.
pub(super) struct Reply<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With what was put into the reply.
    Reply,
    /// The kernel expects nothing.
    Nothing,
}

impl<'a> Reply<'a> {
    /// An empty one that fills `buffer`.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds bytes; ENOSPC where there is no room for them.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Adds a structure.
    pub(super) fn structure<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        self.bytes(value.as_bytes())
    }

    /// So much room for data, of which [`filled`](Self::filled) says what is used.
    pub(super) fn room(&mut self, size: usize) -> Result<&mut [u8], Errno> {
        self.buffer[self.len..].get_mut(..size).ok_or(Errno::NOSPC)
    }

    /// Adds the first bytes of what [`room`](Self::room) gave.
    pub(super) fn filled(&mut self, size: usize) {
        self.len += size;
    }

    /// Adds attributes that the kernel may believe for `ttl`.
    pub(super) fn attr(&mut self, attr: &Attr, ttl: Duration) -> Result<(), Errno> {
        self.structure(&AttrOut {
            attr_valid: ttl.as_secs(),
            attr_valid_nsec: ttl.subsec_nanos(),
            dummy: 0,
            attr: *attr,
        })
    }

    /// Adds a name's inode.
    pub(super) fn entry(&mut self, attr: &Attr, ttl: Duration) -> Result<(), Errno> {
        self.structure(&entry(attr.ino, attr, ttl))
    }

    /// Adds a name of a directory, unless the reply were larger than `limit` then: false.
    pub(super) fn name(&mut self, limit: usize, name: &ListedName<'_>) -> Result<bool, Errno> {
        let plus = name.attr.map_or(0, |_| size_of::<EntryOut>());
        let entry_size = plus + size_of::<DirEnt>() + name.name.len();
        let padding = entry_size.next_multiple_of(ALIGNMENT) - entry_size;
        if self.len + entry_size + padding > limit.min(self.buffer.len()) {
            return Ok(false);
        }
        if let Some(attr) = &name.attr {
            self.structure(attr)?;
        }
        self.structure(&DirEnt {
            ino: name.ino.0,
            off: name.cookie,
            namelen: u32::try_from(name.name.len()).map_err(|_| Errno::NAMETOOLONG)?,
            kind: name.kind.as_raw_mode() >> 12, // DT_* of readdir(3)
        })?;
        self.bytes(name.name)?;
        self.bytes(&[0; ALIGNMENT][..padding])?;
        Ok(true)
    }
}

/// A name of a directory, as READDIR and READDIRPLUS tell it.
pub(super) struct ListedName<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: Ino,
    pub(super) kind: FileType,
    /// Where a later request goes on.
    pub(super) cookie: u64,
    /// Of READDIRPLUS: what it is, with node 0 if its attributes are not known.
    pub(super) attr: Option<EntryOut>,
}

/// An inode that was found, for the kernel to believe for `ttl`.
pub(super) fn entry(nodeid: u64, attr: &Attr, ttl: Duration) -> EntryOut {
    EntryOut {
        nodeid,
        generation: 0,
        entry_valid: ttl.as_secs(),
        attr_valid: ttl.as_secs(),
        entry_valid_nsec: ttl.subsec_nanos(),
        attr_valid_nsec: ttl.subsec_nanos(),
        attr: *attr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &[u8]) -> ListedName<'_> {
        let (ino, kind) = (Ino(9), FileType::Directory);
        ListedName { name, ino, kind, cookie: 3, attr: None }
    }

    #[test]
    fn names_are_aligned_and_fit() {
        let mut buffer = [0xff; 64];
        let mut reply = Reply::new(&mut buffer);
        assert_eq!(reply.name(64, &listed(b"abc")), Ok(true));
        assert_eq!(reply.len(), 32);
        assert_eq!(reply.name(63, &listed(b"abc")), Ok(false));
        assert_eq!(reply.name(100, &listed(b"abcdefgh")), Ok(true));
        assert_eq!(reply.name(100, &listed(b"")), Ok(false));
        assert_eq!(buffer[..8], 9u64.to_ne_bytes());
        assert_eq!(buffer[20..32], *b"\x04\0\0\0abc\0\0\0\0\0");
    }

    #[test]
    fn what_has_no_room_is_an_error() {
        let mut buffer = [0; 4];
        let mut reply = Reply::new(&mut buffer);
        assert_eq!(reply.bytes(b"abc"), Ok(()));
        assert_eq!(reply.bytes(b"de"), Err(Errno::NOSPC));
        assert_eq!(reply.len(), 3);
    }
}
