//! Layers as the programs in use write them: GNU tar, bsdtar and Python's tarfile in all their
//! formats, each of one rich directory, which the mount must show.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::archives::{docker_files, tar_of};
use crate::flatten::{Node, Tree, flatten};
use crate::need_mount;
use crate::place::{Image, Place, expect_images};
use crate::rich_dir::{self, Holds};
use crate::shown::read_tree;

/// What a tar tells of times and xattrs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// Whole seconds, no xattrs.
    Seconds,
    /// Nanoseconds, no xattrs.
    Nanos,
    /// Both.
    All,
    /// Times as floats, which are not told here, no xattrs, no hard links to symlinks.
    Python,
}

/// The directory, as a tar that keeps so much tells it.
fn tree_of(dir: &Path, keeps: Keeps) -> Tree {
    let mut tree = read_tree(dir);
    for node in &mut tree.nodes {
        match (keeps, node.mtime) {
            (Keeps::Seconds, Some((secs, _))) => node.mtime = Some((secs, 0)),
            (Keeps::Python, _) => node.mtime = None,
            _ => {}
        }
        if keeps != Keeps::All {
            node.xattrs.clear();
        }
    }
    if keeps == Keeps::Python {
        for at in tree.paths.values_mut() {
            if tree.nodes[*at].kind != 'l' {
                continue;
            }
            tree.nodes.push(tree.nodes[*at].clone());
            *at = tree.nodes.len() - 1;
        }
    }
    tree
}

/// What the program writes to stdout; `None`, visibly, if there is no such program.
#[track_caller]
fn written(program: &str, args: &[&str], dir: &Path) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("LC_ALL", "C.UTF-8");
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no {program} here");
            None
        }
        output => {
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{command:?}: {said}");
            Some(output.stdout)
        }
    }
}

fn rich(holds: Holds) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    rich_dir::make(dir.path(), holds);
    dir
}

/// Every format is an image of one layer.
fn image(what: &str, tar: Vec<u8>, tree: Tree) -> Image {
    Image { what: what.to_owned(), layers: vec![tar], tree }
}

#[test]
fn gnu_tar() {
    need_mount!();
    let (v7, ustar, all) = (rich(Holds::V7), rich(Holds::FullUstar), rich(Holds::All));
    let xattrs = "--xattrs --xattrs-include=*";
    let forms = [
        (&v7, "--format=v7", Keeps::Seconds),
        (&ustar, "--format=ustar", Keeps::Seconds),
        (&ustar, "--format=oldgnu", Keeps::Seconds),
        (&all, "--format=oldgnu", Keeps::Seconds),
        (&all, "--format=gnu", Keeps::Seconds),
        (&all, "--format=gnu --blocking-factor=1", Keeps::Seconds),
        (&all, "--format=posix", Keeps::Nanos),
        (&all, &format!("--format=posix --selinux --acls {xattrs}"), Keeps::All),
        (&all, "--format=posix --pax-option=comment=global,exthdr.name=%d/x/%f", Keeps::Nanos),
    ];
    let mut images = Vec::new();
    for (dir, options, keeps) in forms {
        let args: Vec<&str> =
            "-cf - --numeric-owner".split(' ').chain(options.split(' ')).collect();
        let args = [&args[..], &["."]].concat();
        let Some(tar) = written("tar", &args, dir.path()) else { return };
        images.push(image(options, tar, tree_of(dir.path(), keeps)));
    }
    expect_images(&images);
}

#[test]
fn gnu_tar_of_sparse_files() {
    need_mount!();
    let all = rich(Holds::All);
    let forms = [
        ("--format=oldgnu --sparse", Keeps::Seconds),
        ("--format=gnu --sparse", Keeps::Seconds),
        ("--format=gnu --sparse --hole-detection=raw", Keeps::Seconds),
        ("--format=posix --sparse --sparse-version=0.0", Keeps::Nanos),
        ("--format=posix --sparse --sparse-version=0.1", Keeps::Nanos),
        ("--format=posix --sparse --sparse-version=1.0", Keeps::Nanos),
        ("--format=posix --sparse --xattrs --xattrs-include=*", Keeps::All),
    ];
    let mut images = Vec::new();
    for (options, keeps) in forms {
        let args: Vec<&str> =
            "-cf - --numeric-owner".split(' ').chain(options.split(' ')).collect();
        let Some(tar) = written("tar", &[&args[..], &["."]].concat(), all.path()) else { return };
        images.push(image(options, tar, tree_of(all.path(), keeps)));
    }
    let Some(whole) = written("tar", &["-cf", "-", "."], all.path()) else { return };
    let place = Place::new();
    for Image { what, layers, .. } in &images {
        let saved = whole.len() - layers[0].len();
        assert!(saved > 1_000_000, "{what}: the tar has the holes: it is {saved} bytes shorter");
        place.load(&place.write("image", &tar_of(&docker_files("x:1", layers))));
        place.with_image("x:1", |mount| {
            let file = fs::metadata(mount.join("sparse/all-hole")).unwrap();
            assert_eq!((file.len(), file.blocks()), (64 * 4096, 0), "{what}");
            let file = fs::metadata(mount.join("sparse/many")).unwrap();
            assert!(file.blocks() * 512 < file.len() / 2, "{what}: {} blocks", file.blocks());
        });
    }
    expect_images(&images);
}

#[test]
fn bsdtar() {
    need_mount!();
    let (v7, ustar, all) = (rich(Holds::V7), rich(Holds::Ustar), rich(Holds::All));
    let forms = [
        (&v7, "--format=v7tar", Keeps::Seconds),
        (&ustar, "--format=ustar", Keeps::Seconds),
        (&ustar, "--format=gnutar", Keeps::Seconds),
        (&all, "--format=pax --options=pax:hdrcharset=BINARY", Keeps::All),
        (&all, "--format=pax --options=pax:hdrcharset=BINARY --no-xattrs --no-acls", Keeps::Nanos),
    ];
    let mut images = Vec::new();
    for (dir, options, keeps) in forms {
        let args: Vec<&str> =
            "-cf - --numeric-owner".split(' ').chain(options.split(' ')).collect();
        let Some(tar) = written("bsdtar", &[&args[..], &["."]].concat(), dir.path()) else {
            return;
        };
        let mut tree = tree_of(dir.path(), keeps);
        tree.nodes.iter_mut().for_each(as_bsdtar_tells);
        images.push(image(options, tar, tree));
    }
    expect_images(&images);
}

/// It writes 1.5 seconds before 1970 (-2 s and 0.5 s) as -2.5, and escapes names of xattrs.
fn as_bsdtar_tells(node: &mut Node) {
    if let Some((secs, nanos)) = node.mtime.filter(|(secs, nanos)| *secs < 0 && *nanos > 0) {
        node.mtime = Some((secs - 1, 1_000_000_000 - nanos));
    }
    let escaped = |name: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let byte = |b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
        name.bytes().map(byte).collect()
    };
    let xattrs = std::mem::take(&mut node.xattrs).into_iter();
    node.xattrs = xattrs.map(|(name, value)| (escaped(&name), value)).collect();
}

#[test]
fn pythons_tarfile() {
    need_mount!();
    const SCRIPT: &str = "import sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=getattr(tarfile, sys.argv[1])) as tar:
    tar.add('.')";
    let (ustar, all) = (rich(Holds::Ustar), rich(Holds::Short));
    let mut images = Vec::new();
    for (dir, format) in [(&ustar, "USTAR_FORMAT"), (&all, "GNU_FORMAT"), (&all, "PAX_FORMAT")] {
        let args = ["-c", SCRIPT, format];
        let Some(tar) = written("python3", &args, dir.path()) else { return };
        // Its times are floats: what they are is in the tar.
        let by_the_tar = flatten(std::slice::from_ref(&tar));
        images.push(image(&format!("{format}, by the tar"), tar.clone(), by_the_tar));
        images.push(image(format, tar, tree_of(dir.path(), Keeps::Python)));
    }
    expect_images(&images);
}
