//! What a layer's tar holds beside the files' data, so that the same tar can be written again:
//! Docker's `tar-split.json.gz` (vbatts/tar-split, `tar/storage`).
//!
//! ```text
//! {"type":2,"payload":"<base64>","position":0}      a segment: headers, padding, what is no data
//! {"type":1,"name":"etc/passwd","size":1234,"payload":"<CRC-64 of the data, base64>","position":1}
//! ```
//!
//! A line each, gzipped. A name that is not UTF-8 stands in `name_raw`, in base64. Two things are
//! beyond Docker's form: `name` is where the file was unpacked (symlinks on its path are followed),
//! and a sparse file has `extents`, the pieces of it that the tar holds: `[[OFFSET,LEN],...]`.

use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// Largest segment on one line, in bytes.
const MAX_SEGMENT: usize = 1 << 20;
/// Longest line: a segment, or the path and extents of a file.
const MAX_LINE: u64 = 64 << 20;

/// The checksum of the data of one file: CRC-64 as Go's `hash/crc64` with its ISO table.
#[derive(Debug)]
pub struct Crc(crc_fast::Digest);

impl Default for Crc {
    fn default() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso))
    }
}

impl Crc {
    /// Adds data.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The checksum, as it is recorded.
    pub fn finish(&self) -> [u8; 8] {
        self.0.finalize().to_be_bytes()
    }
}

/// One line.
#[derive(Debug, Deserialize, Serialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name_raw: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<(u64, u64)>>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// A part of a tar.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Segment(Vec<u8>),
    /// The data of an entry; of most entries there is none.
    File(FilePiece),
}

/// The data of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePiece {
    /// Where it was unpacked.
    pub path: Vec<u8>,
    /// Bytes of data in the tar.
    pub size: u64,
    /// The data's checksum, if there is any.
    pub crc: Option<[u8; 8]>,
    /// Of a sparse file: what the tar holds of it.
    pub extents: Option<Vec<(u64, u64)>>,
}

/// Writes the record.
#[derive(Debug)]
pub struct Writer<W: Write> {
    gzip: flate2::write::GzEncoder<W>,
    position: u64,
}

impl<W: Write> Writer<W> {
    /// A record that goes to `out`.
    pub fn new(out: W) -> Self {
        let gzip = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        Self { gzip, position: 0 }
    }

    /// Records bytes of the tar.
    pub fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(MAX_SEGMENT) {
            self.line(Line {
                kind: SEGMENT,
                name: None,
                name_raw: None,
                size: 0,
                payload: Some(BASE64.encode(chunk)),
                position: 0,
                extents: None,
            })?;
        }
        Ok(())
    }

    /// Records the place of an entry's data.
    pub fn file(&mut self, file: FilePiece) -> io::Result<()> {
        let (name, name_raw) = match String::from_utf8(file.path) {
            Ok(name) => (Some(name), None),
            Err(error) => (None, Some(BASE64.encode(error.as_bytes()))),
        };
        self.line(Line {
            kind: FILE,
            name,
            name_raw,
            size: file.size,
            payload: file.crc.map(|crc| BASE64.encode(crc)),
            position: 0,
            extents: file.extents,
        })
    }

    fn line(&mut self, mut line: Line) -> io::Result<()> {
        line.position = self.position;
        self.position += 1;
        serde_json::to_writer(&mut self.gzip, &line)?;
        self.gzip.write_all(b"\n")
    }

    /// Ends the record.
    pub fn finish(self) -> io::Result<W> {
        self.gzip.finish()
    }
}

/// Reads a record: its pieces, in the order of the tar.
#[derive(Debug)]
pub struct Pieces<R: Read> {
    lines: BufReader<flate2::read::MultiGzDecoder<R>>,
}

impl<R: Read> Pieces<R> {
    /// The record that `input` holds.
    pub fn new(input: R) -> Self {
        Self { lines: BufReader::new(flate2::read::MultiGzDecoder::new(input)) }
    }

    fn next_line(&mut self) -> io::Result<Option<Piece>> {
        let mut text = Vec::new();
        (&mut self.lines).take(MAX_LINE).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        let bad = |e: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("bad line of a tar-split: {e}"))
        };
        let line: Line = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
        let decode = |text: &str| BASE64.decode(text).map_err(|e| bad(&e));
        let payload = line.payload.as_deref().map(decode).transpose()?;
        Ok(Some(match line.kind {
            SEGMENT => Piece::Segment(payload.unwrap_or_default()),
            FILE => {
                let path = match (line.name, line.name_raw) {
                    (_, Some(raw)) => decode(&raw)?,
                    (name, None) => name.unwrap_or_default().into_bytes(),
                };
                let crc = payload.filter(|crc| !crc.is_empty()).map(<[u8; 8]>::try_from);
                let crc = crc.transpose().map_err(|_| bad(&"a checksum of another size"))?;
                Piece::File(FilePiece { path, size: line.size, crc, extents: line.extents })
            }
            other => return Err(bad(&format!("type {other}"))),
        }))
    }
}

impl<R: Read> Iterator for Pieces<R> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_comes_back() {
        let pieces = [
            Piece::Segment(vec![0xff; 512]),
            Piece::File(FilePiece {
                path: b"caf\xe9".to_vec(),
                size: 5,
                crc: Some([7; 8]),
                extents: Some(vec![(0, 2), (9, 3)]),
            }),
            Piece::Segment(vec![1; MAX_SEGMENT]),
            Piece::File(FilePiece { path: b"dir/".to_vec(), ..FilePiece::default() }),
        ];
        let mut writer = Writer::new(Vec::new());
        for piece in &pieces {
            match piece {
                Piece::Segment(bytes) => writer.segment(bytes).unwrap(),
                Piece::File(file) => writer.file(file.clone()).unwrap(),
            }
        }
        let record = writer.finish().unwrap();
        let read: Vec<Piece> = Pieces::new(&record[..]).map(Result::unwrap).collect();
        assert_eq!(read, pieces);
        assert!(Pieces::new(&record[..record.len() - 9]).any(|piece| piece.is_err()));
    }

    #[test]
    fn the_form_is_dockers() {
        // CRC-64/GO-ISO, check value of "123456789" (the catalogue of parametrised CRCs).
        let mut crc = Crc::default();
        crc.update(b"12345");
        crc.update(b"6789");
        assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
        let mut writer = Writer::new(Vec::new());
        writer.segment(b"head").unwrap();
        let path = b"f".to_vec();
        let crc = Some(crc.finish());
        writer.file(FilePiece { path, size: 9, crc, extents: None }).unwrap();
        let mut text = String::new();
        let packed = writer.finish().unwrap();
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
        let expected = concat!(
            r#"{"type":2,"payload":"aGVhZA==","position":0}"#,
            "\n",
            r#"{"type":1,"name":"f","size":9,"payload":"uQlWx3WkEAE=","position":1}"#,
            "\n"
        );
        assert_eq!(text, expected);
    }
}
