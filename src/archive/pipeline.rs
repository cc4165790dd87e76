//! One layer on its way in: one thread reads and inflates, one hashes, and the caller takes the
//! plain tar.
//!
//! ```text
//! blob ──read, inflate──> chunks ──┬──> hash: DiffID; of a compressed blob its digest too
//!                                  └──> the caller: unpack
//! ```
//!
//! Chunks are shared, not copied, and few: memory does not depend on the layer.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::Sha256;

use super::compression::{self, Compression, read_full};
use super::limits::{Limits, Name, RATIO_FREE};
use super::progress::LayerProgress;
use super::{Error, Result};
use crate::store::digest::{DiffId, Digest};

/// Bytes of one chunk.
const CHUNK: usize = 256 * 1024;
/// Chunks that wait for a slower thread.
const WAITING: usize = 6;

/// The digests of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digests {
    /// Of the blob as it is stored.
    pub(super) blob: Digest,
    /// Of the plain tar.
    pub(super) diff: DiffId,
    /// Bytes of the blob.
    pub(super) size: u64,
}

/// What a layer may take.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) limits: Limits,
    /// Uncompressed bytes so far, of all layers.
    pub(super) bytes: &'a AtomicU64,
}

/// What is hashed.
enum Hashed {
    Plain(Arc<Vec<u8>>),
    Compressed(Vec<u8>),
}

/// Hands the plain content of `blob` to `use_it`, to its end, and hashes all of it.
///
/// The first failure in the order of the stream is returned: what `use_it` made of damaged bytes
/// is of no interest beside the damage, which the caller sees in the digests.
pub(super) fn run<T>(
    blob: impl Read + Send,
    what: &str,
    bounds: Bounds<'_>,
    progress: &dyn LayerProgress,
    use_it: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<(Digests, Result<T>)> {
    thread::scope(|scope| {
        let (to_hash, hashed) = sync_channel(2 * WAITING);
        let (to_user, plain) = sync_channel(WAITING);
        let hasher = scope.spawn(move || hash_all(&hashed));
        let producer = scope
            .spawn(move || produce(blob, what, bounds, progress, &Outlets { to_hash, to_user }));
        let mut chunks = Chunks { from: plain, chunk: Arc::default(), at: 0 };
        let used = use_it(&mut chunks);
        if used.as_ref().err().is_none_or(Error::may_be_of_damage) {
            chunks.drain();
        }
        drop(chunks);
        let size = join(producer)?;
        let (blob, diff) = join(hasher)?;
        match size {
            Ok(size) => Ok((Digests { blob, diff, size }, used)),
            // Nobody took the chunks any more: that has its own reason.
            Err(Stopped::NotWanted) => match used {
                Err(error) => Err(error),
                Ok(_) => Err(Error::Truncated("nothing read the layer to its end")),
            },
            Err(Stopped::Failed(error)) => Err(error),
        }
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T> {
    let panicked = |_| Error::io("read", "the layer", io::Error::other("a thread panicked"));
    thread.join().map_err(panicked)
}

/// Why not all was produced.
enum Stopped {
    NotWanted,
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

struct Outlets {
    to_hash: SyncSender<Hashed>,
    to_user: SyncSender<Arc<Vec<u8>>>,
}

/// Reads, inflates and sends; the bytes of the blob.
fn produce(
    blob: impl Read,
    what: &str,
    bounds: Bounds<'_>,
    progress: &dyn LayerProgress,
    outlets: &Outlets,
) -> std::result::Result<u64, Stopped> {
    let count = Cell::new(0);
    let mut read = Counted { inner: blob, count: &count, progress, copy_to: None };
    let mut magic = [0; compression::MAGIC_LEN];
    let failed = |e| Error::io("read", what, e);
    let len = read_full(&mut read, &mut magic).map_err(failed)?;
    let compression = compression::sniff(&magic[..len]);
    if compression != Compression::None {
        let _ = outlets.to_hash.send(Hashed::Compressed(magic[..len].to_vec()));
        read.copy_to = Some(&outlets.to_hash);
    }
    let whole = io::Cursor::new(&magic[..len]).chain(&mut read);
    let mut plain = compression::decode(whole, compression, what)?;
    let mut plain_bytes = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let len = (&mut plain).take(CHUNK as u64).read_to_end(&mut chunk);
        plain_bytes += len.map_err(|e| Error::io("decompress", what, e))? as u64;
        if chunk.is_empty() {
            break;
        }
        let len = chunk.len() as u64;
        let all_bytes = len + bounds.bytes.fetch_add(len, Ordering::Relaxed);
        bounds.limits.check(Name::Bytes, all_bytes)?;
        if plain_bytes > RATIO_FREE {
            bounds.limits.check(Name::Ratio, plain_bytes / count.get().max(1))?;
        }
        let chunk = Arc::new(chunk);
        let hashing = outlets.to_hash.send(Hashed::Plain(Arc::clone(&chunk)));
        if hashing.is_err() || outlets.to_user.send(chunk).is_err() {
            return Err(Stopped::NotWanted);
        }
    }
    drop(plain);
    // What lies behind the compressed stream is part of the blob.
    io::copy(&mut read, &mut io::sink()).map_err(failed)?;
    Ok(count.get())
}

/// Counts what is read, and hands copies on to be hashed.
struct Counted<'a, R> {
    inner: R,
    count: &'a Cell<u64>,
    progress: &'a dyn LayerProgress,
    copy_to: Option<&'a SyncSender<Hashed>>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.count.set(self.count.get() + len as u64);
        self.progress.advance(len as u64);
        if let Some(to) = self.copy_to.filter(|_| len > 0) {
            // A hasher that is gone has panicked, which is told of where it is joined.
            let _ = to.send(Hashed::Compressed(buffer[..len].to_vec()));
        }
        Ok(len)
    }
}

/// The digest of the blob and of its plain content; one and the same if it is not compressed.
fn hash_all(parts: &Receiver<Hashed>) -> (Digest, DiffId) {
    let (mut blob, mut plain) = (None, Sha256::default());
    for part in parts {
        match part {
            Hashed::Plain(bytes) => sha2::Digest::update(&mut plain, &bytes[..]),
            Hashed::Compressed(bytes) => {
                sha2::Digest::update(blob.get_or_insert_with(Sha256::default), &bytes);
            }
        }
    }
    let plain = Digest::from_hash(plain);
    (blob.map_or(plain, Digest::from_hash), DiffId(plain))
}

/// Reads the chunks as one stream.
struct Chunks {
    from: Receiver<Arc<Vec<u8>>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
}

impl Chunks {
    /// Takes all that is left, so that it is hashed.
    fn drain(&mut self) {
        while self.from.recv().is_ok() {}
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.from.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk, 0),
                Err(_) => return Ok(0), // the end, or a failure that the other side tells
            }
        }
        let len = buffer.len().min(self.chunk.len() - self.at);
        buffer[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::progress::Silent;

    fn read_all(blob: &[u8], limits: Limits) -> Result<(Digests, Result<Vec<u8>>)> {
        let bytes = AtomicU64::new(0);
        run(blob, "it", Bounds { limits, bytes: &bytes }, &Silent, |plain| {
            let mut all = Vec::new();
            plain.read_to_end(&mut all).map_err(|e| Error::io("read", "it", e))?;
            Ok(all)
        })
    }

    #[test]
    fn both_digests_are_of_all_bytes() {
        let plain: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 1000) as u8).collect();
        let (digests, all) = read_all(&plain, Limits::default()).unwrap();
        assert_eq!(all.unwrap(), plain);
        assert_eq!((digests.blob, digests.diff.0), (Digest::of(&plain), Digest::of(&plain)));
        let packed = zstd::encode_all(&plain[..], 1).unwrap();
        let (digests, all) = read_all(&packed, Limits::default()).unwrap();
        assert_eq!(all.unwrap(), plain);
        assert_eq!((digests.blob, digests.diff.0), (Digest::of(&packed), Digest::of(&plain)));
        assert_eq!(digests.size, packed.len() as u64);
    }

    #[test]
    fn what_is_not_read_is_hashed_too() {
        let plain = vec![7; 5_000_000];
        let bounds = Bounds { limits: Limits::default(), bytes: &AtomicU64::new(0) };
        let (digests, _) = run(&plain[..], "it", bounds, &Silent, |_| Ok(())).unwrap();
        assert_eq!(digests.diff.0, Digest::of(&plain));
    }

    #[test]
    fn limits_stop_the_stream() {
        let limits = Limits::default().with(Name::Bytes, 1_000_000);
        let error = read_all(&vec![0; 1_000_001], limits).unwrap_err().to_string();
        assert!(error.contains("bytes"), "{error}");
        let bomb = zstd::encode_all(io::repeat(0).take(RATIO_FREE + 1_000_000), 1).unwrap();
        let error = read_all(&bomb, Limits::default()).unwrap_err().to_string();
        assert!(error.contains("ratio"), "{error}");
        let limits = Limits::default().with(Name::Ratio, u64::MAX);
        assert!(read_all(&bomb, limits).unwrap().1.is_ok());
    }

    #[test]
    fn a_user_that_gives_up_is_heard() {
        let plain = vec![7; 5_000_000];
        let bounds = Bounds { limits: Limits::default(), bytes: &AtomicU64::new(0) };
        let result = run(&plain[..], "it", bounds, &Silent, |_| -> Result<()> {
            Err(Error::Limit { what: None, name: "depth", limit: 1 })
        });
        assert!(matches!(result, Err(Error::Limit { .. })));
    }
}
