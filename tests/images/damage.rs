//! A store that somebody, or a crash, has damaged: `verify` tells of it, and the other verbs live
//! with it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::archives::{Layer, Place, config, docker_files, gzip, oci_files, sha, tar_of};
use crate::common::is_root;
use crate::common::mounted::{fails, run};
use crate::need_mount;

/// What `verify` prints; it fails if anything is off.
fn verify(place: &Place) -> (bool, String) {
    let output = place.plyfs().arg("verify").output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Two layers: a directory that the upper one implies, and a hard link into the lower one.
fn inheriting() -> Vec<Vec<u8>> {
    let lower = Layer::default().dir("d", 0o700).file("d/a", "aaa").file("e", "").tar();
    let upper = Layer::default().hard_link("d/b", "d/a").tar();
    vec![lower, upper]
}

fn chain(layers: &[Vec<u8>]) -> String {
    let mut digests = layers.iter().map(|layer| format!("sha256:{}", sha(layer)));
    let lowest = digests.next().unwrap();
    digests
        .fold(lowest, |below, diff| format!("sha256:{}", sha(format!("{below} {diff}").as_bytes())))
        .replace("sha256:", "")
}

struct Damaged {
    place: Place,
    layers: Vec<Vec<u8>>,
}

impl Damaged {
    fn new() -> Self {
        let (place, layers) = (Place::new(), inheriting());
        place.load_bytes(&tar_of(&docker_files("x:1", &layers)));
        let (good, told) = verify(&place);
        assert!(good, "{told}");
        Self { place, layers }
    }

    /// A file of the store.
    fn path(&self, path: &str) -> PathBuf {
        self.place.path("store").join(path)
    }

    fn record(&self) -> PathBuf {
        self.path("image/layerdb/sha256").join(chain(&self.layers))
    }

    #[track_caller]
    fn expect(&self, reason: &str) {
        let (good, told) = verify(&self.place);
        assert!(!good && told.contains(reason), "{reason}: {told}");
    }
}

#[test]
fn one_layer_that_cannot_be_read_hides_no_other() {
    let damaged = Damaged::new();
    let [lower, upper] = [0, 1].map(|n| sha(&damaged.layers[n]));
    fs::remove_dir_all(damaged.path(&format!("layers/{lower}"))).unwrap();
    let (good, told) = verify(&damaged.place);
    assert!(!good && told.contains(&format!("{upper}: OK")), "{told}");
    let line = told.lines().find(|line| line.contains(&lower)).unwrap();
    assert!(line.contains("cannot be verified") && !line.contains("older"), "{line}");
    let damaged = Damaged::new();
    fs::write(damaged.path(&format!("layers/{lower}/tar-split.json.gz")), "garbage").unwrap();
    let (good, told) = verify(&damaged.place);
    assert!(!good && told.contains(&format!("{upper}: OK")), "{told}");
    assert!(told.lines().any(|line| line.contains(&lower) && !line.contains("OK")), "{told}");
}

#[test]
fn what_layers_take_from_one_another_is_verified() {
    let damaged = Damaged::new();
    let inherited = damaged.path(&format!("layers/{}/diff/d/b", chain(&damaged.layers)));
    assert_eq!(fs::read_to_string(&inherited).unwrap(), "aaa");
    fs::write(&inherited, "bbb").unwrap();
    damaged.expect("d/b: ");
    let damaged = Damaged::new();
    fs::write(damaged.record().join("inherited"), "nothing").unwrap();
    damaged.expect("take from one another");
}

#[test]
fn records_are_verified() {
    let damaged = Damaged::new();
    fs::write(damaged.record().join("cache-id"), sha(&damaged.layers[0])).unwrap();
    damaged.expect("cache-id");
    let damaged = Damaged::new();
    fs::write(damaged.record().join("diff"), format!("sha256:{}", sha(&damaged.layers[0])))
        .unwrap();
    damaged.expect("diff");
    let damaged = Damaged::new();
    let id = sha(&config(&damaged.layers));
    fs::remove_file(damaged.path(&format!("image/imagedb/content/sha256/{id}"))).unwrap();
    damaged.expect("x:1: ");
    let line = fails(damaged.place.plyfs().args(["tag", "x:1", "y:1"]));
    assert!(line.contains("no image x:1"), "{line}");
}

#[test]
fn hard_links_xattrs_and_holes_are_verified() {
    let pax: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"1000000"),
    ];
    let mut data = b"1\n0\n4\n".to_vec();
    data.resize(512, 0);
    data.extend(b"data");
    let layer = Layer::default()
        .file("a", "text")
        .hard_link("b", "a")
        .symlink("s", ".")
        .dir("d", 0o755)
        .hard_link("d/through", "s/a")
        .file("unlisted/f", "")
        .symlink("empty", "x")
        .hard_link("to-empty", "empty")
        .file("empty", "replaced")
        .more();
    let layer =
        layer.entry(tar::EntryType::Regular, b"GNUSparse.0/sparse", b"", 0o644, (0, 0), &data, pax);
    let layer = layer.tar();
    let new = || {
        let place = Place::new();
        place.load_bytes(&tar_of(&docker_files("x:1", std::slice::from_ref(&layer))));
        let home = place.path("store/layers").join(sha(&layer)).join("diff");
        (place, home)
    };
    let keeping_times = |place: &Place, path: PathBuf, change: &dyn Fn(&PathBuf)| {
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        change(&path);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        verify(place)
    };
    let (place, home) = new();
    assert_eq!(verify(&place), (true, format!("sha256:{}: OK\n", sha(&layer))));
    let (good, told) = keeping_times(&place, home.join("b"), &|path| {
        fs::remove_file(path).unwrap();
        fs::write(path, "evil").unwrap();
    });
    assert!(!good && told.contains("/b: it is another file"), "{told}");
    let (place, home) = new();
    let (good, told) = keeping_times(&place, home.join("a"), &|path| {
        rustix::fs::setxattr(path, "user.evil", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    });
    assert!(!good && told.contains("/a: the layer gives it no xattr user.evil"), "{told}");
    let (place, home) = new();
    assert!(verify(&place).0);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(home.join("unlisted"), mode).unwrap();
    let (good, told) = verify(&place);
    // An ordinary user's store has the mode in an xattr.
    let is_told = told.contains("/unlisted: its mode is 0700");
    assert_eq!((good, is_told), (!is_root(), is_root()), "{told}");
    let (place, home) = new();
    let (good, told) = keeping_times(&place, home.join("sparse"), &|path| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"evil", 500_000).unwrap();
    });
    assert!(!good && told.contains("/sparse: its content has changed"), "{told}");
}

#[test]
fn kept_blobs_are_verified_and_may_be_gone() {
    let layers = inheriting();
    let place = Place::new();
    let files = oci_files("x:1", &layers, "tar+gzip", gzip);
    let image = place.write("image", &tar_of(&files));
    run(place.plyfs().args(["load", "--keep-blobs"]).arg(image));
    assert!(verify(&place).0);
    let told: Value = serde_json::from_str(&run(place.plyfs().args(["inspect", "x:1"]))).unwrap();
    let by_digest = told[0]["RepoDigests"][0].as_str().unwrap().to_owned();
    run(place.plyfs().args(["tag", "x:1", "x:2"]));
    let told: Value =
        serde_json::from_str(&run(place.plyfs().args(["inspect", &by_digest]))).unwrap();
    assert_eq!(told[0]["RepoTags"], json!(["x:1", "x:2"]));
    assert_eq!(told[0]["RepoDigests"], json!([by_digest]));
    let blob = place.path("store/image/blobs/sha256").join(sha(&gzip(&layers[0])));
    fs::write(blob, "damaged").unwrap();
    let (good, told) = verify(&place);
    assert!(!good && told.contains("not what was kept"), "{told}");
    // What a killed rmi leaves: the note of the manifest, without it.
    fs::remove_dir_all(place.path("store/image/blobs")).unwrap();
    assert!(!verify(&place).0);
    run(place.plyfs().args(["inspect", "x:1"]));
    run(place.plyfs().arg("gc"));
    run(place.plyfs().args(["rmi", "x:1", "x:2"]));
}

/// A record of which a killed process has left a part is made anew.
#[test]
fn half_a_record() {
    let damaged = Damaged::new();
    let place = &damaged.place;
    run(place.plyfs().args(["rmi", "x:1"]));
    fs::create_dir(damaged.record()).unwrap();
    fs::write(damaged.record().join("cache-id"), sha(&damaged.layers[1])).unwrap();
    place.load_bytes(&tar_of(&docker_files("x:1", &damaged.layers)));
    assert!(run(place.plyfs().args(["images"])).contains("x "));
    assert!(verify(place).0);
}

/// The base of another image goes, and comes again.
#[test]
fn a_base_that_comes_again() {
    need_mount!();
    let damaged = Damaged::new();
    let place = &damaged.place;
    let top = Layer::default().file("top", "x").tar();
    let all = [&damaged.layers[..], &[top]].concat();
    place.load_bytes(&tar_of(&docker_files("derived:1", &all)));
    run(place.plyfs().args(["rmi", "x:1"]));
    place.load_bytes(&tar_of(&docker_files("x:1", &damaged.layers)));
    assert!(verify(place).0);
    for name in ["x:1", "derived:1"] {
        place.with_image(name, |tree| {
            assert_eq!(fs::read_to_string(tree.join("d/b")).unwrap(), "aaa", "{name}");
        });
    }
}

/// Of a writable layer that cannot be read nobody knows whose it is.
#[test]
fn a_damaged_writable_layer_keeps_all_images() {
    need_mount!();
    let damaged = Damaged::new();
    let place = &damaged.place;
    let m = place.mountpoint();
    run(place.plyfs().args(["mount", "--name", "web", "x:1"]).arg(&m));
    run(place.plyfs().arg("umount").arg(&m));
    let container = fs::read_dir(damaged.path("containers")).unwrap().next().unwrap().unwrap();
    fs::write(container.path().join("config.json"), "").unwrap();
    let line = fails(place.plyfs().args(["rmi", "x:1"]));
    assert!(line.contains("damaged") && line.contains("config.json"), "{line}");
    assert!(verify(place).0);
}
