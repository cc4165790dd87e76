//! A reader of tar streams: ustar, pax (POSIX.1-2001), GNU and v7.
//!
//! Our own, because layers need what a general reader loses: names and xattr values are
//! bytes (a pax value may hold a newline), times have nanoseconds, and the size that frames
//! the data is decided in one place, so that the stream cannot be read out of step.
//!
//! Sparse entries are refused.

use std::io::{self, Read};

use super::compression::read_full;
use super::{Error, Result};
use crate::sys::Timestamp;

/// Everything in a tar comes in blocks of this many bytes.
pub const BLOCK: usize = 512;
/// Largest pax header, GNU long name or long link in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Largest size of an entry's data: what a file can have (off_t), less a block for padding.
const MAX_SIZE: u64 = i64::MAX as u64 - BLOCK as u64;
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with data.
    File,
    /// Another name of an entry.
    HardLink,
    /// A symlink.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
}

/// One entry's header, with all that extended headers said.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name as written, a path.
    pub path: Vec<u8>,
    /// Target of a symlink or hard link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Time of last change.
    pub mtime: Timestamp,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a tar stream entry by entry; between two entries it is a reader of the data.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Data of the current entry that was not read yet.
    remaining: u64,
    /// Bytes of padding after it.
    padding: u64,
    /// Bytes read so far.
    position: u64,
    global: Pax,
}

/// What extended headers said of the next entry.
#[derive(Clone, Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl<R: Read> Reader<R> {
    /// Reads a stream from its beginning.
    pub fn new(inner: R) -> Self {
        Self { inner, remaining: 0, padding: 0, position: 0, global: Pax::default() }
    }

    /// Where in the stream the data of the current entry goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax = self.global.clone();
        let mut extended = false;
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return match extended {
                    true => Err(Error::Truncated("the entry that an extended header is of")),
                    false => Ok(None),
                };
            };
            let size = number(&header[124..136]).and_then(|n| u64::try_from(n).ok());
            let size = size.filter(|size| *size <= MAX_SIZE);
            let size = size.ok_or_else(|| Error::entry(&header_path(&header), "bad size"))?;
            match header[156] {
                b'x' => self.read_extension(size)?.apply_pax(&mut pax)?,
                b'g' => {
                    let mut global = std::mem::take(&mut self.global);
                    self.read_extension(size)?.apply_pax(&mut global)?;
                    pax = global.clone();
                    self.global = global;
                    continue;
                }
                b'L' => pax.path = Some(self.read_extension(size)?.until_nul()),
                b'K' => pax.link = Some(self.read_extension(size)?.until_nul()),
                _ => {
                    let entry = entry(&header, size, pax)?;
                    self.start_data(entry.size);
                    return Ok(Some(entry));
                }
            }
            extended = true;
        }
    }

    fn start_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_data(&mut self) -> Result<()> {
        let rest = self.remaining + self.padding;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())
            .map_err(|e| Error::io("read", "the archive", e))?;
        self.position += skipped;
        // The last entry's padding may be cut off; its data may not.
        if skipped < self.remaining {
            return Err(Error::Truncated("an entry's data"));
        }
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block, or `None` at the end: a block of zeros, or no more bytes.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let len = read_full(&mut self.inner, &mut block)
            .map_err(|e| Error::io("read", "the archive", e))?;
        self.position += len as u64;
        match len {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(Error::Truncated("an entry's header")),
        }
        if crate::sys::is_zero(&block) {
            return Ok(None);
        }
        if !checksum_fits(&block) {
            return Err(Error::entry(&header_path(&block), "bad checksum"));
        }
        Ok(Some(block))
    }

    fn read_extension(&mut self, size: u64) -> Result<Extension> {
        if size > MAX_EXTENSION {
            return Err(Error::Unsupported(format!(
                "an extended tar header of {size} bytes is over the limit of {MAX_EXTENSION}"
            )));
        }
        self.start_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(|e| Error::io("read", "the archive", e))?;
        if (data.len() as u64) < size {
            return Err(Error::Truncated("an extended header"));
        }
        Ok(Extension(data))
    }
}

/// Reads the data of the current entry; fails if the stream ends before it.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let len = self.inner.read(&mut buffer[..want])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= len as u64;
        self.position += len as u64;
        Ok(len)
    }
}

/// The data of an extended header.
struct Extension(Vec<u8>);

impl Extension {
    fn until_nul(self) -> Vec<u8> {
        until_nul(&self.0).to_vec()
    }

    /// Reads records `LEN KEY=VALUE\n`, LEN being the whole record's length in decimal.
    fn apply_pax(&self, pax: &mut Pax) -> Result<()> {
        let mut rest = &self.0[..];
        while !rest.is_empty() {
            let (record, after) =
                split_record(rest).ok_or_else(|| Error::entry(b"", "malformed pax record"))?;
            rest = after;
            let equals = record.iter().position(|b| *b == b'=');
            let equals = equals.ok_or_else(|| Error::entry(b"", "pax record without ="))?;
            pax.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }
}

/// Splits the first record off: its `KEY=VALUE`, and what follows it.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..len)?;
    Some((record.strip_suffix(b"\n")?, &data[len..]))
}

impl Pax {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let bad = || Error::entry(key, "bad pax value");
        let text = || std::str::from_utf8(value).map_err(|_| bad());
        match key {
            // An empty value takes back what a global header said (pax, "Extended Header").
            b"path" if value.is_empty() => self.path = None,
            b"linkpath" if value.is_empty() => self.link = None,
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(text()?.parse().map_err(|_| bad())?),
            b"uid" => self.uid = Some(text()?.parse().map_err(|_| bad())?),
            b"gid" => self.gid = Some(text()?.parse().map_err(|_| bad())?),
            b"mtime" => self.mtime = Some(parse_time(text()?).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_KEY) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Seconds with an optional fraction, negative before 1970.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let secs: i64 = whole.parse().ok()?;
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = fraction.parse().ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos: 0 },
        (true, nanos) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

fn entry(header: &[u8; BLOCK], size: u64, pax: Pax) -> Result<Entry> {
    let path = pax.path.unwrap_or_else(|| header_path(header));
    let bad = |what: &str| Error::entry(&path, format!("bad {what}"));
    let field =
        |range: std::ops::Range<usize>, what: &str| number(&header[range]).ok_or_else(|| bad(what));
    let id = |range, what: &str| u32::try_from(field(range, what)?).map_err(|_| bad(what));
    let kind = match header[156] {
        b'0' | 0 | b'7' if path.ends_with(b"/") && header[156] != b'0' => Kind::Directory,
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(sparse(&path)),
        other => {
            let reason = format!("unknown type {}", (other as char).escape_default());
            return Err(Error::entry(&path, reason));
        }
    };
    if pax.sparse {
        return Err(sparse(&path));
    }
    let mtime = match pax.mtime {
        Some(time) => time,
        None => Timestamp { secs: field(136..148, "time")?, nanos: 0 },
    };
    let data_size = pax.size.unwrap_or(size);
    if data_size > MAX_SIZE {
        return Err(bad("size"));
    }
    let device = match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            (id(329..337, "device number")?, id(337..345, "device number")?)
        }
        _ => (0, 0),
    };
    Ok(Entry {
        kind,
        mode: field(100..108, "mode")? as u32 & 0o7777,
        uid: pax.uid.map_or_else(|| id(108..116, "uid"), Ok)?,
        gid: pax.gid.map_or_else(|| id(116..124, "gid"), Ok)?,
        // Only files have data: other entries' sizes are noise, as GNU tar and Go's take them.
        size: if kind == Kind::File { data_size } else { 0 },
        mtime,
        device,
        link: pax.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
        xattrs: pax.xattrs,
        path,
    })
}

fn sparse(path: &[u8]) -> Error {
    Error::Unsupported(format!("sparse tar entry {}: not supported", path.escape_ascii()))
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// The name of a header block; ustar's has a prefix.
fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    // GNU's magic is "ustar  ": there the prefix field has other uses.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        return [prefix, b"/", name].concat();
    }
    name.to_vec()
}

/// A numeric field: octal digits, or two's complement with the top bit set (GNU, base 256).
fn number(field: &[u8]) -> Option<i64> {
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
fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let in_field = |at: usize| (148..156).contains(&at);
    let byte = |(at, byte): (usize, &u8)| if in_field(at) { b' ' } else { *byte };
    let unsigned: i64 = block.iter().enumerate().map(byte).map(i64::from).sum();
    let signed: i64 = block.iter().enumerate().map(byte).map(|b| i64::from(b.cast_signed())).sum();
    number(&block[148..156]).is_some_and(|sum| sum == unsigned || sum == signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    fn append(tar: &mut Vec<u8>, kind: u8, name: &str, data: &[u8], mtime: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(0);
        header.as_mut_bytes()[136..136 + mtime.len()].copy_from_slice(mtime);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }

    #[test]
    fn pax_values_are_bytes() {
        let mut pax = pax_record(b"SCHILY.xattr.security.capability", b"\x01\n=\x00\xff");
        pax.extend(pax_record(b"path", b"caf\xe9"));
        pax.extend(pax_record(b"mtime", b"-1.25"));
        pax.extend(pax_record(b"uid", b"4000000000"));
        let mut tar = Vec::new();
        append(&mut tar, b'x', "pax", &pax, b"");
        append(&mut tar, b'0', "plain", b"data", b"");
        append(&mut tar, b'0', "next", b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
        let mut reader = Reader::new(&tar[..]);
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"caf\xe9");
        assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), b"\x01\n=\x00\xff".to_vec())]);
        assert_eq!(entry.mtime, Timestamp { secs: -2, nanos: 750_000_000 });
        assert_eq!((entry.uid, entry.gid), (4_000_000_000, 2));
        let mut data = String::new();
        reader.read_to_string(&mut data).unwrap();
        assert_eq!(data, "data");
        let next = reader.next_entry().unwrap().unwrap();
        assert_eq!(next.path, b"next");
        assert_eq!(next.mtime, Timestamp { secs: -2, nanos: 0 });
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn long_names_of_gnu_tar() {
        let name = "d/".repeat(150) + "f";
        let mut tar = Vec::new();
        append(&mut tar, b'L', "././@LongLink", format!("{name}\0").as_bytes(), b"");
        append(&mut tar, b'0', "short", b"", b"");
        let entry = Reader::new(&tar[..]).next_entry().unwrap().unwrap();
        assert_eq!(entry.path, name.as_bytes());
    }

    #[test]
    fn a_pax_size_frames_the_data() {
        let mut tar = Vec::new();
        append(&mut tar, b'x', "pax", &pax_record(b"size", b"4"), b"");
        append(&mut tar, b'0', "file", b"", b"");
        tar.extend_from_slice(b"data");
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        append(&mut tar, b'0', "after", b"", b"");
        let mut reader = Reader::new(&tar[..]);
        assert_eq!(reader.next_entry().unwrap().unwrap().size, 4);
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"after");
    }

    #[test]
    fn only_files_have_data() {
        let mut tar = Vec::new();
        append(&mut tar, b'0', "file", b"data", b"");
        append(&mut tar, b'1', "link", b"", b"");
        let at = tar.len() - BLOCK;
        tar[at + 124..at + 135].copy_from_slice(b"00000000005");
        let mut header = tar::Header::from_byte_slice(&tar[at..]).clone();
        header.set_cksum();
        tar[at..].copy_from_slice(header.as_bytes());
        append(&mut tar, b'0', "after", b"", b"");
        let mut reader = Reader::new(&tar[..]);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(entry.path);
        }
        assert_eq!(names, [&b"file"[..], b"link", b"after"]);
    }

    #[test]
    fn damage_is_noticed() {
        let mut tar = Vec::new();
        append(&mut tar, b'0', "file", &[7; 600], b"");
        for len in [100, 512 + 100, 512 + 599] {
            let mut reader = Reader::new(&tar[..len]);
            let result = reader.next_entry().and_then(|_| reader.next_entry());
            assert!(matches!(result, Err(Error::Truncated(_))), "{len}: {result:?}");
        }
        tar[3] ^= 1;
        let result = Reader::new(&tar[..]).next_entry();
        assert!(result.unwrap_err().to_string().contains("checksum"));
    }
}
