//! Manifests, indexes and configs, bent a little: what is loaded is saved and loaded again.

#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};
use plyfs::archive::SaveFormat;
use plyfs_fuzz::{image, place::Place};

fuzz_target!(|data: &[u8]| -> Corpus {
    match run(data) {
        Ok(()) => Corpus::Keep,
        Err(_) => Corpus::Reject,
    }
});

fn run(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let mut place = Place::default();
    place.keep_blobs = u.ratio(1, 4)?;
    if u.ratio(1, 4)? {
        let asked = u.choose(&["linux/amd64", "linux/arm64", "linux/arm64/v8"])?;
        place.platform = asked.parse().ok();
    }
    let archive = image::archive(&mut u)?;
    let Ok(ids) = place.load_file(&archive) else { return Ok(()) };
    place.round_trip(&ids, SaveFormat::DockerArchive);
    for id in &ids {
        place.round_trip(&[*id], SaveFormat::OciArchive);
    }
    Ok(())
}
