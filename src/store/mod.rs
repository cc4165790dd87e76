//! The image store, readable by hand, in Docker's words (the whole of it: docs/store-layout.md).
//!
//! ```text
//! ROOT/image/imagedb/content/sha256/<ImageID>   the config, byte for byte; its sha256 is its name
//! ROOT/image/layerdb/sha256/<ChainID>/          diff (DiffID), parent (ChainID), size, cache-id,
//!                                               tar-split.json.gz, inherited,
//!                                               merged-index (what the stack shows together)
//! ROOT/image/repositories.json                  {"Repositories": {"nginx": {"nginx:latest": "sha256:…"}}}
//! ROOT/layers/<cache-id>/diff/                  the unpacked layer, whiteouts as `.wh.` files
//! ROOT/layers/<cache-id>/…                      what else the tar said (see `layer_files`)
//! ROOT/l/<SHORT> -> ../layers/<cache-id>/diff   short names
//! ROOT/containers/<id>/                         config.json, upper/, work/
//! ROOT/tmp/                                     what is being built
//! ROOT/lock                                     locked (flock) while names and records change
//! ```
//!
//! A layer is unpacked in `tmp/` and appears in `layers/` by one rename, complete, verified
//! and synced. Its cache-id is its DiffID: it is stored once, whatever lies below it. What a
//! stack's layers take from those below lies in one more layer, named by the ChainID (see
//! `inherited`).

pub(crate) mod blobs;
pub mod containers;
pub mod digest;
pub mod garbage;
pub mod images;
mod inherited;
pub mod layer_files;
pub mod layers;
pub mod reference;
pub(crate) mod stack;
mod stack_index;
mod staging;
pub mod usage;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use digest::ImageId;
pub use staging::Staging;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the store could not be used.
    #[error("{op} {path}: {cause}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On what.
        path: String,
        /// How it failed.
        cause: io::Error,
    },
    /// No image has this name or ID.
    #[error("no image {asked}{}", .nearest.as_ref().map(|n| format!(" (did you mean {n}?)")).unwrap_or_default())]
    NoImage {
        /// What was asked for.
        asked: String,
        /// The known name most like it.
        nearest: Option<String>,
    },
    /// Several images have IDs that begin so.
    #[error("{asked} is the beginning of {count} image IDs: give more digits")]
    AmbiguousImage {
        /// What was asked for.
        asked: String,
        /// How many images it fits.
        count: usize,
    },
    /// Several writable layers have IDs that begin so.
    #[error("{asked} is the beginning of {count} IDs of writable layers: give more digits")]
    AmbiguousContainer {
        /// What was asked for.
        asked: String,
        /// How many it fits.
        count: usize,
    },
    /// No writable layer has this name.
    #[error("no writable layer {0} (see plyfs ps)")]
    NoContainer(String),
    /// The writable layer was made for another image.
    #[error("writable layer {name} belongs to image {image}, not to {asked}")]
    OtherImage {
        /// Its name.
        name: String,
        /// The image that it was made for.
        image: String,
        /// The image that was asked for.
        asked: String,
    },
    /// The writable layer is mounted.
    #[error("writable layer {name} is in use: {holder}")]
    InUse {
        /// Its name.
        name: String,
        /// Who holds it.
        holder: String,
    },
    /// The name cannot be a writable layer's.
    #[error(
        "{0:?} is no name for a writable layer: use letters, digits, '_', '.' and '-', a letter or digit first, 128 at most"
    )]
    BadName(String),
    /// A hard link of a layer leads nowhere.
    #[error("a hard link to {reason}: {target}")]
    BadLink {
        /// Its target, escaped.
        target: String,
        /// What is there.
        reason: &'static str,
    },
    /// To find what a stack's layers take from one another takes more look-ups than are allowed.
    #[error("too many hard links and unlisted directories in too many layers")]
    TooManyLookups,
    /// An image is in use.
    #[error("image {image} is in use: {holder}")]
    ImageInUse {
        /// The image.
        image: String,
        /// Who uses it.
        holder: String,
    },
    /// Several names stand for the image.
    #[error("image {image} has several names ({names}): give one of them, or --force")]
    SeveralNames {
        /// The image.
        image: String,
        /// Its names.
        names: String,
    },
    /// A file of the store does not say what it should.
    #[error("the store is damaged: {path}: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Result of an operation of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the operation and the path to an I/O error.
fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |cause| Error::Io { op, path, cause }
}

/// Makes the names in a directory last.
fn sync_dir(path: &Path) -> Result<()> {
    let sync = File::open(path).and_then(|dir| dir.sync_all());
    sync.map_err(io_error("sync", path))
}

/// An image store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// Held while the store's lists change; other processes wait.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// Opens the store at `root`, made if it is not there.
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["image/imagedb/content/sha256", "image/layerdb/sha256", "l"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(io_error("make", &path))?;
        }
        // Layers hold setuid programs and other users' secrets: only the owner goes in.
        for dir in ["layers", "containers", "tmp"] {
            let path = root.join(dir);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(io_error("make", &path))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> Result<StoreLock> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| io_error("lock", &path)(errno.into()))?;
        Ok(StoreLock { _file: file })
    }

    /// Keeps the store's lists as they are while they are read; nothing where there is no lock that
    /// may be opened: who may not write need not fear that others wait for them.
    pub(crate) fn lock_shared(&self) -> Result<Option<StoreLock>> {
        let path = self.root.join("lock");
        let Ok(file) = File::open(&path) else { return Ok(None) };
        rustix::fs::flock(&file, FlockOperation::LockShared)
            .map_err(|errno| io_error("lock", &path)(errno.into()))?;
        Ok(Some(StoreLock { _file: file }))
    }

    /// Writes a small file so that a reader sees the old or the new content, also after a crash.
    /// The caller has the store's lock: what others find in `tmp/` is a killed process's.
    pub(crate) fn write_atomically(&self, path: &Path, content: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.root.join("tmp"))?;
            io::Write::write_all(&mut file, content)?;
            file.as_file().sync_all()?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            fs::set_permissions(file.path(), mode)?;
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            file.persist(path).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(io_error("write", path))
    }

    /// Where an image's config is.
    pub fn image_path(&self, id: &ImageId) -> PathBuf {
        self.root.join("image/imagedb/content/sha256").join(id.hex())
    }
}
