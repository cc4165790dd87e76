//! Container images in archives and folders, and bringing them into the store.
//!
//! ```text
//! file, pipe  -> source   decompress and index the outer tar, or open the layout folder
//!             -> docker   manifest.json, or the v1 form     \
//!             -> oci      index.json and manifests           > a list of image plans
//!             -> unpack   each missing layer: inflate, hash, write -> store
//! ```
//!
//! - [`tar`]: a reader of tar streams that keeps what layers need (bytes, pax records)
//! - [`compression`]: gzip, zstd, xz, told by their magic

pub mod compression;
mod docker;
mod error;
mod oci;
mod source;
pub mod tar;
mod unpack;

use std::fmt;
use std::io::Read;
use std::path::Path;

use sha2::Sha256;

pub use error::{Error, Result};
use source::Source;
pub use unpack::LeftOut;

use crate::store::Store;
use crate::store::digest::{ChainId, DiffId, Digest, ImageId};
use crate::store::images::ImageConfig;
use crate::store::layers::Unpacked;
use crate::store::reference::Name;

/// Largest manifest, index or config in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

/// One image or name that was loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Under this name.
    Named(Name),
    /// Without a name.
    Unnamed(ImageId),
}

/// What a load did.
#[derive(Debug, Default)]
pub struct Report {
    /// The images, in the archive's order.
    pub images: Vec<Loaded>,
    /// What an ordinary user's store cannot hold.
    pub left_out: LeftOut,
}

/// An image in an archive: where its parts lie.
#[derive(Debug)]
struct Plan {
    config: Vec<u8>,
    layers: Vec<LayerBlob>,
    names: Vec<Name>,
}

/// A layer in an archive.
#[derive(Debug)]
struct LayerBlob {
    /// Its path in the archive.
    path: String,
    /// The digest of the blob as stored, where the archive tells it.
    digest: Option<Digest>,
}

/// Loads an archive, or an OCI layout folder.
pub fn load_path(store: &Store, path: &Path) -> Result<Report> {
    if path.is_dir() {
        return load_source(store, &Source::layout(path)?);
    }
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path.display(), e))?;
    load(store, file)
}

/// Loads an archive from a stream.
pub fn load(store: &Store, input: impl Read) -> Result<Report> {
    let staging = store.staging()?;
    let source = Source::archive(input, staging.path())?;
    load_source(store, &source)
}

fn load_source(store: &Store, source: &Source) -> Result<Report> {
    let plans = if source.has("manifest.json") {
        docker::plans(source)?
    } else if source.has("index.json") {
        oci::plans(source)?
    } else if source.has("repositories") {
        docker::v1_plans(source)?
    } else {
        return Err(Error::NoImage);
    };
    let mut report = Report::default();
    for plan in plans {
        load_image(store, source, &plan, &mut report)?;
    }
    Ok(report)
}

fn load_image(store: &Store, source: &Source, plan: &Plan, report: &mut Report) -> Result<()> {
    let config =
        ImageConfig::parse(&plan.config).map_err(|e| Error::document("image config", e))?;
    let diffs = config.diff_ids().map_err(|e| Error::document("image config", e))?;
    if diffs.len() != plan.layers.len() {
        return Err(Error::LayerCount { config: diffs.len(), archive: plan.layers.len() });
    }
    let mut parent = None;
    for (diff, blob) in diffs.into_iter().zip(&plan.layers) {
        let chain = ChainId::upon(parent, diff);
        load_layer(store, source, blob, (chain, parent, diff), report)?;
        parent = Some(chain);
    }
    let id = store.add_image(&plan.config, &plan.names)?;
    if plan.names.is_empty() {
        report.images.push(Loaded::Unnamed(id));
    }
    report.images.extend(plan.names.iter().cloned().map(Loaded::Named));
    Ok(())
}

/// Unpacks a layer, unless the store has it.
fn load_layer(
    store: &Store,
    source: &Source,
    blob: &LayerBlob,
    (chain, parent, diff): (ChainId, Option<ChainId>, DiffId),
    report: &mut Report,
) -> Result<()> {
    if store.has_chain(&chain) {
        return Ok(());
    }
    if store.has_layer(&diff) {
        return Ok(store.reuse_layer(chain, parent, diff)?);
    }
    let mut below = Vec::new();
    let mut at = parent;
    while let Some(chain) = at {
        below.push(store.layer_dir(&chain)?);
        at = store.parent_of(&chain)?;
    }
    let staging = store.staging()?;
    let mut compressed = Hashing::new(source.open(&blob.path)?);
    let mut plain = Hashing::new(compression::decoder(&mut compressed, &blob.path)?);
    let done = unpack::unpack(&mut plain, &staging.path().join("diff"), &below)
        .map_err(|e| e.in_layer(&blob.path))?;
    let found = DiffId(plain.finish().map_err(|e| Error::io("read", &blob.path, e))?);
    if found != diff {
        return Err(Error::DiffId { layer: blob.path.clone(), expected: diff, found });
    }
    if let Some(expected) = blob.digest {
        let found = compressed.finish().map_err(|e| Error::io("read", &blob.path, e))?;
        if found != expected {
            return Err(Error::Digest { what: blob.path.clone(), expected, found });
        }
    }
    store.add_layer(&Unpacked {
        staging: staging.path(),
        diff,
        chain,
        parent,
        size: done.size,
        depends_on_parent: done.depends_on_parent,
    })?;
    let _ = staging.keep(); // it has moved into the store, or another load's layer took its place
    report.left_out += done.left_out;
    Ok(())
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: sha2::Digest::new() }
    }

    /// The digest of everything, what was not read yet included.
    fn finish(mut self) -> std::io::Result<Digest> {
        std::io::copy(&mut self, &mut std::io::sink())?;
        Ok(Digest::from_hash(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.inner.read(buffer)?;
        sha2::Digest::update(&mut self.hash, &buffer[..len]);
        Ok(len)
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Unnamed(id) => id.fmt(f),
        }
    }
}
