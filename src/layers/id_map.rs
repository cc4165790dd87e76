//! Which owners a mount shows for those that the layers hold (mount options `uidmapping`,
//! `gidmapping`, `squash_to_root`, `squash_to_uid`, `squash_to_gid`).
//!
//! A map is written `HELD:SHOWN:COUNT[:HELD:SHOWN:COUNT]...`, as fuse-overlayfs takes it and as
//! uid_map(5) has it: the ids from HELD on in a layer are those from SHOWN on in the mount. An id
//! that no range has is shown as [`UNMAPPED`], and cannot be given to a file.

use std::str::FromStr;

/// What an id is shown as that no range has: no user's and no group's. The kernel shows it as 65534
/// (user_namespaces(7), "Unmapped user and group IDs"), but who is 65534 owns nothing by that, and
/// nobody writes such a file.
pub const UNMAPPED: u32 = u32::MAX;

/// A map between the ids that layers hold and those that a mount shows; at first, the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// None: all ids are themselves.
    ranges: Vec<Range>,
    squash: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    held: u32,
    shown: u32,
    count: u32,
}

/// Why a text is no map.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not of the form.
    #[error("an id map is HELD:SHOWN:COUNT, or several of them, not {0:?}")]
    Form(String),
    /// A range goes beyond what an id can be.
    #[error("a range of {0:?} goes beyond 4294967294")]
    Range(String),
    /// An id has two meanings.
    #[error("ranges of {0:?} overlap")]
    Overlap(String),
}

impl Range {
    fn overlaps(&self, other: &Self) -> bool {
        let meets = |a: u32, b: u32| a < b + other.count && b < a + self.count;
        meets(self.held, other.held) || meets(self.shown, other.shown)
    }
}

/// The id of the other side, if the range from `start` on has `id`.
fn translate(id: u32, start: u32, count: u32, other: u32) -> Option<u32> {
    id.checked_sub(start).filter(|place| *place < count).map(|place| other + place)
}

impl IdMap {
    /// Shows `id` for every file, whatever the layers hold.
    pub fn squash_to(&mut self, id: u32) {
        self.squash = Some(id);
    }

    /// The one id that is shown for every file, if that was asked for.
    pub fn squashed(&self) -> Option<u32> {
        self.squash
    }

    /// Whether every id is shown as it is.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }

    /// What the mount shows for an id that a layer holds.
    pub fn shown(&self, held: u32) -> u32 {
        if let Some(id) = self.squash {
            return id;
        }
        let mut ranges = self.ranges.iter();
        match ranges.find_map(|range| translate(held, range.held, range.count, range.shown)) {
            Some(shown) => shown,
            None if self.ranges.is_empty() => held,
            None => UNMAPPED,
        }
    }

    /// What a layer holds for an id of the mount; `None` if nothing it holds would show so.
    pub fn held(&self, shown: u32) -> Option<u32> {
        let mut ranges = self.ranges.iter();
        match ranges.find_map(|range| translate(shown, range.shown, range.count, range.held)) {
            None if self.ranges.is_empty() => Some(shown),
            held => held,
        }
    }
}

impl FromStr for IdMap {
    type Err = ParseError;

    /// Reads `HELD:SHOWN:COUNT[:...]`; a colon in front is allowed (podman writes one).
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let form = || ParseError::Form(text.to_owned());
        let words: Vec<&str> = text.strip_prefix(':').unwrap_or(text).split(':').collect();
        let mut ranges: Vec<Range> = Vec::new();
        for range in words.chunks(3) {
            let [held, shown, count] = range else { return Err(form()) };
            let number = |word: &str| word.parse::<u32>().map_err(|_| form());
            let range = Range { held: number(held)?, shown: number(shown)?, count: number(count)? };
            let ends = [range.held, range.shown].map(|start| start.checked_add(range.count));
            if ends.contains(&None) {
                return Err(ParseError::Range(text.to_owned()));
            }
            if range.count == 0 {
                return Err(form());
            }
            if ranges.iter().any(|other| range.overlaps(other)) {
                return Err(ParseError::Overlap(text.to_owned()));
            }
            ranges.push(range);
        }
        Ok(Self { ranges, squash: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_podman_writes_them() {
        let map = IdMap::from_str(":0:1:1002:1002:0:1:1003:1003:64534").unwrap();
        let table = [(0, 1), (1001, 1002), (1002, 0), (1003, 1003), (65536, 65536)];
        for (held, shown) in table {
            assert_eq!((map.shown(held), map.held(shown)), (shown, Some(held)));
        }
        assert_eq!(map.shown(65537), UNMAPPED);
        assert_eq!(map.held(65537), None);
        assert!(!map.is_identity());
    }

    #[test]
    fn without_ranges_ids_are_themselves() {
        let mut map = IdMap::default();
        assert_eq!((map.shown(u32::MAX - 1), map.held(7)), (u32::MAX - 1, Some(7)));
        map.squash_to(500);
        assert_eq!((map.shown(0), map.shown(7), map.held(7)), (500, 500, Some(7)));
    }

    #[test]
    fn mistakes() {
        for text in ["", ":", "0:1", "0:1:2:3", "a:1:1", "0:1:-1", "0:1:0", "::0:1:1"] {
            assert_eq!(IdMap::from_str(text), Err(ParseError::Form(text.to_owned())), "{text}");
        }
        let beyond = IdMap::from_str("0:4294967290:10");
        assert_eq!(beyond, Err(ParseError::Range("0:4294967290:10".to_owned())));
        for text in ["0:10:5:3:100:1", "0:10:5:100:14:2"] {
            assert_eq!(IdMap::from_str(text), Err(ParseError::Overlap(text.to_owned())), "{text}");
        }
    }
}
