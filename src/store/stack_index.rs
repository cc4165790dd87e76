//! The merged index of an image's layers (see [`crate::layers::merged_index`]): made once, beside
//! the record of the topmost one, and anew where the layers are not those that it was made of (a
//! copied store).

use std::path::PathBuf;

use super::digest::ImageId;
use super::{Result, Store};
use crate::overlay::{MountOptions, Overlay, Overrides};

const NAME: &str = "merged-index";

impl Store {
    /// The merged index of an image's layers; `None` if they can have none.
    pub fn merged_index(&self, image: &ImageId) -> Result<Option<PathBuf>> {
        let Some(top) = self.chain_ids(image)?.pop() else {
            return Ok(None); // no layer
        };
        let path = self.chain_path(&top).join(NAME);
        let mut layers = MountOptions::new(self.layer_dirs(image)?);
        layers.merged_index = Some(path.clone());
        // As images are mounted: what an xattr says of a file makes it no other one.
        layers.ownership.overrides = Overrides::No;
        let open = |options: &MountOptions| {
            Overlay::open(options)
                .inspect_err(|error| log::debug!("index {}: {error}", image.hex()))
                .ok()
        };
        let Some(union) = open(&layers) else { return Ok(None) };
        if union.is_indexed_stack() {
            return Ok(Some(path));
        }
        match union.build_index() {
            Ok(Some(index)) => match self.write_atomically(&path, &index) {
                Ok(()) => Ok(Some(path)),
                Err(error) => {
                    log::debug!("index {}: {error}", image.hex()); // a mount does without
                    Ok(None)
                }
            },
            Ok(None) => Ok(None),
            Err(error) => {
                log::debug!("index {}: {error}", image.hex());
                Ok(None)
            }
        }
    }
}
