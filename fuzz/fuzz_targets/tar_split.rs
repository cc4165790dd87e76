//! Any text as the record of a layer's tar: what is read is written again, and is the same.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use plyfs::archive::tar_split::{Piece, Pieces, Writer};

fuzz_target!(|data: &[u8]| {
    let _ = read(data);
    let Some(pieces) = read(&gzip(data)) else { return };
    let mut writer = Writer::new(Vec::new());
    for piece in &pieces {
        match piece {
            Piece::Segment(bytes) => writer.segment(bytes).expect("memory"),
            Piece::File(file) => writer.file(file.clone()).expect("memory"),
        }
    }
    let again = read(&writer.finish().expect("memory")).expect("what was written is read");
    // An empty segment is none.
    let is_any = |piece: &&Piece| !matches!(piece, Piece::Segment(bytes) if bytes.is_empty());
    assert!(again.iter().eq(pieces.iter().filter(is_any)), "{pieces:?} became {again:?}");
});

fn read(record: &[u8]) -> Option<Vec<Piece>> {
    Pieces::new(record).collect::<Result<_, _>>().ok()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
}
