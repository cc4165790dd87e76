//! Owners, modes, devices and capabilities: an ordinary user's mount shows them as root's does.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::EntryType;

use crate::archives::{Layer, docker_files, sha, tar_of};
use crate::common::mounted::run;
use crate::flatten::flatten;
use crate::layer_rules::program;
use crate::need_mount;
use crate::place::{Image, Place, Who, expect_images};

fn new() -> Layer {
    Layer::default()
}

#[test]
fn the_store_knows_what_a_user_may_not_set() {
    need_mount!();
    // What `stat` and `getfattr` say, spelled out.
    let mut layer = program(new(), "program").more();
    layer = layer.entry(EntryType::Block, b"disk", b"", 0o660, (0, 6), b"", &[]).more();
    layer = layer.entry(EntryType::Symlink, b"mine", b"t", 0o777, (65534, 65534), b"", &[]).more();
    layer = layer.entry(EntryType::Regular, b"own", b"", 0o4750, (65534, 65534), b"o", &[]).more();
    layer = layer.entry(EntryType::Symlink, b"roots", b"t", 0o777, (0, 0), b"", &[]).more();
    layer = layer.entry(EntryType::Symlink, b"groups", b"t", 0o777, (0, 7), b"", &[]).more();
    layer =
        layer.entry(EntryType::Regular, b"far", b"", 0o640, (4_000_000_000, 2_097_152), b"", &[]);
    let layers = [layer.tar()];
    let archive = tar_of(&docker_files("x:1", &layers));
    for who in Who::all() {
        let place = Place::of(who);
        place.load(&place.write("image", &archive));
        place.with_image("x:1", |tree| {
            let stat = |name: &str| {
                let meta = std::fs::symlink_metadata(tree.join(name)).unwrap();
                (meta.mode(), meta.uid(), meta.gid())
            };
            let disk = std::fs::symlink_metadata(tree.join("disk")).unwrap().rdev();
            assert_eq!((rustix::fs::major(disk), rustix::fs::minor(disk)), (10, 300), "{who:?}");
            assert_eq!(stat("disk"), (0o60660, 0, 6), "{who:?}");
            assert_eq!(stat("program"), (0o106755, 5, 6), "{who:?}");
            assert_eq!(stat("own"), (0o104750, 65534, 65534), "{who:?}");
            assert_eq!(stat("roots"), (0o120777, 0, 0), "{who:?}");
            assert_eq!(stat("groups"), (0o120777, 0, 7), "{who:?}");
            assert_eq!(stat("mine"), (0o120777, 65534, 65534), "{who:?}");
            assert_eq!(stat("far"), (0o100640, 4_000_000_000, 2_097_152), "{who:?}");
            assert_eq!(capability(&tree.join("program")).len(), 20, "{who:?}");
        });
        place.come_back(&[("x:1", &flatten(&layers), "spelled out")]);
    }
}

fn capability(path: &Path) -> Vec<u8> {
    let mut value = [0; 64];
    let len = rustix::fs::lgetxattr(path, c"security.capability", &mut value).unwrap();
    value[..len].to_vec()
}

#[test]
fn modes_that_shut_the_owner_out() {
    need_mount!();
    let mut layers = vec![new().dir("shut", 0o755), new().file("shut/above", "1")];
    for (n, owner) in [(0, 0), (65534, 65534), (65534, 0), (7, 7)].into_iter().enumerate() {
        for mode in [0o000, 0o200, 0o100, 0o444, 0o4111] {
            let mut layer = std::mem::take(&mut layers[0]).more();
            let path = format!("shut/file{n}-{mode:o}");
            layer = layer.entry(EntryType::Regular, path.as_bytes(), b"", mode, owner, b"x", &[]);
            let path = format!("shut/dir{n}-{mode:o}");
            layer = layer.more().entry(
                EntryType::Directory,
                path.as_bytes(),
                b"",
                mode,
                owner,
                b"",
                &[],
            );
            layers[0] = layer.file(&format!("{path}/in"), "inside");
            let upper = std::mem::take(&mut layers[1]);
            layers[1] = upper.file(&format!("{path}/implied"), "above");
        }
    }
    let image = Image::new("shut", &layers);
    expect_images(std::slice::from_ref(&image));
    for who in Who::all() {
        let place = Place::of(who);
        place.load_bytes(&tar_of(&docker_files("x:1", &image.layers)));
        run(place.plyfs().args(["rmi", "x:1"]));
        let left = std::fs::read_dir(place.path("store/layers")).unwrap().count();
        assert_eq!(left, 0, "{who:?}");
    }
}

/// In the layers of images files are whiteouts, and this is a device, whoever loads it.
#[test]
fn a_device_numbered_0_0_is_no_whiteout() {
    need_mount!();
    let mut upper = tar::Header::new_ustar();
    upper.set_entry_type(EntryType::Char);
    upper.set_path("f").unwrap();
    for set in [tar::Header::set_device_major, tar::Header::set_device_minor] {
        set(&mut upper, 0).unwrap();
    }
    upper.set_mode(0o600);
    upper.set_uid(0);
    upper.set_gid(0);
    upper.set_mtime(0);
    upper.set_size(0);
    upper.set_cksum();
    let layers = vec![new().file("f", "below").tar(), upper.as_bytes().to_vec()];
    let (what, tree) = ("0:0".to_owned(), flatten(&layers));
    expect_images(&[Image { what, layers, tree }]);
}

/// What is made below the store has the modes that images give, whatever the directory around it
/// gives to its own.
#[test]
fn a_default_acl_around_the_store_is_not_the_images() {
    let place = Place::new();
    let store = place.path("store");
    std::fs::create_dir(&store).unwrap();
    // Version 2; owner rwx, user 1234 rwx, group r-x, mask rwx, others r-x (acl(5)).
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()));
        acl.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&store, "system.posix_acl_default", &acl, flags).is_err() {
        return eprintln!("skipped: no ACLs here");
    }
    let layer = Layer::default().dir("d", 0o775).file("d/f", "x").tar();
    let digest = sha(&layer);
    place.load_bytes(&tar_of(&docker_files("x:1", &[layer])));
    for (path, mode) in [("d", 0o775), ("d/f", 0o644)] {
        let path = store.join("layers").join(&digest).join("diff").join(path);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.mode() & 0o7777, mode);
        for kind in ["access", "default"] {
            let name = format!("system.posix_acl_{kind}");
            assert!(rustix::fs::getxattr(&path, name, &mut [0u8; 64][..]).is_err(), "{kind}");
        }
    }
}

/// Other entries' paths may lead through a symlink that no ordinary user can make.
#[test]
fn paths_through_a_symlink_of_another_owner() {
    need_mount!();
    let lib =
        |name: &[u8]| new().entry(EntryType::Symlink, name, b"usr/lib", 0o777, (7, 8), b"", &[]);
    let mut layer = lib(b"lib").dir("usr/lib", 0o755).file("lib/x", "x").hard_link("too", "lib");
    // One that is replaced is none any more.
    layer = layer.more().entry(EntryType::Symlink, b"gone", b"usr", 0o777, (7, 8), b"", &[]);
    let layer = layer.file("gone", "a file").tar();
    for who in Who::all() {
        let place = Place::of(who);
        place.load(
            &place.write("image", &tar_of(&docker_files("x:1", std::slice::from_ref(&layer)))),
        );
        place.with_image("x:1", |tree| {
            for name in ["lib", "too"] {
                let meta = std::fs::symlink_metadata(tree.join(name)).unwrap();
                assert!(meta.is_symlink(), "{who:?}: {name}");
                assert_eq!((meta.uid(), meta.gid()), (7, 8), "{who:?}: {name}");
            }
            assert_eq!(std::fs::read_to_string(tree.join("usr/lib/x")).unwrap(), "x", "{who:?}");
            assert_eq!(std::fs::read_to_string(tree.join("gone")).unwrap(), "a file", "{who:?}");
        });
        let told = run(place.plyfs().arg("verify"));
        assert!(told.lines().all(|line| line.ends_with(": OK")), "{who:?}: {told}");
    }
}
