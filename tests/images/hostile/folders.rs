//! OCI layout folders with links and special files in the place of their parts.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::slice::from_ref;

use rustix::fs::{CWD, FileType, Mode};
use serde_json::json;

use super::arena::Arena;
use super::for_each_user;
use crate::archives::{config, docker_files, oci_files, sha};

/// What a layout folder has, by its path in it; `(what it is, its content)`.
type Parts = Vec<(String, Vec<u8>)>;

/// A layout folder of an image whose one layer, and config, the victim has too.
fn lay_out(arena: &mut Arena) -> (PathBuf, Parts) {
    let folder = arena.path("in/layout");
    let _ = fs::remove_dir_all(&folder);
    let name = arena.next_name();
    let parts = oci_files(&name, &[arena.victims_layer()], "tar", <[u8]>::to_vec);
    for (path, data) in &parts {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    (folder, parts)
}

/// Puts something in the place of each part that is read, one at a time: all are refused.
fn refuse_each(arena: &mut Arena, what: &str, put: impl Fn(&Path)) {
    let (_, parts) = lay_out(arena);
    for n in (0..parts.len()).filter(|n| parts[*n].0 != "oci-layout") {
        let (folder, parts) = lay_out(arena);
        let path = folder.join(&parts[n].0);
        fs::remove_file(&path).unwrap();
        put(&path);
        arena.attack_path(&format!("{what} as {}", parts[n].0), &folder).refused("");
    }
    let (folder, _) = lay_out(arena);
    fs::remove_file(folder.join("oci-layout")).unwrap();
    put(&folder.join("oci-layout"));
    let _ = fs::remove_file(folder.join("index.json"));
    arena.attack_path(&format!("{what} as oci-layout"), &folder).refused("");
}

#[test]
fn symlinks_to_the_outside() {
    for_each_user(|arena| {
        let layer = arena.victims_layer();
        let (layer_name, config_name) = (sha(&layer), sha(&config(&[layer])));
        for way in arena.ways_out().into_iter().chain(["../../../../victim".to_owned()]) {
            for (blob, file) in [(&layer_name, "layer.tar"), (&config_name, "config.json")] {
                let (folder, _) = lay_out(arena);
                let path = folder.join("blobs/sha256").join(blob);
                fs::remove_file(&path).unwrap();
                symlink(format!("{way}/{file}"), &path).unwrap();
                arena.attack_path(&format!("{file} by {way}"), &folder).refused("");
            }
            refuse_each(arena, &way, |path| symlink(&way, path).unwrap());
            refuse_each(arena, &way, |path| symlink(format!("{way}/file"), path).unwrap());
        }
        // Whole folders: what they lead to has all that is asked for.
        for part in ["blobs", "blobs/sha256"] {
            let (folder, _) = lay_out(arena);
            fs::rename(folder.join(part), arena.path("in/moved")).unwrap();
            symlink(arena.path("in/moved"), folder.join(part)).unwrap();
            arena.attack_path(part, &folder).refused("");
            fs::remove_dir_all(arena.path("in/moved")).unwrap();
        }
    });
}

#[test]
fn special_files() {
    for_each_user(|arena| {
        refuse_each(arena, "a folder", |path| fs::create_dir(path).unwrap());
        refuse_each(arena, "an empty file", |path| fs::write(path, "").unwrap());
        refuse_each(arena, "a FIFO", |path| {
            rustix::fs::mkfifoat(CWD, path, Mode::from(0o666)).unwrap();
        });
        refuse_each(arena, "a socket", |path| {
            // (The path of a socket that is bound must be short.)
            rustix::fs::mknodat(CWD, path, FileType::Socket, Mode::from(0o666), 0).unwrap();
        });
    });
}

/// Who holds the other end of a FIFO, and writes nothing, does not keep the load waiting.
#[test]
fn a_fifo_with_a_writer() {
    for_each_user(|arena| {
        let held = std::cell::RefCell::new(Vec::new());
        refuse_each(arena, "a FIFO with a writer", |path| {
            rustix::fs::mkfifoat(CWD, path, Mode::from(0o666)).unwrap();
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
            let mut options = File::options();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            held.borrow_mut().push(options.open(path).unwrap());
        });
    });
}

#[test]
fn devices() {
    for_each_user(|arena| {
        if !crate::common::is_root() {
            return eprintln!("skipped: only root makes devices");
        }
        for (name, minor) in [("/dev/null", 3), ("/dev/zero", 5), ("/dev/full", 7)] {
            refuse_each(arena, name, |path| {
                let (kind, number) = (FileType::CharacterDevice, rustix::fs::makedev(1, minor));
                rustix::fs::mknodat(CWD, path, kind, Mode::from(0o666), number).unwrap();
            });
        }
    });
}

/// Files that take no room and no end.
#[test]
fn endless_documents() {
    for_each_user(|arena| {
        for part in ["index.json", "manifest.json"] {
            let (folder, _) = lay_out(arena);
            File::create(folder.join(part)).unwrap().set_len(1 << 40).unwrap();
            arena.attack_path(part, &folder).refused("limit");
        }
    });
}

#[test]
fn endless_layers() {
    for_each_user(|arena| {
        let (folder, parts) = lay_out(arena);
        let layer = File::options().write(true).open(folder.join(&parts[1].0)).unwrap();
        layer.set_len(1 << 40).unwrap();
        arena.attack_path("1 TiB", &folder).refused("");
    });
}

/// The manifest of a docker archive, in a folder.
#[test]
fn a_docker_manifest_in_a_folder() {
    for_each_user(|arena| {
        let layer = arena.victims_layer();
        for way in arena.ways_out() {
            let (folder, _) = lay_out(arena);
            let item = json!([{
                "Config": format!("{way}/config.json"),
                "RepoTags": ["attack:1"],
                "Layers": [format!("{way}/layer.tar")],
            }]);
            fs::write(folder.join("manifest.json"), item.to_string()).unwrap();
            arena.attack_path(&way, &folder).refused("");
            // Or with a link, from the folder of the layer.
            let (folder, _) = lay_out(arena);
            let files = docker_files("attack:1", from_ref(&layer));
            for (path, data) in &files[1..] {
                fs::write(folder.join(path), data).unwrap();
            }
            let place = folder.join(&files[0].0);
            symlink(&way, place.parent().unwrap()).unwrap();
            arena.attack_path(&way, &folder).refused("");
        }
    });
}
