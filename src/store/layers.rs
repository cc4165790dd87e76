//! Layers in the store: by ChainID in the database, by cache-id on disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::digest::{ChainId, DiffId, Digest};
use super::{Error, Result, Store, io_error};

/// Digits of the short names in `l/`.
const SHORT_LEN: usize = 26;
/// Marks a layer that any stack may use. (The lowest layer of a stack has its DiffID as its
/// ChainID, so the cache-id alone does not tell.)
const SELF_CONTAINED: &str = "self-contained";

/// A layer that was unpacked into a staging directory.
#[derive(Debug)]
pub struct NewLayer<'a> {
    /// The staging directory; holds `diff/`.
    pub staging: &'a Path,
    /// The digest of its tar.
    pub diff: DiffId,
    /// The stack that it completes.
    pub chain: ChainId,
    /// The stack below it.
    pub parent: Option<ChainId>,
    /// Bytes of its files.
    pub size: u64,
    /// Whether it took anything from the stack below.
    pub depends_on_parent: bool,
}

impl Store {
    /// Where the layers' database keeps a stack.
    pub(super) fn chain_path(&self, chain: &ChainId) -> PathBuf {
        self.root.join("image/layerdb/sha256").join(chain.hex())
    }

    /// Whether the stack is in the store.
    pub fn has_chain(&self, chain: &ChainId) -> bool {
        self.layer_dir(chain).is_ok_and(|dir| dir.is_dir())
    }

    /// Whether a layer with this DiffID is unpacked that any stack may use.
    pub fn has_layer(&self, diff: &DiffId) -> bool {
        self.diff_dir(diff).with_file_name(SELF_CONTAINED).exists()
    }

    /// The directory of a layer that any stack may use.
    pub fn diff_dir(&self, diff: &DiffId) -> PathBuf {
        self.root.join("layers").join(diff.hex()).join("diff")
    }

    /// The directory of the stack's topmost layer.
    pub fn layer_dir(&self, chain: &ChainId) -> Result<PathBuf> {
        let cache_id = self.read_chain_file(chain, "cache-id")?;
        let path = self.chain_path(chain).join("cache-id");
        Digest::from_hex(&cache_id).map_err(|e| Error::Damaged {
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
        Ok(self.root.join("layers").join(cache_id).join("diff"))
    }

    /// The stack below.
    pub fn parent_of(&self, chain: &ChainId) -> Result<Option<ChainId>> {
        let path = self.chain_path(chain).join("parent");
        if !path.exists() {
            return Ok(None);
        }
        let text = self.read_chain_file(chain, "parent")?;
        let digest = text.parse().map_err(|e: super::digest::NotADigest| Error::Damaged {
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
        Ok(Some(ChainId(digest)))
    }

    pub(crate) fn layer_size(&self, chain: &ChainId) -> Result<u64> {
        let text = self.read_chain_file(chain, "size")?;
        text.parse().map_err(|_| Error::Damaged {
            path: self.chain_path(chain).join("size").display().to_string(),
            reason: format!("{text:?} is no size"),
        })
    }

    fn read_chain_file(&self, chain: &ChainId, name: &str) -> Result<String> {
        let path = self.chain_path(chain).join(name);
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        Ok(text.trim_end().to_owned())
    }

    /// Notes that the stack's topmost layer is the one unpacked with this DiffID.
    pub fn reuse_layer(&self, chain: ChainId, parent: Option<ChainId>, diff: DiffId) -> Result<()> {
        let path = self.root.join("layers").join(diff.hex()).join("size");
        let size = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        self.write_chain(chain, parent, diff, &diff.0.hex(), size.trim_end())
    }

    /// Makes an unpacked layer appear in the store. It is complete and synced.
    pub fn add_layer(&self, layer: &NewLayer<'_>) -> Result<()> {
        let cache_id = if layer.depends_on_parent { layer.chain.hex() } else { layer.diff.hex() };
        let size = layer.size.to_string();
        let size_path = layer.staging.join("size");
        fs::write(&size_path, &size).map_err(io_error("write", &size_path))?;
        if !layer.depends_on_parent {
            let mark = layer.staging.join(SELF_CONTAINED);
            fs::write(&mark, "").map_err(io_error("write", &mark))?;
        }
        let home = self.root.join("layers").join(&cache_id);
        match fs::rename(layer.staging, &home) {
            Ok(()) => {}
            // Another load was faster: it has verified the same digest.
            Err(_) if home.join("diff").is_dir() => {}
            Err(error) => return Err(io_error("add layer", &home)(error)),
        }
        self.link_short_name(&cache_id)?;
        self.write_chain(layer.chain, layer.parent, layer.diff, &cache_id, &size)
    }

    fn link_short_name(&self, cache_id: &str) -> Result<()> {
        let path = self.root.join("l").join(cache_id[..SHORT_LEN].to_uppercase());
        match symlink(format!("../layers/{cache_id}/diff"), &path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(io_error("link", &path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Writes the stack's record; `cache-id` last, which makes it count.
    fn write_chain(
        &self,
        chain: ChainId,
        parent: Option<ChainId>,
        diff: DiffId,
        cache_id: &str,
        size: &str,
    ) -> Result<()> {
        let dir = self.chain_path(&chain);
        self.write_atomically(&dir.join("diff"), diff.to_string().as_bytes())?;
        if let Some(parent) = parent {
            self.write_atomically(&dir.join("parent"), parent.to_string().as_bytes())?;
        }
        self.write_atomically(&dir.join("size"), size.as_bytes())?;
        self.write_atomically(&dir.join("cache-id"), cache_id.as_bytes())
    }
}
