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

/// The limits of one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See [`MAX_BYTES`].
    pub bytes: u64,
    /// See [`MAX_ENTRIES`].
    pub entries: u64,
    /// See [`MAX_DEPTH`].
    pub depth: u64,
    /// See [`MAX_PATH`].
    pub path: u64,
    /// See [`MAX_XATTR`].
    pub xattr: u64,
    /// See [`MAX_RATIO`].
    pub ratio: u64,
    /// See [`MAX_DOCUMENT`].
    pub document: u64,
    /// See [`MAX_LAYERS`].
    pub layers: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: MAX_BYTES,
            entries: MAX_ENTRIES,
            depth: MAX_DEPTH,
            path: MAX_PATH,
            xattr: MAX_XATTR,
            ratio: MAX_RATIO,
            document: MAX_DOCUMENT,
            layers: MAX_LAYERS,
        }
    }
}

/// One limit with its new value, as the command line gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    name: Name,
    value: u64,
}

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
}

impl Name {
    const ALL: [(&'static str, Self); 8] = [
        ("bytes", Self::Bytes),
        ("entries", Self::Entries),
        ("depth", Self::Depth),
        ("path", Self::Path),
        ("xattr", Self::Xattr),
        ("ratio", Self::Ratio),
        ("document", Self::Document),
        ("layers", Self::Layers),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }
}

impl FromStr for Limit {
    type Err = String;

    /// Reads `NAME=VALUE`; a value may end in K, M, G or T (powers of 1024).
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = || Name::ALL.map(|(name, _)| name).join(", ");
        let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
        let known = Name::ALL.iter().find(|(known, _)| *known == name);
        let (_, name) = known.ok_or_else(|| format!("no limit {name:?}: there are {}", names()))?;
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
        let all = u64::MAX;
        Self {
            bytes: all,
            entries: all,
            depth: all,
            path: all,
            xattr: all,
            ratio: all,
            document: all,
            layers: all,
        }
    }

    /// Puts a value in the place of the built-in one.
    pub fn set(&mut self, limit: Limit) {
        *self.field(limit.name) = limit.value;
    }

    fn field(&mut self, name: Name) -> &mut u64 {
        match name {
            Name::Bytes => &mut self.bytes,
            Name::Entries => &mut self.entries,
            Name::Depth => &mut self.depth,
            Name::Path => &mut self.path,
            Name::Xattr => &mut self.xattr,
            Name::Ratio => &mut self.ratio,
            Name::Document => &mut self.document,
            Name::Layers => &mut self.layers,
        }
    }

    /// Fails if `found` is over the limit.
    pub(super) fn check(mut self, name: Name, found: u64) -> Result<()> {
        let limit = *self.field(name);
        match found <= limit {
            true => Ok(()),
            false => Err(Error::Limit { what: None, name: name.text(), limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
