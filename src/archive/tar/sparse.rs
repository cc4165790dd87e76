//! Sparse files, as GNU tar writes them ("Storing Sparse Files" in its manual): only what is no
//! hole is in the archive, and a map tells where it belongs.
//!
//! ```text
//! old GNU   type S; four extents in the header, more in blocks that follow it
//! pax 0.0   GNU.sparse.offset and GNU.sparse.numbytes, again and again
//! pax 0.1   GNU.sparse.map=OFFSET,LEN,OFFSET,LEN...
//! pax 1.0   GNU.sparse.major=1; the data begins with COUNT\nOFFSET\nLEN\n..., padded to a block
//! ```

use std::io::Read;

use super::header::{Header, number};
use super::{BLOCK, Error, Result};

/// Extents of one file, at most.
const MAX_EXTENTS: usize = 1 << 20;
/// Longest line of a 1.0 map: the digits of a u64.
const MAX_LINE: usize = 20;

/// A sparse file: its size, and what is no hole, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Bytes of the whole file.
    pub size: u64,
    /// Offset and length of each piece of data.
    pub extents: Vec<(u64, u64)>,
}

/// What pax records say of a sparse file.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    is_version_1: bool,
    size: Option<u64>,
    /// Offsets and lengths, alternating.
    numbers: Vec<u64>,
}

impl PaxSparse {
    /// Takes a record `GNU.sparse.KEY`; `None` if its value makes no sense.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.is_version_1 = number()? == 1,
            b"offset" | b"numbytes" => self.numbers.push(number()?),
            b"map" => {
                for part in value.split(|b| *b == b',').filter(|part| !part.is_empty()) {
                    self.numbers.push(std::str::from_utf8(part).ok()?.parse().ok()?);
                }
            }
            _ => {} // minor, numblocks: nothing that the map does not tell
        }
        (self.numbers.len() <= 2 * MAX_EXTENTS).then_some(())
    }

    /// Whether the map stands before the data.
    pub(super) fn has_map_in_data(&self) -> bool {
        self.is_version_1
    }

    /// The file, once the map is known.
    pub(super) fn finish(mut self, path: &[u8], in_data: Option<Vec<u64>>) -> Result<Sparse> {
        if let Some(numbers) = in_data {
            self.numbers = numbers;
        }
        let bad = || Error::entry(path, "bad sparse map");
        let size = self.size.ok_or_else(bad)?;
        if !self.numbers.len().is_multiple_of(2) {
            return Err(bad());
        }
        let extents = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Sparse { size, extents }.checked(path)
    }
}

impl Sparse {
    /// Bytes of data in the archive.
    pub fn stored(&self) -> u64 {
        self.extents.iter().map(|(_, len)| len).sum()
    }

    /// Extents follow one another within the file.
    fn checked(self, path: &[u8]) -> Result<Self> {
        let mut end = 0;
        for (offset, len) in &self.extents {
            let next = offset.checked_add(*len).filter(|_| *offset >= end);
            end = next.filter(|next| *next <= self.size).ok_or_else(|| {
                Error::entry(path, "the extents of a sparse file overlap or leave it")
            })?;
        }
        Ok(self)
    }

    /// Reads an old GNU header's map; `next_block` reads the blocks that go on with it.
    pub(super) fn of_gnu(
        header: &Header,
        path: &[u8],
        mut next_block: impl FnMut() -> Result<[u8; BLOCK]>,
    ) -> Result<Self> {
        let bad = || Error::entry(path, "bad sparse map");
        let size = header.size(483..495).ok_or_else(bad)?;
        let mut extents = Vec::new();
        take_extents(&header.0[386..482], &mut extents).ok_or_else(bad)?;
        let mut goes_on = header.0[482] != 0;
        while goes_on {
            let block = next_block()?;
            take_extents(&block[..504], &mut extents).ok_or_else(bad)?;
            goes_on = block[504] != 0;
            if extents.len() > MAX_EXTENTS {
                return Err(bad());
            }
        }
        Self { size, extents }.checked(path)
    }
}

/// Pairs of 12-byte numbers, up to the first empty one.
fn take_extents(field: &[u8], extents: &mut Vec<(u64, u64)>) -> Option<()> {
    for pair in field.chunks_exact(24).take_while(|pair| pair[0] != 0) {
        let value = |field| number(field).and_then(|n| u64::try_from(n).ok());
        extents.push((value(&pair[..12])?, value(&pair[12..])?));
    }
    Some(())
}

/// Reads a 1.0 map out of the data, whole blocks of it.
pub(super) fn read_map(data: &mut impl Read, path: &[u8]) -> Result<Vec<u64>> {
    let bad = || Error::entry(path, "bad sparse map");
    let (mut numbers, mut line) = (Vec::new(), Vec::new());
    let mut wanted = None;
    let mut block = [0; BLOCK];
    loop {
        data.read_exact(&mut block).map_err(|e| Error::io("read", path.escape_ascii(), e))?;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > MAX_LINE {
                    return Err(bad());
                }
                continue;
            }
            let text = std::str::from_utf8(&line).ok();
            let number: u64 = text.and_then(|text| text.parse().ok()).ok_or_else(bad)?;
            line.clear();
            match wanted {
                None if number > MAX_EXTENTS as u64 => return Err(bad()),
                None => wanted = Some(number as usize * 2),
                Some(_) => numbers.push(number),
            }
            if wanted == Some(numbers.len()) {
                return Ok(numbers);
            }
        }
    }
}
