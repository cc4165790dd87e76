//! Compressed streams, told by their magic.

use std::io::{self, BufReader, Cursor, Read};

use super::{Error, Result};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, or not known here.
    None,
    /// gzip (RFC 1952), also several members joined, as eStargz has them.
    Gzip,
    /// Zstandard (RFC 8878), also several and skippable frames, as zstd:chunked has them.
    Zstd,
    /// xz.
    Xz,
}

/// Bytes that tell them apart.
pub const MAGIC_LEN: usize = 6;
/// Memory that an xz stream may ask for, in bytes.
const XZ_MEMORY: u64 = 256 << 20;
/// Bytes read at a time.
const BUFFER_SIZE: usize = 128 * 1024;

/// Tells the compression of a stream by its first [`MAGIC_LEN`] bytes.
pub fn sniff(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A Zstandard frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        _ => Compression::None,
    }
}

/// Reads up to `buffer.len()` bytes, less only at the end.
pub(super) fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(len) => done += len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The plain content of `input`, whatever its compression.
pub fn decoder<'a>(mut input: impl Read + 'a, what: &str) -> Result<Box<dyn Read + 'a>> {
    let mut magic = [0; MAGIC_LEN];
    let len = read_full(&mut input, &mut magic).map_err(|e| Error::io("read", what, e))?;
    let head = Cursor::new(magic[..len].to_vec());
    decode(head.chain(input), sniff(&magic[..len]), what)
}

/// The plain content of `input`, compressed so.
pub(super) fn decode<'a>(
    input: impl Read + 'a,
    compression: Compression,
    what: &str,
) -> Result<Box<dyn Read + 'a>> {
    let whole = BufReader::with_capacity(BUFFER_SIZE, input);
    let failed = |e| Error::io("decompress", what, e);
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(whole).map_err(failed)?),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )
            .map_err(|e| failed(e.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_form_gives_the_same() {
        let joined = [gzip(b"hello "), gzip(b"world")].concat();
        let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
        skippable.extend(zstd::encode_all(&b"hello world"[..], 1).unwrap());
        let forms = [
            b"hello world".to_vec(),
            gzip(b"hello world"),
            joined,
            zstd::encode_all(&b"hello world"[..], 1).unwrap(),
            skippable,
            xz(b"hello world"),
        ];
        for form in forms {
            let mut plain = Vec::new();
            decoder(&form[..], "it").unwrap().read_to_end(&mut plain).unwrap();
            assert_eq!(plain, b"hello world");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for whole in [gzip(b"hello world"), xz(b"hello world")] {
            let cut = &whole[..whole.len() - 4];
            let mut plain = Vec::new();
            assert!(decoder(cut, "it").unwrap().read_to_end(&mut plain).is_err());
        }
    }
}
