//! One header block: ustar, GNU and v7.

use super::{BLOCK, Kind};

/// A header block whose checksum fits.
#[derive(Clone)]
pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    /// The type flag.
    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// A numeric field.
    pub(super) fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        number(&self.0[range])
    }

    /// A numeric field that is a count of bytes.
    pub(super) fn size(&self, range: std::ops::Range<usize>) -> Option<u64> {
        self.number(range).and_then(|n| u64::try_from(n).ok())
    }

    /// The link's target.
    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    /// The name; ustar's has a prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // GNU's magic is "ustar  ": there the prefix field has other uses.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    /// What the entry is, or its unknown type.
    pub(super) fn kind(&self, path: &[u8]) -> Result<Kind, u8> {
        Ok(match self.flag() {
            // v7 has no type for directories.
            0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(other),
        })
    }
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits, or two's complement with the top bit set (GNU, base 256).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let bits = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(bits);
        }
        return i64::try_from(value).ok();
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// Whether a stream that begins with this block is a tar: a header, or the end of an empty one.
pub fn begins_tar(block: &[u8; BLOCK]) -> bool {
    crate::sys::is_zero(block) || checksum_fits(block)
}

/// Sums the block with the checksum field taken as spaces; old tars summed signed bytes.
pub(super) fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let spaces = 8 * i64::from(b' ');
    let sum = |bytes: &[u8]| bytes.iter().map(|b| i64::from(*b)).sum::<i64>();
    let unsigned = sum(&block[..148]) + sum(&block[156..]) + spaces;
    number(&block[148..156]).is_some_and(|told| {
        let signed = |bytes: &[u8]| bytes.iter().map(|b| i64::from(b.cast_signed())).sum::<i64>();
        told == unsigned || told == signed(&block[..148]) + signed(&block[156..]) + spaces
    })
}
