//! Bringing images into the store: every layer is verified in a staging directory before any of
//! it shows.
//!
//! Layers are read beside one another, as many as there are processors; each by itself is a
//! pipeline (see `pipeline`). What the store has is not unpacked again, only verified, and stays
//! while the load goes on (`Store::pin`).

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::limits::{Limits, Name};
use super::pipeline::Bounds;
use super::progress::LayerProgress;
use super::source::Source;
use super::unpack::{self, LeftOut};
use super::{Error, LayerBlob, LoadOptions, Loaded, Plan, Report, Result, docker, oci, pipeline};
use crate::store::digest::{ChainId, DiffId, Digest};
use crate::store::images::ImageConfig;
use crate::store::layer_files::LayerFiles;
use crate::store::layers::NewChain;
use crate::store::{self, Staging, Store};

/// What a folder of skopeo's `dir:` transport has.
const DIR_VERSION: &str = "version";
const DIR_MAGIC: &[u8] = b"Directory Transport Version";
/// Digits of a digest that tell layers apart on a terminal.
const SHORT: usize = 12;

pub(super) fn load(
    store: &Store,
    staging: &Staging,
    source: &Source,
    options: &LoadOptions<'_>,
) -> Result<Report> {
    if source.has(DIR_VERSION) && source.document(DIR_VERSION)?.starts_with(DIR_MAGIC) {
        return Err(Error::Unsupported(
            "a folder of skopeo's dir: transport: copy it into an OCI layout first \
             (skopeo copy dir:FOLDER oci:LAYOUT)"
                .to_owned(),
        ));
    }
    let plans = if source.has("manifest.json") {
        docker_plans(source, options)?
    } else if source.has("index.json") {
        oci::plans(source, options)?
    } else if source.has("repositories") {
        docker::v1_plans(source, options)?
    } else {
        return Err(Error::NoImage);
    };
    load_plans(store, staging, source, options, plans)
}

/// Of an archive that is an OCI layout too, as docker writes it since 25: what only that tells.
fn docker_plans(source: &Source, options: &LoadOptions<'_>) -> Result<Vec<Plan>> {
    let is_layout = source.has("index.json");
    match docker::plans(source, options) {
        Err(Error::Other(_)) if is_layout => oci::plans(source, options),
        Ok(plans) if is_layout && options.keep_blobs => {
            let of_layout = match oci::plans(source, options) {
                Err(Error::Other(_)) => Vec::new(),
                of_layout => of_layout?,
            };
            let with_manifest = |plan: Plan| match of_layout
                .iter()
                .find(|of_layout| of_layout.config == plan.config)
            {
                Some(Plan { layers, manifest, .. }) => {
                    Plan { layers: layers.clone(), manifest: manifest.clone(), ..plan }
                }
                None => plan,
            };
            Ok(plans.into_iter().map(with_manifest).collect())
        }
        plans => plans,
    }
}

/// Loads what is planned.
fn load_plans(
    store: &Store,
    staging: &Staging,
    source: &Source,
    options: &LoadOptions<'_>,
    plans: Vec<Plan>,
) -> Result<Report> {
    let images = plans.into_iter().map(Image::new).collect::<Result<Vec<_>>>()?;
    if options.keep_blobs && images.iter().any(|image| image.plan.manifest.is_none()) {
        return Err(Error::Unsupported("--keep-blobs: the archive has no OCI manifest".to_owned()));
    }
    options.limits.check(Name::Images, images.len() as u64)?;
    for image in &images {
        options.limits.check(Name::Layers, image.diffs.len() as u64)?;
    }
    let names = images.iter().map(|image| image.plan.names.len() as u64).sum();
    options.limits.check(Name::Names, names)?;
    let load = Load::new(store, staging, source, options, &images)?;
    let left_out = load.read_layers(&images)?;
    load.publish(&images, left_out)
}

/// An image that is being loaded.
pub(super) struct Image {
    plan: Plan,
    /// The lowest layer first, as in the plan.
    diffs: Vec<DiffId>,
}

impl Image {
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let config = ImageConfig::parse(&plan.config);
        let config = config.map_err(|e| Error::document("image config", e))?;
        let diffs = config.diff_ids().map_err(|e| Error::document("image config", e))?;
        if diffs.len() != plan.layers.len() {
            return Err(Error::LayerCount { config: diffs.len(), archive: plan.layers.len() });
        }
        Ok(Self { plan, diffs })
    }

    /// Each layer's stack and the one below it, the lowest first.
    fn chains(&self) -> Vec<(ChainId, Option<ChainId>, DiffId)> {
        let mut below = None;
        let chain = |diff: &DiffId| {
            let chain = ChainId::upon(below, *diff);
            (chain, below.replace(chain), *diff)
        };
        self.diffs.iter().map(chain).collect()
    }
}

pub(super) struct Load<'a> {
    store: &'a Store,
    staging: &'a Staging,
    source: &'a Source,
    options: &'a LoadOptions<'a>,
    /// Layers that the store has.
    present: HashSet<DiffId>,
    /// Uncompressed bytes that were read.
    bytes: AtomicU64,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        store: &'a Store,
        staging: &'a Staging,
        source: &'a Source,
        options: &'a LoadOptions<'a>,
        images: &[Image],
    ) -> Result<Self> {
        let diffs = images.iter().flat_map(|image| image.diffs.iter().copied());
        let present = store.pin(staging, diffs)?;
        Ok(Self { store, staging, source, options, present, bytes: AtomicU64::new(0) })
    }

    fn limits(&self) -> Limits {
        self.options.limits
    }

    /// Where a layer is being unpacked.
    fn staged(&self, diff: &DiffId) -> PathBuf {
        self.staging.path().join("layers").join(diff.hex())
    }

    /// Where a layer is.
    fn files(&self, diff: &DiffId) -> LayerFiles {
        match self.present.contains(diff) {
            true => self.store.layer_files(diff),
            false => LayerFiles::new(&self.staged(diff)),
        }
    }

    /// Reads every layer once, the largest first, several at a time.
    fn read_layers(&self, images: &[Image]) -> Result<LeftOut> {
        let mut known = HashSet::new();
        let mut jobs: Vec<(&LayerBlob, DiffId, u64)> = Vec::new();
        for (blob, diff) in
            images.iter().flat_map(|image| image.plan.layers.iter().zip(&image.diffs))
        {
            // The same layer may be there under several names: each is looked at.
            if known.insert((self.source.identity(&blob.path)?, blob.digest, *diff)) {
                jobs.push((blob, *diff, self.source.size(&blob.path)?));
            }
        }
        jobs.sort_by_key(|(_, _, size)| std::cmp::Reverse(*size));
        let path = self.staging.path().join("layers");
        fs::create_dir(&path).map_err(|e| Error::io("make", path.display(), e))?;
        let unpacking = Mutex::new(HashSet::new());
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results = Mutex::new(Vec::new());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((blob, diff, size)) = jobs.get(at) else { return };
                let is_new = !self.present.contains(diff) && unpacking.lock().insert(*diff);
                let result = self.read_layer(blob, *diff, *size, is_new);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.lock().push((at, result));
            }
        };
        let workers = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
        thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        let mut results = results.into_inner();
        results.sort_by_key(|(at, _)| *at);
        let mut left_out = LeftOut::default();
        for (_, result) in results {
            left_out += result?;
        }
        Ok(left_out)
    }

    /// Verifies a layer, and unpacks it if it is new.
    fn read_layer(
        &self,
        blob: &LayerBlob,
        diff: DiffId,
        size: u64,
        is_new: bool,
    ) -> Result<LeftOut> {
        if let Some(expected) = blob.size.filter(|told| *told != size) {
            return Err(Error::Size { what: blob.path.clone(), expected, found: size });
        }
        let name = &diff.hex()[..SHORT];
        let doing = if is_new { "unpack" } else { "verify" };
        let progress = self.options.progress.layer(name, doing, size);
        if let Some(digest) = blob.digest.filter(|_| !is_new)
            && self.store.diff_of_blob(&digest)? == Some(diff)
        {
            return self.verify_blob(blob, digest, &*progress).map(|()| LeftOut::default());
        }
        let input = self.source.open(&blob.path)?;
        let home = self.staged(&diff);
        let unpack = |plain: &mut dyn std::io::Read| -> Result<LeftOut> {
            if !is_new {
                return Ok(LeftOut::default()); // all of it is hashed nevertheless
            }
            fs::create_dir(&home).map_err(|e| Error::io("make", home.display(), e))?;
            unpack::unpack(plain, &home, self.limits())
        };
        let bounds = Bounds { limits: self.limits(), bytes: &self.bytes };
        let in_layer = |e: Error| e.in_layer(&blob.path);
        let (found, left_out) =
            pipeline::run(input, &blob.path, bounds, &*progress, unpack).map_err(in_layer)?;
        // Damage is the reason for whatever it led to: tell of it first.
        if let Some(expected) = blob.digest.filter(|expected| *expected != found.blob) {
            return Err(Error::Digest { what: blob.path.clone(), expected, found: found.blob });
        }
        if found.diff != diff {
            let layer = blob.path.clone();
            return Err(Error::DiffId { layer, expected: diff, found: found.diff });
        }
        left_out.map_err(in_layer)
    }

    /// A blob that was seen to hold a layer needs no inflating to be known again.
    fn verify_blob(
        &self,
        blob: &LayerBlob,
        expected: Digest,
        progress: &dyn LayerProgress,
    ) -> Result<()> {
        let found = super::hash(self.source.open(&blob.path)?, &blob.path, progress)?;
        match found == expected {
            true => Ok(()),
            false => Err(Error::Digest { what: blob.path.clone(), expected, found }),
        }
    }

    /// Brings layers, then configs and names into the store.
    pub(super) fn publish(&self, images: &[Image], left_out: LeftOut) -> Result<Report> {
        self.options.progress.phase("sync");
        let inherited = self.build_inherited(images)?;
        let records = self.write_records(images, &inherited)?;
        self.keep_blobs(images)?;
        self.source.discard_copy()?;
        sync(self.staging.path())?;
        let lock = self.store.lock()?;
        for diff in images.iter().flat_map(|image| &image.diffs) {
            let built = self.staged(diff);
            if built.exists() {
                self.store.add_layer(diff, &built)?;
            }
        }
        for (chain, built) in &inherited {
            if let Some(built) = built {
                self.store.add_inherited(chain, built)?;
            }
        }
        for (built, record) in &records {
            self.store.add_chain(built, record)?;
        }
        self.publish_blobs(images)?;
        self.store.sync_names(&["layers", "image/layerdb/sha256"])?;
        let named: Vec<_> =
            images.iter().map(|image| (&image.plan.config[..], &image.plan.names[..])).collect();
        let ids = self.store.add_images_locked(&lock, &named)?.into_iter();
        let images = ids.zip(images);
        let loaded = images.map(|(id, image)| Loaded { id, names: image.plan.names.clone() });
        Ok(Report { images: loaded.collect(), left_out })
    }

    /// What the layers of each image take from one another: by the whole stack, where it is built.
    fn build_inherited(&self, images: &[Image]) -> Result<HashMap<ChainId, Option<PathBuf>>> {
        let mut built = HashMap::new();
        let lookups = Cell::new(self.limits().of(Name::Lookups));
        for image in images {
            let Some((top, ..)) = image.chains().pop() else { continue };
            if built.contains_key(&top) {
                continue;
            }
            let homes: Vec<_> =
                image.diffs.iter().rev().map(|diff| self.files(diff).home().to_owned()).collect();
            let at = self.staging.path().join(format!("inherited-{}", top.hex()));
            let is_built = self.store.build_inherited(&homes, &mut || Ok(at.clone()), &lookups);
            let at = match is_built {
                Err(store::Error::TooManyLookups) => {
                    return Err(self.limits().exceeded(Name::Lookups));
                }
                built => built?,
            };
            built.insert(top, at);
        }
        Ok(built)
    }

    /// The records of all stacks, a stack's lower ones before its higher ones.
    fn write_records(
        &self,
        images: &[Image],
        inherited: &HashMap<ChainId, Option<PathBuf>>,
    ) -> Result<Vec<(PathBuf, NewChain)>> {
        let mut known = HashSet::new();
        let mut records = Vec::new();
        for (chain, parent, diff) in images.iter().flat_map(Image::chains) {
            if !known.insert(chain) {
                continue;
            }
            let has_inherited = inherited.get(&chain).map(Option::is_some);
            let record = NewChain { chain, parent, diff, layer: self.files(&diff), has_inherited };
            let dir = self.staging.path().join(format!("chain-{}", chain.hex()));
            self.store.write_chain(&dir, &record)?;
            records.push((dir, record));
        }
        Ok(records)
    }

    /// Copies blobs into the staging directory, if they are to be kept.
    fn keep_blobs(&self, images: &[Image]) -> Result<()> {
        if !self.options.keep_blobs {
            return Ok(());
        }
        let dir = self.staging.path().join("blobs");
        fs::create_dir(&dir).map_err(|e| Error::io("make", dir.display(), e))?;
        for image in images {
            let Some(manifest) = &image.plan.manifest else { continue };
            let write = |digest: &Digest, bytes: &[u8]| {
                let path = dir.join(digest.hex());
                fs::write(&path, bytes).map_err(|e| Error::io("write", path.display(), e))
            };
            write(&Digest::of(manifest), manifest)?;
            for blob in &image.plan.layers {
                let Some(digest) = blob.digest else { continue };
                let path = dir.join(digest.hex());
                let failed = |e| Error::io("write", path.display(), e);
                let mut to = File::create(&path).map_err(failed)?;
                std::io::copy(&mut self.source.open(&blob.path)?, &mut to).map_err(failed)?;
                // It was verified when it was read, but may have changed since in a folder.
                let again = File::open(&path).map_err(failed)?;
                let found = super::hash(again, &blob.path, &super::progress::Silent)?;
                if found != digest {
                    let what = blob.path.clone();
                    return Err(Error::Digest { what, expected: digest, found });
                }
            }
        }
        Ok(())
    }

    /// Notes which blob holds which layer, and brings kept ones into the store.
    fn publish_blobs(&self, images: &[Image]) -> Result<()> {
        for image in images {
            for (blob, diff) in image.plan.layers.iter().zip(&image.diffs) {
                if let Some(digest) = blob.digest {
                    self.store.note_blob(&digest, diff)?;
                }
            }
            if let Some(manifest) = image.plan.manifest.as_ref().filter(|_| self.options.keep_blobs)
            {
                let digests = image.plan.layers.iter().filter_map(|blob| blob.digest);
                let kept = self.staging.path().join("blobs");
                self.store.add_blobs(&kept, digests.chain([Digest::of(manifest)]))?;
                self.store.note_manifest(&image.plan.config, &Digest::of(manifest))?;
            }
        }
        Ok(())
    }
}

/// Makes all that lies on a directory's filesystem last.
fn sync(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(|e| Error::io("open", path.display(), e))?;
    rustix::fs::syncfs(dir).map_err(|e| Error::io("sync", path.display(), e.into()))
}
