//! The store's verbs: names, sizes, removal, what is written out again, what is damaged.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::archives::{
    Layer, Place, config, docker_files, gzip, oci_files, rich_layers, sha, tar_of,
};
use crate::common::is_root;
use crate::common::mounted::{fails, run};
use crate::flatten::flatten;
use crate::need_mount;
use crate::shown::expect_tree;

/// Two images that share their lowest layer.
fn two_images() -> (Place, [Vec<u8>; 3]) {
    let base = Layer::default().dir("etc", 0o750).file("etc/base", "base").tar();
    let (one, two) =
        (Layer::default().file("one", "1"), Layer::default().file("two", "twenty-two"));
    let (one, two) = (one.tar(), two.tar());
    let place = Place::new();
    place.load_bytes(&tar_of(&docker_files("one:1", &[base.clone(), one.clone()])));
    place.load_bytes(&tar_of(&docker_files("two:1", &[base.clone(), two.clone()])));
    (place, [base, one, two])
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn count(place: &Place, dir: &str) -> usize {
    std::fs::read_dir(place.path("store").join(dir)).map_or(0, Iterator::count)
}

#[test]
fn the_store_is_as_tutorials_about_docker_have_it() {
    let (place, [base, one, _]) = two_images();
    let store = place.path("store");
    let read = |path: &str| std::fs::read_to_string(store.join(path)).unwrap();
    let id = sha(&config(&[base.clone(), one.clone()]));
    assert_eq!(sha(read(&format!("image/imagedb/content/sha256/{id}")).as_bytes()), id);
    let (lower, upper) = (sha(&base), sha(&one));
    let chain = sha(format!("sha256:{lower} sha256:{upper}").as_bytes());
    let layerdb = format!("image/layerdb/sha256/{chain}");
    assert_eq!(read(&format!("{layerdb}/diff")), format!("sha256:{upper}"));
    assert_eq!(read(&format!("{layerdb}/parent")), format!("sha256:{lower}"));
    assert_eq!(read(&format!("{layerdb}/size")), "1");
    assert_eq!(read(&format!("{layerdb}/cache-id")), upper);
    assert!(store.join(&layerdb).join("tar-split.json.gz").is_file());
    assert_eq!(read(&format!("layers/{upper}/diff/one")), "1");
    assert_eq!(read(&format!("l/{}/one", upper[..26].to_uppercase())), "1");
    let names: Value = serde_json::from_str(&read("image/repositories.json")).unwrap();
    assert_eq!(names["Repositories"]["one"]["one:1"], format!("sha256:{id}"));
}

#[test]
fn names_and_removal() {
    let (place, _) = two_images();
    let plyfs = |args: &[&str]| run(place.plyfs().args(args));
    assert_eq!(place.layers(), 3);
    assert_eq!(plyfs(&["tag", "one:1", "other/name:2"]), "");
    let told = json_lines(&plyfs(&["tag", "one:1", "third", "--format", "json"]));
    assert_eq!(told[0]["Name"], "third:latest");
    let by_id = told[0]["ID"].as_str().unwrap()[7..19].to_owned();
    let several = fails(place.plyfs().args(["rmi", &by_id]));
    assert!(several.contains("other/name:2") && several.contains("--force"), "{several}");
    assert_eq!(plyfs(&["rmi", "third"]), "Untagged: third:latest\n");
    assert_eq!(place.layers(), 3);
    let removed = json_lines(&plyfs(&["rmi", "-f", &by_id, "--format", "json"]));
    assert_eq!(removed[0]["Untagged"], json!(["one:1", "other/name:2"]));
    assert_eq!((removed[0]["Layers"].as_u64(), removed[0]["Bytes"].as_u64()), (Some(1), Some(1)));
    assert_eq!(removed[0]["Deleted"].as_array().unwrap().len(), 2); // the image and one stack
    assert_eq!((place.layers(), count(&place, "l")), (2, 2));
    let gone = fails(place.plyfs().args(["rmi", "one:1"]));
    assert!(gone.contains("no image one:1"), "{gone}");
    assert!(plyfs(&["rmi", "two:1"]).starts_with("Untagged: two:1\nDeleted: sha256:"));
    for dir in ["layers", "l", "image/layerdb/sha256", "image/imagedb/content/sha256", "tmp"] {
        assert_eq!(count(&place, dir), 0, "{dir}");
    }
    assert_eq!(plyfs(&["images", "-q"]), "");
}

#[test]
fn names_of_one_repository_go_with_the_id() {
    let (place, [base, one, _]) = two_images();
    run(place.plyfs().args(["tag", "one:1", "one:2"]));
    let id = sha(&config(&[base, one]));
    let removed = run(place.plyfs().args(["rmi", &id[..12]]));
    assert!(removed.starts_with("Untagged: one:1\nUntagged: one:2\nDeleted: "), "{removed}");
    // Podman's names: the store knows them with their host.
    run(place.plyfs().args(["tag", "two:1", "localhost/tree"]));
    let line = fails(place.plyfs().args(["save", "tree", "-o"]).arg(place.path("out")));
    assert!(line.contains("did you mean localhost/tree:latest"), "{line}");
}

/// An archive's names cannot stand for another image's ID.
#[test]
fn whole_ids_are_no_names() {
    let (place, [base, one, _]) = two_images();
    let id = sha(&config(&[base, one]));
    let evil = Layer::default().file("evil", "").tar();
    for name in [format!("sha256:{id}"), id.clone()] {
        let files = docker_files(&name, std::slice::from_ref(&evil));
        let image = place.write("evil", &tar_of(&files));
        let line = fails(place.plyfs().arg("load").arg(image));
        assert!(line.contains("is not an image name"), "{line}");
    }
    place.load_bytes(&tar_of(&docker_files(&id[..12], std::slice::from_ref(&evil))));
    for name in [format!("sha256:{id}"), id.clone()] {
        let told: Value =
            serde_json::from_str(&run(place.plyfs().args(["inspect", &name]))).unwrap();
        assert_eq!(told[0]["RepoTags"], json!(["one:1"]));
    }
}

#[test]
fn what_can_be_done_of_several_is_done() {
    let (place, _) = two_images();
    let output = place.plyfs().args(["rmi", "absent", "one:1", "nothing"]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(told, "plyfs: no image absent\nplyfs: no image nothing\n");
    let output = place.plyfs().args(["inspect", "one:1", "two:1"]).output().unwrap();
    assert!(!output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told.as_array().unwrap().len(), 1);
    assert_eq!(told[0]["RepoTags"], json!(["two:1"]));
}

#[test]
fn a_name_that_is_loaded_again_moves() {
    let (place, [base, ..]) = two_images();
    place.load_bytes(&tar_of(&docker_files("one:1", &[base])));
    let images = run(place.plyfs().args(["images", "--format", "json"]));
    let images = json_lines(&images);
    let names: Vec<_> = images.iter().map(|image| image["Repository"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| **name == "<none>").count(), 1, "{names:?}");
    let removed = run(place.plyfs().arg("gc"));
    assert!(removed.ends_with("Total reclaimed space: 0B\n"), "{removed}"); // images stay
}

#[test]
fn an_image_in_use_stays() {
    need_mount!();
    let (place, _) = two_images();
    let m = place.mountpoint();
    run(place.plyfs().args(["mount", "--read-only", "one:1"]).arg(&m));
    let mounted = fails(place.plyfs().args(["rmi", "one:1"]));
    assert!(mounted.contains("in use") && mounted.contains("mounted"), "{mounted}");
    assert_eq!(std::fs::read_to_string(m.join("one")).unwrap(), "1");
    run(place.plyfs().arg("umount").arg(&m));
    run(place.plyfs().args(["mount", "--name", "web", "one:1"]).arg(&m));
    run(place.plyfs().arg("umount").arg(&m));
    let under = fails(place.plyfs().args(["rmi", "one:1"]));
    assert!(under.contains("writable layer web") && under.contains("plyfs rm web"), "{under}");
    run(place.plyfs().args(["tag", "one:1", "also"]));
    assert_eq!(run(place.plyfs().args(["rmi", "also"])), "Untagged: also:latest\n");
    run(place.plyfs().args(["rm", "web"]));
    // The daemon may be a moment longer there than its mount.
    let removed = (0..50).find_map(|_| {
        let output = place.plyfs().args(["rmi", "one:1"]).output().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        output.status.success().then_some(output)
    });
    assert!(removed.is_some());
}

#[test]
fn what_images_take() {
    let (place, _) = two_images();
    let told = json_lines(&run(place.plyfs().args(["df", "--format", "json"])));
    let of = |name: &str| {
        let image = told.iter().find(|image| image["Names"] == json!([name])).unwrap();
        ["Size", "SharedSize", "UniqueSize"].map(|field| image[field].as_u64().unwrap())
    };
    assert_eq!((of("one:1"), of("two:1")), ([5, 4, 1], [14, 4, 10]));
    assert_eq!(told[2], json!({ "TotalSize": 15, "Reclaimable": 0 }));
    let table = run(place.plyfs().arg("df"));
    assert!(table.contains("UNIQUE SIZE") && table.contains("Total: 15B"), "{table}");
}

#[test]
fn inspect_and_history_as_docker_tells_them() {
    let place = Place::new();
    let layers = rich_layers();
    place.load_bytes(&tar_of(&docker_files("img:1", &layers)));
    let told: Value = serde_json::from_str(&run(place.plyfs().args(["inspect", "img:1"]))).unwrap();
    let image = &told[0];
    let diffs: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect();
    assert_eq!(image["RootFS"], json!({ "Type": "layers", "Layers": diffs }));
    assert_eq!(image["Id"], format!("sha256:{}", sha(&config(&layers))));
    assert_eq!(image["RepoTags"], json!(["img:1"]));
    let driver = &image["GraphDriver"]["Data"];
    let upper = Path::new(driver["UpperDir"].as_str().unwrap());
    assert!(upper.is_dir(), "{driver}");
    for lower in driver["LowerDir"].as_str().unwrap().split(':') {
        assert!(Path::new(lower).is_dir(), "{driver}");
    }
    let lines = run(place.plyfs().args(["inspect", "--format", "json", "img:1"]));
    assert_eq!(json_lines(&lines)[0], *image);
    let none = fails(place.plyfs().args(["inspect", "imgg:1"]));
    assert!(none.contains("did you mean img:1"), "{none}");
    let steps = json_lines(&run(place.plyfs().args(["history", "img:1", "--format", "json"])));
    assert_eq!(steps.len(), layers.len());
    assert!(image["Id"].as_str().unwrap()[7..].starts_with(steps[0]["ID"].as_str().unwrap()));
    assert!(steps[1..].iter().all(|step| step["ID"] == "<missing>"), "{steps:?}");
}

#[test]
fn history_has_steps_without_layers() {
    let layer = Layer::default().file("f", "12345").tar();
    let mut files = docker_files("h:1", std::slice::from_ref(&layer));
    let (_, text) = files.iter_mut().find(|(path, _)| path.ends_with(".json")).unwrap();
    let mut config: Value = serde_json::from_slice(text).unwrap();
    config["history"] = json!([
        { "created": "2020-01-02T03:04:05Z", "created_by": "ADD f", "comment": "first" },
        { "created_by": "CMD [\"sh\"]", "empty_layer": true },
    ]);
    let text = serde_json::to_vec(&config).unwrap();
    let name = format!("{}.json", sha(&text));
    files.retain(|(path, _)| !path.ends_with(".json"));
    let layer_path = files[0].0.clone();
    let manifest = json!([{ "Config": name, "RepoTags": ["h:1"], "Layers": [layer_path] }]);
    files.push((name, text));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    let place = Place::new();
    place.load_bytes(&tar_of(&files));
    let table = run(place.plyfs().args(["history", "h:1"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[1].contains("CMD [\"sh\"]") && lines[1].contains("0B"), "{table}");
    assert!(lines[2].contains("ADD f") && lines[2].contains("5B"), "{table}");
    assert!(lines[2].contains("first") && lines[2].contains("years ago"), "{table}");
}

#[test]
fn an_import_is_an_image_of_one_layer() {
    need_mount!();
    let layer = rich_layers().remove(0);
    let place = Place::new();
    for (name, bytes) in [("plain", layer.clone()), ("packed", gzip(&layer))] {
        std::fs::write(place.path(name), bytes).unwrap();
        let id = run(place.plyfs().arg("import").arg(place.path(name)).args([
            &format!("{name}:1"),
            "-m",
            "by hand",
            "--platform",
            "linux/riscv64",
        ]));
        assert!(id.starts_with("sha256:"), "{id}");
        place.with_image(id.trim_end(), |tree| {
            expect_tree(tree, &flatten(std::slice::from_ref(&layer)), name);
        });
    }
    assert_eq!(place.layers(), 1);
    let told: Value =
        serde_json::from_str(&run(place.plyfs().args(["inspect", "plain:1"]))).unwrap();
    assert_eq!(told[0]["Architecture"], "riscv64");
    assert_eq!(told[0]["Comment"], "by hand");
    let bad = place.path("bad");
    std::fs::write(&bad, "no tar at all, but long enough to be one".repeat(100)).unwrap();
    let line = fails(place.plyfs().arg("import").arg(&bad));
    assert!(line.contains("no tar"), "{line}");
    std::fs::write(&bad, "").unwrap();
    assert!(fails(place.plyfs().arg("import").arg(&bad)).contains("no tar"));
    let mut piped = place.plyfs();
    piped.args(["import", "-", "piped"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = piped.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &layer).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(run(place.plyfs().arg("images")).contains("piped"));
}

#[test]
fn what_is_saved_loads_as_the_same_image() {
    let place = Place::new();
    let layers = rich_layers();
    place.load_bytes(&tar_of(&docker_files("img:1", &layers)));
    run(place.plyfs().args(["tag", "img:1", "second:2"]));
    let id = format!("sha256:{}", sha(&config(&layers)));
    for format in ["docker-archive", "oci-archive", "oci"] {
        for compression in ["none", "gzip", "zstd"] {
            let save = |to: &Path| {
                let words = ["save", "--format", format, "--compression", compression, "-o"];
                run(place.plyfs().args(words).arg(to).args(["img:1", "second:2"]))
            };
            let other = Place::new();
            let (first, again) = (other.path("first"), other.path("again"));
            save(&first);
            let names = other.load(&first);
            assert_eq!(names, ["img:1", "second:2"], "{format} {compression}");
            let ids = run(other.plyfs().args(["images", "-q", "--no-trunc"]));
            assert!(ids.lines().all(|line| line == id), "{format} {compression}: {ids}");
            save(&again);
            let same = Command::new("diff").arg("-r").arg(&first).arg(&again).status();
            assert!(same.unwrap().success(), "{format} {compression}: other bytes");
        }
    }
    let folder = place.path("full");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("mine"), "").unwrap();
    let full = fails(place.plyfs().args(["save", "--format", "oci", "img:1", "-o"]).arg(&folder));
    assert!(full.contains("not empty"), "{full}");
    let nowhere = fails(place.plyfs().args(["save", "--format", "oci", "img:1"]));
    assert!(nowhere.contains("--output"), "{nowhere}");
}

#[test]
fn save_tells_what_it_wrote() {
    let (place, [base, one, _]) = two_images();
    let save = |formats: &[&str]| {
        let mut command = place.plyfs();
        command.args(["save", "one:1"]);
        for format in formats {
            command.args(["--format", format]);
        }
        command
    };
    for formats in [&["json"][..], &["oci-archive", "json"]] {
        let told = json_lines(&run(save(formats).arg("-o").arg(place.path("out"))));
        let id = format!("sha256:{}", sha(&config(&[base.clone(), one.clone()])));
        assert_eq!(told, [json!({ "ID": id, "Names": ["one:1"] })]);
        let files = run(Command::new("tar").arg("tf").arg(place.path("out")));
        let is_layout = files.lines().any(|file| file == "oci-layout");
        assert_eq!(is_layout, formats.len() == 2, "{files}");
    }
    assert!(fails(save(&["json"]).stdout(Stdio::null())).contains("give --output"));
}

#[test]
fn kept_blobs_come_back_as_they_were() {
    let layers = rich_layers();
    let files = oci_files("img:1", &layers, "tar+gzip", gzip);
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&files)).unwrap();
    run(place.plyfs().args(["load", "--keep-blobs"]).arg(place.path("image")));
    let out = place.path("out");
    run(place.plyfs().args(["save", "--format", "oci", "img:1", "-o"]).arg(&out));
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
        assert_eq!(std::fs::read(out.join(path)).unwrap(), *bytes, "{path}");
    }
    // A blob that was seen needs no inflating: a second load only hashes it.
    run(place.plyfs().arg("load").arg(place.path("image")));
    run(place.plyfs().args(["rmi", "img:1"]));
    assert_eq!(count(&place, "image/blobs/sha256"), 0);
    assert_eq!(count(&place, "image/distribution/diffid-by-digest/sha256"), 0);
    let docker = place.path("docker");
    std::fs::write(&docker, tar_of(&docker_files("x", &layers))).unwrap();
    let none = fails(place.plyfs().args(["load", "--keep-blobs"]).arg(&docker));
    assert!(none.contains("--keep-blobs"), "{none}");
}

#[test]
fn verify_says_which_file_is_off() {
    let place = Place::new();
    let layer = Layer::default()
        .dir("d", 0o755)
        .file("d/same", "same")
        .file("d/changed", "before")
        .file("d/short", "long")
        .file("d/gone", "gone")
        .file("d/mode", "mode")
        .symlink("d/link", "same")
        .tar();
    place.load_bytes(&tar_of(&docker_files("v:1", std::slice::from_ref(&layer))));
    let verify = || {
        let output = place.plyfs().arg("verify").output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(verify(), (true, format!("sha256:{}: OK\n", sha(&layer))));
    let home = place.path("store/layers").join(sha(&layer)).join("diff/d");
    let keeping_time = |name: &str, content: &str| {
        let path = home.join(name);
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    keeping_time("changed", "behind");
    keeping_time("short", "lo");
    std::fs::remove_file(home.join("gone")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(home.join("mode"), mode).unwrap();
    std::fs::write(home.join("stranger"), "").unwrap();
    let (good, told) = verify();
    assert!(!good);
    for (name, reason) in [
        ("changed", "its content has changed"),
        ("short", "too short"),
        ("gone", "missing"),
        ("stranger", "no such file"),
    ] {
        let told = told.lines().find(|line| line.contains(&format!("/d/{name}:")));
        assert!(told.is_some_and(|line| line.contains(reason)), "{name}: {told:?}");
    }
    // An ordinary user's store has the mode in an xattr.
    assert_eq!(told.contains("/d/mode: its mode is 0600, not 0644"), is_root(), "{told}");
    assert!(!told.contains("/d/same:") && !told.contains("/d/link:"), "{told}");
    let refused = fails(place.plyfs().args(["save", "v:1", "-o"]).arg(place.path("out")));
    assert!(refused.contains("content has changed"), "{refused}");
    assert!(!place.path("out").exists());
}

#[test]
fn platforms_that_are_asked_for() {
    let layers = rich_layers();
    let files = docker_files("x", &layers);
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&files)).unwrap();
    let wrong =
        fails(place.plyfs().args(["load", "--platform", "plan9/vax"]).arg(place.path("image")));
    assert!(wrong.contains("no image for plan9/vax"), "{wrong}");
    let bad = fails(place.plyfs().args(["load", "--platform", "x"]).arg(place.path("image")));
    assert!(bad.contains("OS/ARCHITECTURE"), "{bad}");
}
