//! Any bytes as a merged index of layers that have the roots it tells of.

#![no_main]

use std::collections::HashSet;
use std::fs;

use libfuzzer_sys::fuzz_target;
use plyfs::layers::merged_index::{DirId, LayerRoot, MergedIndex};
use plyfs::sys::{Stat, Timestamp};

const MAGIC: &[u8] = b"plyfsmi1";
const HEADER: usize = 32;
/// Bytes of one record: layers, directories, entries, sources, names.
const RECORDS: [usize; 5] = [24, 16, 128, 2, 1];
/// Entries that are looked at, at most.
const MAX_ENTRIES: usize = 1000;

fuzz_target!(|data: &[u8]| {
    walk(data, &[]);
    if let Some((index, roots)) = fitted(data) {
        walk(&index, &roots);
    }
});

/// An index of as many records as the first bytes say, and the roots that it is of.
fn fitted(data: &[u8]) -> Option<(Vec<u8>, Vec<LayerRoot>)> {
    let (counts, content) = data.split_at_checked(RECORDS.len() + 1)?;
    let mut index = MAGIC.to_vec();
    for count in counts {
        index.extend_from_slice(&u32::from(*count).to_le_bytes());
    }
    index.extend_from_slice(content);
    let sizes = counts.iter().zip(RECORDS).map(|(count, size)| usize::from(*count) * size);
    index.resize(HEADER + sizes.sum::<usize>(), 0);
    let roots = index[HEADER..].chunks_exact(RECORDS[0]).take(counts[0].into()).map(root).collect();
    Some((index, roots))
}

fn root(record: &[u8]) -> LayerRoot {
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| record[at + n]));
    let nanos = u32::from_le_bytes(std::array::from_fn(|n| record[16 + n]));
    let mtime = Timestamp { secs: long(8).cast_signed(), nanos };
    LayerRoot::of(&Stat { ino: long(0), mtime, ..nothing() })
}

fn nothing() -> Stat {
    let time = Timestamp::default();
    Stat {
        dev: 0,
        ino: 0,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: None,
        immutable: false,
        append_only: false,
    }
}

fn walk(bytes: &[u8], roots: &[LayerRoot]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("index");
    fs::write(&path, bytes).expect("write");
    let Some(index) = MergedIndex::open(&path, roots).expect("a file") else { return };
    let _ = index.has_overrides();
    let (mut todo, mut known) = (vec![DirId::ROOT], HashSet::new());
    while let Some(dir) = todo.pop() {
        if !known.insert(format!("{dir:?}")) || known.len() > MAX_ENTRIES {
            continue;
        }
        let _ = index.own_entry(dir).map(|entry| entry.stat(1));
        for entry in index.entries(dir).take(MAX_ENTRIES) {
            let _ = (entry.stat(1), entry.kind(), entry.layers().count());
            let _ = index.find(dir, entry.name()).map(|found| found.name().len());
            todo.extend(entry.directory());
        }
    }
}
