//! A store in a temporary directory, and what must hold after a load into it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use plyfs::archive::limits::Limits;
use plyfs::archive::platform::Platform;
use plyfs::archive::progress::Silent;
use plyfs::archive::{
    self, Import, Input, LoadOptions, Report, SaveFormat, SaveOptions, Target, verify_layer,
};
use plyfs::store::Store;
use plyfs::store::digest::ImageId;
use plyfs::store::reference::Name;

/// Bytes of a layer, at most: a few bytes of input must not fill the memory with holes.
const MAX_BYTES: u64 = 16 << 20;
/// Directories of a store that hold nothing as long as there is no image.
const EMPTY: [&str; 6] =
    ["tmp", "containers", "layers", "l", "image/imagedb/content/sha256", "image/layerdb/sha256"];

/// The environment variable with the path of a file that the archive is copied into, to look at.
const COPY: &str = "PLYFS_FUZZ_ARCHIVE";

/// A store, and a file beside it that no layer reaches.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
    /// The store.
    pub store: Store,
    /// The platform that is asked for.
    pub platform: Option<Platform>,
    /// Whether blobs are kept.
    pub keep_blobs: bool,
}

/// What was loaded, by its IDs, or why it was refused.
pub type Loaded = Result<Vec<ImageId>, String>;

impl Default for Place {
    fn default() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("outside")).expect("make");
        fs::write(dir.path().join("outside/victim"), "untouched").expect("write");
        let store = Store::open(&dir.path().join("store")).expect("a store");
        Self { dir, store, platform: None, keep_blobs: false }
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.set(format!("bytes={MAX_BYTES}").parse().expect("a limit"));
    limits
}

impl Place {
    fn options(&self) -> LoadOptions<'static> {
        LoadOptions {
            limits: limits(),
            platform: self.platform.clone(),
            keep_blobs: self.keep_blobs,
            progress: &Silent,
        }
    }

    /// Loads an archive from a pipe.
    pub fn load_stream(&self, archive: &[u8]) -> Loaded {
        let input = Input::Stream(Box::new(archive));
        self.check(archive::load(&self.store, input, &self.options()))
    }

    /// Loads an archive that lies in a file.
    pub fn load_file(&self, archive: &[u8]) -> Loaded {
        if let Some(copy) = std::env::var_os(COPY) {
            fs::write(copy, archive).expect("write");
        }
        let path = self.dir.path().join("archive");
        fs::write(&path, archive).expect("write");
        let loaded = archive::load_path(&self.store, &path, &self.options());
        fs::remove_file(path).expect("remove");
        self.check(loaded)
    }

    /// Imports a tar as an image of one layer.
    pub fn import(&self, tar: &[u8]) -> Loaded {
        let import = Import {
            name: Name::parse("fuzz").ok(),
            message: "fuzz".to_owned(),
            created: "2020-02-02T02:02:02Z".to_owned(),
        };
        let input = Input::Stream(Box::new(tar));
        self.check(archive::import(&self.store, input, &import, &self.options()))
    }

    /// What is refused leaves no trace; what is loaded is whole, and can be written again.
    fn check(&self, loaded: archive::Result<Report>) -> Loaded {
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read(outside.join("victim")).ok().as_deref(), Some(&b"untouched"[..]));
        assert_eq!(count(&outside) + count(self.dir.path()), 3, "something is outside the store");
        assert_eq!(count(&self.store.root().join("tmp")), 0, "something is left of the load");
        let report = match loaded {
            Ok(report) => report,
            Err(error) => {
                let error = error.to_string();
                for dir in EMPTY {
                    assert_eq!(count(&self.store.root().join(dir)), 0, "left in {dir}: {error}");
                }
                return Err(error);
            }
        };
        let ids: Vec<ImageId> = report.images.iter().map(|image| image.id).collect();
        for id in &ids {
            let config = self.store.config(id).expect("a config that was loaded");
            for diff in config.diff_ids().expect("DiffIDs that were loaded") {
                let found = verify_layer(&self.store, &diff).expect("a layer that was loaded");
                if report.left_out.is_empty() {
                    assert!(found.is_empty(), "{diff}: {}", told(&found));
                }
            }
            self.store.merged_index(id).expect("an index, or none");
        }
        Ok(ids)
    }

    /// The images as an archive.
    fn save(&self, ids: &BTreeSet<ImageId>, format: SaveFormat) -> Vec<u8> {
        let names = |id: &ImageId| self.store.names_of(id).expect("names");
        let images: Vec<_> = ids.iter().map(|id| (*id, names(id))).collect();
        let mut archive = Vec::new();
        let target = Target::Archive(Box::new(&mut archive));
        let options = SaveOptions { format, compression: None };
        archive::save(&self.store, &images, options, target).expect("what was loaded is saved");
        archive
    }

    /// Saves images and loads them into another store: they are the same, and called the same.
    pub fn round_trip(&self, ids: &[ImageId], format: SaveFormat) {
        let ids: BTreeSet<ImageId> = ids.iter().copied().collect();
        let again = Self::default();
        let archive = self.save(&ids, format);
        let input = Input::Stream(Box::new(&archive[..]));
        let report = archive::load(&again.store, input, &again.options());
        let report = report.expect("what was saved is loaded");
        assert_eq!(report.images.iter().map(|image| image.id).collect::<BTreeSet<_>>(), ids);
        for id in &ids {
            let names = |place: &Self| place.store.names_of(id).expect("names");
            assert_eq!(names(self), names(&again), "{id}");
        }
    }
}

fn told(found: &[archive::Finding]) -> String {
    let lines = found.iter().map(|f| format!("{}: {}", f.path.escape_ascii(), f.reason));
    lines.collect::<Vec<_>>().join("; ")
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).expect("a directory").count()
}
