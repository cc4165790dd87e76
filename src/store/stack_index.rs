//! The merged index of an image's layers (see [`crate::layers::merged_index`]): made once, beside
//! the record of the topmost one, and anew where the layers are not those that it was made of (a
//! copied store).

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::digest::ImageId;
use super::{Result, Store};
use crate::layers::merged_index::{LayerRoot, MergedIndex};
use crate::layers::override_stat::OverrideXattr;
use crate::overlay::{MountOptions, Overlay, Overrides, Ownership};
use crate::sys;

const NAME: &str = "merged-index";

impl Store {
    /// How an image's layers are mounted: with their merged index, which is made if it is not there,
    /// if they can have one.
    pub fn mount_options(&self, image: &ImageId) -> Result<MountOptions> {
        let mut options = MountOptions::new(self.layer_dirs(image)?);
        options.lower_devices = true;
        options.ownership = ownership(false);
        let Some(top) = self.chain_ids(image)?.pop() else {
            return Ok(options); // no layer
        };
        let path = self.chain_path(&top).join(NAME);
        if let Some(index) = index_of(&path, &options.lowers) {
            options.ownership = ownership(index.has_overrides());
            options.merged_index = Some(path);
            return Ok(options);
        }
        options.ownership = ownership(options.lowers.iter().any(|layer| keeps_owners(layer)));
        match self.write_index(&options, &path) {
            Ok(is_written) => options.merged_index = is_written.then_some(path),
            Err(reason) => log::debug!("index {}: {reason}", image.hex()), // a mount does without
        }
        Ok(options)
    }

    /// Makes an index; false if there can be none.
    fn write_index(
        &self,
        options: &MountOptions,
        path: &Path,
    ) -> std::result::Result<bool, String> {
        let staging = self.staging().map_err(|e| e.to_string())?;
        let union = Overlay::open(options).map_err(|e| e.to_string())?;
        let built = staging.path().join(NAME);
        let failed = |e: std::io::Error| format!("write {}: {e}", built.display());
        let mut out = BufWriter::new(File::create_new(&built).map_err(failed)?);
        if !union.build_index(&mut out, staging.path()).map_err(|e| e.to_string())? {
            return Ok(false);
        }
        let file = out.into_inner().map_err(|e| failed(e.into()))?;
        file.sync_all().and_then(|()| fs::rename(&built, path)).map_err(failed)?;
        Ok(true)
    }
}

/// Whether a layer's files have owners that who unpacked it could not give them: then xattrs have
/// them, which its root tells. An image cannot say so: those xattrs are not unpacked.
fn keeps_owners(layer: &Path) -> bool {
    let kept = sys::open_dir(layer).and_then(|root| OverrideXattr::of_layer(root.as_fd()));
    kept == Ok(Some(OverrideXattr::Containers))
}

/// Who owns the files of an image, of whose layers some keep owners in xattrs or none does.
fn ownership(keeps_owners: bool) -> Ownership {
    let overrides = match keeps_owners {
        true => Overrides::In(OverrideXattr::Containers),
        false => Overrides::No,
    };
    let symlinks_are = keeps_owners.then_some((0, 0));
    Ownership { overrides, symlinks_are, ..Ownership::default() }
}

/// The index, if it is there and that of these layers.
fn index_of(path: &Path, layers: &[PathBuf]) -> Option<MergedIndex> {
    let root = |dir: &PathBuf| Ok(LayerRoot::of(&sys::fstat(sys::open_dir(dir)?)?));
    let roots: sys::Result<Vec<LayerRoot>> = layers.iter().map(root).collect();
    MergedIndex::open(path, &roots.ok()?).ok()?
}
