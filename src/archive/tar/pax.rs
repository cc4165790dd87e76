//! Extended headers (POSIX.1-2001 pax): records `LEN KEY=VALUE\n`, LEN being the whole record's
//! length in decimal. Values are bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sparse::PaxSparse;
use super::{Error, Result};
use crate::sys::Timestamp;

/// Names and values. Those of a global header are shared by all entries after it.
pub type Xattrs = Arc<BTreeMap<Vec<u8>, Vec<u8>>>;

const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// What extended headers said of the next entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: Option<PaxSparse>,
}

impl Pax {
    /// Adds what the data of an extended header says.
    pub(super) fn apply(&mut self, data: &[u8]) -> Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let (record, after) =
                split_record(rest).ok_or_else(|| Error::entry(b"", "malformed pax record"))?;
            rest = after;
            let equals = record.iter().position(|b| *b == b'=');
            let equals = equals.ok_or_else(|| Error::entry(b"", "pax record without ="))?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let bad = || Error::entry(key, "bad pax value");
        let text = || std::str::from_utf8(value).map_err(|_| bad());
        match key {
            // An empty value takes back what a global header said (pax, "Extended Header").
            b"path" if value.is_empty() => self.path = None,
            b"linkpath" if value.is_empty() => self.link = None,
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" if value.is_empty() => self.size = None,
            b"uid" if value.is_empty() => self.uid = None,
            b"gid" if value.is_empty() => self.gid = None,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"size" => self.size = Some(text()?.parse().map_err(|_| bad())?),
            b"uid" => self.uid = Some(text()?.parse().map_err(|_| bad())?),
            b"gid" => self.gid = Some(text()?.parse().map_err(|_| bad())?),
            b"mtime" => self.mtime = Some(parse_time(text()?).ok_or_else(bad)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    let sparse = self.sparse.get_or_insert_default();
                    sparse.set(key, value).ok_or_else(bad)?;
                } else if let Some(name) = key.strip_prefix(XATTR_KEY) {
                    // The last of two values counts.
                    Arc::make_mut(&mut self.xattrs).insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Bytes of all xattrs with their names.
    pub(super) fn xattr_bytes(&self) -> u64 {
        self.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
    }
}

/// Splits the first record off: its `KEY=VALUE`, and what follows it.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    /// More digits than any record's length has.
    const MAX_DIGITS: usize = 20;
    let space = data.iter().take(MAX_DIGITS).position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..len)?;
    Some((record.strip_suffix(b"\n")?, &data[len..]))
}

/// Seconds with an optional fraction, negative before 1970.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let secs: i64 = whole.parse().ok().filter(|secs| *secs >= 0)?;
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = fraction.parse().ok()?;
    Some(match (negative, nanos) {
        (false, nanos) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos: 0 },
        (true, nanos) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}
