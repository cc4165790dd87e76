//! Every way in which archives and layouts say which layers an image has: docker's forms, OCI
//! indexes, and what is no image that can be loaded.

use serde_json::{Value, json};

use crate::archives::{config, docker_files, gzip, oci_files, rich_layers, sha, tar_of};
use crate::bad_images::refused;
use crate::common::mounted::{fails, run};
use crate::flatten::flatten;
use crate::need_mount;
use crate::place::{Place, Who};

type Files = Vec<(String, Vec<u8>)>;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI layout that is being made.
#[derive(Default)]
struct Layout {
    files: Files,
}

impl Layout {
    /// Adds a blob; its descriptor.
    fn blob(&mut self, data: impl Into<Vec<u8>>, media_type: &str) -> Value {
        let data = data.into();
        let (digest, size) = (format!("sha256:{}", sha(&data)), data.len());
        self.files.push((digest.replace("sha256:", "blobs/sha256/"), data));
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    fn manifest(&mut self, config: &Value, layers: &[Value], media_type: &str) -> Value {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
        });
        self.blob(manifest.to_string(), media_type)
    }

    /// An image for a platform.
    fn image(&mut self, layers: &[Vec<u8>], architecture: &str) -> Value {
        let mut text: Value = serde_json::from_slice(&config(layers)).unwrap();
        text["architecture"] = json!(architecture);
        let config = self.blob(text.to_string(), CONFIG);
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(&layer[..], LAYER)).collect();
        let mut descriptor = self.manifest(&config, &layers, MANIFEST);
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.blob(index.to_string(), INDEX)
    }

    /// The archive, with this index.
    fn archive(mut self, manifests: &[Value]) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.files.push(("index.json".into(), index.to_string().into_bytes()));
        self.files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        tar_of(&self.files)
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ "io.containerd.image.name": name });
    descriptor
}

/// To everybody the archive is this one image.
#[track_caller]
fn expect_image(archive: &[u8], layers: &[Vec<u8>], what: &str) {
    for who in Who::all() {
        Place::of(who).round_trip(archive, &flatten(layers), what);
    }
}

fn v1_files(layers: &[Vec<u8>], names: &Value) -> Files {
    let mut files: Files = vec![("repositories".into(), names.to_string().into_bytes())];
    for (n, layer) in layers.iter().enumerate() {
        let id = |n: usize| sha(format!("v1 {n}").as_bytes());
        let mut json = json!({
            "id": id(n), "created": "2014-04-04T04:04:04Z", "architecture": "amd64", "os": "linux",
            "container_config": { "Cmd": ["/bin/sh", "-c", format!("step {n}")] },
            "Size": 77, "throwaway": true,
        });
        if n > 0 {
            json["parent"] = json!(id(n - 1));
        }
        files.push((format!("{}/VERSION", id(n)), b"1.0".to_vec()));
        files.push((format!("{}/json", id(n)), json.to_string().into_bytes()));
        files.push((format!("{}/layer.tar", id(n)), layer.clone()));
    }
    files
}

#[test]
fn docker_v1() {
    need_mount!();
    let layers = rich_layers();
    let top = |n: usize| sha(format!("v1 {n}").as_bytes());
    let one = v1_files(&layers, &json!({ "old": { "1": top(2) } }));
    expect_image(&tar_of(&one), &layers, "v1");
    let names =
        json!({ "old": { "1": top(2), "2": top(2), "low": top(0) }, "host:5/x": { "y": top(2) } });
    let place = Place::new();
    let archive = tar_of(&v1_files(&layers, &names));
    let mut loaded = place.load(&place.write("image", &archive));
    loaded.sort();
    assert_eq!(loaded, ["host:5/x:y", "old:1", "old:2", "old:low"]);
    let (all, low) = (flatten(&layers), flatten(&layers[..1]));
    place.come_back(&[("old:2", &all, "several"), ("old:low", &low, "a part of the layers")]);
    // Layers that several images have are hashed once, and count once.
    let bytes = |n: usize| format!("bytes={n}");
    let total = layers.iter().map(Vec::len).sum();
    Place::new().load_with(&["--limit", &bytes(total)], &place.write("image", &archive));
    let fails_at = |limit: &str| {
        let image = place.write("image", &archive);
        fails(Place::new().plyfs().args(["load", "--limit", limit]).arg(image))
    };
    assert!(fails_at(&bytes(total - 1)).contains("limit bytes="));
    assert!(fails_at("layers=2").contains("limit layers=2"));
    let history = run(place.plyfs().args(["history", "old:1"]));
    assert!(history.contains("step 2") && history.contains("step 0"), "{history}");
    // A v1.2 archive has the v1 form too, which is not asked.
    let mut both = docker_files("new:1", &layers);
    both.extend(v1_files(&layers[..1], &json!({ "old": { "1": top(0) } })));
    let place = Place::new();
    assert_eq!(place.load(&place.write("image", &tar_of(&both))), ["new:1"]);
    assert_eq!(place.ids(), [format!("sha256:{}", sha(&config(&layers)))]);
}

/// Both forms in one, as Docker writes since version 25.
fn hybrid(layers: &[Vec<u8>]) -> Files {
    let mut files = oci_files("x/hybrid:1", layers, "tar", <[u8]>::to_vec);
    let path = |data: &[u8]| format!("blobs/sha256/{}", sha(data));
    let paths: Vec<_> = layers.iter().map(|layer| path(layer)).collect();
    let sources: serde_json::Map<_, _> = layers
        .iter()
        .map(|layer| {
            let digest = format!("sha256:{}", sha(layer));
            (digest.clone(), json!({ "mediaType": LAYER, "size": layer.len(), "digest": digest }))
        })
        .collect();
    let item = json!([{
        "Config": path(&config(layers)), "RepoTags": ["x/hybrid:1"], "Layers": paths,
        "LayerSources": sources,
    }]);
    files.push(("manifest.json".into(), item.to_string().into_bytes()));
    files.push(("repositories".into(), br#"{"x/hybrid":{"1":"0"}}"#.to_vec()));
    files
}

#[test]
fn docker_hybrids() {
    need_mount!();
    let layers = rich_layers();
    expect_image(&tar_of(&hybrid(&layers)), &layers, "hybrid");
    // The manifest is the layout's.
    let place = Place::new();
    let image = place.write("image", &tar_of(&hybrid(&layers)));
    assert_eq!(place.load_with(&["--keep-blobs"], &image), ["x/hybrid:1"]);
    run(place.plyfs().args(["save", "--format", "oci", "x/hybrid:1", "-o"]).arg(place.path("out")));
    for (path, bytes) in hybrid(&layers).iter().filter(|(path, _)| path.starts_with("blobs/")) {
        assert_eq!(std::fs::read(place.path("out").join(path)).unwrap(), *bytes, "{path}");
    }
    let broken = [
        "",
        "{",
        "{}",
        "null",
        r#"{"schemaVersion":2,"manifests":null}"#,
        r#"{"schemaVersion":2,"manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","size":1,"digest":"sha256:0123456789012345678901234567890123456789012345678901234567890123"}]}"#,
    ];
    let id = format!("sha256:{}", sha(&config(&layers)));
    for index in broken {
        let mut files = hybrid(&layers);
        files.iter_mut().find(|f| f.0 == "index.json").unwrap().1 = index.as_bytes().to_vec();
        let place = Place::new();
        assert_eq!(place.load(&place.write("image", &tar_of(&files))), ["x/hybrid:1"], "{index}");
        assert_eq!(place.ids(), [&id[..]], "{index}");
    }
}

#[test]
fn layers_that_are_links_to_one_another() {
    need_mount!();
    // The same layer three times, as docker save wrote it: once as data, then as links.
    let layer = rich_layers().remove(0);
    let layers = vec![layer.clone(), layer.clone(), layer.clone(), layer.clone()];
    let config = config(&layers);
    let config_name = format!("{}.json", sha(&config));
    let symlinks = ["../a/layer.tar", "../b/layer.tar", "../../d/./../a/layer.tar"];
    let hard_links = ["a/layer.tar", "./b/layer.tar", "/a/layer.tar"];
    for (what, kind, targets) in [
        ("symlinks", tar::EntryType::Symlink, symlinks),
        ("hard links", tar::EntryType::Link, hard_links),
    ] {
        // A link may stand before what it leads to.
        let mut builder = tar::Builder::new(Vec::new());
        for (dir, target) in ["b", "c", "d"].iter().zip(targets) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            builder.append_link(&mut header, format!("{dir}/layer.tar"), target).unwrap();
        }
        let manifest = json!([{
            "Config": config_name, "RepoTags": ["x:1"],
            "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"],
        }]);
        for (path, data) in [
            ("a/layer.tar", &layer[..]),
            (&config_name, &config),
            ("manifest.json", manifest.to_string().as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, data).unwrap();
        }
        expect_image(&builder.into_inner().unwrap(), &layers, what);
    }
}

#[test]
fn platforms() {
    need_mount!();
    let layers = rich_layers();
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let other = if here == "amd64" { "arm64" } else { "amd64" };
    let make = |is_nested: bool| {
        let mut layout = Layout::default();
        let mut images = vec![
            layout.image(&layers[..1], other),
            layout.image(&layers, here),
            layout.image(&layers[..2], "vax"),
        ];
        // What buildkit adds to say how an image came about.
        let config = layout.blob("{}", CONFIG);
        let mut beside = layout.manifest(&config, &[], MANIFEST);
        beside["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": images[0]["digest"],
        });
        beside["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        images.insert(0, beside);
        if is_nested {
            let inner = layout.index(&images);
            images = vec![named(layout.index(&[inner]), "multi:1")];
        }
        layout.archive(&images)
    };
    for is_nested in [false, true] {
        let archive = make(is_nested);
        for who in Who::all() {
            let loads = |options: &[&str], layers: &[Vec<u8>]| {
                let place = Place::of(who);
                let names = place.load_with(options, &place.write("image", &archive));
                assert_eq!(names.len(), 1, "{options:?}: {names:?}");
                assert_eq!(is_nested, names[0] == "multi:1", "{names:?}");
                place.come_back(&[(&names[0], &flatten(layers), &format!("{options:?}"))]);
            };
            loads(&[], &layers);
            loads(&["--platform", &format!("linux/{other}")], &layers[..1]);
            loads(&["--platform", "linux/vax"], &layers[..2]);
        }
        let place = Place::new();
        let image = place.write("image", &archive);
        let mut load = place.plyfs();
        let line = fails(load.args(["load", "--platform", "linux/pdp11"]).arg(image));
        let there = format!(
            "no image for linux/pdp11; there are images for linux/{other}, linux/{here}, linux/vax"
        );
        assert!(line.contains(&there), "{line}");
    }
    // Descriptors that tell no platform, a variant that the config leaves out, an artifact beside.
    for (asked, told) in [("linux/arm64", None), ("linux/arm/v7", Some("v7"))] {
        let mut layout = Layout::default();
        let mut images = vec![layout.image(&layers[..1], "vax")];
        images.push(layout.image(&layers, asked.split('/').nth(1).unwrap()));
        for image in &mut images {
            match told {
                Some(variant) => image["platform"]["variant"] = json!(variant),
                None => drop(image.as_object_mut().unwrap().remove("platform")),
            }
        }
        let config = layout.blob("{}", "application/vnd.example.sbom");
        images.push(layout.manifest(&config, &[], MANIFEST));
        let place = Place::new();
        let image = place.write("image", &layout.archive(&images));
        assert_eq!(place.load_with(&["--platform", asked], &image).len(), 1, "{asked}");
        assert_eq!(place.layers(), layers.len(), "{asked}");
    }
    // The config is asked too, and of a docker archive alone.
    let place = Place::new();
    let image = place.write("image", &tar_of(&docker_files("x:1", &layers)));
    let line = fails(place.plyfs().args(["load", "--platform", "linux/vax"]).arg(image));
    assert!(
        line.contains("no image for linux/vax") && line.contains("is for linux/amd64"),
        "{line}"
    );
}

#[test]
fn docker_media_types_in_a_layout() {
    need_mount!();
    let layers = rich_layers();
    let mut layout = Layout::default();
    let config = layout.blob(config(&layers), "application/vnd.docker.container.image.v1+json");
    let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let blobs: Vec<_> = layers.iter().map(|layer| layout.blob(gzip(layer), kind)).collect();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let mut manifest = layout.manifest(&config, &blobs, kind);
    manifest["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let list = json!({
        "schemaVersion": 2, "manifests": [manifest],
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
    });
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = layout.blob(list.to_string(), kind);
    let list = named(list, "schema2:1");
    expect_image(&layout.archive(&[list]), &layers, "schema 2");
}

#[test]
fn layouts_in_folders() {
    need_mount!();
    let layers = rich_layers();
    let files = oci_files("folder:1", &layers, "tar+gzip", gzip);
    let tree = flatten(&layers);
    for who in Who::all() {
        let place = Place::of(who);
        for (path, data) in &files {
            place.write(&format!("layout/{path}"), data);
        }
        assert_eq!(place.load(&place.path("layout")), ["folder:1"]);
        place.come_back(&[("folder:1", &tree, "a folder")]);
        // And what plyfs itself writes.
        run(place
            .plyfs()
            .args(["save", "--format", "oci", "folder:1", "-o"])
            .arg(place.path("made/l")));
        let other = Place::of(who);
        assert_eq!(other.load(&place.path("made/l")), ["folder:1"]);
        assert_eq!(other.ids(), place.ids());
    }
}

#[test]
fn what_is_no_image_is_told() {
    let layers = rich_layers();
    let with_layer = |kind: &str, is_there: bool| {
        let mut layout = Layout::default();
        let config = layout.blob(config(&layers[..1]), CONFIG);
        let layer = layout.blob(&layers[0][..], kind);
        if !is_there {
            layout.files.pop();
        }
        let manifest = layout.manifest(&config, &[layer], MANIFEST);
        layout.archive(&[manifest])
    };
    for (kind, words) in [
        ("application/vnd.oci.image.layer.v1.squashfs", "a squashfs layer"),
        ("application/vnd.stacker.image.layer.squashfs+zstd+verity", "a squashfs layer"),
        ("application/vnd.sylabs.sif.layer.v1.sif", "an unknown kind of layer"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "an unknown kind of layer"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "an encrypted layer"),
        ("application/vnd.oci.image.layer.v1.tar+zstd+encrypted", "an encrypted layer"),
    ] {
        refused(&with_layer(kind, true), words);
        refused(&with_layer(kind, true), kind);
    }
    for kind in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        refused(&with_layer(kind, false), "a foreign layer");
        refused(&with_layer(kind, false), "not in the archive");
        let place = Place::new(); // where its content is there, it is a layer as any
        place.load(&place.write("image", &with_layer(kind, true)));
    }
    let artifact = |config_type: &str, artifact_type: Option<&str>| {
        let mut layout = Layout::default();
        let config = layout.blob("{}", config_type);
        let chart = layout.blob("chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
        let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": [chart] });
        if let Some(kind) = artifact_type {
            manifest["artifactType"] = json!(kind);
        }
        let manifest = layout.blob(manifest.to_string(), MANIFEST);
        layout.archive(&[manifest])
    };
    let helm = "application/vnd.cncf.helm.config.v1+json";
    refused(&artifact(helm, None), &format!("an artifact ({helm}), not a container image"));
    let empty = "application/vnd.oci.empty.v1+json";
    refused(&artifact(empty, Some("application/x-sbom")), "an artifact (application/x-sbom)");
}

#[test]
fn a_folder_of_skopeos_dir_transport() {
    let place = Place::new();
    let dir = place.path("made/dir");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    std::fs::write(dir.join("manifest.json"), "{}").unwrap();
    let line = fails(place.plyfs().arg("load").arg(&dir));
    assert!(line.contains("dir: transport") && line.contains("skopeo copy"), "{line}");
}

#[test]
fn indexes_that_make_no_sense() {
    let layers = rich_layers();
    refused(&Layout::default().archive(&[]), "it lists no image");
    let mut layout = Layout::default();
    let empty = layout.index(&[]);
    refused(&layout.archive(&[empty]), "the index is empty");
    let mut layout = Layout::default();
    let mut at = layout.image(&layers, "amd64");
    for _ in 0..12 {
        at = layout.index(&[at]);
    }
    refused(&layout.archive(&[at]), "never end");
    let mut layout = Layout::default();
    let mut image = layout.image(&layers, "amd64");
    image["digest"] = json!("sha512:00");
    refused(&layout.archive(&[image]), "sha512");
    let mut layout = Layout::default();
    let mut image = layout.image(&layers, "amd64");
    image["size"] = json!(7);
    refused(&layout.archive(&[image]), "not 7");
    let mut layout = Layout::default();
    let config = layout.blob(config(&layers), CONFIG);
    let one = layout.blob(&layers[0][..], LAYER);
    let manifest = layout.manifest(&config, &[one], MANIFEST);
    refused(&layout.archive(&[manifest]), "the config tells of 3 layers, the archive has 1");
}
