//! Removing images, and what nothing uses any more.
//!
//! All of it happens under the store's lock, so that no load brings in what is being removed; what
//! a load relies on is pinned (see `staging`). Trees leave by one rename, and are deleted when the
//! lock is free again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::blobs::blobs_of;
use super::digest::{ChainId, DiffId, Digest, ImageId};
use super::layer_files::LayerFiles;
use super::reference::Name;
use super::staging::remove_all;
use super::{Error, Result, Staging, Store, io_error};

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that stand for nothing any more.
    pub names: Vec<Name>,
    /// Images.
    pub images: Vec<ImageId>,
    /// Stacks that no image has.
    pub chains: Vec<ChainId>,
    /// Layers that no stack has: directories below `layers/`.
    pub layers: u64,
    /// Bytes that the layers and kept blobs took.
    pub bytes: u64,
}

/// What images use.
#[derive(Default)]
struct Used {
    chains: HashSet<ChainId>,
    cache_ids: HashSet<String>,
    diffs: HashSet<DiffId>,
    blobs: HashSet<Digest>,
}

impl Store {
    /// Removes a name of an image; with its last name, or by its ID, the image itself, and what
    /// only it used.
    ///
    /// # Errors
    /// `ImageInUse` if a container or a mount uses it, `SeveralNames` if it is asked for by an ID
    /// and has names in several repositories (unless `force`).
    pub fn remove_image(&self, asked: &str, force: bool) -> Result<Removed> {
        let trash = self.staging()?;
        let lock = self.lock()?;
        let id = self.find_image(asked)?;
        let names = self.names_of(&id)?;
        let asked_name = Name::parse(asked).ok().filter(|name| names.contains(name));
        let mut removed = Removed::default();
        match asked_name {
            Some(name) if names.len() > 1 => {
                self.untag_locked(std::slice::from_ref(&name))?;
                removed.names.push(name);
                return Ok(removed);
            }
            None if has_several_repositories(&names) && !force => {
                let names: Vec<String> = names.iter().map(Name::to_string).collect();
                let (image, names) = (asked.to_owned(), names.join(", "));
                return Err(Error::SeveralNames { image, names });
            }
            _ => {}
        }
        let _held = self.claim_locked(&id, asked)?;
        let used = self.used(Some(&id))?;
        removed.names = names;
        // Its names end with it (see `read_repositories`).
        let path = self.image_path(&id);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        removed.images.push(id);
        self.sweep_locked(&used, &trash, &mut removed)?;
        let untagged = self.untag_locked(&[]);
        drop(lock);
        drop(trash);
        if untagged.is_err() {
            // The disk was full.
            let _lock = self.lock()?;
            self.untag_locked(&[])?;
        }
        Ok(removed)
    }

    /// Removes all that no image uses, and what killed processes left.
    pub fn collect_garbage(&self) -> Result<Removed> {
        let lock = self.lock()?;
        self.remove_leftovers_locked()?;
        drop(lock);
        let trash = self.staging()?;
        let lock = self.lock()?;
        let mut removed = Removed::default();
        self.sweep_locked(&self.used(None)?, &trash, &mut removed)?;
        self.untag_locked(&[])?;
        drop(lock);
        empty(&trash)?;
        Ok(removed)
    }

    /// Makes sure that nothing uses the image.
    fn claim_locked(&self, id: &ImageId, asked: &str) -> Result<File> {
        let in_use = |holder: String| Error::ImageInUse { image: asked.to_owned(), holder };
        // One that cannot be read may be upon it.
        let mut containers = self.all_containers()?.into_iter();
        let container = containers.find_map(|container| match container {
            Ok(container) if container.image_id != *id => None,
            other => Some(other),
        });
        let container = container.transpose().map_err(|error| match error {
            Error::Damaged { path, reason } => {
                let reason = format!(
                    "{reason}: it may be upon this image; if it is of no use, remove its directory"
                );
                Error::Damaged { path, reason }
            }
            error => error,
        })?;
        if let Some(container) = container {
            let name = container.name;
            return Err(in_use(format!("writable layer {name} is upon it (plyfs rm {name})")));
        }
        let path = self.image_path(id);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(in_use("it is mounted or being read".to_owned()))
            }
            Err(errno) => Err(io_error("lock", &path)(errno.into())),
        }
    }

    /// What images use, but for one that goes.
    fn used(&self, except: Option<&ImageId>) -> Result<Used> {
        let mut used = Used::default();
        for id in self.image_ids()?.into_iter().filter(|id| Some(id) != except) {
            let chains = self.chain_ids(&id)?;
            if let Some(top) = chains.last()
                && self.inherited(top)?.is_some()
            {
                used.cache_ids.insert(top.hex());
            }
            for chain in chains {
                used.cache_ids.insert(self.cache_id(&chain)?);
                used.diffs.insert(self.diff_of(&chain)?);
                used.chains.insert(chain);
            }
            if let Some(manifest) = self.kept_manifest(&id)? {
                used.blobs.insert(Digest::of(&manifest));
                used.blobs.extend(blobs_of(&manifest));
            }
        }
        Ok(used)
    }

    /// Bytes of all kept blobs, and of those that no image has.
    pub(super) fn kept_bytes(&self) -> Result<(u64, u64)> {
        let used = self.used(None)?.blobs;
        let (mut all, mut unused) = (0, 0);
        for (name, path) in entries(&self.blobs_dir())? {
            let size = fs::metadata(&path).map_or(0, |meta| meta.len());
            all += size;
            let is_used = Digest::from_hex(&name).is_ok_and(|blob| used.contains(&blob));
            unused += if is_used { 0 } else { size };
        }
        Ok((all, unused))
    }

    /// Takes out of the store what nothing uses. The caller has the store's lock.
    fn sweep_locked(&self, used: &Used, trash: &Staging, removed: &mut Removed) -> Result<()> {
        let pinned: HashSet<DiffId> = self.pinned_locked()?;
        let is_layer_used = |cache_id: &str| {
            let is_pinned =
                || Digest::from_hex(cache_id).is_ok_and(|d| pinned.contains(&DiffId(d)));
            used.cache_ids.contains(cache_id) || cache_id == "empty" || is_pinned()
        };
        for (name, path) in entries(&self.root.join("image/layerdb/sha256"))? {
            let chain = Digest::from_hex(&name).map(ChainId).ok();
            if !chain.is_some_and(|chain| used.chains.contains(&chain)) {
                discard(&path, trash, &format!("chain-{name}"))?;
                removed.chains.extend(chain);
            }
        }
        for (name, path) in entries(&self.root.join("layers"))? {
            if is_layer_used(&name) {
                continue;
            }
            removed.bytes += LayerFiles::new(&path).size().unwrap_or(0);
            removed.layers += 1;
            discard(&path, trash, &name)?;
        }
        for (_, path) in entries(&self.root.join("l"))? {
            let target = fs::read_link(&path).unwrap_or_default();
            let cache_id = target.iter().nth(2).and_then(|part| part.to_str());
            if !cache_id.is_some_and(is_layer_used) {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        // What refers to blobs goes before them.
        for (name, path) in entries(&self.root.join("image/imagedb/metadata/sha256"))? {
            let id = Digest::from_hex(&name).map(ImageId);
            if !id.is_ok_and(|id| self.image_path(&id).exists()) {
                discard(&path, trash, &format!("metadata-{name}"))?;
            }
        }
        self.sweep_blobs(used, &pinned, removed)
    }

    fn sweep_blobs(
        &self,
        used: &Used,
        pinned: &HashSet<DiffId>,
        removed: &mut Removed,
    ) -> Result<()> {
        let digest = |name: &str| Digest::from_hex(name).ok();
        for (name, path) in entries(&self.known_blobs_dir())? {
            let diff = digest(&name).map(|blob| self.diff_of_blob(&blob)).transpose()?.flatten();
            if !diff.is_some_and(|diff| used.diffs.contains(&diff) || pinned.contains(&diff)) {
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        for (name, path) in entries(&self.blobs_dir())? {
            if !digest(&name).is_some_and(|blob| used.blobs.contains(&blob)) {
                removed.bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

fn has_several_repositories(names: &[Name]) -> bool {
    names.iter().any(|name| name.repository() != names[0].repository())
}

/// Takes a directory away, whole, into the trash.
fn discard(path: &Path, trash: &Staging, name: &str) -> Result<()> {
    fs::rename(path, trash.path().join(name)).map_err(io_error("remove", path))
}

/// Names and paths in a directory; none if it is not there.
fn entries(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let listed = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(io_error("read", dir))?,
    };
    listed
        .map(|entry| {
            let entry = entry.map_err(io_error("read", dir))?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
        })
        .collect()
}

fn empty(trash: &Staging) -> Result<()> {
    for (_, path) in entries(trash.path())? {
        remove_all(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}
