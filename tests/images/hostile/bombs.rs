//! Small images that are large, deep or many once they are read.

use std::slice::from_ref;
use std::time::{Duration, Instant};

use serde_json::json;

use super::documents::Files;
use super::for_each_user;
use super::tar_entry::{TarEntry, dir, file, hard_link, pax_record, symlink, tar};
use crate::archives::{config, docker_files, gzip, oci_files, sha, tar_of};

const MIB: usize = 1 << 20;
#[test]
fn zeros() {
    let member = gzip(&vec![0; 16 * MIB]);
    let [half_a_gib, two_gib] = [32, 128].map(|count| member.repeat(count)); // may be joined
    for_each_user(|arena| {
        arena.attack_archive("an archive", &half_a_gib).refused("");
        let mut files = docker_files(&arena.next_name(), &[Vec::new()]);
        let head = file("zeros").data("").size(b"77777777777\0");
        files[0].1 = [gzip(&head.bytes()), two_gib.clone()].concat();
        arena.attack_archive("a layer", &tar_of(&files)).refused("");
    });
}

#[test]
fn windows_of_decompressors() {
    for_each_user(|arena| {
        // A Zstandard frame of one byte that wants a window of 2^41 or 2^31 bytes.
        for exponent in [31, 21] {
            let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 9, 0, 0, b'x'];
            arena.attack_archive("zstd", &frame).refused("memory");
        }
    });
}

#[test]
fn entries() {
    let many: Vec<_> = (0..100_001).map(|n| file(format!("f{n}")).data("")).collect();
    let many = gzip(&tar(&many));
    for_each_user(|arena| arena.attack_archive("an archive", &many).refused(""));
}

#[test]
fn long_names() {
    for_each_user(|arena| {
        let long = "n".repeat(300);
        for layer in [
            vec![file(&long)],
            vec![dir(&long)],
            vec![file(format!("{long}/f"))],
            vec![file("a"), hard_link(&long, "a")],
            vec![hard_link("a", &long)],
            vec![file(format!(".wh.{}", &long[..252]))],
            vec![symlink("l", "x".repeat(4096))],
        ] {
            arena.attack("long", &[layer]).refused("");
        }
        // As long as a path can be, in few components: it must go again, too.
        let path = format!("{}/", &long[..255]).repeat(15);
        for over in [0, 5] {
            let layer = vec![file("own"), file(path.repeat(over + 1) + "f"), hard_link("g", "own")];
            arena.attack("components of 255 bytes", &[layer]).harmless();
        }
    });
}

/// Paths shorter than PATH_MAX, of more levels than a process may have files open.
#[test]
fn deep_trees() {
    for_each_user(|arena| {
        let deep = "a/".repeat(1500);
        let wrong = |layer: &[TarEntry], name: &str| {
            let mut files = docker_files(name, &[tar(layer)]);
            files[0].1.extend([0; 512]);
            tar_of(&files)
        };
        for layer in [
            vec![file("own"), file(format!("{deep}f"))],
            vec![file("own"), dir(&deep)],
            vec![file("own"), file(format!("{deep}f")), hard_link("g", format!("{deep}f"))],
            vec![file("own"), file(format!("{deep}f")), file("a")],
        ] {
            let name = arena.next_name();
            arena.attack_archive("damaged", &wrong(&layer, &name)).refused("");
            arena.attack("deep", from_ref(&layer)).refused("depth=512");
        }
        let half = "a/".repeat(300);
        let layer =
            [dir(&half), symlink("s", "").pax("linkpath", &half), file(format!("s/{half}f"))];
        arena.attack("deep through a symlink", &[layer.to_vec()]).refused("depth=512");
    });
}

#[test]
fn very_deep_trees() {
    for_each_user(|arena| {
        for levels in [5000, 50_000, 500_000] {
            let layer = vec![file("own"), file("a/".repeat(levels) + "f")];
            arena.attack(&format!("{levels} levels"), &[layer]).harmless();
        }
    });
}

/// What a stack's layers take from one another costs what they hold, not its square.
#[test]
fn deep_directories_that_no_layer_lists() {
    let deep = "a/".repeat(500);
    let files = || (0..4).map(|n| file(format!("{n}/{deep}f")));
    let lower: Vec<_> = [file("own")].into_iter().chain(files()).collect();
    let links = (0..4).map(|n| hard_link(format!("{n}/{deep}g"), format!("{n}/{deep}f")));
    let upper: Vec<_> = [file("own")].into_iter().chain(links).collect();
    for_each_user(|arena| {
        arena.attack("files", &[lower.clone(), lower.clone()]).harmless();
        arena.attack("hard links", &[lower.clone(), upper.clone()]).harmless();
    });
}

#[test]
fn hard_links_to_hard_links_of_every_layer_below() {
    let layer = |level: u32, count: u32| -> Vec<_> {
        let entry = |n: u32| match level {
            0 => file(format!("0-{n}")),
            _ => hard_link(format!("{level}-{n}"), format!("{}-{n}", level - 1)),
        };
        [file("own")].into_iter().chain((0..count).map(entry)).collect()
    };
    for_each_user(|arena| {
        let more_than_may_be_open = [layer(0, 2000), layer(1, 2000)];
        arena.attack("2,000 links", &more_than_may_be_open).harmless();
        let levels: Vec<_> = (0..300).map(|level| layer(level, 20)).collect();
        arena.attack("300 layers", &levels).refused("lookups=");
    });
}

fn xattr(n: usize) -> String {
    format!("SCHILY.xattr.user.{n}")
}

#[test]
fn attributes() {
    for_each_user(|arena| {
        let large = file("f").pax(&xattr(1), vec![b'x'; MIB]);
        arena.attack("1 MiB", &[vec![large]]).refused("");
        for len in [65_536, 65_537, 500_000] {
            let large = file("f").pax(&xattr(1), vec![b'x'; len]);
            arena.attack(&len.to_string(), &[vec![large]]).harmless();
        }
        let many = (0..100_000).fold(file("f"), |file, n| file.pax(&xattr(n), "y"));
        arena.attack("100,000", &[vec![many]]).refused("");
        let long = format!("user.{}", "n".repeat(300));
        for name in ["", "user", "user.", "user.a\0b", "none", "system.x", &long]
            .into_iter()
            .chain(["security.capability", "security.selinux", "system.posix_acl_access"])
        {
            for entry in [file("f"), dir("f"), symlink("f", "x")] {
                let layer = vec![entry.pax(&format!("SCHILY.xattr.{name}"), "\x01\x02")];
                arena.attack(&name.escape_debug().to_string(), &[layer]).harmless();
            }
        }
    });
}

#[test]
fn many_attributes_in_one_header() {
    for_each_user(|arena| {
        let many = (0..30_000).fold(file("f"), |file, n| file.pax(&xattr(n), "y"));
        let begun = Instant::now();
        arena.attack("30,000", &[vec![many]]).harmless();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    });
}

#[test]
fn many_attributes_in_a_global_header() {
    for_each_user(|arena| {
        let records = (0..30_000).flat_map(|n| pax_record(xattr(n).as_bytes(), b""));
        let mut layer = vec![TarEntry::new(b'g', "global").data(records.collect::<Vec<_>>())];
        layer.extend((0..1000).map(|n| symlink(n.to_string(), "x")));
        arena.attack("global", &[layer]).harmless();
    });
}

/// A map is of one file: each entry after it would take as much memory.
#[test]
fn a_sparse_map_in_a_global_header() {
    let map = TarEntry::new(b'g', "global").data(pax_record(b"GNU.sparse.map", b"0,1,2,3"));
    for_each_user(|arena| {
        arena.attack("global", &[vec![map.clone(), file("f")]]).refused("sparse map");
    });
}

/// Each extended header is small enough; there are many before one entry.
#[test]
fn headers_that_add_up() {
    let value = vec![b'x'; MIB - 100];
    for kind in *b"xg" {
        let record = |n| pax_record(xattr(n).as_bytes(), &value);
        let mut layer: Vec<_> =
            (0..160).map(|n| TarEntry::new(kind, "pax").data(record(n))).collect();
        layer.push(file("f"));
        let layer = tar(&layer);
        for_each_user(|arena| {
            let mut files = docker_files(&arena.next_name(), from_ref(&layer));
            files[0].1 = gzip(&files[0].1);
            arena.attack_archive("in a layer", &tar_of(&files)).harmless();
        });
    }
}

#[test]
fn long_names_in_an_archive() {
    let long = "x".repeat(MIB - 100);
    let many: Vec<_> = (0..160).map(|n| file(format!("{n}/{long}")).data("")).collect();
    let many = gzip(&tar(&many));
    for_each_user(|arena| arena.attack_archive("long names", &many).refused(""));
}

/// Archives in which each document in turn is `text`.
fn with_each_document(text: &[u8]) -> Vec<(&'static str, Files)> {
    let text = || text.to_vec();
    let item = |config: &str, layers: &[&String]| {
        json!([{ "Config": config, "Layers": layers }]).to_string().into_bytes()
    };
    let layers = [tar(&[file("own")])];
    let mut history = config(&layers);
    history.pop();
    history.extend([&br#","history":"#[..], &text()].concat());
    let layer = docker_files("x", &layers).swap_remove(0);
    let v1 = br#"{"x":{"1":"a"}}"#.to_vec();
    let entry = json!({ "digest": format!("sha256:{}", sha(&text())), "size": text().len() });
    let index = json!({ "manifests": [entry] }).to_string().into_bytes();
    vec![
        ("manifest.json", vec![("manifest.json".into(), text())]),
        ("index.json", vec![("index.json".into(), text())]),
        ("repositories", vec![("repositories".into(), text())]),
        ("config", vec![("manifest.json".into(), item("c", &[])), ("c".into(), text())]),
        (
            "history",
            vec![("manifest.json".into(), item("c", &[&layer.0])), layer, ("c".into(), history)],
        ),
        ("v1", vec![("repositories".into(), v1), ("a/json".into(), text())]),
        (
            "manifest",
            vec![("index.json".into(), index), (format!("blobs/sha256/{}", sha(&text())), text())],
        ),
    ]
}

#[test]
fn large_and_deep_documents() {
    let large = vec![b' '; 64 * MIB];
    let deep = ["[", "{\"a\":"].map(|open| open.repeat(100_000).into_bytes());
    for text in [large].into_iter().chain(deep) {
        for (what, files) in with_each_document(&text) {
            let archive = tar_of(&files);
            for_each_user(|arena| arena.attack_archive(what, &archive).refused(""));
        }
    }
}

#[test]
fn a_large_config_of_many_images() {
    for_each_user(|arena| {
        let layers = [tar(&[file("own")])];
        let room = vec![b' '; 4 * MIB];
        let mut files = docker_files("x:1", &layers);
        files[1].0 = "config.json".into();
        files[1].1.extend(&room);
        let item = json!({ "Config": "config.json", "Layers": [files[0].0] });
        files[2].1 = json!(vec![item; 40]).to_string().into_bytes();
        arena.attack_archive("docker", &tar_of(&files)).harmless();
        // An OCI layout: config, layer, manifest, index.json.
        let mut files = oci_files("x:1", &layers, "tar", <[u8]>::to_vec);
        files[0].1.extend(&room);
        files[0].0 = format!("blobs/sha256/{}", sha(&files[0].1));
        let mut manifest: serde_json::Value = serde_json::from_slice(&files[2].1).unwrap();
        manifest["config"]["digest"] = json!(format!("sha256:{}", sha(&files[0].1)));
        manifest["config"]["size"] = json!(files[0].1.len());
        let manifest = manifest.to_string().into_bytes();
        let digest = sha(&manifest);
        let entry = json!({ "digest": format!("sha256:{digest}"), "size": manifest.len() });
        files[2] = (format!("blobs/sha256/{digest}"), manifest);
        files[3].1 = json!({ "manifests": vec![entry; 40] }).to_string().into_bytes();
        arena.attack_archive("OCI", &tar_of(&files)).harmless();
    });
}

#[test]
fn many_layers() {
    for_each_user(|arena| {
        let layer = tar(&[file("own")]);
        let files = docker_files(&arena.next_name(), &vec![layer; 5000]);
        let files = [&files[..1], &files[5000..]].concat(); // the layer is there once
        arena.attack_archive("5,000 layers", &tar_of(&files)).refused("");
    });
}

#[test]
fn many_names_of_an_image() {
    for_each_user(|arena| {
        let mut files = docker_files("x:1", &[tar(&[file("own")])]);
        let names: Vec<_> = (0..10_000).map(|n| format!("x:{n}")).collect();
        let item = json!([{ "Config": files[1].0, "Layers": [files[0].0], "RepoTags": names }]);
        files[2].1 = item.to_string().into_bytes();
        arena.attack_archive("10,000 names", &tar_of(&files)).harmless();
    });
}
