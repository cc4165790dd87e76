//! Images: configs, names, and finding one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::digest::{ChainId, DiffId, Digest, ImageId};
use super::reference::Name;
use super::{Error, Result, Store, io_error};

/// What the store needs of an image's config; the rest is kept as it is.
#[derive(Debug, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// The `rootfs` of a config.
#[derive(Debug, Deserialize)]
pub struct RootFs {
    /// DiffIDs, the lowest layer first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl ImageConfig {
    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }

    /// The layers' DiffIDs, the lowest first.
    pub fn diff_ids(&self) -> std::result::Result<Vec<DiffId>, String> {
        let parse = |text: &String| text.parse::<Digest>().map(DiffId).map_err(|e| e.to_string());
        self.rootfs.diff_ids.iter().map(parse).collect()
    }
}

/// `repositories.json`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Repositories {
    /// Repository -> name:tag -> ImageID.
    #[serde(default)]
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

/// One line of the list of images.
#[derive(Debug)]
pub struct ImageSummary {
    /// One of its names, or none.
    pub name: Option<Name>,
    /// Its ID.
    pub id: ImageId,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// Bytes of the files in all its layers.
    pub size: u64,
}

impl Store {
    /// Adds an image whose layers are all in the store, under these names.
    pub fn add_image(&self, config: &[u8], names: &[Name]) -> Result<ImageId> {
        let id = ImageId(Digest::of(config));
        self.write_atomically(&self.image_path(&id), config)?;
        let _lock = self.lock()?;
        let mut known = self.read_repositories()?;
        for name in names {
            let tags = known.repositories.entry(name.repository().to_owned()).or_default();
            tags.insert(name.to_string(), id.to_string());
        }
        let text = serde_json::to_vec(&known).map_err(|e| self.damaged(&e))?;
        self.write_atomically(&self.repositories_path(), &text)?;
        Ok(id)
    }

    /// All images, one entry per name, the newest first.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let names = self.names()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            let (config, size) = (self.config(&id)?, self.image_size(&id)?);
            let own: Vec<_> = names.iter().filter(|(_, of)| *of == id).collect();
            let summary = |name| ImageSummary { name, id, created: config.created.clone(), size };
            if own.is_empty() {
                images.push(summary(None));
            }
            images.extend(own.into_iter().map(|(name, _)| summary(Some(name.clone()))));
        }
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
        Ok(images)
    }

    /// The image of this `NAME[:TAG]`, ID, or unambiguous beginning of an ID.
    pub fn find_image(&self, asked: &str) -> Result<ImageId> {
        let names = self.names()?;
        if let Ok(name) = Name::parse(asked)
            && let Some((_, id)) = names.iter().find(|(known, _)| *known == name)
        {
            return Ok(*id);
        }
        let prefix = asked.strip_prefix("sha256:").unwrap_or(asked);
        let ids = self.image_ids()?;
        let fitting: Vec<_> = ids.into_iter().filter(|id| id.hex().starts_with(prefix)).collect();
        match fitting[..] {
            [id] if !prefix.is_empty() => Ok(id),
            [] | [_] => {
                Err(Error::NoImage { asked: asked.to_owned(), nearest: nearest(asked, &names) })
            }
            _ => Err(Error::AmbiguousImage { asked: asked.to_owned(), count: fitting.len() }),
        }
    }

    /// Directories of the image's layers, the topmost first.
    pub fn layer_dirs(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for chain in self.chain_ids(id)? {
            dirs.push(self.layer_dir(&chain)?);
        }
        dirs.reverse();
        if dirs.is_empty() {
            dirs.push(self.empty_layer()?);
        }
        Ok(dirs)
    }

    /// ChainIDs of the image's layers, the lowest first.
    pub(crate) fn chain_ids(&self, id: &ImageId) -> Result<Vec<ChainId>> {
        let diffs = self.config(id)?.diff_ids().map_err(|reason| self.damaged_image(id, reason))?;
        let mut below = None;
        Ok(diffs
            .into_iter()
            .map(|diff| {
                let chain = ChainId::upon(below, diff);
                below = Some(chain);
                chain
            })
            .collect())
    }

    /// What an image without layers shows.
    fn empty_layer(&self) -> Result<PathBuf> {
        let path = self.root.join("layers/empty/diff");
        fs::create_dir_all(&path).map_err(io_error("make", &path))?;
        Ok(path)
    }

    fn image_size(&self, id: &ImageId) -> Result<u64> {
        self.chain_ids(id)?.iter().map(|chain| self.layer_size(chain)).sum()
    }

    /// The config of an image.
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig> {
        let path = self.image_path(id);
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        ImageConfig::parse(&bytes).map_err(|reason| self.damaged_image(id, reason))
    }

    fn image_ids(&self) -> Result<Vec<ImageId>> {
        let dir = self.root.join("image/imagedb/content/sha256");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let name = entry.map_err(io_error("read", &dir))?.file_name();
            if let Some(digest) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) {
                ids.push(ImageId(digest));
            }
        }
        ids.sort();
        Ok(ids)
    }

    fn names(&self) -> Result<Vec<(Name, ImageId)>> {
        let known = self.read_repositories()?;
        let mut names = Vec::new();
        for (text, id) in known.repositories.values().flatten() {
            let name = Name::parse(text).map_err(|e| self.damaged(&e))?;
            let id = id.parse().map(ImageId).map_err(|e| self.damaged(&e))?;
            names.push((name, id));
        }
        Ok(names)
    }

    fn repositories_path(&self) -> PathBuf {
        self.root.join("image/repositories.json")
    }

    fn read_repositories(&self) -> Result<Repositories> {
        let path = self.repositories_path();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| self.damaged(&e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Repositories::default()),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    fn damaged(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Damaged {
            path: self.repositories_path().display().to_string(),
            reason: reason.to_string(),
        }
    }

    fn damaged_image(&self, id: &ImageId, reason: String) -> Error {
        Error::Damaged { path: self.image_path(id).display().to_string(), reason }
    }
}

/// The known name most like `asked`, if any is like it at all.
fn nearest(asked: &str, names: &[(Name, ImageId)]) -> Option<String> {
    /// Similarity from 0 to 1 above which a guess helps more than it puzzles.
    const ALIKE: f64 = 0.6;
    let likeness = |name: &Name| {
        let whole = strsim::jaro_winkler(asked, &name.to_string());
        whole.max(strsim::jaro_winkler(asked, name.repository()))
    };
    names
        .iter()
        .map(|(name, _)| (likeness(name), name.to_string()))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
