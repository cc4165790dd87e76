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
    /// The merged index of an image, whose layers are these directories; `None` if they can have
    /// none.
    pub fn merged_index(&self, image: &ImageId, layers: &[PathBuf]) -> Result<Option<PathBuf>> {
        let Some(top) = self.chain_ids(image)?.pop() else {
            return Ok(None); // no layer
        };
        let path = self.chain_path(&top).join(NAME);
        if is_index_of(&path, layers) {
            return Ok(Some(path));
        }
        let mut options = MountOptions::new(layers.to_vec());
        options.ownership = image_ownership(layers);
        options.lower_devices = true;
        match self.write_index(&options, &path) {
            Ok(is_written) => Ok(is_written.then_some(path)),
            Err(reason) => {
                log::debug!("index {}: {reason}", image.hex()); // a mount does without
                Ok(None)
            }
        }
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

/// Who owns the files of an image's layers: who could not give a layer's files to their owners keeps
/// them in xattrs, and tells so on the layer's root. An image cannot: those xattrs are not unpacked.
pub fn image_ownership(layers: &[PathBuf]) -> Ownership {
    let is_kept = |dir: &PathBuf| {
        let kept = sys::open_dir(dir).and_then(|root| OverrideXattr::of_layer(root.as_fd()));
        kept == Ok(Some(OverrideXattr::Containers))
    };
    let mut ownership = Ownership { overrides: Overrides::No, ..Ownership::default() };
    if layers.iter().any(is_kept) {
        ownership.overrides = Overrides::In(OverrideXattr::Containers);
        ownership.symlinks_are = Some((0, 0));
    }
    ownership
}

/// Whether the index is there, and that of these layers.
fn is_index_of(path: &Path, layers: &[PathBuf]) -> bool {
    let root = |dir: &PathBuf| Ok(LayerRoot::of(&sys::fstat(sys::open_dir(dir)?)?));
    let roots: sys::Result<Vec<LayerRoot>> = layers.iter().map(root).collect();
    roots.is_ok_and(|roots| MergedIndex::open(path, &roots).is_ok_and(|index| index.is_some()))
}
