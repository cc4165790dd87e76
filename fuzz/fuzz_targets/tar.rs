//! Any bytes as a tar: the reader consumes what it reads, and what it records beside the data is
//! all the rest.

#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use plyfs::archive::limits::Limits;
use plyfs::archive::tar::{Entry, Reader};
use plyfs_fuzz::tar;

fuzz_target!(|data: &[u8]| {
    if let Some(entries) = reassemble(data) {
        assert_eq!(entries, names_only(data), "reading and seeking differ");
    }
});

/// Reads every second entry's data, and puts the stream together again; what the entries were.
fn reassemble(data: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader::recording(data, Limits::default());
    let (mut again, mut entries) = (Vec::new(), Vec::new());
    while let Some(entry) = next(&mut reader, &mut again, data)? {
        entries.push(format!("{entry:?}"));
        if entries.len() % 2 == 0 {
            let before = again.len();
            reader.read_to_end(&mut again).ok()?;
            assert_eq!((again.len() - before) as u64, entry.size);
            assert_eq!(reader.position(), again.len() as u64);
        }
    }
    let mut buffer = [0; 100];
    loop {
        let len = reader.read_tail(&mut buffer).expect("memory");
        if len == 0 {
            break;
        }
        again.extend_from_slice(&buffer[..len]);
    }
    assert!(again == data, "what was recorded is not the stream");
    Some(entries)
}

/// The next entry; `None` outside if the stream is bad.
fn next(reader: &mut Reader<&[u8]>, again: &mut Vec<u8>, data: &[u8]) -> Option<Option<Entry>> {
    let before = reader.position();
    let entry = reader.next_entry();
    assert!(reader.position() <= data.len() as u64, "beyond the end");
    let entry = entry.ok()?;
    assert!(entry.is_none() || reader.position() > before, "nothing was consumed");
    again.extend(reader.take_recorded());
    assert_eq!(reader.position(), again.len() as u64, "something was not recorded");
    Some(entry)
}

/// The entries, their data sought over.
fn names_only(data: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(Cursor::new(data), Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().expect("it was readable") {
        entries.push(format!("{entry:?}"));
        reader.seek_over_data().expect("memory");
    }
    entries
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar::mutate(data, size, max_size, seed, fuzzer_mutate)
});
