//! Any bytes as a layer's tar: what is unpacked is verified, and written again byte for byte.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use plyfs::archive::SaveFormat;
use plyfs_fuzz::{place::Place, tar};

fuzz_target!(|data: &[u8]| {
    let place = Place::default();
    if let Ok(ids) = place.import(data) {
        place.round_trip(&ids, SaveFormat::DockerArchive);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar::mutate(data, size, max_size, seed, fuzzer_mutate)
});
