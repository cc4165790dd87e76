//! Pointers into the layers below, kept by a *rich* layer in private xattrs: where a renamed
//! directory's lower parts lie (redirect), and where the data of a file lies whose attributes
//! alone were copied up (metacopy).
//!
//! ```text
//! NS.plyfs.rich      on the layer's root: the layer may hold the other two
//! user.plyfs.rich    on the layer's root: NS, for those who cannot see the other
//! NS.plyfs.redirect  on a directory: "DEPTH+COUNT PATH\0"...
//!                    the directories PATH of the COUNT layers that begin DEPTH layers below
//! NS.plyfs.metacopy  on a regular file: "BLOCKS SIZE SECS.NANOS DEPTH PATH"
//!                    PATH in the DEPTH-th layer below, whose size and time of change tell
//!                    that it is the one that was meant; BLOCKS are what its data takes
//! ```
//!
//! The layer next below has depth 0. Paths are relative to a layer's root. A redirect names
//! all that the directory merges, so it replaces what lies below under the directory's name.
//!
//! NS is `trusted` for a process that may use these xattrs, else `user`. The two do not mix:
//! who can write a layer's `user` xattrs must not steer a mount made by root. A layer with
//! pointers of the other kind cannot be mounted, for without them it shows other files.
//!
//! The filesystem gives `user` xattrs only to who may read the object. So where they are used,
//! nothing that its owner may not read has a pointer (see [`Namespace::needs_read_mode`]).

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, Stat, Timestamp};

/// Smallest file in bytes that is worth a metacopy, and looked at for being one.
pub const METACOPY_MIN: u64 = 32 * 1024;

/// Which xattrs hold the pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Those of root.
    Trusted,
    /// Those of anybody.
    User,
}

/// A path in one of the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// How many layers are between.
    pub depth: u16,
    /// Path below that layer's root.
    pub path: Box<[u8]>,
}

/// Where a metacopy's data lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metacopy {
    /// The file with the data.
    pub file: Below,
    /// What the data takes, in 512-byte units.
    pub blocks: u64,
    /// The file's size in bytes.
    pub size: u64,
    /// When its content was last changed.
    pub mtime: Timestamp,
}

impl Namespace {
    /// The namespace for this process.
    pub fn of_this_process() -> Self {
        if sys::may_use_trusted_xattrs() { Self::Trusted } else { Self::User }
    }

    fn rich(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.plyfs.rich",
            Self::User => b"user.plyfs.rich",
        }
    }

    fn redirect(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.plyfs.redirect",
            Self::User => b"user.plyfs.redirect",
        }
    }

    fn metacopy(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.plyfs.metacopy",
            Self::User => b"user.plyfs.metacopy",
        }
    }

    fn word(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted",
            Self::User => b"user",
        }
    }

    /// Whether the layer with this root may hold pointers that this process can follow.
    ///
    /// # Errors
    /// EKEYREJECTED if it may hold pointers of the other kind.
    pub fn is_rich(self, root: BorrowedFd<'_>) -> sys::Result<bool> {
        let is_own = read(root, self.rich())?.is_some();
        match read(root, Self::User.rich())? {
            Some(said) if said != self.word() || !is_own => Err(Errno::KEYREJECTED),
            _ => Ok(is_own),
        }
    }

    /// Allows the layer with this root to hold pointers.
    pub fn make_rich(self, root: BorrowedFd<'_>) -> sys::Result<()> {
        sys::set_xattr(root, self.rich(), self.word(), 0)?;
        match sys::set_xattr(root, Self::User.rich(), self.word(), 0) {
            // Some filesystems have no xattrs of users.
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Whether an object with a pointer must be one that its owner may read.
    pub fn needs_read_mode(self) -> bool {
        self == Self::User
    }

    /// Where the directory's lower parts lie, if not under its own name.
    ///
    /// # Errors
    /// EIO if the xattr is not of the form above, or points below the last of the `layers`
    /// that lie below the directory's.
    pub fn read_redirect(
        self,
        dir: BorrowedFd<'_>,
        layers: usize,
    ) -> sys::Result<Option<Vec<Below>>> {
        let Some(value) = read(dir, self.redirect())? else {
            return Ok(None);
        };
        parse_redirect(&value, layers).map(Some).ok_or(Errno::IO)
    }

    /// Whether the directory has a redirect.
    pub fn has_redirect(self, dir: BorrowedFd<'_>) -> sys::Result<bool> {
        Ok(read(dir, self.redirect())?.is_some())
    }

    /// Takes a directory's redirect away, if it has one.
    pub fn drop_redirect(self, dir: BorrowedFd<'_>) -> sys::Result<()> {
        match sys::remove_xattr(dir, self.redirect()) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Notes where the directory's lower parts lie, topmost first.
    pub fn write_redirect(self, dir: BorrowedFd<'_>, parts: &[Below]) -> sys::Result<()> {
        sys::set_xattr(dir, self.redirect(), &encode_redirect(parts), 0)
    }

    /// Where the data of a file with these attributes lies, if not in itself.
    ///
    /// # Errors
    /// EIO if the xattr is not of the form above.
    pub fn read_metacopy(self, file: BorrowedFd<'_>) -> sys::Result<Option<Metacopy>> {
        let Some(value) = read(file, self.metacopy())? else {
            return Ok(None);
        };
        parse_metacopy(&value).map(Some).ok_or(Errno::IO)
    }

    /// Notes where the data of a file lies that is itself a hole.
    pub fn write_metacopy(self, file: BorrowedFd<'_>, to: &Metacopy) -> sys::Result<()> {
        let (secs, nanos, depth) = (to.mtime.secs, to.mtime.nanos, to.file.depth);
        let head = format!("{} {} {secs}.{nanos} {depth} ", to.blocks, to.size);
        sys::set_xattr(file, self.metacopy(), &[head.as_bytes(), &to.file.path].concat(), 0)
    }
}

/// Whether a file with these attributes may be a metacopy.
pub fn may_be_metacopy(stat: &Stat) -> bool {
    stat.kind() == sys::FileType::RegularFile && stat.size >= METACOPY_MIN
}

fn read(object: BorrowedFd<'_>, name: &[u8]) -> sys::Result<Option<Vec<u8>>> {
    match sys::get_xattr(object, name) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        // What may not be read can still be known not to be there.
        Err(Errno::ACCESS) if !has(object, name)? => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn has(object: BorrowedFd<'_>, name: &[u8]) -> sys::Result<bool> {
    let list = sys::list_xattrs(object)?;
    Ok(list.split(|byte| *byte == 0).any(|listed| listed == name))
}

fn encode_redirect(parts: &[Below]) -> Vec<u8> {
    let mut value = Vec::new();
    let mut rest = parts;
    while let Some(first) = rest.first() {
        let same = |(n, part): &(usize, &Below)| {
            part.path == first.path && usize::from(part.depth) == usize::from(first.depth) + n
        };
        let count = rest.iter().enumerate().take_while(same).count();
        value.extend_from_slice(format!("{}+{count} ", first.depth).as_bytes());
        value.extend_from_slice(&first.path);
        value.push(0);
        rest = &rest[count..];
    }
    value
}

fn parse_redirect(value: &[u8], layers: usize) -> Option<Vec<Below>> {
    let mut parts: Vec<Below> = Vec::new();
    if value.is_empty() {
        return Some(parts);
    }
    for part in value.strip_suffix(b"\0")?.split(|byte| *byte == 0) {
        let (place, path) = split_once(part, b' ')?;
        let (depth, count) = split_once(place, b'+')?;
        let (depth, count): (u16, u16) = (number(depth)?, number(count)?);
        let end = depth.checked_add(count).filter(|end| usize::from(*end) <= layers)?;
        // Layers come from the top, each once.
        if parts.last().is_some_and(|last| last.depth >= depth) {
            return None;
        }
        let path = path_of(path)?;
        parts.extend((depth..end).map(|depth| Below { depth, path: path.clone() }));
    }
    Some(parts)
}

fn parse_metacopy(value: &[u8]) -> Option<Metacopy> {
    let (blocks, rest) = split_once(value, b' ')?;
    let (size, rest) = split_once(rest, b' ')?;
    let (mtime, rest) = split_once(rest, b' ')?;
    let (secs, nanos) = split_once(mtime, b'.')?;
    let (depth, path) = split_once(rest, b' ')?;
    Some(Metacopy {
        file: Below { depth: number(depth)?, path: path_of(path)? },
        blocks: number(blocks)?,
        size: number(size)?,
        mtime: Timestamp { secs: number(secs)?, nanos: number(nanos)? },
    })
}

/// A relative path of ordinary names; anything else was not written by a union.
fn path_of(path: &[u8]) -> Option<Box<[u8]>> {
    let ordinary = |name: &[u8]| !matches!(name, b"" | b"." | b"..");
    path.split(|byte| *byte == b'/').all(ordinary).then(|| path.into())
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|byte| *byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(depth: u16, path: &str) -> Below {
        Below { depth, path: path.as_bytes().into() }
    }

    #[test]
    fn redirects_come_back() {
        let parts = [below(0, "a b"), below(1, "a b"), below(3, "a b"), below(4, "c/+1 d")];
        let value = encode_redirect(&parts);
        assert_eq!(value, b"0+2 a b\x003+1 a b\x004+1 c/+1 d\0");
        assert_eq!(parse_redirect(&value, 5).unwrap(), parts);
        assert_eq!(parse_redirect(&value, 4), None, "deeper than the stack");
        assert_eq!(parse_redirect(&encode_redirect(&[]), 0).unwrap(), []);
    }

    #[test]
    fn what_no_union_wrote_is_refused() {
        let values: [&[u8]; 8] = [
            b"0+1 a",
            b"0 a\0",
            b"0+1 ../a\0",
            b"0+1 /a\0",
            b"x+1 a\0",
            b"65535+2 a\0",
            b"1+1 a\x000+1 a\0",
            b"0+1 a//b\0",
        ];
        for value in values {
            assert_eq!(parse_redirect(value, 65535), None, "{}", value.escape_ascii());
        }
        assert_eq!(parse_metacopy(b"8 9 1.5 0 a/../b"), None);
        let mtime = Timestamp { secs: -1, nanos: 5 };
        let expected = Metacopy { file: below(2, "d/f g"), blocks: 8, size: 9, mtime };
        assert_eq!(parse_metacopy(b"8 9 -1.5 2 d/f g"), Some(expected));
    }
}
