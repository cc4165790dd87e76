//! `plyfs load --limit NAME=VALUE`: just within a limit an image loads, just over it is
//! refused with a word about the limit, and leaves nothing.

use crate::archives::{Layer, Place, docker_files, gzip, tar_of};
use crate::common::mounted::{fails, run};

fn load(image: &[u8], limit: &str) -> (Place, std::process::Command) {
    let place = Place::new();
    std::fs::write(place.path("image"), image).unwrap();
    let mut command = place.plyfs();
    command.args(["load", "--limit", limit]).arg(place.path("image"));
    (place, command)
}

/// An image of one gzipped layer.
fn image(layer: &Layer) -> Vec<u8> {
    let mut files = docker_files("x:1", &[layer.tar()]);
    files[0].1 = gzip(&files[0].1);
    tar_of(&files)
}

#[test]
fn each_limit_on_both_sides() {
    let ten = (0..10).fold(Layer::default(), |layer, n| layer.file(&format!("f{n}"), "x"));
    let deep = Layer::default().file("a/b/c/d", "");
    let sized = Layer::default().file("f", &"x".repeat(5000));
    let noted = Layer::default().entry(
        tar::EntryType::Regular,
        b"f",
        b"",
        0o644,
        (0, 0),
        b"",
        &[("SCHILY.xattr.user.note", &[b'x'; 1000])],
    );
    let zeros = Layer::default().file("f", &"\0".repeat(70 << 20));
    let table: [(&str, &Layer, u64, u64); 6] = [
        ("bytes", &sized, 1 << 20, 4000),
        ("entries", &ten, 100, 9),
        ("depth", &deep, 4, 3),
        ("path", &deep, 7, 6),
        ("xattr", &noted, 2000, 900),
        ("ratio", &zeros, 100_000, 10),
    ];
    for (name, layer, enough, few) in table {
        let image = image(layer);
        let (_place, mut command) = load(&image, &format!("{name}={enough}"));
        assert_eq!(run(&mut command), "Loaded image: x:1\n", "{name}");
        let (place, mut command) = load(&image, &format!("{name}={few}"));
        let line = fails(&mut command);
        assert!(line.contains("limit") && line.contains(name), "{name}: {line}");
        for dir in ["tmp", "layers", "image/imagedb/content/sha256"] {
            let left = std::fs::read_dir(place.path("store").join(dir)).unwrap().count();
            assert_eq!(left, 0, "{name}: left in {dir}");
        }
    }
}

#[test]
fn documents() {
    let mut files = docker_files("x:1", &[Layer::default().file("f", "").tar()]);
    files[2].1.extend(vec![b' '; 5000]);
    let image = tar_of(&files);
    let (_place, mut command) = load(&image, "document=10000");
    assert_eq!(run(&mut command), "Loaded image: x:1\n");
    let (_place, mut command) = load(&image, "document=4000");
    let line = fails(&mut command);
    assert!(line.contains("limit") && line.contains("manifest.json"), "{line}");
}

#[test]
fn names_and_lookups() {
    let lower = Layer::default().file("a/b/f", "");
    let upper =
        (0..50).fold(Layer::default(), |layer, n| layer.hard_link(&format!("a/b/{n}"), "a/b/f"));
    let mut files = docker_files("x:1", &[lower.tar(), upper.tar()]);
    let names = String::from_utf8(files.pop().unwrap().1).unwrap();
    files.push(("manifest.json".into(), names.replace("\"x:1\"", "\"x:1\",\"y:1\"").into_bytes()));
    let image = tar_of(&files);
    // A look-up for each link in both layers, for what it leads to and whether it shows.
    for (name, enough, few) in [("names", 2, 1), ("lookups", 600, 50)] {
        let (_place, mut command) = load(&image, &format!("{name}={enough}"));
        assert_eq!(run(&mut command), "Loaded image: x:1\nLoaded image: y:1\n", "{name}");
        let (_place, mut command) = load(&image, &format!("{name}={few}"));
        assert!(fails(&mut command).contains(&format!("limit {name}={few}")), "{name}");
    }
}

/// All files of a layer count, and all layers of an archive.
#[test]
fn bytes_and_entries_add_up() {
    let layers: Vec<_> = (0..4)
        .map(|n| Layer::default().dir("./", 0o755).file(&n.to_string(), &"x".repeat(1000)).tar())
        .collect();
    let image = tar_of(&docker_files("x:1", &layers));
    for (limit, fits) in
        [("bytes=100000", true), ("bytes=3500", false), ("entries=100", true), ("entries=1", false)]
    {
        let (_place, mut command) = load(&image, limit);
        match fits {
            true => assert_eq!(run(&mut command), "Loaded image: x:1\n", "{limit}"),
            false => assert!(fails(&mut command).contains("limit"), "{limit}"),
        }
    }
}

#[test]
fn limits_that_make_no_sense() {
    let image = image(&Layer::default().file("f", ""));
    for limit in ["", "bytes", "bytes=", "bytes=-1", "bytes=x", "nothing=1", "=1", "bytes=1=2"] {
        let (place, mut command) = load(&image, limit);
        let line = fails(&mut command);
        assert!(line.contains("limit"), "{limit}: {line}");
        assert_eq!(run(place.plyfs().args(["images", "-q"])), "");
    }
}
