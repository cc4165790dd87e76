//! Access control lists as xattrs hold them (acl(5), linux/posix_acl_xattr.h):
//!
//! ```text
//! u32 version (2), then for each entry: u16 tag | u16 permissions | u32 id, little-endian
//! ```

/// What the names of ACLs begin with.
pub const PREFIX: &[u8] = b"system.posix_acl_";

const HEADER: usize = 4;
const ENTRY: usize = 8;
/// Tags of entries that name a user or a group.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

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
}
