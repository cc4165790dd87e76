//! Whiteouts and opaque marks of the lowers, in every form; the rules of merging are tested
//! where they are written (`overlay::merge`), the reading of marks in `layers::lower`.

use std::os::fd::AsFd;

use crate::common::{is_root, union::Union};
use plyfs::sys;

#[test]
fn marks_of_the_lowers_are_obeyed() {
    let mut u = Union::new(&[
        ".wh.gone= d/.wh.x= o/.wh..wh..opq= o/own=1 cut/ .wh.cut= cut/own=1",
        "gone=1 d/x=1 d/y=1 o/old=1 cut/old=1 .wh..wh.aufs=1",
    ]);
    u.expect("cut/ cut/own=1 d/ d/y=1 o/ o/own=1");
}

#[test]
fn devices_as_whiteouts() {
    if !is_root() {
        return eprintln!("skipped: device nodes need root");
    }
    let mut u = Union::new(&["o/own=1", "gone=1 kept=1 o/old=1"]);
    for name in ["gone", "o/.wh..opq"] {
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::empty();
        let path = u.lowers[0].join(name);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
    }
    u.remount();
    u.expect("kept=1 o/ o/own=1");
}

#[test]
fn a_device_in_upper_that_is_a_whiteout_gives_way() {
    if !is_root() {
        return eprintln!("skipped: device nodes need root");
    }
    let mut u = Union::new(&["f=lower d/x=1"]);
    for name in ["f", "d"] {
        let path = u.upper().join(name);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::empty(), 0).unwrap();
    }
    u.remount();
    assert!(u.tell().is_empty());
    u.create("f", "new").unwrap();
    u.mkdir("d").unwrap();
    u.expect("d/ f=new");
    u.expect_upper("d/ d/.wh..wh..opq= f=new");
}

#[test]
fn opaque_xattrs_hide_and_do_not_show() {
    let mut u = Union::new(&["d/own=1", "d/old=1"]);
    let dir = sys::open_dir(&u.lowers[0].join("d")).unwrap();
    if sys::set_xattr(dir.as_fd(), b"user.overlay.opaque", b"y", 0).is_err() {
        return eprintln!("skipped: no user xattrs here");
    }
    sys::set_xattr(dir.as_fd(), b"user.plain", b"1", 0).unwrap();
    u.remount();
    u.expect("d/ d/own=1");
    let ino = u.ino("d").unwrap();
    assert_eq!(u.overlay().list_xattrs(ino).unwrap(), b"user.plain\0");
    assert!(u.overlay().get_xattr(ino, b"user.overlay.opaque").is_err());
    // One that a user sets is the user's, and marks nothing.
    let mine = b"user.fuseoverlayfs.opaque";
    u.unlink("d/own").unwrap();
    u.overlay().set_xattr(ino, mine, b"y", 0).unwrap();
    std::fs::remove_file(u.upper().join("d/.wh.own")).unwrap();
    u.remount();
    u.expect("d/ d/own=1");
    let ino = u.ino("d").unwrap();
    assert_eq!(u.overlay().get_xattr(ino, mine).unwrap(), b"y");
    u.overlay().remove_xattr(ino, mine).unwrap();
    assert!(u.overlay().get_xattr(ino, mine).is_err());
}

#[test]
fn names_too_long_for_a_plain_whiteout() {
    let name = |len: usize| "n".repeat(len);
    let mut u = Union::new(&[&format!("{}=1 {}=1 keep=1", name(251), name(255))]);
    u.unlink(&name(251)).unwrap();
    u.unlink(&name(255)).unwrap();
    u.expect("keep=1");
    u.create(&name(255), "again").unwrap();
    u.expect(&format!("keep=1 {}=again", name(255)));
    assert_eq!(u.tell_upper().len(), 2);
}
