//! What is no image, or is damaged, is refused with one line and leaves no trace.

use serde_json::json;

use crate::archives::{
    Layer, Place, config, docker_files, gzip, oci_files, rich_layers, sha, tar_of,
};
use crate::common::mounted::{fails, run};

/// Loading it fails with a line that holds `expected`; the store is as empty as before.
#[track_caller]
pub fn refused(archive: &[u8], expected: &str) {
    let place = Place::new();
    std::fs::write(place.path("image"), archive).unwrap();
    let line = fails(place.plyfs().arg("load").arg(place.path("image")));
    assert!(line.contains(expected), "{line}");
    for dir in ["tmp", "containers", "image/imagedb/content/sha256"] {
        let left = std::fs::read_dir(place.path("store").join(dir)).unwrap().count();
        assert_eq!(left, 0, "left in {dir} after: {line}");
    }
    assert_eq!(run(place.plyfs().args(["images", "-q"])), "");
}

#[test]
fn no_image_at_all() {
    refused(b"", "no tar, neither plain nor compressed");
    refused(b"just some text", "no tar, neither plain nor compressed");
    refused(&[0x55; 4096], "no tar, neither plain nor compressed");
    refused(&gzip(b"just some text"), "no tar, neither plain nor compressed");
    refused(&tar_of(&[("README".into(), b"hi".to_vec())]), "no image in it");
    let place = Place::new();
    let missing = fails(place.plyfs().arg("load").arg(place.path("missing")));
    assert!(missing.contains("No such file"), "{missing}");
    let empty = fails(place.plyfs().arg("load").arg(place.mountpoint()));
    assert!(empty.contains("no image in it"), "{empty}");
}

#[test]
fn truncated() {
    let whole = tar_of(&docker_files("x", &rich_layers()));
    for part in [2, 3, 5] {
        refused(&whole[..whole.len() / part], "");
        let packed = gzip(&whole);
        refused(&packed[..packed.len() / part], "truncated");
    }
    refused(&whole[..whole.len() / 2 + 77], "");
}

#[test]
fn damaged() {
    let layers = rich_layers();
    let mut files = docker_files("x", &layers);
    let at = files[0].1.windows(5).position(|w| w == b"xattr").unwrap();
    files[0].1[at] ^= 1;
    refused(&tar_of(&files), "is damaged");
    let mut files = docker_files("x", &layers);
    let config = files.iter_mut().find(|(path, _)| path.ends_with(".json")).unwrap();
    config.1.push(b' ');
    refused(&tar_of(&files), "is damaged");
    let mut files = oci_files("x:1", &layers, "tar+gzip", gzip);
    files[1].1.extend(gzip(b"more")); // the layer's blob: plain content and digest differ
    refused(&tar_of(&files), "is damaged");
    let mut files = docker_files("x", &layers);
    files.remove(0);
    refused(&tar_of(&files), "lacks");
}

#[test]
fn manifests_that_make_no_sense() {
    let layers = rich_layers();
    let with = |name: &str, text: String| {
        let mut files = docker_files("x", &layers);
        files.retain(|(path, _)| path != name);
        files.push((name.into(), text.into_bytes()));
        tar_of(&files)
    };
    refused(&with("manifest.json", "{".into()), "bad manifest.json");
    refused(&with("manifest.json", "[]".into()), "no image");
    let config_name = format!("{}.json", sha(&config(&layers)));
    let fewer = json!([{ "Config": config_name, "RepoTags": ["x"], "Layers": [] }]);
    refused(&with("manifest.json", fewer.to_string()), "layers");
    let bad_name = json!([{ "Config": config_name, "RepoTags": ["../up"], "Layers": [] }]);
    refused(&with("manifest.json", bad_name.to_string()), "not an image name");
}

#[test]
fn layers_that_reach_outside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let up = "../".repeat(20) + &victim.display().to_string()[1..];
    let refuse = |layer: Layer, expected: &str| {
        refused(&tar_of(&docker_files("x", &[layer.tar()])), expected);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    };
    refuse(Layer::default().file(&up, "hit"), "'..'");
    refuse(Layer::default().hard_link("l", &up), "'..'");
    refuse(Layer::default().hard_link("l", victim.to_str().unwrap()), "link to nothing");
    refuse(Layer::default().symlink(".", "/tmp"), "root is not a directory");
    for whiteout in [".wh.", ".wh..", "d/.wh..."] {
        refuse(Layer::default().file(whiteout, ""), "whiteout of nothing");
    }
    // Through symlinks: the layer's own directory is the root that they see.
    let dir = outside.path().display().to_string();
    let planted = Layer::default().symlink("out", &dir).file("out/planted", "inside");
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&docker_files("x", &[planted.tar()]))).unwrap();
    run(place.plyfs().arg("load").arg(place.path("image")));
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
}

#[test]
fn owners_that_no_file_can_have() {
    for owner in [(u64::from(u32::MAX), 0), (0, u64::from(u32::MAX)), (1 << 40, 0)] {
        let kind = tar::EntryType::Regular;
        let layer = Layer::default().entry(kind, b"f", b"", 0o4755, owner, b"", &[]);
        refused(&tar_of(&docker_files("x", &[layer.tar()])), "bad tar entry f");
    }
}

#[test]
fn unknown_images_name_the_nearest() {
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&docker_files("alpine:3.10", &rich_layers())))
        .unwrap();
    run(place.plyfs().arg("load").arg(place.path("image")));
    let mount = |image: &str| fails(place.plyfs().args(["mount", image]).arg(place.mountpoint()));
    for typo in ["alpin:3.10", "alpine", "alpine:3.1"] {
        let line = mount(typo);
        assert!(line.contains("did you mean alpine:3.10?"), "{line}");
    }
    let line = mount("zzz");
    assert!(line.contains("no image zzz") && !line.contains("mean"), "{line}");
    assert_eq!(std::fs::read_dir(place.path("store/containers")).unwrap().count(), 0);
}

#[test]
fn platforms() {
    let layers = rich_layers();
    let mut files = oci_files("x:1", &layers, "tar", <[u8]>::to_vec);
    let index = files.iter_mut().find(|(path, _)| path == "index.json").unwrap();
    let mut text: serde_json::Value = serde_json::from_slice(&index.1).unwrap();
    let mut first = text["manifests"][0].clone();
    first["platform"] = json!({ "os": "linux", "architecture": "vax" });
    let mut second = first.clone();
    second["platform"]["architecture"] = json!("pdp11");
    text["manifests"] = json!([first, second]);
    index.1 = text.to_string().into_bytes();
    refused(&tar_of(&files), "linux/vax, linux/pdp11");
}

#[test]
fn a_bad_layer_above_a_good_one_leaves_neither() {
    let layers = rich_layers();
    let mut files = docker_files("x", &layers);
    files[2].1 = layers[1].clone();
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&files)).unwrap();
    fails(place.plyfs().arg("load").arg(place.path("image")));
    for dir in ["layers", "l", "image/layerdb/sha256", "tmp"] {
        let left = std::fs::read_dir(place.path("store").join(dir)).unwrap().count();
        assert_eq!(left, 0, "{dir}");
    }
}

#[test]
fn the_store_keeps_others_out() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    run(place.plyfs().arg("images"));
    for dir in ["layers", "containers", "tmp"] {
        let mode = std::fs::metadata(place.path("store").join(dir)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700, "{dir}");
    }
}

#[test]
fn names_from_an_archive_do_not_reach_the_terminal_raw() {
    let mut files = docker_files("x", &rich_layers());
    let manifest = files.last_mut().unwrap();
    manifest.1 = br#"[{"Config": "evil\n\u001b[31m", "Layers": []}]"#.to_vec();
    refused(&tar_of(&files), "evil\\n\\u{1b}[31m");
}
