//! What images take on disk: each layer counts once, whichever images share it.

use std::collections::{HashMap, HashSet};
use std::fs;

use super::digest::ImageId;
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
    /// Bytes of the files in all its layers, and of those that the layers take from one another.
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
    /// Bytes of the files in all layers of the store, and of blobs that are kept.
    pub total: u64,
    /// Those of layers and blobs that no image has.
    pub reclaimable: u64,
}

impl Store {
    /// Counts what images take.
    pub fn usage(&self) -> Result<Usage> {
        let _lock = self.lock_shared()?;
        let containers = self.containers()?;
        let names = self.names()?;
        // What lies below layers/, by name: bytes, and the images that have it.
        let mut users: HashMap<String, HashSet<ImageId>> = HashMap::new();
        let mut images = Vec::new();
        for id in self.image_ids()? {
            for home in self.layer_dirs(&id)? {
                let cache_id = home.iter().nth_back(1).unwrap_or_default().to_string_lossy();
                users.entry(cache_id.into_owned()).or_default().insert(id);
            }
            let own = names.iter().filter(|(_, of)| *of == id);
            images.push(ImageUsage {
                id,
                names: own.map(|(name, _)| name.clone()).collect(),
                size: 0,
                shared: 0,
                containers: containers.iter().filter(|c| c.image_id == id).count(),
            });
        }
        let mut usage = Usage { images, total: 0, reclaimable: 0 };
        let dir = self.root.join("layers");
        for entry in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let home = entry.map_err(io_error("read", &dir))?.path();
            let size = LayerFiles::new(&home).size().unwrap_or(0); // the empty layer has none
            usage.total += size;
            let name = home.file_name().unwrap_or_default().to_string_lossy();
            let Some(users) = users.get(&*name) else {
                usage.reclaimable += size;
                continue;
            };
            for image in usage.images.iter_mut().filter(|image| users.contains(&image.id)) {
                image.size += size;
                image.shared += if users.len() > 1 { size } else { 0 };
            }
        }
        let (kept, unused) = self.kept_bytes()?;
        usage.total += kept;
        usage.reclaimable += unused;
        usage.images.sort_by(|a, b| (&a.names, a.id).cmp(&(&b.names, b.id)));
        Ok(usage)
    }
}
