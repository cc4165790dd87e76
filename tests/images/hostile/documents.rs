//! Manifests, indexes and configs that name what is outside, or contradict themselves.

use serde_json::{Value, json};

use super::arena::Arena;
use super::for_each_user;
use super::tar_entry::{TarEntry, file, tar};
use crate::archives::{config, docker_files, oci_files, sha, tar_of};

/// An archive's files, by their paths.
pub(super) type Files = Vec<(String, Vec<u8>)>;

fn layers() -> Vec<Vec<u8>> {
    vec![tar(&[file("own")])]
}

/// An archive as docker writes it, its manifest.json changed.
fn docker(arena: &mut Arena, change: impl FnOnce(&mut Value)) -> Files {
    let mut files = docker_files(&arena.next_name(), &layers());
    edit(&mut files, "manifest.json", |manifest| change(&mut manifest[0]));
    files
}

/// An OCI layout, its manifest changed; all digests fit.
fn oci(arena: &mut Arena, change: impl FnOnce(&mut Value)) -> Files {
    let mut files = oci_files(&arena.next_name(), &layers(), "tar", <[u8]>::to_vec);
    let name = files.iter().find(|(_, data)| data.starts_with(b"{\"schema")).unwrap().0.clone();
    edit(&mut files, &name, change);
    let changed = files.iter().position(|(known, _)| *known == name).unwrap();
    let (digest, size) = (sha(&files[changed].1), files[changed].1.len());
    files[changed].0 = format!("blobs/sha256/{digest}");
    edit(&mut files, "index.json", |index| {
        index["manifests"][0]["digest"] = json!(format!("sha256:{digest}"));
        index["manifests"][0]["size"] = json!(size);
    });
    files
}

fn edit(files: &mut Files, name: &str, change: impl FnOnce(&mut Value)) {
    let found = files.iter_mut().find(|(known, _)| known == name).unwrap();
    let mut value = serde_json::from_slice(&found.1).unwrap();
    change(&mut value);
    found.1 = value.to_string().into_bytes();
}

/// Texts in the place of a digest.
fn false_digests(arena: &Arena) -> Vec<String> {
    let up = format!("../../../../{}", arena.victim());
    let mut texts = vec![
        "sha256:../../x".to_owned(),
        format!("sha256:{:/<64}", "../../../victim/layer.tar"),
        format!("sha256:{:a<63}/", "../"),
        format!("sha256:{}", "A".repeat(64)),
        format!("sha256:{}\0", "a".repeat(63)),
        format!("sha256:{}", "a".repeat(65)),
        format!("sha256:{}", "é".repeat(32)),
        "sha256:".to_owned(),
        "sha512:../../victim/layer.tar".to_owned(),
        "../sha256:aa".to_owned(),
        "\u{1b}[2J".to_owned(),
        String::new(),
    ];
    texts.extend([format!("sha256:{up}/layer.tar"), up, arena.victim()]);
    texts
}

#[test]
fn digests_are_no_paths() {
    for_each_user(|arena| {
        for text in false_digests(arena) {
            let digest = json!(text);
            let in_layer = oci(arena, |manifest| manifest["layers"][0]["digest"] = digest.clone());
            let in_config = oci(arena, |manifest| manifest["config"]["digest"] = digest.clone());
            let mut in_index = oci(arena, |_| ());
            edit(&mut in_index, "index.json", |index| {
                index["manifests"][0]["digest"] = digest.clone();
            });
            for files in [in_layer, in_config, in_index] {
                arena.attack_archive(&text, &tar_of(&files)).refused("");
            }
            let own = json!({ "rootfs": { "type": "layers", "diff_ids": [digest] } }).to_string();
            let mut files = docker(arena, |item| item["Config"] = json!("config.json"));
            files.push(("config.json".into(), own.into_bytes()));
            arena.attack_archive(&text, &tar_of(&files)).refused("");
        }
    });
}

#[test]
fn paths_in_manifests_stay_in_the_archive() {
    for_each_user(|arena| {
        let mut ways = arena.ways_out();
        ways.extend(["..".to_owned(), "../../victim".to_owned(), "/etc".to_owned()]);
        for way in ways {
            for name in ["layer.tar", "file", "fifo", "passwd", ""] {
                let path = json!(format!("{way}/{name}"));
                let files = docker(arena, |item| item["Layers"] = json!([path]));
                arena.attack_archive(&way, &tar_of(&files)).refused("lacks");
                let files = docker(arena, |item| item["Config"] = path.clone());
                arena.attack_archive(&way, &tar_of(&files)).refused("lacks");
            }
            let both = docker(arena, |item| {
                item["Config"] = json!(format!("{way}/config.json"));
                item["Layers"] = json!([format!("{way}/layer.tar")]);
            });
            arena.attack_archive(&way, &tar_of(&both)).refused("lacks");
            // The v1 form: repository -> tag -> ID of a folder.
            let repositories = json!({ "attack": { "v1": way } }).to_string();
            let files = [("repositories".to_owned(), repositories.into_bytes())];
            arena.attack_archive(&way, &tar_of(&files)).refused("lacks");
            let parent = json!({ "id": "a", "parent": way }).to_string().into_bytes();
            let repositories = json!({ "attack": { "v1": "a" } }).to_string().into_bytes();
            let files = [("repositories".into(), repositories), ("a/json".into(), parent)];
            arena.attack_archive(&way, &tar_of(&files)).refused("lacks");
        }
    });
}

#[test]
fn links_in_an_archive_stay_in_it() {
    for_each_user(|arena| {
        for way in arena.ways_out() {
            let name = arena.next_name();
            let files = docker_files(&name, &layers());
            let (layer, config) = (files[0].0.clone(), files[1].0.clone());
            let without = |name: &str| {
                tar_of(&files.iter().filter(|file| file.0 != name).cloned().collect::<Files>())
            };
            for kind in [b'1', b'2'] {
                let link = |name: &str, target: &str| {
                    let link = TarEntry::new(kind, name).link(format!("{way}/{target}"));
                    [link.bytes(), without(name)].concat()
                };
                arena.attack_archive(&way, &link(&layer, "layer.tar")).refused("lacks");
                arena.attack_archive(&way, &link(&config, "config.json")).refused("lacks");
                arena.attack_archive(&way, &link("manifest.json", "file")).refused("no image");
                let loop_ = TarEntry::new(kind, &layer).link(&layer).bytes();
                arena.attack_archive("a loop", &[loop_, without(&layer)].concat()).refused("lacks");
            }
        }
    });
}

#[test]
fn documents_that_are_two_things_at_once() {
    for_each_user(|arena| {
        let both = oci(arena, |manifest| manifest["manifests"] = json!([]));
        arena.attack_archive("manifests too", &tar_of(&both)).refused("both");
        let other = json!([{ "digest": format!("sha256:{}", sha(b"")), "size": 0 }]);
        let both = oci(arena, |manifest| manifest["manifests"] = other);
        arena.attack_archive("manifests too", &tar_of(&both)).refused("both");
        for key in ["layers", "config"] {
            let mut files = oci(arena, |_| ());
            edit(&mut files, "index.json", |index| {
                index[key] =
                    if key == "layers" { json!([]) } else { index["manifests"][0].clone() };
            });
            arena.attack_archive("an index too", &tar_of(&files)).refused("both");
        }
        let twice = oci(arena, |_| ());
        let text = br#"{"manifests": [], "manifests": []}"#.to_vec();
        let twice: Files = [twice, vec![("index.json".into(), text)]].concat();
        arena.attack_archive("a key twice", &tar_of(&twice)).refused("bad index.json");
        let neither = oci(arena, |manifest| *manifest = json!({ "schemaVersion": 2 }));
        arena.attack_archive("neither", &tar_of(&neither)).refused("no config");
    });
}

/// An index that leads to itself cannot be made; one of many levels can.
#[test]
fn indexes_within_indexes() {
    for_each_user(|arena| {
        let mut files = oci(arena, |_| ());
        for level in 0..20 {
            let index = files.iter_mut().find(|(name, _)| name == "index.json").unwrap();
            let blob = std::mem::take(&mut index.1);
            let digest = sha(&blob);
            let size = blob.len();
            let entry = json!({ "digest": format!("sha256:{digest}"), "size": size, "l": level });
            index.1 = json!({ "manifests": [entry] }).to_string().into_bytes();
            files.push((format!("blobs/sha256/{digest}"), blob));
        }
        arena.attack_archive("20 levels", &tar_of(&files)).refused("never end");
    });
}

#[test]
fn descriptors_of_a_wrong_size() {
    for_each_user(|arena| {
        let change = |size: &mut Value, by: i64| *size = json!(size.as_i64().unwrap() + by);
        for by in [-1, 1, -100, 1 << 40] {
            let layer = oci(arena, |manifest| change(&mut manifest["layers"][0]["size"], by));
            let config = oci(arena, |manifest| change(&mut manifest["config"]["size"], by));
            let mut index = oci(arena, |_| ());
            edit(&mut index, "index.json", |index| {
                change(&mut index["manifests"][0]["size"], by);
            });
            for files in [layer, config, index] {
                arena.attack_archive(&format!("{by} bytes"), &tar_of(&files)).refused("");
            }
        }
        for size in [json!(-1), json!(1.5), json!("12"), json!(1e300)] {
            let files = oci(arena, |manifest| manifest["layers"][0]["size"] = size.clone());
            arena.attack_archive(&size.to_string(), &tar_of(&files)).refused("");
        }
    });
}

#[test]
fn texts_never_command_a_terminal() {
    for_each_user(|arena| {
        for evil in ["\u{1b}[2J\u{7}", "\r\nplyfs: all is well", "\u{9b}31m", "\u{7f}", "\0"] {
            let (text, what) = (json!(evil), evil.escape_debug().to_string());
            let changes: [fn(&mut Value, &Value); 5] = [
                |item, text| item["Config"] = text.clone(),
                |item, text| item["Layers"][0] = text.clone(),
                |item, text| item["RepoTags"] = json!([text]),
                |item, text| item["RepoTags"] = text.clone(),
                |item, text| *item = text.clone(),
            ];
            for change in changes {
                let files = docker(arena, |item| change(item, &text));
                arena.attack_archive(&what, &tar_of(&files)).refused("");
            }
            let changes: [fn(&mut Value, &Value); 4] = [
                |manifest, text| manifest["config"]["mediaType"] = text.clone(),
                |manifest, text| manifest["layers"][0]["mediaType"] = text.clone(),
                |manifest, text| manifest["layers"] = text.clone(),
                |manifest, text| manifest["config"] = json!({ "digest": text }),
            ];
            for change in changes {
                let files = oci(arena, |manifest| change(manifest, &text));
                arena.attack_archive(&what, &tar_of(&files)).refused("");
            }
            let mut files = oci(arena, |_| ());
            edit(&mut files, "index.json", |index| {
                let mut entry = index["manifests"][0].clone();
                entry["platform"] = json!({ "os": text, "architecture": text, "variant": text });
                let mut other = entry.clone();
                other["platform"]["architecture"] = json!("vax");
                index["manifests"] = json!([entry, other]);
            });
            arena.attack_archive(&what, &tar_of(&files)).refused("");
            let mut files = oci(arena, |_| ());
            edit(&mut files, "index.json", |index| {
                index["manifests"][0]["annotations"] =
                    json!({ "org.opencontainers.image.ref.name": format!("x/{evil}:1") });
            });
            arena.attack_archive(&what, &tar_of(&files)).harmless();
            let v1 = json!({ evil: { evil: evil } }).to_string().into_bytes();
            let files = [("repositories".to_owned(), v1)];
            arena.attack_archive(&what, &tar_of(&files)).refused("");
        }
    });
}

/// What the list of images shows of configs.
#[test]
fn the_list_of_images_never_commands_a_terminal() {
    for_each_user(|arena| {
        for evil in ["\u{1b}[2J\u{7}", "\r\nplyfs: all is well", "\0"] {
            load_created(arena, evil);
        }
    });
}

#[test]
fn nor_does_the_json_list_of_images() {
    for_each_user(|arena| {
        for evil in ["\u{9b}31m", "\u{7f}\u{7f}\u{7f}", "\u{85}"] {
            load_created(arena, evil);
        }
    });
}

/// Loads an image made at an evil time, and lists it.
fn load_created(arena: &mut Arena, evil: &str) {
    let mut own: Value = serde_json::from_slice(&config(&layers())).unwrap();
    (own["created"], own["architecture"], own["os"]) = (json!(evil), json!(evil), json!(evil));
    let mut files = docker(arena, |item| item["Config"] = json!("config.json"));
    files.push(("config.json".into(), own.to_string().into_bytes()));
    let what = evil.escape_debug().to_string();
    arena.attack_archive(&what, &tar_of(&files)).shows_only(&["own=hit"]);
    for format in ["table", "json"] {
        assert!(arena.plyfs(&what, &[&"images", &"--format", &format]).status.success());
    }
}
