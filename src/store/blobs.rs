//! Layers as they were compressed: which blob holds which layer, and blobs that are kept.
//!
//! ```text
//! ROOT/image/distribution/diffid-by-digest/sha256/<hex>   the DiffID of a blob that was verified
//! ROOT/image/blobs/sha256/<hex>                           a blob that is kept (`load --keep-blobs`)
//! ROOT/image/imagedb/metadata/sha256/<ImageID>/manifest   the digest of the image's manifest
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::digest::{DiffId, Digest, ImageId};
use super::{Result, Store, io_error};

impl Store {
    pub(super) fn blobs_dir(&self) -> PathBuf {
        self.root.join("image/blobs/sha256")
    }

    pub(super) fn known_blobs_dir(&self) -> PathBuf {
        self.root.join("image/distribution/diffid-by-digest/sha256")
    }

    pub(super) fn metadata_dir(&self, id: &ImageId) -> PathBuf {
        self.root.join("image/imagedb/metadata/sha256").join(id.hex())
    }

    /// The layer that a blob was seen to hold.
    pub fn diff_of_blob(&self, blob: &Digest) -> Result<Option<DiffId>> {
        let path = self.known_blobs_dir().join(blob.hex());
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            // What makes no sense is no help, and no harm.
            text => Ok(text.map_err(io_error("read", &path))?.trim_end().parse().ok().map(DiffId)),
        }
    }

    /// Notes which layer a blob holds.
    pub(crate) fn note_blob(&self, blob: &Digest, diff: &DiffId) -> Result<()> {
        if self.diff_of_blob(blob)? == Some(*diff) {
            return Ok(());
        }
        // Not synced: what a crash leaves of it makes no sense, and is passed over.
        let dir = self.known_blobs_dir();
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&dir)?;
            let mut file = tempfile::NamedTempFile::new_in(self.root.join("tmp"))?;
            std::io::Write::write_all(&mut file, diff.to_string().as_bytes())?;
            file.persist(dir.join(blob.hex())).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(io_error("write", &dir))
    }

    /// Brings blobs into the store that were verified and synced in the directory `from`.
    pub(crate) fn add_blobs(&self, from: &Path, blobs: impl Iterator<Item = Digest>) -> Result<()> {
        let dir = self.blobs_dir();
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        for blob in blobs {
            let (built, home) = (from.join(blob.hex()), dir.join(blob.hex()));
            if built.exists() {
                fs::rename(&built, &home).map_err(io_error("add", &home))?;
            }
        }
        super::sync_dir(&dir)
    }

    /// Notes the manifest that an image came with.
    pub(crate) fn note_manifest(&self, config: &[u8], manifest: &Digest) -> Result<()> {
        let path = self.metadata_dir(&ImageId(Digest::of(config))).join("manifest");
        self.write_atomically(&path, manifest.to_string().as_bytes())
    }

    /// The digest of the manifest that an image came with, if that is kept.
    pub fn manifest_digest(&self, id: &ImageId) -> Result<Option<Digest>> {
        let path = self.metadata_dir(id).join("manifest");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => Ok(text.map_err(io_error("read", &path))?.trim_end().parse().ok()),
        }
    }

    /// The manifest that an image came with, if it is kept.
    pub fn kept_manifest(&self, id: &ImageId) -> Result<Option<Vec<u8>>> {
        let Some(digest) = self.manifest_digest(id)? else { return Ok(None) };
        let path = self.kept_blob(&digest);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => Ok(text.map(Some).map_err(io_error("read", &path))?),
        }
        .map(|text| text.filter(|text| Digest::of(text) == digest))
    }

    /// Where a blob is, if it is kept.
    pub fn kept_blob(&self, blob: &Digest) -> PathBuf {
        self.blobs_dir().join(blob.hex())
    }
}

/// The layers' blobs of a kept manifest.
pub(crate) fn blobs_of(manifest: &[u8]) -> Vec<Digest> {
    let manifest: Manifest = serde_json::from_slice(manifest).unwrap_or_default();
    manifest.layers.iter().filter_map(|layer| layer.digest.parse().ok()).collect()
}

/// What is read of a kept manifest.
#[derive(Default, serde::Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(serde::Deserialize)]
struct Layer {
    digest: String,
}
