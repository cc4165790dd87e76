//! The files beside a layer's directory, by their names.
//!
//! Lists of paths are NUL-separated, as `find -print0` writes them, for a path may hold anything
//! else; `tr '\0' '\n'` shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, Result, io_error};

/// The home of one layer: `ROOT/layers/<cache-id>`, or where it is being built.
#[derive(Clone, Debug)]
pub struct LayerFiles {
    home: PathBuf,
}

impl LayerFiles {
    /// Those of the layer that lives here.
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_owned() }
    }

    /// Its home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The unpacked layer.
    pub fn diff(&self) -> PathBuf {
        self.home.join("diff")
    }

    /// What the tar held beside the files' data.
    pub fn tar_split(&self) -> PathBuf {
        self.home.join("tar-split.json.gz")
    }

    /// Whether it is a whole layer, that can be written again.
    pub fn is_complete(&self) -> bool {
        self.tar_split().exists() && self.diff().is_dir()
    }

    /// Notes the directories that the tar implies.
    pub(crate) fn write_implied<'a>(&self, paths: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        self.write_list("implied", paths)
    }

    /// Directories that the tar implies, the root as an empty path.
    pub(crate) fn implied(&self) -> Result<Vec<Vec<u8>>> {
        self.read_list("implied")
    }

    /// Notes hard links into layers below: name and target, alternating.
    pub(crate) fn write_links(&self, links: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        let both = links.iter().flat_map(|(name, target)| [&name[..], &target[..]]);
        self.write_list("links", both)
    }

    /// Hard links into layers below: name and target.
    pub(crate) fn links(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let list = self.read_list("links")?;
        let pairs = list.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok(pairs.collect())
    }

    /// Notes the bytes of its files.
    pub(crate) fn write_size(&self, size: u64) -> Result<()> {
        let path = self.home.join("size");
        fs::write(&path, size.to_string()).map_err(io_error("write", &path))
    }

    /// The bytes of its files.
    pub(crate) fn size(&self) -> Result<u64> {
        let path = self.home.join("size");
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        text.trim_end().parse().map_err(|_| Error::Damaged {
            path: path.display().to_string(),
            reason: format!("{text:?} is no size"),
        })
    }

    fn write_list<'a>(&self, name: &str, paths: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        let mut text = Vec::new();
        for path in paths {
            text.extend_from_slice(path);
            text.push(0);
        }
        if text.is_empty() {
            return Ok(());
        }
        let path = self.home.join(name);
        fs::write(&path, text).map_err(io_error("write", &path))
    }

    /// The paths of a list; none if there is no such list.
    fn read_list(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        let path = self.home.join(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(io_error("read", &path))?,
        };
        let whole = text.strip_suffix(b"\0").unwrap_or(&text);
        Ok(whole.split(|b| *b == 0).map(<[u8]>::to_vec).collect())
    }
}
