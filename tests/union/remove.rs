//! Removing names.

use crate::common::union::{Union, errno, fingerprint, is_not_found};
use plyfs::sys::Errno;

#[test]
fn deleted_lower_names_stay_deleted() {
    let mut u = Union::new(&["f=1 d/g=1", "d/h=1"]);
    let before: Vec<_> = u.lowers.iter().map(|lower| fingerprint(lower)).collect();
    u.unlink("f").unwrap();
    u.unlink("d/g").unwrap();
    u.expect("d/ d/h=1");
    u.expect_upper(".wh.f= d/ d/.wh.g=");
    assert!(is_not_found(&u.stat("f")));
    u.unlink("d/h").unwrap();
    u.rmdir("d").unwrap();
    u.expect("");
    u.expect_upper(".wh.d= .wh.f=");
    let after: Vec<_> = u.lowers.iter().map(|lower| fingerprint(lower)).collect();
    assert_eq!(before, after);
}

#[test]
fn upper_names_leave_no_whiteout() {
    let mut u = Union::new(&["d/"]);
    u.create("d/f", "").unwrap();
    u.mkdir("d/s").unwrap();
    u.unlink("d/f").unwrap();
    u.rmdir("d/s").unwrap();
    u.expect("d/");
    u.expect_upper("d/");
}

#[test]
fn a_changed_lower_file_needs_one() {
    let mut u = Union::new(&["f=1"]);
    u.write("f", 0, "2").unwrap();
    u.unlink("f").unwrap();
    u.expect("");
    u.expect_upper(".wh.f=");
}

#[test]
fn refused() {
    let u = Union::new(&["f=1 d/x=1", "e/y=1"]);
    assert_eq!(errno(u.unlink("d")), Errno::ISDIR);
    assert_eq!(errno(u.rmdir("f")), Errno::NOTDIR);
    assert_eq!(errno(u.rmdir("d")), Errno::NOTEMPTY);
    assert_eq!(errno(u.rmdir("e")), Errno::NOTEMPTY);
    assert_eq!(errno(u.unlink("no")), Errno::NOENT);
}

#[test]
fn rm_r_then_mkdir_shows_nothing_old() {
    let mut u = Union::new(&["d/a=1 d/s/b=1"]);
    for path in ["d/s/b", "d/a"] {
        u.unlink(path).unwrap();
    }
    u.rmdir("d/s").unwrap();
    u.rmdir("d").unwrap();
    u.mkdir("d").unwrap();
    assert!(is_not_found(&u.stat("d/a")));
    u.mkdir("d/s").unwrap();
    assert!(is_not_found(&u.stat("d/s/b")));
    u.expect("d/ d/s/");
}
