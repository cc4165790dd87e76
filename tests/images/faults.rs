//! Loads that are killed, meet a full disk, or each other, or a gc, or an rmi.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::archives::{Layer, Place, config, docker_files, sha, tar_of};
use crate::common::is_root;
use crate::common::mounted::{run, sh};

/// An image of several layers of many files, so that there is time to meet it.
fn large(files: usize, layers: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let layer = |n: usize| {
        let mut layer = Layer::default().dir(&format!("l{n}"), 0o755);
        for file in 0..files {
            layer = layer.file(&format!("l{n}/f{file}"), &format!("{n} {file} ").repeat(200));
        }
        layer.tar()
    };
    let layers: Vec<_> = (0..layers).map(layer).collect();
    (tar_of(&docker_files("large:1", &layers)), layers)
}

fn load(place: &Place) -> Child {
    let mut command = place.plyfs();
    command.args(["load", "-q"]).arg(place.path("image"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// What the store has is whole; nothing is left of what is not.
#[track_caller]
fn expect_whole(place: &Place) {
    assert!(run(place.plyfs().arg("verify")).lines().all(|line| line.ends_with(": OK")));
    run(place.plyfs().arg("gc"));
    assert_eq!(std::fs::read_dir(place.path("store/tmp")).unwrap().count(), 0);
    let images = run(place.plyfs().args(["images", "-q"])).lines().count();
    if images == 0 {
        for dir in ["layers", "l", "image/layerdb/sha256"] {
            assert_eq!(
                std::fs::read_dir(place.path("store").join(dir)).unwrap().count(),
                0,
                "{dir}"
            );
        }
    }
}

#[test]
fn a_load_that_is_killed_leaves_nothing() {
    let (archive, layers) = large(150, 4);
    let place = Place::new();
    std::fs::write(place.path("image"), archive).unwrap();
    for wait in [1, 5, 10, 20, 40, 60, 80, 100, 150, 200, 300] {
        let mut child = load(&place);
        std::thread::sleep(Duration::from_millis(wait));
        let _ = child.kill(); // it may have ended
        child.wait().unwrap();
        let images = run(place.plyfs().args(["images", "-q", "--no-trunc"]));
        let whole = format!("sha256:{}\n", sha(&config(&layers)));
        assert!(images.is_empty() || images == whole, "{images}");
        expect_whole(&place);
        if !images.is_empty() {
            run(place.plyfs().args(["rmi", "large:1"]));
        }
    }
    assert!(load(&place).wait().unwrap().success());
    expect_whole(&place);
    assert_eq!(place.layers(), 4);
}

#[test]
fn loads_gc_and_rmi_at_once() {
    let (archive, _) = large(40, 3);
    let place = Place::new();
    std::fs::write(place.path("image"), archive).unwrap();
    let other = Layer::default().file("small", "other").tar();
    let small = place.path("small");
    std::fs::write(&small, tar_of(&docker_files("small:1", &[other]))).unwrap();
    let again = |args: &[&str]| {
        let mut command = place.plyfs();
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..8 {
        let mut children =
            vec![load(&place), load(&place), again(&["gc"]), again(&["rmi", "large:1"])];
        std::thread::sleep(Duration::from_millis(10 * round));
        children.push(again(&["gc"]));
        children.push(again(&["rmi", "small:1"]));
        children.push(again(&["load", "-q", small.to_str().unwrap()]));
        let loads = [0, 1, 6];
        for (n, child) in children.iter_mut().enumerate() {
            let status = child.wait().unwrap();
            assert!(!loads.contains(&n) || status.success(), "round {round}: a load failed");
        }
        // Whatever is there now is whole.
        assert!(run(place.plyfs().arg("verify")).lines().all(|line| line.ends_with(": OK")));
    }
    assert!(load(&place).wait().unwrap().success());
    expect_whole(&place);
}

/// A filesystem of so many MiB, unmounted in Drop.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn new(at: &'a Path, size: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        sh(&format!("mount -t tmpfs -o size={size} tmpfs {}", at.display()));
        Self(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        sh(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn a_full_disk_leaves_a_store_that_works() {
    if !is_root() {
        return eprintln!("skipped: it takes root");
    }
    let (archive, _) = large(300, 4);
    for size in ["300k", "700k", "1m", "2m"] {
        let place = Place::new();
        let store = place.path("store");
        std::fs::write(place.path("image"), &archive).unwrap();
        let _small = Small::new(&store, size);
        let layer = Layer::default().file("small", "fits").tar();
        place.load_bytes(&tar_of(&docker_files("small:1", &[layer])));
        let output = place.plyfs().arg("load").arg(place.path("image")).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && line.contains("No space left"), "{size}: {line}");
        let images = run(place.plyfs().args(["images", "--format", "json"]));
        assert_eq!(images.lines().count(), 1, "{size}: {images}");
        expect_whole(&place);
        assert_eq!(place.layers(), 1, "{size}");
        // Removing takes no room.
        let fill = store.join("fill");
        let filled = std::fs::write(&fill, vec![1; 4 << 20]);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        run(place.plyfs().args(["rmi", "small:1"]));
        std::fs::remove_file(&fill).unwrap();
        expect_whole(&place);
        assert_eq!(run(place.plyfs().args(["images", "-q"])), "");
    }
}

#[test]
fn a_pipe_that_breaks_is_no_image() {
    let (archive, _) = large(20, 2);
    let place = Place::new();
    std::fs::write(place.path("image"), archive).unwrap();
    let file = place.path("image").display().to_string();
    let size = std::fs::metadata(place.path("image")).unwrap().len();
    for part in [size / 2, size - 1024 * 20] {
        let mut command = place.plyfs();
        command.args(["load", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        sh(&format!("head -c {part} {file} > {file}.part"));
        let mut from = std::fs::File::open(format!("{file}.part")).unwrap();
        std::io::copy(&mut from, &mut child.stdin.take().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        expect_whole(&place);
        assert_eq!(run(place.plyfs().args(["images", "-q"])), "");
    }
}
