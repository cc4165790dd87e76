//! The rules of layers (OCI image-spec, layer.md), one by one: each stack shows what the
//! flattening says, as root and as an ordinary user, and each layer comes back as it was.

use tar::EntryType;

use crate::archives::{Layer, docker_files, tar_of};
use crate::common::mounted::run;
use crate::flatten::{Tree, flatten};
use crate::need_mount;
use crate::place::{Image, Place, Who, expect_images};

#[track_caller]
fn expect_stacks(stacks: Vec<(&str, Vec<Layer>)>) {
    let images = stacks.iter().map(|(what, layers)| Image::new(what, layers));
    expect_images(&images.collect::<Vec<_>>());
}

fn new() -> Layer {
    Layer::default()
}

/// A directory with all that a directory can have.
fn noble(layer: Layer, path: &str) -> Layer {
    let pax: &[(&str, &[u8])] =
        &[("mtime", b"1111111111.123456789"), ("SCHILY.xattr.user.note", b"of the directory")];
    layer.more().entry(EntryType::Directory, path.as_bytes(), b"", 0o3775, (70_000, 8), b"", pax)
}

/// A setuid program with a capability.
pub fn program(layer: Layer, path: &str) -> Layer {
    let capability: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let pax = [
        ("mtime", &b"-77.25"[..]),
        ("SCHILY.xattr.user.note", b"of the program"),
        ("SCHILY.xattr.security.capability", capability),
    ];
    layer.more().entry(EntryType::Regular, path.as_bytes(), b"", 0o6755, (5, 6), b"program", &pax)
}

#[test]
fn parents_that_are_not_listed() {
    need_mount!();
    let base = || noble(noble(noble(new(), "./"), "d"), "d/e").file("d/e/low", "1");
    expect_stacks(vec![
        ("one is implied", vec![base(), new().file("d/f", "2")]),
        ("two are implied", vec![base(), new().file("d/e/f", "2")]),
        ("one of two is implied", vec![base(), new().dir("d", 0o700).file("d/e/f", "2")]),
        ("the outer is implied", vec![base(), new().dir("d/e", 0o700).file("d/e/f", "2")]),
        ("twice", vec![base(), new().file("d/e/f", "2"), new().file("d/e/g", "3")]),
        ("listed between", vec![base(), new().dir("d/e", 0o711), new().file("d/e/g", "3")]),
        ("of nothing", vec![new().file("a/b/c", "1"), new().file("a/b/d", "2")]),
        ("first implied, then listed", vec![new().file("a/b", "1"), noble(new(), "a"), base()]),
        ("by a whiteout", vec![base(), new().file("d/e/.wh.low", "")]),
        ("by an opaque mark", vec![base(), new().file("d/e/.wh..wh..opq", "")]),
        (
            "not what a whiteout hid",
            vec![base(), new().file("d/.wh.e", "").file("d/e/f", "its own now")],
        ),
        ("of what was a file", vec![new().file("a", "1"), new().file("a/b", "2")]),
        ("of what was a symlink", vec![new().symlink("a", "/"), new().file("a/b", "2")]),
        (
            "of what was whited out below",
            vec![base(), new().file(".wh.d", ""), new().file("d/f", "")],
        ),
    ]);
}

#[test]
fn one_layer_upon_two_parents() {
    need_mount!();
    let shared = new().file("d/shared", "both").hard_link("link", "file").tar();
    let first = noble(program(new(), "file"), "d").tar();
    let second = new().dir("d", 0o750).file("file", "plain").tar();
    let stacks = [("one:1", vec![first, shared.clone()]), ("two:1", vec![second, shared.clone()])];
    for who in Who::all() {
        let place = Place::of(who);
        for (name, layers) in &stacks {
            place.load(&place.write("image", &tar_of(&docker_files(name, layers))));
        }
        assert_eq!(place.layers(), 3, "the shared one is there once");
        let [one, two] = [flatten(&stacks[0].1), flatten(&stacks[1].1)];
        place.come_back(&[("one:1", &one, "one"), ("two:1", &two, "two")]);
        run(place.plyfs().args(["rmi", "one:1"]));
        place.come_back(&[("two:1", &two, "alone")]);
    }
}

#[test]
fn hard_links_to_layers_below() {
    need_mount!();
    let a = || program(new(), "a");
    let link = |name: &str, target: &str| new().hard_link(name, target);
    let mut odd = new().symlink("s", "nowhere").more();
    odd = odd.entry(EntryType::Symlink, b"users", b"x", 0o777, (7, 7), b"", &[]).more();
    odd = odd.entry(EntryType::Fifo, b"p", b"", 0o640, (7, 7), b"", &[]).more();
    odd = odd.entry(EntryType::Char, b"c", b"", 0o620, (0, 5), b"", &[]);
    let odd_links = link("d/s", "s").hard_link("d/users", "users").hard_link("p2", "p");
    expect_stacks(vec![
        ("to the layer below", vec![a(), link("b", "a")]),
        ("two of one file", vec![a(), link("b", "a").hard_link("c", "./a")]),
        ("to a path from the root", vec![a(), link("d/b", "/a")]),
        ("to a link of the same layer", vec![a(), link("b", "a").hard_link("c", "b")]),
        ("to a link of the layer below", vec![a(), link("b", "a"), link("c", "b")]),
        ("two layers down", vec![a(), new().file("x", ""), link("b", "a")]),
        ("the target is replaced above", vec![a(), link("b", "a"), new().file("a", "new")]),
        ("the target is whited out above", vec![a(), link("b", "a"), new().file(".wh.a", "")]),
        ("the link is whited out above", vec![a(), link("b", "a"), new().file(".wh.b", "")]),
        ("the link is replaced above", vec![a(), link("b", "a"), new().file("b", "new")]),
        ("whited out before", vec![a(), new().file(".wh.a", "").hard_link("b", "a")]),
        ("whited out after", vec![a(), link("b", "a").file(".wh.a", "")]),
        ("replaced before", vec![a(), new().file("a", "new").hard_link("b", "a")]),
        ("replaced after", vec![a(), link("b", "a").file("a", "new")]),
        (
            "below an opaque mark",
            vec![
                new().file("d/x", "1"),
                new().dir("d", 0o700).hard_link("d/y", "d/x").file("d/.wh..wh..opq", ""),
            ],
        ),
        ("of one name of several", vec![a().hard_link("a2", "a"), link("b", "a")]),
        (
            "of one name, another is whited out",
            vec![a().hard_link("a2", "a"), new().file(".wh.a2", "").hard_link("b", "a")],
        ),
        ("over what was a file", vec![a().file("b", "old"), link("b", "a")]),
        ("over what was a directory", vec![a().file("b/f", "old"), link("b", "a")]),
        ("replaced by a file later", vec![a(), link("b", "a").file("b", "own")]),
        ("instead of a file before", vec![a(), new().file("b", "own").hard_link("b", "a")]),
        ("to what is no regular file", vec![odd, odd_links.hard_link("c2", "c")]),
        (
            "of two files of the same content",
            vec![new().file("a", "1").file("b", "1"), link("a2", "a").hard_link("b2", "b")],
        ),
    ]);
}

#[test]
fn marks() {
    need_mount!();
    let base = || {
        let base = noble(new(), "d").file("d/f", "1").file("d/g", "1").file("d/s/deep", "1");
        base.file("f", "1").symlink("l", "d").file("caf\u{e9}", "1").dir("empty", 0o755)
    };
    let longest = "n".repeat(251); // with the mark's four bytes a whole name
    expect_stacks(vec![
        ("opaque, first", vec![base(), new().file("d/.wh..wh..opq", "").file("d/new", "2")]),
        ("opaque, last", vec![base(), new().file("d/g", "2").file("d/.wh..wh..opq", "")]),
        ("opaque, listed", vec![base(), new().dir("d", 0o700).file("d/.wh..wh..opq", "")]),
        ("opaque, two levels", vec![base(), new().file("d/s/.wh..wh..opq", "").file("d/s/n", "2")]),
        ("opaque root", vec![base(), new().file(".wh..wh..opq", "").file("only", "2")]),
        (
            "opaque in the middle",
            vec![base(), new().file("d/.wh..wh..opq", ""), new().file("d/f", "3")],
        ),
        (
            "opaque, of what was no directory",
            vec![base(), new().file("f/.wh..wh..opq", "").file("f/n", "2")],
        ),
        ("a file", vec![base(), new().file("d/.wh.f", "")]),
        ("a directory", vec![base(), new().file(".wh.d", "")]),
        ("an empty directory", vec![base(), new().file(".wh.empty", "")]),
        ("a symlink", vec![base(), new().file(".wh.l", "")]),
        ("nothing", vec![base(), new().file(".wh.missing", "").file("no/where/.wh.x", "")]),
        ("and a file of its own, before", vec![base(), new().file("f", "2").file(".wh.f", "")]),
        ("and a file of its own, after", vec![base(), new().file(".wh.f", "").file("f", "2")]),
        ("and a directory of its own", vec![base(), new().file(".wh.d", "").file("d/new", "2")]),
        (
            "and a directory, listed first",
            vec![base(), new().dir("d", 0o711).file("d/n", "2").file(".wh.d", "")],
        ),
        ("and a symlink of its own", vec![base(), new().symlink("d", "f").file(".wh.d", "")]),
        ("back again above", vec![base(), new().file(".wh.d", ""), new().file("d/f", "3")]),
        ("twice", vec![base(), new().file(".wh.f", ""), new().file(".wh.f", "").file(".wh.f", "")]),
        ("a directory as a mark", vec![base(), new().dir(".wh.f", 0o755).dir(".wh.d/", 0)]),
        ("a symlink as a mark", vec![base(), new().symlink(".wh.f", "d")]),
        (
            "a hard link as a mark",
            vec![base(), new().hard_link(".wh.f", "d/g"), new().file("f", "3")],
        ),
        (
            "hard links as marks",
            vec![
                base(),
                new().file(".wh.f", "").hard_link("d/.wh.f", ".wh.f").hard_link(".wh.l", "missing"),
            ],
        ),
        (
            "a mark's other name",
            vec![
                new().file(".wh.f", "").hard_link("g", ".wh.f"),
                new().file("f", "2").hard_link("h", "g"),
            ],
        ),
        ("with content", vec![base(), new().file(".wh.f", "not empty")]),
        (
            "not UTF-8",
            vec![
                base(),
                new()
                    .more()
                    .entry(EntryType::Regular, b".wh.caf\xe9", b"", 0o644, (0, 0), b"", &[])
                    .file(".wh.caf\u{e9}", ""),
            ],
        ),
        (
            "the longest name",
            vec![new().file(&longest, "1"), new().file(&format!(".wh.{longest}"), "")],
        ),
        (
            "in the lowest layer",
            vec![new().file(".wh.x", "").file("d/.wh..wh..opq", "").file("d/f", "1")],
        ),
    ]);
}

#[test]
fn leftovers_of_aufs() {
    need_mount!();
    // Layers of AUFS's time keep hard links under names of their own.
    let plink = new()
        .dir(".wh..wh.plnk", 0o700)
        .file(".wh..wh.plnk/123.456", "linked")
        .hard_link("a", ".wh..wh.plnk/123.456")
        .hard_link("b", ".wh..wh.plnk/123.456")
        .dir(".wh..wh.orph", 0o700)
        .file(".wh..wh.aufs", "");
    expect_stacks(vec![("plinks", vec![new().file("a", "old"), plink])]);
}

#[test]
fn kinds_that_change() {
    type Make = fn() -> Layer;
    need_mount!();
    let kinds: [(&str, Make); 5] = [
        ("file", || new().file("x", "a file")),
        ("directory", || noble(new(), "x").file("x/in", "a directory")),
        ("symlink to a directory", || new().dir("to", 0o755).file("to/f", "1").symlink("x", "to")),
        ("dangling symlink", || new().symlink("x", "/nowhere")),
        ("fifo", || new().more().entry(EntryType::Fifo, b"x", b"", 0o600, (1, 1), b"", &[])),
    ];
    let mut images = Vec::new();
    for (below, lower) in kinds {
        for (above, upper) in kinds {
            images.push(Image::new(&format!("{below}, then {above}"), &[lower(), upper()]));
        }
    }
    expect_images(&images);
}

#[test]
fn times_of_directories() {
    need_mount!();
    let dir = |layer: Layer, path: &str, time: &str| {
        let pax: &[(&str, &[u8])] = &[("mtime", time.as_bytes())];
        layer.more().entry(EntryType::Directory, path.as_bytes(), b"", 0o755, (0, 0), b"", pax)
    };
    let base =
        || dir(dir(new(), "d", "1000.5"), "d/e", "2000.25").file("d/e/f", "1").file("d/z", "1");
    expect_stacks(vec![
        ("are set last", vec![base()]),
        (
            "even where the directory comes after its content",
            vec![dir(new().file("d/f", ""), "d", "9")],
        ),
        ("of the layer above", vec![base(), dir(new(), "d/e", "3000.125").file("d/e/g", "2")]),
        ("of the layer below", vec![base(), new().file("d/e/g", "2")]),
        ("with hard links", vec![base(), new().hard_link("d/e/g", "d/z")]),
        ("with whiteouts", vec![base(), new().file("d/.wh.z", "")]),
        (
            "early and late",
            vec![dir(dir(new(), "early", "-2000000000.75"), "late", "8000000000.5")],
        ),
    ]);
}

#[test]
fn how_a_tar_ends() {
    need_mount!();
    let whole = new().dir("d", 0o700).file("d/f", "no whole block").tar();
    let open = &whole[..whole.len() - 1024];
    let hidden = new().file("hidden", "behind the end").tar();
    let garbage: Vec<u8> = (0..70_001_u32).map(|n| (n * 7 % 251) as u8).collect();
    let tars: [(&str, Vec<u8>); 9] = [
        ("no end", open.to_vec()),
        ("one block of zeros", [open, &[0; 512]].concat()),
        ("a record of twenty blocks", [open, &[0; 20 * 512]].concat()),
        ("a megabyte of zeros", [open, &vec![0; 1 << 20]].concat()),
        ("an entry behind the end", [&whole[..], &hidden].concat()),
        ("garbage behind the end", [&whole[..], &garbage].concat()),
        ("a few bytes behind the end", [&whole[..], b"bye"].concat()),
        ("an entry behind one block of zeros", [open, &[0; 512], &hidden].concat()),
        ("the last padding is cut off", open[..open.len() - (512 - 14)].to_vec()),
    ];
    let tree = flatten(std::slice::from_ref(&whole));
    let image = |what: &str, layers: &[&Vec<u8>], tree: &Tree| Image {
        what: what.to_owned(),
        layers: layers.iter().map(|layer| layer.to_vec()).collect(),
        tree: tree.clone(),
    };
    let mut images: Vec<_> = tars.iter().map(|(what, tar)| image(what, &[tar], &tree)).collect();
    for (what, tar) in [("no bytes", vec![]), ("two blocks of zeros", vec![0; 1024])] {
        images.push(image(what, &[&tar], &Tree::default()));
        images.push(image(what, &[&whole, &tar], &tree));
        images.push(image(what, &[&tar, &tar, &whole], &tree));
    }
    expect_images(&images);
}
