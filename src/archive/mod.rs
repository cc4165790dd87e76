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
use std::path::{Path, PathBuf};

use sha2::Sha256;

pub use error::{Error, Result};
use source::Source;
pub use unpack::LeftOut;
use unpack::Unpacked;

use crate::store::digest::{ChainId, DiffId, Digest, ImageId};
use crate::store::images::ImageConfig;
use crate::store::layers::NewLayer;
use crate::store::reference::Name;
use crate::store::{Staging, Store};

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
    /// What the store's filesystem, or an ordinary user's store, cannot hold.
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
    let mut load = Load { store, source, staged: Vec::new(), left_out: LeftOut::default() };
    for plan in &plans {
        load.stage_image(plan)?;
    }
    load.publish(&plans)
}

/// A load under way: everything is verified in staging directories before any of it shows.
struct Load<'a> {
    store: &'a Store,
    source: &'a Source,
    /// The layers that the store lacks, a stack's lower ones before its higher ones.
    staged: Vec<StagedLayer>,
    left_out: LeftOut,
}

/// A layer of a stack, verified, that the store's database lacks.
struct StagedLayer {
    chain: ChainId,
    parent: Option<ChainId>,
    diff: DiffId,
    /// Where it was unpacked; `None` if the store has it for any stack to use.
    unpacked: Option<(Staging, Unpacked)>,
}

impl Load<'_> {
    fn stage_image(&mut self, plan: &Plan) -> Result<()> {
        let config = ImageConfig::parse(&plan.config);
        let config = config.map_err(|e| Error::document("image config", e))?;
        let diffs = config.diff_ids().map_err(|e| Error::document("image config", e))?;
        if diffs.len() != plan.layers.len() {
            return Err(Error::LayerCount { config: diffs.len(), archive: plan.layers.len() });
        }
        let mut parent = None;
        for (diff, blob) in diffs.into_iter().zip(&plan.layers) {
            let chain = ChainId::upon(parent, diff);
            self.stage_layer(blob, chain, parent, diff)?;
            parent = Some(chain);
        }
        Ok(())
    }

    /// Verifies a layer, and unpacks it unless it is there already.
    fn stage_layer(
        &mut self,
        blob: &LayerBlob,
        chain: ChainId,
        parent: Option<ChainId>,
        diff: DiffId,
    ) -> Result<()> {
        let in_store = self.store.has_chain(&chain);
        if in_store || self.staged.iter().any(|layer| layer.chain == chain) {
            return self.read_layer(blob, diff, |_| Ok(()));
        }
        if self.store.has_layer(&diff) {
            self.read_layer(blob, diff, |_| Ok(()))?;
            self.staged.push(StagedLayer { chain, parent, diff, unpacked: None });
            return Ok(());
        }
        let below = self.layers_below(parent)?;
        let staging = self.store.staging()?;
        let target = staging.path().join("diff");
        let unpacked =
            self.read_layer(blob, diff, |plain| unpack::unpack(plain, &target, &below))?;
        self.left_out += unpacked.left_out;
        self.staged.push(StagedLayer { chain, parent, diff, unpacked: Some((staging, unpacked)) });
        Ok(())
    }

    /// Hands the layer's tar to `use_it` and verifies the digests of all of it.
    fn read_layer<T>(
        &self,
        blob: &LayerBlob,
        diff: DiffId,
        use_it: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let failed = |e| Error::io("read", &blob.path, e);
        let mut compressed = Hashing::new(self.source.open(&blob.path)?);
        let mut plain = Hashing::new(compression::decoder(&mut compressed, &blob.path)?);
        let used = use_it(&mut plain);
        // Damage is the reason for whatever it led to: tell of it first.
        let found = plain.finish();
        if let Some(expected) = blob.digest {
            let found = compressed.finish().map_err(failed)?;
            if found != expected {
                return Err(Error::Digest { what: blob.path.clone(), expected, found });
            }
        }
        let found = DiffId(found.map_err(failed)?);
        if found != diff {
            return Err(Error::DiffId { layer: blob.path.clone(), expected: diff, found });
        }
        used.map_err(|e| e.in_layer(&blob.path))
    }

    /// Directories of the stack, the topmost first, in the store or staged.
    fn layers_below(&self, mut at: Option<ChainId>) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        while let Some(chain) = at {
            match self.staged.iter().find(|layer| layer.chain == chain) {
                Some(layer) => {
                    dirs.push(match &layer.unpacked {
                        Some((staging, _)) => staging.path().join("diff"),
                        None => self.store.diff_dir(&layer.diff),
                    });
                    at = layer.parent;
                }
                None => {
                    dirs.push(self.store.layer_dir(&chain)?);
                    at = self.store.parent_of(&chain)?;
                }
            }
        }
        Ok(dirs)
    }

    /// Brings layers, then configs and names into the store.
    fn publish(self, plans: &[Plan]) -> Result<Report> {
        for layer in &self.staged {
            let StagedLayer { chain, parent, diff, unpacked } = layer;
            match unpacked {
                None => self.store.reuse_layer(*chain, *parent, *diff)?,
                Some((staging, unpacked)) => self.store.add_layer(&NewLayer {
                    staging: staging.path(),
                    diff: *diff,
                    chain: *chain,
                    parent: *parent,
                    size: unpacked.size,
                    depends_on_parent: unpacked.depends_on_parent,
                })?,
            }
        }
        let mut report = Report { images: Vec::new(), left_out: self.left_out };
        for plan in plans {
            let id = self.store.add_image(&plan.config, &plan.names)?;
            if plan.names.is_empty() {
                report.images.push(Loaded::Unnamed(id));
            }
            report.images.extend(plan.names.iter().cloned().map(Loaded::Named));
        }
        Ok(report)
    }
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
