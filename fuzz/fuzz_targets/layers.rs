//! Layers whose entries meet, one upon another: unpacked, verified, indexed, written again.

#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};
use plyfs::archive::SaveFormat;
use plyfs_fuzz::{image, layer::layer, place::Place};

/// Layers of an image, at most.
const MAX_LAYERS: usize = 3;

fuzz_target!(|data: &[u8]| -> Corpus {
    match run(&mut Unstructured::new(data)) {
        Ok(()) => Corpus::Keep,
        Err(_) => Corpus::Reject,
    }
});

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let count = u.int_in_range(1..=MAX_LAYERS)?;
    let layers = (0..count).map(|_| layer(u)).collect::<Result<Vec<_>>>()?;
    let place = Place::default();
    if let Ok(ids) = place.load_file(&image::of_layers(&layers)) {
        place.round_trip(&ids, SaveFormat::DockerArchive);
    }
    Ok(())
}
