//! Layers out of arbitrary bytes: few names, so that entries meet, and every kind of entry.

use arbitrary::{Result, Unstructured};

use crate::tar::{self, Entry};

/// Entries of one layer, at most.
const MAX_ENTRIES: usize = 24;
/// Components of paths, those that meet often first.
const NAMES: [&[u8]; 8] = [b"a", b"b", b"a", b"b", b"c", b"a", b"d", b".wh.a"];
/// Components that are rarer, and some that no layer may have.
const ODD_NAMES: [&[u8]; 9] = [
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh.b",
    b".wh.",
    b".",
    b"",
    b"..",
    b"caf\xe9",
    &[b'n'; 255],
];
const KINDS: &[u8; 16] = b"0000555511223467";
const XATTRS: [&[u8]; 11] = [
    b"",
    b"system.posix_acl_access",
    b"security.capability",
    b"user.a",
    b"user.b",
    b"trusted.a",
    b"security.a",
    b"trusted.overlay.opaque",
    b"user.containers.override_stat",
    b"user.plyfs.redirect",
    b"user.fuseoverlayfs.origin",
];
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// A list that says what a mode says, a longer one, and none.
const ACLS: [&[u8]; 3] = [
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff",
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
      \x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff",
    b"none",
];
const IDS: [u32; 8] = [0, 0, 0, 1, 1000, 65_534, u32::MAX - 1, u32::MAX];
const DEVICES: [u32; 8] = [0, 1, 5, 255, 256, 4095, 4096, 1 << 20];
const TIMES: [&[u8]; 6] = [b"0", b"1", b"-1.5", b"1.000000001", b"1.5", b"1600000000.999999999"];

/// The tar of a layer.
pub fn layer(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    for _ in 0..u.int_in_range(0..=MAX_ENTRIES)? {
        append(&mut tar, u)?;
    }
    match u.int_in_range(0..=7)? {
        0 => {} // no end
        1 => tar.extend_from_slice(&[0; 512]),
        2 => tar.extend_from_slice(b"what follows is kept, too"),
        _ => tar.extend_from_slice(&[0; 1024]),
    }
    Ok(tar)
}

fn append(tar: &mut Vec<u8>, u: &mut Unstructured<'_>) -> Result<()> {
    let kind = *u.choose(KINDS)?;
    let (path, link) = (path(u)?, path(u)?);
    let mut pax = Vec::new();
    if u.ratio(1, 4)? {
        pax = records(u)?;
    }
    if path.len() > 100 {
        pax.push((b"path".to_vec(), path.clone()));
    }
    if link.len() > 100 {
        pax.push((b"linkpath".to_vec(), link.clone()));
    }
    let mut data = match kind {
        b'0' => short(u)?,
        _ => Vec::new(),
    };
    if kind == b'0' && u.ratio(1, 16)? {
        data = make_sparse(u, &mut pax)?;
    }
    let entry = Entry {
        kind,
        path: &path,
        link: &link,
        mode: u32::from(u.arbitrary::<u16>()?) & 0o7777,
        owner: (*u.choose(&IDS)?, *u.choose(&IDS)?),
        mtime: u.int_in_range(0..=9)?,
        device: (*u.choose(&DEVICES)?, *u.choose(&DEVICES)?),
        pax: &pax,
        data: &data,
    };
    tar::append(tar, &entry);
    Ok(())
}

fn short(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = u.int_in_range(0..=9)?.min(u.len());
    Ok(u.bytes(len)?.to_vec())
}

fn path(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut path = Vec::new();
    if u.ratio(1, 32)? {
        path.push(b'/');
    }
    for n in 0..u.int_in_range(1..=3)? {
        if n > 0 {
            path.push(b'/');
        }
        let is_odd = u.ratio(1, 24)?;
        path.extend_from_slice(if is_odd { u.choose(&ODD_NAMES)? } else { u.choose(&NAMES)? });
    }
    if u.ratio(1, 32)? {
        path.push(b'/');
    }
    Ok(path)
}

fn records(u: &mut Unstructured<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let record = match u.int_in_range(0..=4)? {
            0 => (b"mtime".to_vec(), u.choose(&TIMES)?.to_vec()),
            1 => (b"uid".to_vec(), u.choose(&IDS)?.to_string().into_bytes()),
            2 => (b"comment".to_vec(), short(u)?),
            _ => {
                let name = *u.choose(&XATTRS)?;
                let value = match name {
                    // Linux takes an empty one, and does not give it back.
                    b"security.capability" => CAPABILITY.to_vec(),
                    b"system.posix_acl_access" => u.choose(&ACLS)?.to_vec(),
                    _ => short(u)?,
                };
                ([b"SCHILY.xattr.", name].concat(), value)
            }
        };
        records.push(record);
    }
    Ok(records)
}

/// The data of a sparse file, and what its extended header says of it.
fn make_sparse(u: &mut Unstructured<'_>, pax: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Vec<u8>> {
    let (mut size, mut map, mut data) = (0_u64, Vec::new(), Vec::new());
    for _ in 0..u.int_in_range(0..=3)? {
        let (hole, len) = (u.int_in_range(0..=9000)?, u.int_in_range(0..=9)?);
        map.push((size + hole, len));
        data.resize(data.len() + len as usize, b'd');
        size += hole + len;
    }
    size += u.int_in_range(0..=9000_u64)?;
    let mut add = |key: &str, value: String| pax.push((key.into(), value.into_bytes()));
    add("GNU.sparse.size", size.to_string());
    match u.int_in_range(0..=2)? {
        0 => {
            for (offset, len) in map {
                add("GNU.sparse.offset", offset.to_string());
                add("GNU.sparse.numbytes", len.to_string());
            }
        }
        1 => {
            let map: Vec<_> = map.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
            add("GNU.sparse.map", map.join(","));
        }
        _ => {
            add("GNU.sparse.major", "1".to_owned());
            let lines = map.iter().map(|(offset, len)| format!("{offset}\n{len}\n"));
            let lines: String = std::iter::once(format!("{}\n", map.len())).chain(lines).collect();
            let mut whole = lines.into_bytes();
            whole.resize(whole.len().next_multiple_of(512), 0);
            data.splice(..0, whole);
        }
    }
    Ok(data)
}
