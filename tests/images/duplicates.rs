//! Names that come twice in one tar: the last wins, and the tar comes back with all of them.

use tar::EntryType;

use crate::archives::Layer;
use crate::flatten::flatten;
use crate::need_mount;
use crate::place::{Image, expect_images};

fn new() -> Layer {
    Layer::default()
}

fn dir(layer: Layer, path: &str, mode: u32, time: &str) -> Layer {
    let pax: &[(&str, &[u8])] = &[("mtime", time.as_bytes())];
    layer.more().entry(EntryType::Directory, path.as_bytes(), b"", mode, (3, 4), b"", pax)
}

#[test]
fn the_last_one_wins() {
    need_mount!();
    let d = || new().dir("d", 0o755).file("d/f", "first").file("d/g", "first");
    let fifo =
        |layer: Layer| layer.more().entry(EntryType::Fifo, b"x", b"", 0o600, (1, 1), b"", &[]);
    let tars = [
        ("a file", new().file("x", "first").file("x", "last")),
        ("three", new().file("x", "first").file("x", "second").file("x", "last")),
        ("of the same content", new().file("x", "same").file("x", "same")),
        ("an empty one first", new().file("x", "").file("x", "last")),
        ("an empty one last", new().file("x", "first").file("x", "")),
        ("by another spelling", new().file("./x", "first").file("/x", "last").file("x", "x")),
        ("a symlink first", new().symlink("x", "y").file("x", "last")),
        ("a symlink last", new().file("x", "first").symlink("x", "y")),
        ("two symlinks", new().symlink("x", "y").symlink("x", "z")),
        ("a fifo between", fifo(new().file("x", "first")).file("x", "last")),
        ("a fifo last", fifo(new().file("x", "first"))),
        ("one that has links", new().file("a", "first").hard_link("b", "a").file("a", "last")),
        ("a link", new().file("a", "1").hard_link("b", "a").file("b", "own")),
        ("a link last", new().file("a", "1").file("b", "own").hard_link("b", "a")),
        ("a link twice", new().file("a", "1").hard_link("b", "a").hard_link("b", "a")),
        (
            "links that move",
            new().file("a", "1").file("c", "2").hard_link("b", "a").hard_link("b", "c"),
        ),
        ("a file, then a directory", new().file("x", "first").file("x/f", "last")),
        (
            "a file, then a listed directory",
            new().file("x", "first").dir("x", 0o711).file("x/f", "last"),
        ),
        ("a directory, then a file", d().file("d", "last")),
        ("and a directory again", d().file("d", "file").dir("d", 0o700).file("d/f", "last")),
        ("and an implied one again", d().file("d", "file").file("d/f", "last")),
        ("a directory, then a symlink", d().file("e/f", "1").symlink("d", "e")),
        ("a tree, then a file", new().file("d/e/f/g", "deep").file("d/e/h", "1").file("d", "last")),
        ("links into a tree that goes", d().hard_link("kept", "d/f").file("d", "last")),
        ("a mark", new().file(".wh.x", "").file(".wh.x", "again")),
    ];
    let below =
        || new().file("x", "below").file("d/f", "below").file("d/b", "b").file("a", "below");
    let mut images = Vec::new();
    for (what, layer) in tars {
        images.push(Image::new(what, std::slice::from_ref(&layer)));
        images.push(Image::new(&format!("{what}, upon a layer"), &[below(), layer]));
    }
    expect_images(&images);
}

#[test]
fn a_directory_that_is_listed_again() {
    need_mount!();
    let tars = [
        ("with the same", dir(dir(new(), "d", 0o700, "5"), "d", 0o700, "5")),
        ("with another mode", dir(dir(new(), "d", 0o700, "5"), "d", 0o2755, "5")),
        ("with another time", dir(dir(new(), "d", 0o700, "5"), "d", 0o700, "6.5").file("d/f", "1")),
        ("the root", dir(dir(new(), "./", 0o755, "5").file("f", "1"), ".", 0o711, "7")),
        ("by another spelling", dir(dir(new(), "d/", 0o700, "5"), "./d", 0o755, "6")),
        ("another owner", dir(new().dir("d", 0o755), "d", 0o755, "6")),
    ];
    expect_images(&tars.map(|(what, layer)| Image::new(what, &[layer])));
}

#[test]
fn through_a_symlink_that_goes() {
    need_mount!();
    // The flattening knows nothing of symlinks inside a layer, so it is told by a second tar.
    let f = "through the symlink";
    let stacks = [
        (
            "a symlink, then a directory",
            new()
                .dir("real", 0o755)
                .symlink("l", "real")
                .file("l/f", "1")
                .file("l/f", f)
                .dir("l", 0o711),
            new().dir("real", 0o755).file("real/f", f).dir("l", 0o711),
        ),
        (
            "with the same names inside",
            new()
                .dir("real", 0o755)
                .symlink("l", "real")
                .file("l/f", f)
                .file("l", "")
                .file("l/f", "2"),
            new().dir("real", 0o755).file("real/f", f).file("l/f", "2"),
        ),
        (
            "a directory, then a symlink",
            new()
                .file("d/f", "1")
                .dir("e", 0o700)
                .symlink("d", "e")
                .file("d/f", f)
                .file("d/g", "2"),
            new().dir("e", 0o700).file("e/f", f).symlink("d", "e").file("e/g", "2"),
        ),
        (
            "a symlink, then another",
            new()
                .file("a/f", "1")
                .file("b/f", "2")
                .symlink("l", "a")
                .file("l/f", f)
                .symlink("l", "b")
                .file("l/f", f),
            new().file("a/f", f).file("b/f", f).symlink("l", "b"),
        ),
        (
            "a hard link behind it",
            new()
                .dir("a", 0o755)
                .symlink("l", "a")
                .file("l/f", f)
                .hard_link("l/g", "l/f")
                .file("l", "gone"),
            new().dir("a", 0o755).file("a/f", f).hard_link("a/g", "a/f").file("l", "gone"),
        ),
    ];
    expect_images(&stacks.map(|(what, through, same)| Image {
        tree: flatten(&[same.tar()]),
        ..Image::new(what, &[through])
    }));
}
