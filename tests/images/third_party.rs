//! Images of other projects, where they are present: `PLYFS_TEST_IMAGES`, else
//! `../shared/images`. The tree is computed from the archives by this test alone.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::archives::Place;
use crate::common::is_root;
use crate::common::mounted::run;
use crate::flatten::flatten;
use crate::need_mount;
use crate::shown::expect_tree;

fn images() -> Option<PathBuf> {
    let near = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/images");
    let dir = std::env::var_os("PLYFS_TEST_IMAGES").map_or(near, PathBuf::from);
    dir.is_dir().then_some(dir)
}

fn plain(data: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    match &data[..data.len().min(4)] {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(&data[..]).read_to_end(&mut out),
        [0x28, 0xb5, 0x2f, 0xfd] => zstd::Decoder::new(&data[..]).unwrap().read_to_end(&mut out),
        [0xfd, b'7', b'z', b'X'] => liblzma::read::XzDecoder::new(&data[..]).read_to_end(&mut out),
        _ => return data,
    }
    .unwrap();
    out
}

/// The files of an archive or folder.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    if path.is_dir() {
        for entry in walkdir::WalkDir::new(path).into_iter().flatten() {
            if entry.file_type().is_file() {
                let name = entry.path().strip_prefix(path).unwrap().display().to_string();
                found.push((name, std::fs::read(entry.path()).unwrap()));
            }
        }
        return found;
    }
    let archive = plain(std::fs::read(path).unwrap());
    let mut links = Vec::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if let Some(target) = entry.link_name().unwrap() {
            let target = Path::new(&name).parent().unwrap().join(target).display().to_string();
            links.push((name, target));
            continue;
        }
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        found.push((name.trim_start_matches("./").to_owned(), data));
    }
    for (name, target) in links {
        let clean: PathBuf = Path::new(&target).components().fold(PathBuf::new(), |mut at, c| {
            match c {
                std::path::Component::ParentDir => drop(at.pop()),
                c => at.push(c),
            }
            at
        });
        let data = get(&found, clean.to_str().unwrap()).to_vec();
        found.push((name, data));
    }
    found
}

fn get<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> &'a [u8] {
    &files.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn json(files: &[(String, Vec<u8>)], name: &str) -> Value {
    serde_json::from_slice(get(files, name)).unwrap()
}

/// The layers of each image in it, the lowest first.
fn layers(files: &[(String, Vec<u8>)]) -> Vec<Vec<Vec<u8>>> {
    let has = |name: &str| files.iter().any(|(known, _)| known == name);
    let blob = |digest: &Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
    if has("manifest.json") {
        let items = json(files, "manifest.json");
        let layer = |path: &Value| plain(get(files, path.as_str().unwrap()).to_vec());
        let image = |item: &Value| item["Layers"].as_array().unwrap().iter().map(layer).collect();
        return items.as_array().unwrap().iter().map(image).collect();
    }
    if has("index.json") {
        let mut at = json(files, "index.json");
        while let Some(manifests) = at["manifests"].as_array() {
            at = json(files, &blob(&manifests[0]["digest"]));
        }
        let layer = |l: &Value| plain(get(files, &blob(&l["digest"])).to_vec());
        return vec![at["layers"].as_array().unwrap().iter().map(layer).collect()];
    }
    let names = json(files, "repositories");
    let tags = names.as_object().unwrap().values().next().unwrap().as_object().unwrap().clone();
    let mut id = tags.values().next().unwrap().as_str().unwrap().to_owned();
    let mut found = Vec::new();
    loop {
        found.insert(0, get(files, &format!("{id}/layer.tar")).to_vec());
        match json(files, &format!("{id}/json"))["parent"].as_str() {
            Some(parent) if !parent.is_empty() => id = parent.to_owned(),
            _ => return vec![found],
        }
    }
}

#[test]
fn each_shows_what_its_layers_say() {
    need_mount!();
    let Some(dir) = images() else { return eprintln!("skipped: no third-party images") };
    let mut count = 0;
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| !path.ends_with("README.md")) {
        let place = Place::new();
        let what = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut names = place.load(path);
        let images = layers(&files(path));
        if images.len() == 1 {
            names.truncate(1); // further names of one image
        }
        assert_eq!(names.len(), images.len(), "{what}");
        for (name, image) in names.iter().zip(&images) {
            let name = name.strip_prefix("sha256:").unwrap_or(name);
            place.with_image(name, |tree| expect_tree(tree, &flatten(image), &what));
        }
        count += 1;
    }
    assert!(count > 0, "the folder of images is empty");
}

#[test]
fn a_distribution_runs_in_its_mount() {
    need_mount!();
    let Some(archive) = images().map(|dir| dir.join("trivy-alpine-310.tar.gz")) else {
        return eprintln!("skipped: no third-party images");
    };
    if !is_root() || !archive.exists() {
        return eprintln!("skipped: chroot needs root, and the image");
    }
    let place = Place::new();
    let name = place.load(&archive).remove(0);
    run(place.plyfs().args(["mount", &name]).arg(place.mountpoint()));
    let inside = |line: &str| {
        run(Command::new("chroot")
            .env("SHELL", "/bin/sh")
            .arg(place.mountpoint())
            .args(["/bin/sh", "-euc", line]))
    };
    assert!(inside("ls -lR /").lines().count() > 700);
    assert!(inside("apk --version").contains("apk-tools"));
    inside(
        "echo changed > /etc/motd; rm -r /media; mv /srv /served; adduser -D somebody; su somebody -c 'touch /home/somebody/x'",
    );
    assert_eq!(inside("cat /etc/motd; ls -d /served; ls /home/somebody"), "changed\n/served\nx\n");
    run(place.plyfs().arg("umount").arg(place.mountpoint()));
}
