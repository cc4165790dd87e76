//! Whiteouts and opaque marks.
//!
//! ```text
//! form                                      hides                      written by
//! .wh.NAME (any type)                       NAME of the layers below   OCI layers, AUFS, plyfs
//! .wh..wh.long.HEX (content: NAME)          NAME of the layers below   plyfs, NAME > 251 bytes
//! NAME, character device 0:0                NAME of the layers below   kernel overlayfs
//! .wh..wh..opq (any type)                   all names below            OCI layers, AUFS, plyfs
//! .wh..opq, character device 0:0            all names below            fuse-overlayfs as root
//! xattr *.overlay.opaque = "y"              all names below            kernel overlayfs
//! xattr user.fuseoverlayfs.opaque = "y"     all names below            fuse-overlayfs
//! ```
//!
//! A mark hides only what lies *below* its own layer: `NAME` beside `.wh.NAME` is visible,
//! and a directory beside its own whiteout shows nothing of the layers below (OCI
//! image-spec, layer.md, "Whiteouts").
//!
//! A user's own name `.wh.X` is held by a layer as `.wh..wh.name.X`, which is no mark: so it
//! can never act as one, and a union can be the upper layer of another.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use sha2::{Digest, Sha256};

use crate::sys::{self, Errno};

/// What every mark's name begins with.
pub const PREFIX: &[u8] = b".wh.";
/// The opaque mark.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The opaque mark's odd form: a 0:0 device.
pub const OPAQUE_DEVICE: &[u8] = b".wh..opq";
/// What the name of a hashed whiteout begins with; its content is the hidden name.
const LONG_PREFIX: &[u8] = b".wh..wh.long.";
/// What a user's name that begins with [`PREFIX`] begins with instead.
const ESCAPED_PREFIX: &[u8] = b".wh..wh.name.";
/// What AUFS keeps for itself; no whiteout begins so.
const META_PREFIX: &[u8] = b".wh..wh.";
/// Longest name a directory takes (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// What a name means in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Name,
    /// A whiteout of this name.
    Whiteout(&'a [u8]),
    /// A hashed whiteout; the hidden name is the file's content.
    LongWhiteout,
    /// The directory is opaque.
    Opaque,
    /// Reserved, and without meaning: hidden.
    Reserved,
}

/// Reads the meaning out of a name.
pub fn meaning(name: &[u8]) -> Meaning<'_> {
    let Some(hidden) = name.strip_prefix(PREFIX) else {
        return Meaning::Name;
    };
    match hidden {
        _ if name == OPAQUE => Meaning::Opaque,
        _ if name.starts_with(ESCAPED_PREFIX) => Meaning::Name,
        _ if hidden.starts_with(ESCAPED_PREFIX) => Meaning::Whiteout(hidden),
        _ if name.starts_with(LONG_PREFIX) => Meaning::LongWhiteout,
        _ if name.starts_with(META_PREFIX) => Meaning::Reserved,
        b"" | b"." | b".." => Meaning::Reserved,
        _ => Meaning::Whiteout(hidden),
    }
}

/// The name by which a layer holds what the union shows as `name`.
pub fn escape(name: &[u8]) -> Cow<'_, [u8]> {
    match name.strip_prefix(PREFIX) {
        Some(rest) => Cow::Owned([ESCAPED_PREFIX, rest].concat()),
        None => Cow::Borrowed(name),
    }
}

/// The name that the union shows for a layer's `name`.
pub fn unescape(name: &[u8]) -> Cow<'_, [u8]> {
    match name.strip_prefix(ESCAPED_PREFIX) {
        Some(rest) => Cow::Owned([PREFIX, rest].concat()),
        None => Cow::Borrowed(name),
    }
}

/// A whiteout to be written: the mark's name and what the mark contains.
#[derive(Debug, PartialEq, Eq)]
pub struct Whiteout {
    /// The mark's file name.
    pub file_name: Vec<u8>,
    /// The mark's content: empty, or the hidden name if it did not fit.
    pub content: Vec<u8>,
}

/// The whiteout that hides `name`.
pub fn whiteout_of(name: &[u8]) -> Whiteout {
    if PREFIX.len() + name.len() <= NAME_MAX {
        return Whiteout { file_name: [PREFIX, name].concat(), content: Vec::new() };
    }
    let mut file_name = LONG_PREFIX.to_vec();
    for byte in Sha256::digest(name).iter() {
        file_name.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    Whiteout { file_name, content: name.to_vec() }
}

/// Names of the xattrs that make a directory opaque if their value is `y`.
const OPAQUE_XATTRS: [&[u8]; 3] =
    [b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque"];

/// Whether an xattr makes the directory opaque (the marks by name are found by listing it).
pub fn has_opaque_xattr(dir: BorrowedFd<'_>) -> sys::Result<bool> {
    let list = match sys::list_xattrs(dir) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    for name in list.split(|b| *b == 0).filter(|name| OPAQUE_XATTRS.contains(name)) {
        match sys::get_xattr(dir, name) {
            Ok(value) if value == b"y" => return Ok(true),
            Ok(_) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_meaning() {
        let table: &[(&[u8], Meaning<'_>)] = &[
            (b"a", Meaning::Name),
            (b".whale", Meaning::Name),
            (b".wh.a", Meaning::Whiteout(b"a")),
            (b".wh..a", Meaning::Whiteout(b".a")),
            (b".wh..opq", Meaning::Whiteout(b".opq")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk", Meaning::Reserved),
            (b".wh..wh.long.00", Meaning::LongWhiteout),
            (b".wh.", Meaning::Reserved),
            (b".wh..", Meaning::Reserved),
            (b".wh...", Meaning::Reserved),
            (b".wh.\xff", Meaning::Whiteout(b"\xff")),
            (b".wh..wh.name.a", Meaning::Name),
            (b".wh..wh..wh.name.a", Meaning::Whiteout(b".wh..wh.name.a")),
        ];
        for (name, expected) in table {
            assert_eq!(meaning(name), *expected, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn no_name_of_a_user_is_a_mark() {
        for name in [&b".wh.a"[..], b".wh.", b".wh..wh..opq", b".wh..wh.name.a", b".wh..opq"] {
            let held = escape(name);
            assert_eq!(meaning(&held), Meaning::Name, "{}", name.escape_ascii());
            assert_eq!(unescape(&held), name);
            let mark = whiteout_of(&held).file_name;
            assert_eq!(meaning(&mark), Meaning::Whiteout(&held), "{}", name.escape_ascii());
        }
        assert_eq!((&escape(b"a")[..], &unescape(b"a")[..]), (&b"a"[..], &b"a"[..]));
    }

    #[test]
    fn every_name_has_a_whiteout_that_fits() {
        for len in [1, 250, 251, 252, 255] {
            let name = vec![b'n'; len];
            let mark = whiteout_of(&name);
            assert!(mark.file_name.len() <= NAME_MAX, "{len}");
            match meaning(&mark.file_name) {
                Meaning::Whiteout(hidden) => assert_eq!((hidden, len <= 251), (&name[..], true)),
                Meaning::LongWhiteout => assert_eq!((mark.content, len > 251), (name, true)),
                other => panic!("{len}: {other:?}"),
            }
        }
    }
}
