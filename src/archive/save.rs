//! Images out of the store: docker-archive, OCI archive, OCI layout.
//!
//! Layers have the DiffIDs that they were loaded with, so images keep their IDs. The same images
//! saved again give the same bytes: nothing in an archive depends on the time or the machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::Sha256;

use super::platform::Platform;
use super::source::blob_path;
use super::{Error, Result, pack};
use crate::store::digest::{DiffId, Digest, ImageId};
use crate::store::reference::Name;
use crate::store::{Staging, Store};

const BLOCK: usize = 512;
/// zstd's default; gzip's is what everybody uses.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `manifest.json`, a config and a tar for each layer (as `docker save`).
    DockerArchive,
    /// A tar of an OCI image layout.
    OciArchive,
    /// A folder: an OCI image layout.
    Oci,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// How images are saved.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// Into what.
    pub format: Format,
    /// How layers are compressed; `None` takes blobs that were kept, and else does not compress.
    pub compression: Option<Compression>,
}

/// A layer as a blob.
#[derive(Clone, Debug)]
struct Blob {
    digest: Digest,
    size: u64,
    media_type: &'static str,
    from: From,
}

/// Where a blob's bytes come from.
#[derive(Clone, Debug)]
enum From {
    /// The layer's tar, as it is written.
    Layer(DiffId),
    /// A file.
    File(PathBuf),
}

/// Saves images, each with names, into `target`.
pub fn save(
    store: &Store,
    images: &[(ImageId, Vec<Name>)],
    options: SaveOptions,
    mut target: Target<'_>,
) -> Result<()> {
    let staging = store.staging()?;
    let mut save = Save { store, staging: &staging, options, blobs: HashMap::new() };
    match options.format {
        Format::DockerArchive => save.docker(images, &mut target)?,
        Format::OciArchive | Format::Oci => save.oci(images, &mut target)?,
    }
    target.finish()
}

/// Where files go: into an archive, or a folder.
pub enum Target<'a> {
    /// A tar.
    Archive(Box<dyn Write + 'a>),
    /// A folder that is there and empty.
    Folder(PathBuf),
}

impl Target<'_> {
    fn add(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.add_with(path, bytes.len() as u64, |out| {
            out.write_all(bytes).map_err(|e| Error::io("write", path, e))
        })
    }

    /// Adds a file of `size` bytes that `write` writes.
    fn add_with(
        &mut self,
        path: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let failed = |e| Error::io("write", path, e);
        match self {
            Self::Folder(dir) => {
                let at = dir.join(path);
                if let Some(parent) = at.parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                let mut out = BufWriter::new(File::create(&at).map_err(failed)?);
                write(&mut out)?;
                let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
                file.sync_all().map_err(failed)
            }
            Self::Archive(out) => {
                out.write_all(header(path, size)?.as_bytes()).map_err(failed)?;
                let mut counted = Counted { inner: out, count: 0 };
                write(&mut counted)?;
                if counted.count != size {
                    let reason = format!("{} bytes were written, not {size}", counted.count);
                    return Err(failed(io::Error::other(reason)));
                }
                let padding = size.next_multiple_of(BLOCK as u64) - size;
                out.write_all(&[0; BLOCK][..padding as usize]).map_err(failed)
            }
        }
    }

    fn finish(self) -> Result<()> {
        let failed = |e| Error::io("write", "the archive", e);
        match self {
            Self::Archive(mut out) => {
                out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(failed)
            }
            Self::Folder(_) => Ok(()),
        }
    }
}

/// The same for every file of an archive but for its name and size.
fn header(path: &str, size: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu(); // sizes beyond 8 GiB in base 256
    header.set_path(path).map_err(|e| Error::io("write", path, e))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

struct Counted<'a> {
    inner: &'a mut dyn Write,
    count: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.count += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what goes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::default(), count: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        sha2::Digest::update(&mut self.hash, &bytes[..len]);
        self.count += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Save<'a> {
    store: &'a Store,
    staging: &'a Staging,
    options: SaveOptions,
    /// What was made of each layer.
    blobs: HashMap<DiffId, Blob>,
}

impl Save<'_> {
    fn docker(&mut self, images: &[(ImageId, Vec<Name>)], target: &mut Target<'_>) -> Result<()> {
        let mut written = HashSet::new();
        let mut manifest = Vec::new();
        for (id, names) in images {
            let config = self.store.config_text(id)?;
            let mut layers = Vec::new();
            for diff in self.diffs(id)? {
                let blob = self.blob(&diff)?;
                let path = format!("{}.tar", blob.digest.hex());
                if written.insert(path.clone()) {
                    self.copy(&blob, &path, target)?;
                }
                layers.push(path);
            }
            let path = format!("{}.json", id.hex());
            if written.insert(path.clone()) {
                target.add(&path, &config)?;
            }
            let tags: Vec<String> = names.iter().map(Name::to_string).collect();
            let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
            manifest.push(json!({ "Config": path, "RepoTags": tags, "Layers": layers }));
        }
        target.add("manifest.json", &document(&Value::Array(manifest))?)
    }

    fn oci(&mut self, images: &[(ImageId, Vec<Name>)], target: &mut Target<'_>) -> Result<()> {
        target.add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = HashSet::new();
        let mut listed = Vec::new();
        for (id, names) in images {
            let config = self.store.config_text(id)?;
            let (manifest, blobs) = self.manifest(id, &config)?;
            for blob in &blobs {
                if written.insert(blob.digest) {
                    self.copy(blob, &blob_path(&blob.digest), target)?;
                }
            }
            for text in [&config, &manifest] {
                let digest = Digest::of(text);
                if written.insert(digest) {
                    target.add(&blob_path(&digest), text)?;
                }
            }
            let platform = serde_json::from_slice(&config).ok();
            let descriptor = |name| descriptor(&manifest, platform.as_ref(), name);
            match &names[..] {
                [] => listed.push(descriptor(None)?),
                names => {
                    for name in names {
                        listed.push(descriptor(Some(name))?);
                    }
                }
            }
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": listed,
        });
        target.add("index.json", &document(&index)?)
    }

    /// An image's manifest and the blobs of its layers: those that were kept, or made now.
    fn manifest(&mut self, id: &ImageId, config: &[u8]) -> Result<(Vec<u8>, Vec<Blob>)> {
        if self.options.compression.is_none()
            && let Some(kept) = self.store.kept_manifest(id)?
        {
            let blobs = self.kept_blobs(&kept)?;
            return Ok((kept, blobs));
        }
        let mut blobs = Vec::new();
        for diff in self.diffs(id)? {
            blobs.push(self.blob(&diff)?);
        }
        let layers: Vec<Value> = blobs
            .iter()
            .map(|blob| {
                let digest = blob.digest.to_string();
                json!({ "mediaType": blob.media_type, "digest": digest, "size": blob.size })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": id.to_string(),
                "size": config.len(),
            },
            "layers": layers,
        });
        Ok((document(&manifest)?, blobs))
    }

    fn kept_blobs(&self, manifest: &[u8]) -> Result<Vec<Blob>> {
        #[derive(serde::Deserialize)]
        struct Manifest {
            layers: Option<Vec<Layer>>,
        }
        #[derive(serde::Deserialize)]
        struct Layer {
            digest: String,
            size: Option<u64>,
        }
        let manifest: Manifest =
            serde_json::from_slice(manifest).map_err(|e| Error::document("manifest", e))?;
        let blob = |layer: Layer| -> Result<Blob> {
            let digest = layer.digest.parse().map_err(|e| Error::document("manifest", e))?;
            let path = self.store.kept_blob(&digest);
            let size = match layer.size {
                Some(size) => size,
                None => {
                    let found = fs::metadata(&path);
                    found.map_err(|e| Error::io("stat", path.display(), e))?.len()
                }
            };
            Ok(Blob { digest, size, media_type: "", from: From::File(path) })
        };
        manifest.layers.unwrap_or_default().into_iter().map(blob).collect()
    }

    fn diffs(&self, id: &ImageId) -> Result<Vec<DiffId>> {
        let diffs = self.store.config(id)?.diff_ids();
        diffs.map_err(|e| Error::document("image config", e))
    }

    /// The blob of a layer; one that is compressed is made in the staging directory, for its size
    /// comes before its content.
    fn blob(&mut self, diff: &DiffId) -> Result<Blob> {
        if let Some(blob) = self.blobs.get(diff) {
            return Ok(blob.clone());
        }
        let blob = match self.options.compression.unwrap_or(Compression::None) {
            Compression::None => Blob {
                digest: diff.0,
                size: pack::size(&self.store.layer_files(diff))?,
                media_type: "application/vnd.oci.image.layer.v1.tar",
                from: From::Layer(*diff),
            },
            compression => self.compress(diff, compression)?,
        };
        self.blobs.insert(*diff, blob.clone());
        Ok(blob)
    }

    fn compress(&self, diff: &DiffId, compression: Compression) -> Result<Blob> {
        let path = self.staging.path().join(diff.hex());
        let failed = |e| Error::io("write", path.display(), e);
        let file = BufWriter::new(File::create(&path).map_err(failed)?);
        let mut out = Hashing::new(file);
        let media_type = match compression {
            Compression::Zstd => {
                let mut zstd = zstd::Encoder::new(&mut out, ZSTD_LEVEL).map_err(failed)?;
                self.pack(diff, &mut zstd)?;
                zstd.finish().map_err(failed)?;
                "application/vnd.oci.image.layer.v1.tar+zstd"
            }
            Compression::Gzip | Compression::None => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                let mut gzip = flate2::write::GzEncoder::new(&mut out, level);
                self.pack(diff, &mut gzip)?;
                gzip.finish().map_err(failed)?;
                "application/vnd.oci.image.layer.v1.tar+gzip"
            }
        };
        out.flush().map_err(failed)?;
        let (digest, size) = (Digest::from_hash(out.hash), out.count);
        Ok(Blob { digest, size, media_type, from: From::File(path) })
    }

    /// Writes the layer's tar, which must be what its DiffID says.
    fn pack(&self, diff: &DiffId, out: &mut dyn Write) -> Result<()> {
        let files = self.store.layer_files(diff);
        let mut hashing = Hashing::new(out);
        pack::pack(&files, &mut hashing)?;
        let found = DiffId(Digest::from_hash(hashing.hash));
        match found == *diff {
            true => Ok(()),
            false => {
                let layer = files.diff().display().to_string();
                Err(Error::DiffId { layer, expected: *diff, found })
            }
        }
    }

    fn copy(&self, blob: &Blob, path: &str, target: &mut Target<'_>) -> Result<()> {
        target.add_with(path, blob.size, |out| match &blob.from {
            From::Layer(diff) => self.pack(diff, out),
            From::File(file) => copy_file(file, blob.digest, out),
        })
    }
}

/// Copies a file that must have this digest.
fn copy_file(path: &Path, expected: Digest, out: &mut dyn Write) -> Result<()> {
    let failed = |e| Error::io("read", path.display(), e);
    let mut from = BufReader::new(File::open(path).map_err(failed)?);
    let mut out = Hashing::new(out);
    let mut buffer = vec![0; 1 << 17];
    loop {
        let len = from.read(&mut buffer).map_err(failed)?;
        if len == 0 {
            break;
        }
        out.write_all(&buffer[..len]).map_err(|e| Error::io("write", "the archive", e))?;
    }
    let found = Digest::from_hash(out.hash);
    match found == expected {
        true => Ok(()),
        false => Err(Error::Digest { what: path.display().to_string(), expected, found }),
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn descriptor(manifest: &[u8], platform: Option<&Platform>, name: Option<&Name>) -> Result<Value> {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    // It was loaded by its other fields, whatever this one is.
    let media_type =
        serde_json::from_slice(manifest).ok().and_then(|typed: Typed| typed.media_type);
    let mut descriptor = json!({
        "mediaType": media_type.as_deref().unwrap_or(MANIFEST),
        "digest": Digest::of(manifest).to_string(),
        "size": manifest.len(),
    });
    if let Some(platform) = platform.filter(|platform| !platform.os.is_empty()) {
        let mut fields = json!({ "architecture": platform.architecture, "os": platform.os });
        if let Some(variant) = &platform.variant {
            fields["variant"] = json!(variant);
        }
        descriptor["platform"] = fields;
    }
    if let Some(name) = name {
        // The first is what podman and containerd read, the second what skopeo and umoci do.
        descriptor["annotations"] = json!(BTreeMap::from([
            ("io.containerd.image.name", name.to_string()),
            ("org.opencontainers.image.ref.name", name.tag().to_owned()),
        ]));
    }
    Ok(descriptor)
}

fn document(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::document("manifest", e))
}
