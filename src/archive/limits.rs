//! What a load takes, at most: an image is untrusted, and must not fill disk or memory unasked.
//!
//! Each limit is far above what images in use need, fails closed with its name, and can be
//! raised: `plyfs load --limit NAME=VALUE`.

use std::str::FromStr;

use super::{Error, Result};

/// Uncompressed bytes of all layers of one archive.
pub const MAX_BYTES: u64 = 256 << 30;
/// Entries of one layer, and their xattrs.
pub const MAX_ENTRIES: u64 = 4_000_000;
/// Components of one path.
pub const MAX_DEPTH: u64 = 512;
/// Bytes of one path or link target.
pub const MAX_PATH: u64 = 64 << 10;
/// Bytes of all xattrs of one entry, names included. (Linux takes 64 KiB a value, xattr(7).)
pub const MAX_XATTR: u64 = 1 << 20;
/// Uncompressed bytes for one compressed byte, after the first [`RATIO_FREE`] bytes.
pub const MAX_RATIO: u64 = 250;
/// Bytes of one manifest, index or config; of all together four times as many.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// Layers of one image (the kernel's overlayfs takes 500, docker 127).
pub const MAX_LAYERS: u64 = 500;
/// Uncompressed bytes that no ratio is asked of: a small layer is no bomb, however it is packed.
pub const RATIO_FREE: u64 = 64 << 20;

/// Images of one archive.
pub const MAX_IMAGES: u64 = 1000;
/// Names of all images of one archive.
pub const MAX_NAMES: u64 = 10_000;
/// Look-ups in single layers for what a stack's layers take from those below: each hard link into a
/// layer below and each directory that no tar lists is looked up in every layer. 32 levels of
/// directories count as one more, and each listed path, which is held in memory, as two.
pub const MAX_LOOKUPS: u64 = 1_000_000;

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Bytes,
    Entries,
    Depth,
    Path,
    Xattr,
    Ratio,
    Document,
    Layers,
    Images,
    Names,
    Lookups,
}

/// All limits, in the enum's order: their names on the command line and their built-in values.
const ALL: [(Name, &str, u64); 11] = [
    (Name::Bytes, "bytes", MAX_BYTES),
    (Name::Entries, "entries", MAX_ENTRIES),
    (Name::Depth, "depth", MAX_DEPTH),
    (Name::Path, "path", MAX_PATH),
    (Name::Xattr, "xattr", MAX_XATTR),
    (Name::Ratio, "ratio", MAX_RATIO),
    (Name::Document, "document", MAX_DOCUMENT),
    (Name::Layers, "layers", MAX_LAYERS),
    (Name::Images, "images", MAX_IMAGES),
    (Name::Names, "names", MAX_NAMES),
    (Name::Lookups, "lookups", MAX_LOOKUPS),
];

/// The limits of one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits([u64; ALL.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(ALL.map(|(.., value)| value))
    }
}

/// One limit with its new value, as the command line gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    name: Name,
    value: u64,
}

impl FromStr for Limit {
    type Err = String;

    /// Reads `NAME=VALUE`; a value may end in K, M, G or T (powers of 1024).
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = || ALL.map(|(_, name, _)| name).join(", ");
        let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
        let known = ALL.iter().find(|(_, known, _)| *known == name);
        let (name, ..) =
            known.ok_or_else(|| format!("no limit {name:?}: there are {}", names()))?;
        let (digits, shift) = match value.as_bytes().last() {
            Some(b'K') => (&value[..value.len() - 1], 10),
            Some(b'M') => (&value[..value.len() - 1], 20),
            Some(b'G') => (&value[..value.len() - 1], 30),
            Some(b'T') => (&value[..value.len() - 1], 40),
            _ => (value, 0),
        };
        let number: Option<u64> = digits.parse().ok();
        let value = number.and_then(|number| number.checked_mul(1 << shift));
        Ok(Self { name: *name, value: value.ok_or_else(|| format!("{value:?} is no number"))? })
    }
}

impl Limits {
    /// No limits, for what is known already.
    pub(super) fn none() -> Self {
        Self([u64::MAX; ALL.len()])
    }

    /// Puts a value in the place of the built-in one.
    pub fn set(&mut self, limit: Limit) {
        self.0[limit.name as usize] = limit.value;
    }

    /// These, with another value of one.
    pub(super) fn with(mut self, name: Name, value: u64) -> Self {
        self.0[name as usize] = value;
        self
    }

    /// The value of a limit.
    pub(super) fn of(&self, name: Name) -> u64 {
        self.0[name as usize]
    }

    /// Fails if `found` is over the limit.
    pub(super) fn check(&self, name: Name, found: u64) -> Result<()> {
        match found <= self.of(name) {
            true => Ok(()),
            false => Err(self.exceeded(name)),
        }
    }

    /// The error of a limit that was hit.
    pub(super) fn exceeded(&self, name: Name) -> Error {
        Error::Limit { what: None, name: ALL[name as usize].1, limit: self.of(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        for (at, (name, ..)) in ALL.iter().enumerate() {
            assert_eq!(*name as usize, at);
        }
    }

    #[test]
    fn limits_are_read_and_checked() {
        let mut limits = Limits::default();
        for (text, value) in [("bytes=5", 5), ("depth=2K", 2048), ("entries=1T", 1 << 40)] {
            let limit: Limit = text.parse().unwrap();
            limits.set(limit);
            assert_eq!(limit.value, value, "{text}");
        }
        assert!(limits.check(Name::Bytes, 5).is_ok());
        let error = limits.check(Name::Bytes, 6).unwrap_err().to_string();
        assert!(error.contains("bytes") && error.contains('5'), "{error}");
        for text in ["", "bytes", "bytes=", "bytes=x", "byte=1", "bytes=99999999T", "bytes=-1"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
