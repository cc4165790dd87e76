//! Whole image archives out of arbitrary bytes: documents that fit together, bent here and there.
//!
//! Digests are made after the bending, from the layers up to the index, so that a reader goes
//! through all of it before it finds what is wrong.

use std::io::Write;

use arbitrary::{Result, Unstructured};
use plyfs::store::digest::Digest;
use serde_json::{Map, Value, json};

use crate::tar::{self, Entry};

/// Strings that documents hold, in the place of others.
const WORDS: [&str; 24] = [
    "",
    "a",
    "a:1",
    "library/a",
    "docker.io/library/a:1",
    "localhost:5000/a/b:c",
    "latest",
    "../up",
    "evil\n\u{1b}[31m",
    "manifest.json",
    "index.json",
    "repositories",
    "layer.tar",
    "linux",
    "amd64",
    "arm64",
    "v8",
    "unknown",
    "sha256:",
    "sha512:00",
    "application/vnd.oci.image.layer.v1.tar+encrypted",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.in-toto+json",
];
/// Changes to one document, at most.
const MAX_BENDS: usize = 3;
/// Layers of an image, at most.
const MAX_LAYERS: usize = 4;

type Files = Vec<(String, Vec<u8>)>;

/// A layer as it is in an archive.
struct Blob {
    diff: Digest,
    stored: Vec<u8>,
}

/// An archive: `docker save` (v1 and later), OCI, or both in one.
pub fn archive(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut files = Files::new();
    let layers = layers(u)?;
    match u.int_in_range(0..=3)? {
        0 => docker(u, &layers, &mut files)?,
        1 => v1(u, &layers, &mut files)?,
        2 => {
            oci(u, &layers, &mut files)?;
            docker(u, &layers, &mut files)?;
        }
        _ => oci(u, &layers, &mut files)?,
    }
    disturb(u, &mut files)?;
    let mut tar = Vec::new();
    for (path, data) in &files {
        match u.int_in_range(0..=40)? {
            0 => append_link(&mut tar, b'1', path, &u.choose(&files)?.0),
            1 => append_link(&mut tar, b'2', path, &u.choose(&files)?.0),
            _ => tar::append_file(&mut tar, path, data),
        }
    }
    tar.extend_from_slice(&[0; 1024]);
    Ok(tar)
}

/// A sound archive of one image of these layers.
pub fn of_layers(layers: &[Vec<u8>]) -> Vec<u8> {
    let (mut tar, mut diffs, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for (n, layer) in layers.iter().enumerate() {
        diffs.push(Digest::of(layer).to_string());
        paths.push(format!("{n}/layer.tar"));
        tar::append_file(&mut tar, &paths[n], layer);
    }
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": diffs } });
    tar::append_file(&mut tar, "config.json", config.to_string().as_bytes());
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["fuzz:1"], "Layers": paths }]);
    tar::append_file(&mut tar, "manifest.json", manifest.to_string().as_bytes());
    tar.extend_from_slice(&[0; 1024]);
    tar
}

fn append_link(tar: &mut Vec<u8>, kind: u8, path: &str, target: &str) {
    let (path, link) = (path.as_bytes(), target.as_bytes());
    tar::append(tar, &Entry { kind, path, link, ..Entry::default() });
}

/// Leaves files out, doubles or damages them.
fn disturb(u: &mut Unstructured<'_>, files: &mut Files) -> Result<()> {
    for _ in 0..u.int_in_range(0..=5)?.min(2) {
        let at = u.choose_index(files.len())?;
        match u.int_in_range(0..=3)? {
            0 if files.len() > 1 => drop(files.remove(at)),
            1 => files.push(files[at].clone()),
            2 => files[at].1.push(0),
            _ => {}
        }
    }
    Ok(())
}

fn layers(u: &mut Unstructured<'_>) -> Result<Vec<Blob>> {
    let mut layers = Vec::new();
    for _ in 0..u.int_in_range(0..=MAX_LAYERS)? {
        let mut tar = Vec::new();
        let kind = *u.choose(b"0001251")?;
        let path: &[u8] = u.choose(&[&b"a"[..], b"b", b"d/a", b"d"])?;
        let (link, mode) = (&b"a"[..], 0o755);
        tar::append(&mut tar, &Entry { kind, path, link, mode, ..Entry::default() });
        tar.extend_from_slice(&[0; 1024]);
        let stored = match u.int_in_range(0..=3)? {
            0 => gzip(&tar),
            1 => zstd::encode_all(&tar[..], 1).expect("memory"),
            _ => tar.clone(),
        };
        layers.push(Blob { diff: Digest::of(&tar), stored });
    }
    Ok(layers)
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).and_then(|()| encoder.finish()).expect("memory")
}

/// An image config.
fn config(u: &mut Unstructured<'_>, layers: &[Blob]) -> Result<Vec<u8>> {
    let diffs: Vec<_> = layers.iter().map(|layer| layer.diff.to_string()).collect();
    let architecture = *u.choose(&["amd64", "amd64", "arm64"])?;
    bent(
        u,
        json!({
            "created": "2020-02-02T02:02:02Z",
            "architecture": architecture,
            "os": "linux",
            "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diffs },
            "history": [{ "created_by": "fuzz", "empty_layer": true }],
        }),
    )
}

fn docker(u: &mut Unstructured<'_>, layers: &[Blob], files: &mut Files) -> Result<()> {
    let mut items = Vec::new();
    for n in 0..u.int_in_range(1..=2)? {
        let config = config(u, layers)?;
        let config_path = match u.int_in_range(0..=2)? {
            0 => "config.json".to_owned(),
            1 => blob_path(&config),
            _ => format!("{}.json", Digest::of(&config).hex()),
        };
        files.push((config_path.clone(), config));
        let mut paths = Vec::new();
        for layer in layers {
            let path = match u.int_in_range(0..=1)? {
                0 => blob_path(&layer.stored),
                _ => format!("{}/layer.tar", &layer.diff.hex()[..9 + n]),
            };
            files.push((path.clone(), layer.stored.clone()));
            paths.push(path);
        }
        let tags = &["a:1", "b:1", "a:2"][..u.int_in_range(0..=3)?];
        items.push(json!({ "Config": config_path, "RepoTags": tags, "Layers": paths }));
    }
    let manifest = bent(u, Value::Array(items))?;
    files.push(("manifest.json".to_owned(), manifest));
    Ok(())
}

fn v1(u: &mut Unstructured<'_>, layers: &[Blob], files: &mut Files) -> Result<()> {
    let mut parent = String::new();
    for (n, layer) in layers.iter().enumerate() {
        let id = format!("id{n}");
        let json = json!({
            "id": id, "parent": parent, "created": "2020-02-02T02:02:02Z", "os": "linux",
            "architecture": "amd64", "container_config": { "Cmd": ["sh", "-c", "x"] },
        });
        files.push((format!("{id}/json"), bent(u, json)?));
        files.push((format!("{id}/layer.tar"), layer.stored.clone()));
        parent = id;
    }
    let repositories = bent(u, json!({ "a": { "1": parent, "2": parent } }))?;
    files.push(("repositories".to_owned(), repositories));
    Ok(())
}

fn oci(u: &mut Unstructured<'_>, layers: &[Blob], files: &mut Files) -> Result<()> {
    let layer_type = *u.choose(&[
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ])?;
    let mut listed = Vec::new();
    for n in 0..u.int_in_range(1..=2)? {
        let config = config(u, layers)?;
        let config = add_blob(files, config, "application/vnd.oci.image.config.v1+json");
        let blob = |layer: &Blob| add_blob(files, layer.stored.clone(), layer_type);
        let layers: Vec<_> = layers.iter().map(blob).collect();
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": manifest_type,
            "config": config, "layers": layers });
        let mut at = add_blob(files, bent(u, manifest)?, manifest_type);
        at["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("a/b:{n}") });
        if u.ratio(1, 2)? {
            at["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        }
        listed.push(at);
    }
    let mut index = json!({ "schemaVersion": 2, "manifests": listed });
    for _ in 0..u.int_in_range(0..=12)? {
        let inner = bent(u, index)?;
        let at = add_blob(files, inner, "application/vnd.oci.image.index.v1+json");
        index = json!({ "schemaVersion": 2, "manifests": [at] });
    }
    files.push(("index.json".to_owned(), bent(u, index)?));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    Ok(())
}

fn blob_path(data: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(data).hex())
}

/// Adds a blob; its descriptor.
fn add_blob(files: &mut Files, data: Vec<u8>, media_type: &str) -> Value {
    let digest = Digest::of(&data).to_string();
    let at = json!({ "mediaType": media_type, "digest": digest, "size": data.len() });
    files.push((blob_path(&data), data));
    at
}

/// A document's text, after a few changes: mostly none.
fn bent(u: &mut Unstructured<'_>, mut document: Value) -> Result<Vec<u8>> {
    for _ in 0..u.int_in_range(0..=2 * MAX_BENDS)?.saturating_sub(MAX_BENDS) {
        bend(u, &mut document)?;
    }
    Ok(document.to_string().into_bytes())
}

/// Changes one value, or lets it go.
fn bend(u: &mut Unstructured<'_>, at: &mut Value) -> Result<()> {
    match at {
        Value::Array(items) if !items.is_empty() => {
            let n = u.choose_index(items.len())?;
            match u.int_in_range(0..=9)? {
                0 => drop(items.remove(n)),
                1 => items.push(items[n].clone()),
                2 => *at = junk(u)?,
                _ => bend(u, &mut items[n])?,
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            let key = u.choose(&keys)?;
            match u.int_in_range(0..=9)? {
                0 => drop(fields.remove(key)),
                1 => add_field(u, fields)?,
                2 => *at = junk(u)?,
                _ => fields.get_mut(key).map_or(Ok(()), |field| bend(u, field))?,
            }
        }
        leaf => *leaf = junk(u)?,
    }
    Ok(())
}

fn add_field(u: &mut Unstructured<'_>, fields: &mut Map<String, Value>) -> Result<()> {
    let keys = [
        "variant",
        "layers",
        "manifests",
        "config",
        "platform",
        "artifactType",
        "annotations",
        "parent",
        "history",
        "urls",
        "subject",
        "io.containerd.image.name",
        "vnd.docker.reference.type",
    ];
    fields.insert((*u.choose(&keys)?).to_owned(), junk(u)?);
    Ok(())
}

fn junk(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => json!(u.arbitrary::<i64>()?),
        4 => json!([*u.choose(&WORDS)?]),
        5 => json!(true),
        _ => json!(*u.choose(&WORDS)?),
    })
}
