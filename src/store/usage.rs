//! What images take on disk: each layer counts once, whichever images share it.

use std::collections::{HashMap, HashSet};
use std::fs;

use super::digest::{DiffId, ImageId};
use super::layer_files::LayerFiles;
use super::reference::Name;
use super::{Result, Store, io_error};

/// What one image takes.
#[derive(Debug)]
pub struct ImageUsage {
    /// Its ID.
    pub id: ImageId,
    /// Its names.
    pub names: Vec<Name>,
    /// Bytes of the files in all its layers.
    pub size: u64,
    /// Those of layers that other images have too.
    pub shared: u64,
    /// Writable layers upon it.
    pub containers: usize,
}

/// What all images take.
#[derive(Debug)]
pub struct Usage {
    /// Each of them.
    pub images: Vec<ImageUsage>,
    /// Bytes of the files in all layers of the store.
    pub total: u64,
    /// Those of layers that no image has.
    pub reclaimable: u64,
}

impl Store {
    /// Counts what images take.
    pub fn usage(&self) -> Result<Usage> {
        let containers = self.containers()?;
        let mut users: HashMap<DiffId, HashSet<ImageId>> = HashMap::new();
        let mut layers: Vec<(ImageId, Vec<DiffId>)> = Vec::new();
        for id in self.image_ids()? {
            let mut diffs = Vec::new();
            for chain in self.chain_ids(&id)? {
                let diff = self.diff_of(&chain)?;
                users.entry(diff).or_default().insert(id);
                diffs.push(diff);
            }
            layers.push((id, diffs));
        }
        let mut images = Vec::new();
        for (id, diffs) in layers {
            let mut usage = ImageUsage {
                id,
                names: self.names_of(&id)?,
                size: 0,
                shared: 0,
                containers: containers.iter().filter(|c| c.image_id == id).count(),
            };
            // A layer that a stack has twice lies there once.
            for diff in diffs.into_iter().collect::<HashSet<_>>() {
                let size = self.layer_files(&diff).size()?;
                usage.size += size;
                usage.shared += if users[&diff].len() > 1 { size } else { 0 };
            }
            images.push(usage);
        }
        images.sort_by(|a, b| (&a.names, a.id).cmp(&(&b.names, b.id)));
        let (mut total, mut used) = (0, 0);
        let dir = self.root.join("layers");
        for entry in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let home = entry.map_err(io_error("read", &dir))?.path();
            total += LayerFiles::new(&home).size().unwrap_or(0); // what is inherited has no size
        }
        for diff in users.keys() {
            used += self.layer_files(diff).size()?;
        }
        Ok(Usage { images, total, reclaimable: total.saturating_sub(used) })
    }
}
