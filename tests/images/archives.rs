//! The project's own images, in every form of archive.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::is_root;
use crate::common::mounted::run;
use crate::flatten::flatten;
use crate::need_mount;
pub use crate::place::Place;
use crate::shown::expect_tree;

/// Builds a layer's tar.
#[derive(Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    #[allow(clippy::too_many_arguments)] // one per field of the header
    pub fn entry(
        mut self,
        kind: tar::EntryType,
        path: &[u8],
        link: &[u8],
        mode: u32,
        owner: (u64, u64),
        data: &[u8],
        pax: &[(&str, &[u8])],
    ) -> Self {
        let mut builder = tar::Builder::new(&mut self.0);
        let mut records = pax.to_vec();
        if path.len() > 100 || !path.is_ascii() {
            records.push(("path", path));
        }
        if link.len() > 100 {
            records.push(("linkpath", link));
        }
        if !records.is_empty() {
            builder.append_pax_extensions(records).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        let field = |bytes: &[u8]| bytes[..bytes.len().min(100)].to_vec();
        let (name, target) = (field(path), field(link));
        header.as_mut_bytes()[..name.len()].copy_from_slice(&name);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(&target);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        if kind.is_character_special() || kind.is_block_special() {
            header.set_device_major(10).unwrap();
            header.set_device_minor(300).unwrap();
        }
        header.set_cksum();
        builder.append(&header, data).unwrap();
        drop(builder.into_inner()); // ends the archive; see `more`
        self
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.more().entry(tar::EntryType::Directory, path.as_bytes(), b"", mode, (0, 0), b"", &[])
    }

    pub fn file(self, path: &str, text: &str) -> Self {
        let data = text.as_bytes();
        self.more().entry(tar::EntryType::Regular, path.as_bytes(), b"", 0o644, (0, 0), data, &[])
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let (path, target) = (path.as_bytes(), target.as_bytes());
        self.more().entry(tar::EntryType::Symlink, path, target, 0o777, (0, 0), b"", &[])
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let (path, target) = (path.as_bytes(), target.as_bytes());
        self.more().entry(tar::EntryType::Link, path, target, 0o644, (0, 0), b"", &[])
    }

    /// Takes the end-of-archive blocks away, so that entries can follow.
    pub fn more(mut self) -> Self {
        let keep = self.0.len().saturating_sub(1024);
        self.0.truncate(keep);
        self
    }

    pub fn tar(&self) -> Vec<u8> {
        self.0.clone()
    }
}

/// Three layers with all that a layer may hold.
pub fn rich_layers() -> Vec<Vec<u8>> {
    let long = "n".repeat(255);
    let deep = "deep/".repeat(60) + "leaf";
    let mut base = Layer::default()
        .dir("./", 0o755)
        .dir("./bin/", 0o755)
        .dir("tmp", 0o1777)
        .file("bin/tool", "#!/bin/sh\n")
        .hard_link("bin/alias", "bin/tool")
        .symlink("bin/sh", "tool")
        .symlink("dir-or-link", "/etc")
        .file("gone", "whited out above")
        .dir("opaque", 0o750)
        .file("opaque/old", "hidden above")
        .dir("mixed", 0o711)
        .file("mixed/low", "stays")
        .file("was-dir/below", "replaced by a file")
        .file("was-file", "replaced by a directory")
        .file("linked", "hard-linked from above")
        .file(&long, "longest name")
        .file(&deep, "long path")
        .more();
    let nanos: &[(&str, &[u8])] = &[("mtime", b"1234567890.123456789")];
    let early: &[(&str, &[u8])] = &[("mtime", b"-1.5")];
    let xattr: &[(&str, &[u8])] = &[("SCHILY.xattr.user.note", b"kept")];
    let file = tar::EntryType::Regular;
    base = base.entry(file, b"suid", b"", 0o4755, (0, 12), b"setuid", nanos);
    base = base.more().entry(file, b"before-1970", b"", 0o600, (100_000, 200_000), b"", early);
    base = base.more().entry(file, b"noted", b"", 0o644, (7, 7), b"xattr", xattr);
    base = base.more().entry(file, b"caf\xe9", b"", 0o644, (0, 0), b"not UTF-8", &[]);
    base = base.more().entry(tar::EntryType::Fifo, b"fifo", b"", 0o620, (5, 5), b"", &[]);
    if is_root() {
        base = base.more().entry(tar::EntryType::Char, b"dev", b"", 0o660, (0, 6), b"", &[]);
    }
    let middle = Layer::default()
        .file("mixed/high", "its parent has no entry")
        .file(".wh.gone", "")
        .file("opaque/new", "shows")
        .file("opaque/.wh..wh..opq", "")
        .file("was-dir", "a file now")
        .dir("was-file", 0o700)
        .file("was-file/in", "a directory now")
        .dir("dir-or-link", 0o755)
        .file("dir-or-link/f", "was a symlink")
        .file("twice", "first")
        .file("twice", "last wins")
        .hard_link("other-name", "linked");
    let top = Layer::default()
        .file("gone", "back again")
        .file("implied/a/b", "its parents have no entries")
        .file("bin/.wh.sh", "");
    vec![base.tar(), middle.tar(), top.tar()]
}

pub fn sha(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect();
    json!({
        "created": "2020-02-02T02:02:02Z", "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

pub fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, &data[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// The files of a `docker save` archive of one image.
pub fn docker_files(name: &str, layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let config = config(layers);
    let config_name = format!("{}.json", sha(&config));
    let mut files = Vec::new();
    let mut paths = Vec::new();
    for layer in layers {
        let path = format!("{}/layer.tar", sha(layer));
        files.push((path.clone(), layer.clone()));
        paths.push(path);
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": paths }]);
    files.push((config_name, config));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    files
}

/// The files of an OCI layout of one image, its layers packed by `pack`.
pub fn oci_files(
    name: &str,
    layers: &[Vec<u8>],
    kind: &str,
    pack: fn(&[u8]) -> Vec<u8>,
) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut blob = |data: Vec<u8>, media_type: &str| {
        let digest = sha(&data);
        let size = data.len();
        files.push((format!("blobs/sha256/{digest}"), data));
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
    };
    let config = blob(config(layers), "application/vnd.oci.image.config.v1+json");
    let kind = format!("application/vnd.oci.image.layer.v1.{kind}");
    let layers: Vec<_> = layers.iter().map(|layer| blob(pack(layer), &kind)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = blob(manifest.to_string().into_bytes(), manifest_type);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    files
}

#[test]
fn every_form_shows_the_same_tree() {
    need_mount!();
    let layers = rich_layers();
    let expected = flatten(&layers);
    let hybrid = {
        let mut files = oci_files("x/hybrid:1", &layers, "tar", <[u8]>::to_vec);
        let blob = |data: &[u8]| format!("blobs/sha256/{}", sha(data));
        let paths: Vec<_> = layers.iter().map(|layer| blob(layer)).collect();
        let item = json!([{ "Config": blob(&config(&layers)), "RepoTags": ["x/hybrid:1"], "Layers": paths }]);
        files.push(("manifest.json".into(), item.to_string().into_bytes()));
        tar_of(&files)
    };
    let gzipped_layers = {
        let mut files = docker_files("gz", &layers);
        files.iter_mut().filter(|f| f.0.ends_with("layer.tar")).for_each(|f| f.1 = gzip(&f.1));
        tar_of(&files)
    };
    let forms = [
        ("docker:latest", tar_of(&docker_files("docker", &layers))),
        ("packed:latest", gzip(&tar_of(&docker_files("packed", &layers)))),
        ("zpacked:latest", zstd(&tar_of(&docker_files("zpacked", &layers)))),
        ("gz:latest", gzipped_layers),
        ("x/hybrid:1", hybrid),
        ("oci:gzip", tar_of(&oci_files("oci:gzip", &layers, "tar+gzip", gzip))),
        ("oci:zstd", tar_of(&oci_files("oci:zstd", &layers, "tar+zstd", zstd))),
    ];
    for (name, archive) in forms {
        let place = Place::new();
        std::fs::write(place.path("image"), archive).unwrap();
        assert_eq!(place.load(&place.path("image")), [name]);
        place.with_image(name, |tree| expect_tree(tree, &expected, name));
        assert_eq!(std::fs::read_dir(place.path("store/tmp")).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_layout_folder_and_a_pipe() {
    need_mount!();
    let layers = rich_layers();
    let place = Place::new();
    for (path, data) in oci_files("folder:1", &layers, "tar", <[u8]>::to_vec) {
        let path = place.path("layout").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    assert_eq!(place.load(&place.path("layout")), ["folder:1"]);
    let mut child = place
        .plyfs()
        .arg("load") // without a FILE it reads this
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar_of(&docker_files("piped", &layers))).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Loaded image: piped:latest\n");
    // The same layers: one image, two names, each layer once.
    let ids = run(place.plyfs().args(["images", "-q", "--no-trunc"]));
    let ids: Vec<_> = ids.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    assert_eq!(place.layers(), 3);
    place.with_image("piped", |tree| expect_tree(tree, &flatten(&layers), "piped"));
    place.with_image(&ids[0][7..15], |tree| assert!(tree.join("bin").is_dir()));
}

#[test]
fn several_images_and_names_in_one_archive() {
    let layers = rich_layers();
    let place = Place::new();
    let (first, second) = (&layers[..1], &layers[..2]);
    let mut files = docker_files("one:1", first);
    files.extend(docker_files("two:2", second));
    files.retain(|(path, _)| path != "manifest.json");
    let item = |layers: &[Vec<u8>], tags: &[&str]| {
        let paths: Vec<_> = layers.iter().map(|l| format!("{}/layer.tar", sha(l))).collect();
        json!({ "Config": format!("{}.json", sha(&config(layers))), "RepoTags": tags, "Layers": paths })
    };
    let manifest = json!([item(first, &["one:1", "uno:1"]), item(second, &[])]);
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    std::fs::write(place.path("image"), tar_of(&files)).unwrap();
    let id = format!("sha256:{}", sha(&config(second)));
    assert_eq!(place.load(&place.path("image")), ["one:1", "uno:1", &id]);
}

#[test]
fn the_store_is_readable_by_hand() {
    let layers = rich_layers();
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&docker_files("hand:1", &layers))).unwrap();
    place.load(&place.path("image"));
    let root = place.path("store");
    let read = |path: &str| std::fs::read(root.join(path)).unwrap();
    let config = config(&layers);
    assert_eq!(read(&format!("image/imagedb/content/sha256/{}", sha(&config))), config);
    let names: serde_json::Value =
        serde_json::from_slice(&read("image/repositories.json")).unwrap();
    assert_eq!(names["Repositories"]["hand"]["hand:1"], format!("sha256:{}", sha(&config)));
    let first = sha(&layers[0]);
    let second = sha(format!("sha256:{first} sha256:{}", sha(&layers[1])).as_bytes());
    let chain = format!("image/layerdb/sha256/{second}");
    assert_eq!(read(&format!("{chain}/diff")), format!("sha256:{}", sha(&layers[1])).as_bytes());
    assert_eq!(read(&format!("{chain}/parent")), format!("sha256:{first}").as_bytes());
    let cache_id = String::from_utf8(read(&format!("{chain}/cache-id"))).unwrap();
    assert!(root.join("layers").join(&cache_id).join("diff/.wh.gone").exists());
    let short = root.join("l").join(cache_id[..26].to_uppercase());
    assert!(short.join("was-file/in").exists());
    let listed = run(place.plyfs().arg("images"));
    assert!(listed.starts_with("REPOSITORY   TAG"), "{listed}");
    let row = run(place.plyfs().args(["images", "--format", "json"]));
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert_eq!((&row["Repository"], &row["Tag"]), (&json!("hand"), &json!("1")));
    assert_eq!(row["ID"], sha(&config)[..12]);
}

#[test]
fn an_image_does_not_depend_on_what_was_loaded_before() {
    need_mount!();
    // The upper layer lists no directory: it shows the lower one's attributes.
    let base = Layer::default().dir("./", 0o1777).dir("d", 0o700).tar();
    let lean = Layer::default().file("d/f", "1").tar();
    let stacks = [("alone:1", vec![lean.clone()]), ("upon:1", vec![base, lean])];
    for order in [[0, 1], [1, 0]] {
        let place = Place::new();
        for at in order {
            let (name, layers) = &stacks[at];
            std::fs::write(place.path("image"), tar_of(&docker_files(name, layers))).unwrap();
            place.load(&place.path("image"));
        }
        let modes = |image: &str| {
            let mut modes = Vec::new();
            place.with_image(image, |tree| {
                for path in [tree.to_owned(), tree.join("d")] {
                    use std::os::unix::fs::MetadataExt;
                    modes.push(std::fs::metadata(path).unwrap().mode() & 0o7777);
                }
            });
            modes
        };
        assert_eq!(modes("alone:1"), [0o755, 0o755], "{order:?}");
        assert_eq!(modes("upon:1"), [0o1777, 0o700], "{order:?}");
    }
}

#[test]
fn directories_behind_a_symlink_of_the_same_layer() {
    need_mount!();
    let layer = Layer::default()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .dir("lib/mods", 0o711)
        .file("lib/mods/f", "1")
        .file("lib/implied/f", "2")
        .tar();
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&docker_files("x:1", &[layer]))).unwrap();
    place.load(&place.path("image"));
    place.with_image("x:1", |tree| {
        use std::os::unix::fs::MetadataExt;
        let meta = |path: &str| std::fs::metadata(tree.join(path)).unwrap();
        assert_eq!(
            (meta("usr/lib/mods").mode() & 0o7777, meta("usr/lib/mods").mtime()),
            (0o711, 1_600_000_000)
        );
        assert_eq!(
            (meta("usr/lib/implied").mode() & 0o7777, meta("usr/lib/implied").mtime()),
            (0o755, 0)
        );
        assert_eq!(std::fs::read_to_string(tree.join("usr/lib/mods/f")).unwrap(), "1");
    });
}

#[test]
fn killed_and_concurrent_loads_leave_nothing() {
    let place = Place::new();
    let layers = rich_layers();
    std::fs::write(place.path("image"), tar_of(&docker_files("x:1", &layers))).unwrap();
    let abandoned = place.path("store/tmp/build-dead/diff");
    std::fs::create_dir_all(&abandoned).unwrap();
    std::fs::write(abandoned.join("half"), "").unwrap();
    let load = || place.plyfs().arg("load").arg(place.path("image")).stdout(Stdio::null()).spawn();
    let loads: Vec<_> = (0..4).map(|_| load().unwrap()).collect();
    for mut load in loads {
        assert!(load.wait().unwrap().success());
    }
    assert_eq!(std::fs::read_dir(place.path("store/tmp")).unwrap().count(), 0);
    assert_eq!(place.layers(), 3);
}
