//! Layers in the store: by ChainID in the database, by DiffID on disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

use super::digest::{ChainId, DiffId, Digest, NotADigest};
use super::layer_files::LayerFiles;
use super::{Error, Result, Store, io_error};

/// Digits of the short names in `l/`.
const SHORT_LEN: usize = 26;
/// In the record of a stack that takes nothing from itself.
const NOTHING: &str = "nothing";

impl Store {
    /// Where the layers' database keeps a stack.
    pub(super) fn chain_path(&self, chain: &ChainId) -> PathBuf {
        self.root.join("image/layerdb/sha256").join(chain.hex())
    }

    /// The home of the layer with this DiffID.
    pub fn layer_files(&self, diff: &DiffId) -> LayerFiles {
        LayerFiles::new(&self.layer_home(&diff.hex()))
    }

    pub(super) fn layer_home(&self, cache_id: &str) -> PathBuf {
        self.root.join("layers").join(cache_id)
    }

    /// Whether the layer with this DiffID is in the store.
    pub fn has_layer(&self, diff: &DiffId) -> bool {
        self.layer_files(diff).is_complete()
    }

    /// The directory of the stack's topmost layer.
    pub fn layer_dir(&self, chain: &ChainId) -> Result<PathBuf> {
        Ok(self.layer_home(&self.cache_id(chain)?).join("diff"))
    }

    pub(super) fn cache_id(&self, chain: &ChainId) -> Result<String> {
        let cache_id = self.read_chain_file(chain, "cache-id")?;
        Digest::from_hex(&cache_id).map_err(|e| self.damaged_chain(chain, "cache-id", &e))?;
        Ok(cache_id)
    }

    /// The DiffID of the stack's topmost layer.
    pub fn diff_of(&self, chain: &ChainId) -> Result<DiffId> {
        let text = self.read_chain_file(chain, "diff")?;
        let digest = text.parse().map_err(|e: NotADigest| self.damaged_chain(chain, "diff", &e));
        digest.map(DiffId)
    }

    /// Bytes of the files of the stack's topmost layer.
    pub fn layer_size(&self, chain: &ChainId) -> Result<u64> {
        let text = self.read_chain_file(chain, "size")?;
        text.parse().map_err(|_| self.damaged_chain(chain, "size", &format!("{text:?} is no size")))
    }

    /// Checks that a stack's record says what it must.
    ///
    /// # Errors
    /// `Damaged`, or `Io` where a part of it cannot be read.
    pub fn check_chain(&self, chain: &ChainId, diff: &DiffId) -> Result<()> {
        if self.diff_of(chain)? != *diff {
            return Err(self.damaged_chain(chain, "diff", &format!("the layer is {diff}")));
        }
        if self.cache_id(chain)? != diff.hex() {
            return Err(self.damaged_chain(chain, "cache-id", &format!("the layer is {diff}")));
        }
        self.layer_size(chain).map(drop)
    }

    fn read_chain_file(&self, chain: &ChainId, name: &str) -> Result<String> {
        let path = self.chain_path(chain).join(name);
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        Ok(text.trim_end().to_owned())
    }

    fn damaged_chain(&self, chain: &ChainId, name: &str, reason: &dyn std::fmt::Display) -> Error {
        Error::Damaged {
            path: self.chain_path(chain).join(name).display().to_string(),
            reason: reason.to_string(),
        }
    }

    /// Brings an unpacked layer into the store, by one rename. It is complete and synced.
    pub(crate) fn add_layer(&self, diff: &DiffId, built: &Path) -> Result<()> {
        let home = self.layer_files(diff);
        let failed = |error: std::io::Error| io_error("add layer", home.home())(error);
        match fs::rename(built, home.home()) {
            Ok(()) => {}
            // Another load was faster: it has verified the same digest.
            Err(_) if home.is_complete() => {}
            // What an older plyfs unpacked cannot be written again.
            Err(_) if home.home().is_dir() => {
                let flags = RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, built, cwd, home.home(), flags)
                    .map_err(|errno| failed(errno.into()))?;
            }
            Err(error) => return Err(failed(error)),
        }
        self.link_short_name(&diff.hex())
    }

    fn link_short_name(&self, cache_id: &str) -> Result<()> {
        let path = self.short_name(cache_id);
        match symlink(format!("../layers/{cache_id}/diff"), &path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(io_error("link", &path)(e))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn short_name(&self, cache_id: &str) -> PathBuf {
        self.root.join("l").join(cache_id[..SHORT_LEN].to_uppercase())
    }

    /// Writes a stack's record into `dir`; the layer's files are at `layer`.
    pub(crate) fn write_chain(&self, dir: &Path, record: &NewChain) -> Result<()> {
        let NewChain { parent, diff, layer, has_inherited, chain } = record;
        let write = || -> std::io::Result<()> {
            fs::create_dir(dir)?;
            fs::write(dir.join("diff"), diff.to_string())?;
            if let Some(parent) = parent {
                fs::write(dir.join("parent"), parent.to_string())?;
            }
            fs::copy(layer.home().join("size"), dir.join("size"))?;
            let target = format!("../../../../layers/{}/tar-split.json.gz", diff.hex());
            symlink(target, dir.join("tar-split.json.gz"))?;
            if let Some(has_inherited) = has_inherited {
                fs::write(dir.join("inherited"), inherited_text(chain, *has_inherited))?;
            }
            fs::write(dir.join("cache-id"), diff.hex())
        };
        write().map_err(io_error("write", dir))
    }

    /// Brings a stack's record into the store, or what it says of inheritance.
    pub(crate) fn add_chain(&self, built: &Path, record: &NewChain) -> Result<()> {
        let home = self.chain_path(&record.chain);
        // What a killed process has left of one is none.
        if self.check_chain(&record.chain, &record.diff).is_err() {
            if !home.exists() {
                return fs::rename(built, &home).map_err(io_error("add", &home));
            }
            // What another image says with it stays.
            if record.has_inherited.is_none()
                && let Ok(Some(text)) = self.inherited_text(&record.chain)
            {
                let path = built.join("inherited");
                fs::write(&path, text).map_err(io_error("write", &path))?;
            }
            let cwd = rustix::fs::CWD;
            let exchanged =
                rustix::fs::renameat_with(cwd, built, cwd, &home, RenameFlags::EXCHANGE);
            return exchanged.map_err(|errno| io_error("add", &home)(errno.into()));
        }
        match record.has_inherited {
            Some(has_inherited) => {
                let text = inherited_text(&record.chain, has_inherited);
                if self.inherited_text(&record.chain)?.as_ref() == Some(&text) {
                    return Ok(());
                }
                self.write_atomically(&home.join("inherited"), text.as_bytes())?;
                super::sync_dir(&home)
            }
            None => Ok(()),
        }
    }

    /// The directory that holds what the stack's layers take from those below, if they take
    /// anything.
    pub(crate) fn inherited(&self, chain: &ChainId) -> Result<Option<PathBuf>> {
        let Some(text) = self.inherited_text(chain)?.filter(|text| text != NOTHING) else {
            return Ok(None);
        };
        Digest::from_hex(&text).map_err(|e| self.damaged_chain(chain, "inherited", &e))?;
        Ok(Some(self.layer_home(&text).join("diff")))
    }

    /// What the stack's record says; none if the stack is no whole image.
    fn inherited_text(&self, chain: &ChainId) -> Result<Option<String>> {
        match self.chain_path(chain).join("inherited").exists() {
            true => self.read_chain_file(chain, "inherited").map(Some),
            false => Ok(None),
        }
    }

    /// Brings what a stack inherits into the store.
    pub(crate) fn add_inherited(&self, chain: &ChainId, built: &Path) -> Result<()> {
        let home = self.layer_home(&chain.hex());
        match fs::rename(built, &home) {
            Err(_) if home.is_dir() => {} // another process made the same
            result => result.map_err(io_error("add layer", &home))?,
        }
        self.link_short_name(&chain.hex())
    }

    /// Makes renames into directories of the store last.
    pub(crate) fn sync_names(&self, dirs: &[&str]) -> Result<()> {
        for dir in dirs {
            super::sync_dir(&self.root.join(dir))?;
        }
        Ok(())
    }
}

/// The record of a stack that is new.
#[derive(Debug)]
pub(crate) struct NewChain {
    /// The stack.
    pub(crate) chain: ChainId,
    /// The one below its topmost layer.
    pub(crate) parent: Option<ChainId>,
    /// Its topmost layer.
    pub(crate) diff: DiffId,
    /// That layer's files.
    pub(crate) layer: LayerFiles,
    /// Of a whole image: whether its layers take something from one another.
    pub(crate) has_inherited: Option<bool>,
}

fn inherited_text(chain: &ChainId, has_inherited: bool) -> String {
    if has_inherited { chain.hex() } else { NOTHING.to_owned() }
}
