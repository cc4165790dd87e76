//! What fuzzing found (`scripts/fuzz`), by name.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use tar::EntryType;

use crate::archives::{Layer, docker_files, oci_files, sha, tar_of};
use crate::bad_images::refused;
use crate::common::mounted::run;
use crate::need_mount;
use crate::place::{Image, Place, Who, expect_images};

const NOBODY: (u64, u64) = (65534, 65534);

/// The layer is whole for everybody who loads it, and is saved as the same image.
#[track_caller]
fn comes_back(layer: &Layer, what: &str) {
    for who in Who::all() {
        let place = Place::of(who);
        place.load_bytes(&tar_of(&docker_files("x:1", &[layer.tar()])));
        let told = run(place.plyfs().args(["verify", "x:1"]));
        assert!(told.lines().all(|line| line.ends_with(": OK")), "{what}, {who:?}: {told}");
        let saved = place.path("made/saved.tar");
        run(place.plyfs().args(["save", "x:1", "-o"]).arg(&saved));
        let again = Place::of(who);
        again.load(&saved);
        assert_eq!(again.ids(), place.ids(), "{what}, {who:?}");
    }
}

#[test]
fn a_file_replaces_an_implied_directory_with_listed_ones() {
    need_mount!();
    let layer = Layer::default().dir("a/b/c", 0o700).dir("a/b", 0o711).file("a", "a file now");
    expect_images(&[Image::new("a file for a directory", &[layer])]);
}

#[test]
fn a_hard_link_says_nothing_of_the_file() {
    need_mount!();
    let other: &[(&str, &[u8])] = &[("SCHILY.xattr.user.note", b"of the link")];
    let layer = Layer::default().file("file", "one").more();
    let layer = layer.entry(EntryType::Link, b"link", b"file", 0o600, (7, 7), b"", other);
    expect_images(&[Image::new("xattrs of a hard link", &[layer])]);
}

#[test]
fn an_acl_that_contradicts_the_mode() {
    let entry = |tag: u8, bits: u8, id: u32| {
        [&[tag, 0, bits, 0][..], &id.to_le_bytes()].concat() // acl(5)
    };
    let list = |entries: &[Vec<u8>]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
    let (owner, group, other) =
        (entry(1, 6, u32::MAX), entry(4, 4, u32::MAX), entry(32, 4, u32::MAX));
    let minimal = list(&[owner.clone(), group.clone(), other.clone()]);
    let long = list(&[owner, entry(2, 4, 1000), group, entry(16, 4, u32::MAX), other]);
    for (what, acl) in [("a minimal list", minimal), ("a long list", long)] {
        let pax: &[(&str, &[u8])] = &[("SCHILY.xattr.system.posix_acl_access", &acl)];
        let (file, dir) = (EntryType::Regular, EntryType::Directory);
        let layer = Layer::default().entry(file, b"file", b"", 0o751, (0, 0), b"", pax).more();
        comes_back(&layer.entry(dir, b"dir", b"", 0o2770, (0, 0), b"", pax), what);
    }
}

#[test]
fn what_its_owner_may_not_read() {
    let (file, dir) = (EntryType::Regular, EntryType::Directory);
    let layer = Layer::default().entry(dir, b"dir", b"", 0, NOBODY, b"", &[]).more();
    let layer = layer.entry(file, b"dir/in", b"", 0o077, NOBODY, b"in", &[]).more();
    comes_back(&layer.entry(file, b"file", b"", 0, NOBODY, b"data", &[]), "unreadable");
}

#[test]
fn a_tar_with_the_magic_of_gzip_is_the_same_in_a_pipe() {
    let mut files = docker_files("x", &[Layer::default().file("f", "1").tar()]);
    files.insert(0, ("first".to_owned(), Vec::new()));
    let mut archive = tar_of(&files);
    let mut header = tar::Header::from_byte_slice(&archive[..512]).clone();
    header.as_mut_bytes()[..3].copy_from_slice(b"\x1f\x8b\x08");
    header.set_cksum();
    archive[..512].copy_from_slice(header.as_bytes());
    refused(&archive, "");
    let place = Place::new();
    let mut load = place
        .plyfs()
        .args(["load", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It may give up before it has read all.
    let _ = load.stdin.take().unwrap().write_all(&archive);
    assert!(!load.wait().unwrap().success());
}

#[test]
fn a_kept_manifest_that_tells_little_is_saved() {
    let mut files =
        oci_files("x:1", &[Layer::default().file("f", "1").tar()], "tar", <[u8]>::to_vec);
    let index = files.iter().position(|(path, _)| path == "index.json").unwrap();
    let mut listed: Value = serde_json::from_slice(&files[index].1).unwrap();
    let digest = listed["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    let path = format!("blobs/sha256/{digest}");
    let (_, manifest) = files.iter().find(|(known, _)| *known == path).unwrap();
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    manifest["mediaType"] = json!([]);
    manifest["layers"][0].as_object_mut().unwrap().remove("size");
    let manifest = manifest.to_string().into_bytes();
    let digest = sha(&manifest);
    listed["manifests"][0]["digest"] = json!(format!("sha256:{digest}"));
    listed["manifests"][0]["size"] = json!(manifest.len());
    files[index].1 = listed.to_string().into_bytes();
    files.push((format!("blobs/sha256/{digest}"), manifest));

    let place = Place::new();
    place.load_with(&["--keep-blobs"], &place.write("image", &tar_of(&files)));
    let saved = place.path("made/saved.tar");
    run(place.plyfs().args(["save", "--format", "oci-archive", "x:1", "-o"]).arg(&saved));
    let again = Place::new();
    again.load(&saved);
    assert_eq!(again.ids(), place.ids());
}
