//! Container images in archives and folders: into the store, and out of it again.
//!
//! ```text
//! file, pipe  -> source   index the outer tar (spooled, if it cannot be sought in), or open the
//!                         layout folder
//!             -> docker   manifest.json, or the v1 form     \
//!             -> oci      index.json and manifests           > a list of image plans
//!             -> load     each missing layer, beside one another: pipeline, unpack -> store
//! store       -> pack     the layer's tar, from its files and its tar-split
//!             -> save     docker-archive, OCI archive, OCI layout
//!             -> verify   is what lies on disk what the DiffID says?
//! ```
//!
//! - [`tar`]: a reader of tar streams that keeps what layers need (bytes, pax records)
//! - [`compression`]: gzip, zstd, xz, told by their magic
//! - [`limits`]: what an untrusted image may take

pub mod compression;
mod docker;
mod error;
mod import;
pub mod limits;
mod load;
mod oci;
mod pack;
mod pipeline;
pub mod platform;
pub mod progress;
mod save;
mod source;
pub mod tar;
pub mod tar_split;
mod unpack;
mod verify;
mod verify_inherited;

use std::io::Read;
use std::path::Path;

use sha2::Sha256;

pub use error::{Error, Result};
pub use import::{Import, import};
use limits::Limits;
use platform::Platform;
use progress::{LayerProgress, Progress};
pub use save::{Compression as SaveCompression, Format as SaveFormat, SaveOptions, Target, save};
pub use source::Input;
use source::Source;
pub use unpack::LeftOut;
pub use verify::{Finding, verify_blobs, verify_layer};
pub use verify_inherited::verify_inherited;

use crate::store::Store;
use crate::store::digest::{Digest, ImageId};
use crate::store::reference::Name;

/// How a load goes about it.
#[derive(Clone)]
pub struct LoadOptions<'a> {
    /// What the images may take.
    pub limits: Limits,
    /// Of an index's images, the one for this platform; without it this machine's, or the only one.
    pub platform: Option<Platform>,
    /// Whether the layers' blobs, as they were compressed, and the manifest are kept.
    pub keep_blobs: bool,
    /// Who is told how far it is.
    pub progress: &'a dyn Progress,
}

/// An image that was loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its ID.
    pub id: ImageId,
    /// The names that it was given.
    pub names: Vec<Name>,
}

/// What a load did.
#[derive(Debug, Default)]
pub struct Report {
    /// The images, in the archive's order.
    pub images: Vec<Loaded>,
    /// What the store's filesystem can neither hold nor keep aside.
    pub left_out: LeftOut,
}

/// An image in an archive: where its parts lie.
#[derive(Debug)]
struct Plan {
    config: Vec<u8>,
    layers: Vec<LayerBlob>,
    names: Vec<Name>,
    /// The OCI manifest that was read, if one was.
    manifest: Option<Vec<u8>>,
}

/// A layer in an archive.
#[derive(Clone, Debug)]
struct LayerBlob {
    /// Its path in the archive.
    path: String,
    /// The digest of the blob as stored, where the archive tells it.
    digest: Option<Digest>,
    /// The bytes of the blob, where the archive tells them.
    size: Option<u64>,
}

/// Loads an archive, or an OCI layout folder.
pub fn load_path(store: &Store, path: &Path, options: &LoadOptions<'_>) -> Result<Report> {
    if path.is_dir() {
        let staging = store.staging()?;
        return load::load(store, &staging, &Source::layout(path, options.limits)?, options);
    }
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path.display(), e))?;
    load(store, Input::File(file), options)
}

/// Loads an archive.
pub fn load(store: &Store, input: Input<'_>, options: &LoadOptions<'_>) -> Result<Report> {
    let staging = store.staging()?;
    let source = Source::archive(input, staging.path(), options.limits)?;
    load::load(store, &staging, &source, options)
}

/// The digest of all that `input` gives.
fn hash(mut input: impl Read, what: &str, progress: &dyn LayerProgress) -> Result<Digest> {
    let mut hash = Sha256::default();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let len = compression::read_full(&mut input, &mut buffer)
            .map_err(|e| Error::io("read", what, e))?;
        if len == 0 {
            return Ok(Digest::from_hash(hash));
        }
        sha2::Digest::update(&mut hash, &buffer[..len]);
        progress.advance(len as u64);
    }
}
