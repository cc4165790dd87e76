//! Pointers into the layers below, kept by a *rich* layer in private xattrs: where a renamed
//! directory's lower parts lie (redirect), and where the data of a file lies whose attributes
//! alone were copied up (metacopy).
//!
//! ```text
//! NS.plyfs.rich      on the layer's root: the layer may hold the other two
//! NS.plyfs.redirect  on a directory: "DEPTH+COUNT PATH\0"...
//!                    the directories PATH of the COUNT layers that begin DEPTH layers below
//! NS.plyfs.metacopy  on a regular file: "BLOCKS DEPTH PATH"
//!                    PATH in the DEPTH-th layer below; BLOCKS are what its data takes
//! ```
//!
//! The layer next below has depth 0. Paths are relative to a layer's root. A redirect names
//! all that the directory merges, so it replaces what lies below under the directory's name.
//!
//! NS is `trusted` for a process that may use these xattrs, else `user`. The two do not mix:
//! who can write a layer's `user` xattrs must not steer a mount made by root.
//!
//! A metacopy's file is all hole and at least [`METACOPY_MIN`] large, so a file whose blocks
//! hold its size needs no look for the xattr.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, Stat};

/// Smallest file in bytes that is worth a metacopy; an xattr's own block is smaller.
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

    /// Whether the layer with this root may hold pointers.
    pub fn is_rich(self, root: BorrowedFd<'_>) -> sys::Result<bool> {
        Ok(read(root, self.rich())?.is_some())
    }

    /// Allows the layer with this root to hold pointers.
    pub fn make_rich(self, root: BorrowedFd<'_>) -> sys::Result<()> {
        sys::set_xattr(root, self.rich(), b"1", 0)
    }

    /// Where the directory's lower parts lie, if not under its own name.
    ///
    /// # Errors
    /// EIO if the xattr is not of the form above.
    pub fn read_redirect(self, dir: BorrowedFd<'_>) -> sys::Result<Option<Vec<Below>>> {
        let Some(value) = read(dir, self.redirect())? else {
            return Ok(None);
        };
        parse_redirect(&value).map(Some).ok_or(Errno::IO)
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
        let head = format!("{} {} ", to.blocks, to.file.depth);
        sys::set_xattr(file, self.metacopy(), &[head.as_bytes(), &to.file.path].concat(), 0)
    }
}

/// Whether a file with these attributes may be a metacopy.
pub fn may_be_metacopy(stat: &Stat) -> bool {
    stat.kind() == sys::FileType::RegularFile
        && stat.size >= METACOPY_MIN
        && stat.blocks.saturating_mul(512) < stat.size
}

fn read(object: BorrowedFd<'_>, name: &[u8]) -> sys::Result<Option<Vec<u8>>> {
    match sys::get_xattr(object, name) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno),
    }
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

fn parse_redirect(value: &[u8]) -> Option<Vec<Below>> {
    let mut parts: Vec<Below> = Vec::new();
    for part in value.strip_suffix(b"\0")?.split(|byte| *byte == 0) {
        let (place, path) = split_once(part, b' ')?;
        let (depth, count) = split_once(place, b'+')?;
        let (depth, count): (u16, u16) = (number(depth)?, number(count)?);
        for depth in depth..depth.checked_add(count)? {
            // Layers come from the top, each once.
            if parts.last().is_some_and(|last| last.depth >= depth) {
                return None;
            }
            parts.push(Below { depth, path: path_of(path)? });
        }
    }
    Some(parts)
}

fn parse_metacopy(value: &[u8]) -> Option<Metacopy> {
    let (blocks, rest) = split_once(value, b' ')?;
    let (depth, path) = split_once(rest, b' ')?;
    let file = Below { depth: number(depth)?, path: path_of(path)? };
    Some(Metacopy { file, blocks: number(blocks)? })
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
        assert_eq!(parse_redirect(&value).unwrap(), parts);
    }

    #[test]
    fn what_no_union_wrote_is_refused() {
        let values: [&[u8]; 9] = [
            b"",
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
            assert_eq!(parse_redirect(value), None, "{}", value.escape_ascii());
        }
        assert_eq!(parse_metacopy(b"8 0 a/../b"), None);
        let expected = Metacopy { file: below(2, "d/f g"), blocks: 8 };
        assert_eq!(parse_metacopy(b"8 2 d/f g"), Some(expected));
    }
}
