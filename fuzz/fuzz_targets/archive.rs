//! Any bytes as an image archive: told by their magic, decoded, loaded.

#![no_main]

use std::io::Read;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use plyfs::archive::compression::{Compression, decoder, sniff};
use plyfs_fuzz::{place::Place, tar};

/// Bytes that are decoded of one stream, at most.
const MAX_PLAIN: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let mut plain = Vec::new();
    let decoded = decoder(data, "it")
        .map(|decoder| decoder.take(MAX_PLAIN).read_to_end(&mut plain).is_ok())
        .unwrap_or(false);
    if sniff(data) == Compression::None {
        assert!(decoded && plain == data);
    }
    let (pipe, file) = (Place::default().load_stream(data), Place::default().load_file(data));
    assert_eq!(pipe.is_ok(), file.is_ok(), "a pipe and a file differ: {pipe:?}, {file:?}");
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar::mutate(data, size, max_size, seed, fuzzer_mutate)
});
