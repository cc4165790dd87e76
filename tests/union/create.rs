//! Making names.

use std::os::unix::fs::MetadataExt;

use crate::common::union::{Union, errno};
use plyfs::overlay::NodeKind;
use plyfs::sys::{Errno, FileType};

#[test]
fn new_files_lie_in_upper_alone() {
    let mut u = Union::new(&["d/f=x"]);
    u.create("d/new", "n").unwrap();
    u.mkdir("d/sub").unwrap();
    u.symlink("d/link", "../x").unwrap();
    u.expect("d/ d/f=x d/link->../x d/new=n d/sub/");
    u.expect_upper("d/ d/link->../x d/new=n d/sub/");
}

#[test]
fn over_a_whiteout() {
    let mut u = Union::new(&["f=old d/old=x"]);
    u.unlink("f").unwrap();
    u.unlink("d/old").unwrap();
    u.rmdir("d").unwrap();
    u.expect_upper(".wh.d= .wh.f=");
    u.create("f", "new").unwrap();
    u.mkdir("d").unwrap();
    u.expect("d/ f=new");
    u.expect_upper("d/ d/.wh..wh..opq= f=new");
    u.unlink("f").unwrap();
    u.rmdir("d").unwrap();
    u.expect("");
    u.expect_upper(".wh.d= .wh.f=");
}

#[test]
fn a_file_over_a_deleted_directory_and_back() {
    let mut u = Union::new(&["x/in=1"]);
    u.unlink("x/in").unwrap();
    u.rmdir("x").unwrap();
    u.create("x", "file").unwrap();
    u.expect("x=file");
    u.unlink("x").unwrap();
    u.mkdir("x").unwrap();
    u.expect("x/");
}

#[test]
fn refused_names() {
    let u = Union::new(&["f=x d/"]);
    assert_eq!(errno(u.create("f", "")), Errno::EXIST);
    assert_eq!(errno(u.mkdir("d")), Errno::EXIST);
    assert_eq!(errno(u.create("f/g", "")), Errno::NOTDIR);
    assert_eq!(errno(u.create("no/g", "")), Errno::NOENT);
    assert_eq!(errno(u.create(&"n".repeat(256), "")), Errno::NAMETOOLONG);
    assert_eq!(errno(u.create(&format!(".wh.{}", "n".repeat(251)), "")), Errno::NAMETOOLONG);
    u.expect_upper("");
}

#[test]
fn names_that_look_like_marks_are_ordinary_names() {
    let mut u = Union::new(&["f=x g=y d/h=z"]);
    u.create(".wh.f", "mine").unwrap();
    u.mkdir(".wh.d").unwrap();
    u.create("d/.wh..wh..opq", "").unwrap();
    u.rename("g", "d/.wh.h").unwrap();
    u.link("f", ".wh.").unwrap();
    u.expect("f=x .wh.=x .wh.f=mine .wh.d/ d/ d/.wh..wh..opq= d/.wh.h=y d/h=z");
    u.stack();
    u.expect("f=x .wh.=x .wh.f=mine .wh.d/ d/ d/.wh..wh..opq= d/.wh.h=y d/h=z");
    u.unlink(".wh.f").unwrap();
    u.rmdir(".wh.d").unwrap();
    u.unlink("d/.wh.h").unwrap();
    u.expect("f=x .wh.=x d/ d/.wh..wh..opq= d/h=z");
    u.expect_upper(".wh..wh..wh.name.d= .wh..wh..wh.name.f= d/ d/.wh..wh..wh.name.h=");
}

#[test]
fn a_setgid_directory_hands_its_group_down() {
    let u = Union::new(&["d/ d:mode=2775"]);
    u.mkdir("d/sub").unwrap();
    u.create("d/f", "").unwrap();
    assert_eq!(u.stat("d/sub").unwrap().stat.mode & 0o7777, 0o2755);
    assert_eq!(u.stat("d/f").unwrap().stat.mode & 0o7777, 0o644);
    let dir = u.stat("d").unwrap().stat.gid;
    assert_eq!(u.stat("d/sub").unwrap().stat.gid, dir);
}

#[test]
fn special_files_and_bits() {
    let u = Union::new(&[""]);
    u.make("p", NodeKind::Special { kind: FileType::Fifo, rdev: 0 }, 0o666).unwrap();
    assert_eq!(u.stat("p").unwrap().stat.mode & 0o7777, 0o644);
    u.make("t", NodeKind::Directory, 0o1777).unwrap();
    assert_eq!(u.stat("t").unwrap().stat.mode & 0o7777, 0o1755);
    u.make("s", NodeKind::File, 0o4755).unwrap();
    assert_eq!(u.stat("s").unwrap().stat.mode & 0o7777, 0o4755);
}

#[test]
fn a_real_0_0_device_is_no_whiteout() {
    if !crate::common::is_root() {
        return eprintln!("skipped: device nodes need root");
    }
    let mut u = Union::new(&["c=lower"]);
    u.unlink("c").unwrap();
    u.make("c", NodeKind::Special { kind: FileType::CharacterDevice, rdev: 0 }, 0o600).unwrap();
    assert_eq!(u.tell(), ["c c 0"]);
    u.remount();
    assert_eq!(u.tell(), ["c c 0"]);
    assert_eq!(std::fs::symlink_metadata(u.upper().join("c")).unwrap().rdev(), 0);
    u.rename("c", "moved").unwrap();
    u.remount();
    assert_eq!(u.tell(), ["moved c 0"]);
    u.unlink("moved").unwrap();
    u.expect("");
}
