//! Access control lists as xattrs hold them (acl(5), linux/posix_acl_xattr.h):
//!
//! ```text
//! u32 version (2), then for each entry: u16 tag | u16 permissions | u32 id, little-endian
//! ```

/// What the names of ACLs begin with.
pub const PREFIX: &[u8] = b"system.posix_acl_";
/// The xattr of the list that is given to what is made in a directory.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The xattr of the list that says who may use a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Tags: of entries that name a user or a group, and of those that the file's mode holds.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of an entry that names nobody.
const NO_ID: u32 = u32::MAX;

/// The list with each id translated; entries of ids that have no translation are left out.
///
/// What is not of the form above is left as it is, for the filesystem to refuse.
pub fn translate(
    acl: &[u8],
    uid: impl Fn(u32) -> Option<u32>,
    gid: impl Fn(u32) -> Option<u32>,
) -> Vec<u8> {
    let (header, entries) = acl.split_at(HEADER.min(acl.len()));
    let mut translated = header.to_vec();
    let chunks = entries.chunks_exact(ENTRY);
    let rest = chunks.remainder();
    for entry in chunks {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let id = match tag {
            USER => uid(id),
            GROUP => gid(id),
            _ => Some(id),
        };
        if let Some(id) = id {
            translated.extend_from_slice(&entry[..4]);
            translated.extend_from_slice(&id.to_le_bytes());
        }
    }
    translated.extend_from_slice(rest);
    translated
}

/// The access list of a file that was given this one, and then a mode; `None` if that is all the
/// mode says.
pub fn with_mode(acl: &[u8], mode: u32) -> Option<Vec<u8>> {
    let (header, entries) = acl.split_at(HEADER.min(acl.len()));
    let tags = || entries.chunks_exact(ENTRY).map(|entry| u16::from_le_bytes([entry[0], entry[1]]));
    if tags().all(|tag| [USER_OBJ, GROUP_OBJ, OTHER].contains(&tag)) {
        return None;
    }
    // Where there is a mask, it is what the mode tells of the group.
    let group = if tags().any(|tag| tag == MASK) { MASK } else { GROUP_OBJ };
    let mut list = header.to_vec();
    for (tag, entry) in tags().zip(entries.chunks_exact(ENTRY)) {
        let bits = match tag {
            USER_OBJ => Some(mode >> 6),
            OTHER => Some(mode),
            tag if tag == group => Some(mode >> 3),
            _ => None,
        };
        list.extend_from_slice(&entry[..2]);
        match bits {
            Some(bits) => list.extend_from_slice(&(bits as u16 & 7).to_le_bytes()),
            None => list.extend_from_slice(&entry[2..4]),
        }
        match tag {
            USER | GROUP => list.extend_from_slice(&entry[4..]),
            _ => list.extend_from_slice(&NO_ID.to_le_bytes()),
        }
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, id: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &6u16.to_le_bytes(), &id.to_le_bytes()].concat()
    }

    #[test]
    fn only_ids_of_users_and_groups_change() {
        let list = |user, group| {
            let parts = [entry(1, u32::MAX), entry(USER, user), entry(GROUP, group), entry(16, 9)];
            [&2u32.to_le_bytes()[..], &parts.concat()].concat()
        };
        let shifted = translate(&list(5, 6), |uid| Some(uid + 100), |gid| Some(gid + 200));
        assert_eq!(shifted, list(105, 206));
        let without =
            [&2u32.to_le_bytes()[..], &entry(1, u32::MAX), &entry(GROUP, 6), &entry(16, 9)];
        assert_eq!(translate(&list(5, 6), |_| None, Some), without.concat());
        assert_eq!(translate(b"xy", Some, Some), b"xy");
    }

    #[test]
    fn a_mode_changes_what_it_holds() {
        let list = |entries: &[(u16, u16, u32)]| {
            let entry = |(tag, bits, id): &(u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
        };
        let long = |owner, mask, other| {
            let named = [(USER_OBJ, owner, NO_ID), (USER, 4, 7), (GROUP_OBJ, 4, NO_ID)];
            list(&[&named[..], &[(MASK, mask, NO_ID), (OTHER, other, NO_ID)]].concat())
        };
        assert_eq!(with_mode(&long(6, 4, 4), 0o4751), Some(long(7, 5, 1)));
        assert_eq!(with_mode(&long(7, 5, 1), 0o751), Some(long(7, 5, 1)));
        let minimal = list(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)]);
        assert_eq!(with_mode(&minimal, 0o777), None);
        assert_eq!(with_mode(&list(&[]), 0o777), None);
        assert_eq!(with_mode(b"xy", 0o777), None);
    }
}
