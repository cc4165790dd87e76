//! Compressed streams, told by their magic.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use parking_lot::{Mutex, MutexGuard};

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
/// Memory that an xz stream may ask for, in bytes. (`xz -9` asks for 65 MiB.)
const XZ_MEMORY: u64 = 100 << 20;
/// Bytes read at a time.
const BUFFER_SIZE: usize = 128 * 1024;
/// Window of a Zstandard frame, in bytes, above which only one is unpacked at a time: what a
/// decoder keeps in memory. (`zstd -19` has 8 MiB, `--ultra -22` 128.)
const LARGE_WINDOW: u64 = 8 << 20;

/// Held by the decoder that has a large window.
static ONE_LARGE_WINDOW: Mutex<()> = Mutex::new(());

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
pub(super) fn read_full(input: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
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
        Compression::Zstd => {
            let mut whole = whole;
            let begin = whole.fill_buf().map_err(|e| Error::io("read", what, e))?;
            let alone = (window_of(begin) > LARGE_WINDOW).then(|| ONE_LARGE_WINDOW.lock());
            let mut decoder = zstd::Decoder::with_buffer(whole).map_err(failed)?;
            if alone.is_none() {
                // Nor may a later frame have a larger one.
                decoder.window_log_max(LARGE_WINDOW.ilog2()).map_err(failed)?;
            }
            Box::new(Alone { decoder, _alone: alone })
        }
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

/// The window of the first Zstandard frame (RFC 8878, 3.1.1.1) of a stream that begins so; 0 if it
/// does not tell.
fn window_of(mut frame: &[u8]) -> u64 {
    while let [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] = frame {
        let len = u32::from_le_bytes([*a, *b, *c, *d]); // a skippable frame
        frame = usize::try_from(len).ok().and_then(|len| rest.get(len..)).unwrap_or_default();
    }
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = frame else { return 0 };
    let little_endian = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    if descriptor & 0x20 == 0 {
        let Some(window) = rest.first().map(|b| u64::from(*b)) else { return 0 };
        let base = 1 << (10 + (window >> 3));
        return base + base / 8 * (window & 7);
    }
    // A single segment: the window is the whole content.
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    rest.get(dictionary_id..dictionary_id + size_len).map_or(0, little_endian)
}

/// A decoder that may be the only one of its size.
struct Alone<R> {
    decoder: R,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl<R: Read> Read for Alone<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
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
    fn windows_are_known_beforehand() {
        let whole = zstd::encode_all(&[7; 100_000][..], 1).unwrap();
        assert!((1..1 << 20).contains(&window_of(&whole)), "{}", window_of(&whole));
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).unwrap();
        encoder.write_all(&[7; 1000]).unwrap();
        let large = encoder.finish().unwrap();
        assert_eq!(window_of(&large), 128 << 20);
        // Two at once would wait for each other for ever, if the first were not let go of.
        for _ in 0..2 {
            let mut plain = Vec::new();
            decoder(&large[..], "it").unwrap().read_to_end(&mut plain).unwrap();
            assert_eq!(plain, [7; 1000]);
        }
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &large[..]].concat();
        assert_eq!(window_of(&skippable), 128 << 20);
        let later = [zstd::encode_all(&[7; 9][..], 1).unwrap(), large].concat();
        let error = decoder(&later[..], "it").unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        assert_eq!(window_of(b""), 0);
        assert_eq!(window_of(&[0x28, 0xb5, 0x2f, 0xfd]), 0);
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
