//! Images: configs, names, and finding one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::digest::{ChainId, DiffId, Digest, ImageId};
use super::reference::Name;
use super::{Error, Result, Store, StoreLock, io_error};

/// What the store needs of an image's config; the rest is kept as it is.
#[derive(Debug, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
    /// Its layers.
    pub rootfs: RootFs,
    /// How each layer, and what made none, came about; the oldest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub history: Vec<Step>,
}

/// One entry of a config's `history` (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// What was noted.
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(deserialize_with = "null_is_default")]
    pub empty_layer: bool,
}

/// The `rootfs` of a config.
#[derive(Debug, Deserialize)]
pub struct RootFs {
    /// DiffIDs, the lowest layer first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<String>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> std::result::Result<T, D::Error> {
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

impl Repositories {
    fn add(&mut self, name: &Name, id: &ImageId) {
        let tags = self.repositories.entry(name.repository().to_owned()).or_default();
        tags.insert(name.to_string(), id.to_string());
    }
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
    /// Adds images whose layers are all in the store, under these names: all of them or none.
    pub(crate) fn add_images_locked(
        &self,
        _lock: &StoreLock,
        images: &[(&[u8], &[Name])],
    ) -> Result<Vec<ImageId>> {
        let mut added = Vec::new();
        let result = self.add_configs_and_names(images, &mut added);
        if result.is_err() {
            for path in added {
                if let Err(error) = fs::remove_file(&path) {
                    log::warn!("remove {}: {error}", path.display());
                }
            }
        }
        result
    }

    /// Adds configs, which then are in `added`, and names.
    fn add_configs_and_names(
        &self,
        images: &[(&[u8], &[Name])],
        added: &mut Vec<PathBuf>,
    ) -> Result<Vec<ImageId>> {
        let mut known = self.read_repositories()?;
        // No image gets back the names that one had which is gone.
        self.write_repositories(&known)?;
        let mut ids = Vec::new();
        for (config, _) in images {
            let id = ImageId(Digest::of(config));
            let path = self.image_path(&id);
            // Who mounts the image holds its config: one that is there stays.
            if !fs::read(&path).is_ok_and(|known| known == *config) {
                self.write_atomically(&path, config)?;
                added.push(path);
            }
            ids.push(id);
        }
        self.sync_names(&["image/imagedb/content/sha256"])?;
        let mut is_named = false;
        for ((_, names), id) in images.iter().zip(&ids) {
            names.iter().for_each(|name| known.add(name, id));
            is_named |= !names.is_empty();
        }
        if is_named {
            self.write_repositories(&known)?;
        }
        Ok(ids)
    }

    /// Gives an image one more name, which is taken from the image that had it.
    pub fn tag(&self, id: &ImageId, name: &Name) -> Result<()> {
        let _lock = self.lock()?;
        self.config(id)?; // removed meanwhile?
        let mut known = self.read_repositories()?;
        known.add(name, id);
        self.write_repositories(&known)
    }

    /// Takes names away; of images that are gone, their names are.
    pub(super) fn untag_locked(&self, names: &[Name]) -> Result<()> {
        let mut known = self.read_repositories()?;
        for name in names {
            if let Some(tags) = known.repositories.get_mut(name.repository()) {
                tags.remove(&name.to_string());
            }
        }
        known.repositories.retain(|_, tags| !tags.is_empty());
        self.write_repositories(&known)
    }

    /// The names of an image.
    pub fn names_of(&self, id: &ImageId) -> Result<Vec<Name>> {
        let names = self.names()?.into_iter();
        Ok(names.filter(|(_, of)| of == id).map(|(name, _)| name).collect())
    }

    /// Keeps the image from being removed for as long as the file is open, also in a child process.
    pub fn hold_image(&self, id: &ImageId) -> Result<File> {
        use std::os::unix::fs::MetadataExt;
        let path = self.image_path(id);
        loop {
            let file = File::open(&path).map_err(|error| self.no_config(id, error))?;
            rustix::fs::flock(&file, FlockOperation::LockShared)
                .map_err(|errno| io_error("lock", &path)(errno.into()))?;
            // It may have been removed between the two, and loaded again.
            let held = file.metadata().map_err(io_error("stat", &path))?;
            let now = fs::metadata(&path).map_err(|error| self.no_config(id, error))?;
            if now.ino() == held.ino() {
                return Ok(file);
            }
        }
    }

    /// All images, one entry per name, the newest first.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let _lock = self.lock_shared()?;
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
        // What is no time is older than all.
        images.sort_by_cached_key(|image| {
            let created = image.created.as_deref().and_then(|text| text.parse().ok());
            (Reverse::<Option<jiff::Timestamp>>(created), image.name.clone())
        });
        Ok(images)
    }

    /// The image of this ID, `NAME[:TAG]`, `NAME[:TAG]@DIGEST` or unambiguous beginning of an ID.
    pub fn find_image(&self, asked: &str) -> Result<ImageId> {
        let whole = asked.parse().or_else(|_| Digest::from_hex(asked)).map(ImageId);
        if let Ok(id) = whole
            && self.image_path(&id).exists()
        {
            return Ok(id);
        }
        if let Some((name, digest)) = asked.split_once('@') {
            return self.find_by_digest(name, digest, asked);
        }
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
            _ if fitting.len() < 2 || prefix.is_empty() => {
                Err(Error::NoImage { asked: asked.to_owned(), nearest: nearest(asked, &names) })
            }
            _ => Err(Error::AmbiguousImage { asked: asked.to_owned(), count: fitting.len() }),
        }
    }

    /// The image that came with this manifest and has a name of this repository.
    fn find_by_digest(&self, name: &str, digest: &str, asked: &str) -> Result<ImageId> {
        let none = || Error::NoImage { asked: asked.to_owned(), nearest: None };
        let digest: Digest = digest.parse().map_err(|_| none())?;
        let name = Name::parse(name).map_err(|_| none())?;
        for (known, id) in self.names()? {
            if known.repository() == name.repository() && self.manifest_digest(&id)? == Some(digest)
            {
                return Ok(id);
            }
        }
        Err(none())
    }

    /// Directories of the image's layers, the topmost first; above them what they inherit.
    pub fn layer_dirs(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        let chains = self.chain_ids(id)?;
        for chain in &chains {
            dirs.push(self.layer_dir(chain)?);
        }
        if let Some(top) = chains.last()
            && let Some(dir) = self.inherited(top)?
        {
            dirs.push(dir);
        }
        dirs.reverse();
        if dirs.is_empty() {
            dirs.push(self.empty_layer()?);
        }
        Ok(dirs)
    }

    /// ChainIDs of the image's layers, the lowest first.
    pub fn chain_ids(&self, id: &ImageId) -> Result<Vec<ChainId>> {
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

    /// Bytes of the files in all its layers.
    pub fn image_size(&self, id: &ImageId) -> Result<u64> {
        self.chain_ids(id)?.iter().map(|chain| self.layer_size(chain)).sum()
    }

    /// The config of an image, byte for byte.
    pub fn config_text(&self, id: &ImageId) -> Result<Vec<u8>> {
        fs::read(self.image_path(id)).map_err(|error| self.no_config(id, error))
    }

    /// Why an image's config cannot be read.
    fn no_config(&self, id: &ImageId, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoImage { asked: id.to_string(), nearest: None },
            _ => io_error("read", &self.image_path(id))(error),
        }
    }

    /// The config of an image.
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig> {
        ImageConfig::parse(&self.config_text(id)?).map_err(|reason| self.damaged_image(id, reason))
    }

    /// All images.
    pub fn image_ids(&self) -> Result<Vec<ImageId>> {
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

    /// All names, and what each stands for.
    pub(super) fn names(&self) -> Result<Vec<(Name, ImageId)>> {
        let known = self.read_repositories()?;
        let mut names = Vec::new();
        for (text, id) in known.repositories.values().flatten() {
            match (Name::parse(text), id.parse().map(ImageId)) {
                (Ok(name), Ok(id)) => names.push((name, id)),
                _ => {
                    log::warn!("{}: {text:?}: {id:?}: no name", self.repositories_path().display())
                }
            }
        }
        Ok(names)
    }

    /// Names whose image is gone though no `rmi` took it away.
    pub fn dangling_names(&self) -> Result<Vec<(Name, ImageId)>> {
        let known = self.read_all_repositories()?.repositories.into_values().flatten();
        let parse = |(text, id): (String, String)| {
            Some((Name::parse(&text).ok()?, id.parse().ok().map(ImageId)?))
        };
        let names = known.filter_map(parse);
        Ok(names.filter(|(_, id)| !self.image_path(id).exists()).collect())
    }

    fn repositories_path(&self) -> PathBuf {
        self.root.join("image/repositories.json")
    }

    fn write_repositories(&self, known: &Repositories) -> Result<()> {
        let text = serde_json::to_vec(known).map_err(|e| self.damaged(&e))?;
        let path = self.repositories_path();
        let is_written =
            fs::read(&path).map_or(known.repositories.is_empty(), |written| written == text);
        if is_written {
            return Ok(());
        }
        self.write_atomically(&path, &text)?;
        self.sync_names(&["image"])
    }

    /// Names end with their image: `rmi` takes the image away first, which needs no room.
    fn read_repositories(&self) -> Result<Repositories> {
        let mut known = self.read_all_repositories()?;
        let is_there =
            |id: &String| id.parse().is_ok_and(|id| self.image_path(&ImageId(id)).exists());
        for tags in known.repositories.values_mut() {
            tags.retain(|_, id| is_there(id));
        }
        known.repositories.retain(|_, tags| !tags.is_empty());
        Ok(known)
    }

    fn read_all_repositories(&self) -> Result<Repositories> {
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
    const ALIKE: f64 = 0.8;
    // What podman builds is localhost's.
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let same = |name: &Name| last(name.repository()) == asked || last(&name.to_string()) == asked;
    if let Some((name, _)) = names.iter().find(|(name, _)| same(name)) {
        return Some(name.to_string());
    }
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
