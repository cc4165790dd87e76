//! Copy-up: at the first change, complete, and not before.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, UNIX_EPOCH};

use crate::common::union::{Union, fingerprint};
use plyfs::sys;
use std::os::fd::AsFd;

#[test]
fn a_write_copies_the_file_up_and_reading_does_not() {
    let mut u = Union::new(&["d/f=lower g=keep"]);
    let before = fingerprint(&u.lowers[0]);
    assert_eq!(u.read("d/f").unwrap(), "lower");
    u.expect_upper("");
    u.write("d/f", 5, "+upper").unwrap();
    u.expect("d/ d/f=lower+upper g=keep");
    u.expect_upper("d/ d/f=lower+upper");
    assert_eq!(fingerprint(&u.lowers[0]), before);
}

#[test]
fn attributes_survive() {
    let mut u = Union::new(&["d/f=text d/f:mode=4751 d:mode=0711"]);
    let file = u.lowers[0].join("d/f");
    let times = fs::FileTimes::new()
        .set_modified(UNIX_EPOCH + Duration::new(1_000_000, 123_456_789))
        .set_accessed(UNIX_EPOCH + Duration::new(2_000_000, 5));
    fs::File::open(&file).unwrap().set_times(times).unwrap();
    fs::File::open(u.lowers[0].join("d")).unwrap().set_times(times).unwrap();
    let fd = sys::open_dir(&u.lowers[0]).unwrap();
    let fd = sys::open_at(fd.as_fd(), b"d", sys::O_PATH).unwrap();
    let object = sys::open_at(fd.as_fd(), b"f", sys::O_PATH).unwrap();
    let has_xattrs = sys::set_xattr(object.as_fd(), b"user.note", b"kept", 0).is_ok();
    u.remount();
    u.link("d/f", "d/second").unwrap();
    let (dir, copy) = (u.upper().join("d"), u.upper().join("d/f"));
    let m = fs::metadata(copy).unwrap();
    assert_eq!(m.permissions().mode() & 0o7777, 0o4751);
    assert_eq!((m.mtime(), m.mtime_nsec(), m.atime()), (1_000_000, 123_456_789, 2_000_000));
    assert_eq!(fs::metadata(dir).unwrap().mode() & 0o7777, 0o711);
    if has_xattrs {
        let value = u.overlay().get_xattr(u.ino("d/second").unwrap(), b"user.note").unwrap();
        assert_eq!(value, b"kept");
    }
}

#[test]
fn the_parents_time_is_not_disturbed() {
    let u = Union::new(&["d/f=text"]);
    u.mkdir("d/new").unwrap(); // d is in upper now
    let before = u.stat("d").unwrap().stat.mtime;
    u.chmod("d/f", 0o600).unwrap();
    assert_eq!(u.stat("d").unwrap().stat.mtime, before);
}

#[test]
fn a_truncated_file_copies_no_more_than_needed() {
    let mut u = Union::new(&["f=0123456789"]);
    u.truncate("f", 3).unwrap();
    u.expect("f=012");
    u.truncate("f", 5).unwrap();
    u.expect("f=012\\x00\\x00");
}

#[test]
fn numbers_stay() {
    let mut u = Union::new(&["d/f=x s->d", "d/g=y"]);
    let numbers = |u: &Union| ["d", "d/f", "d/g", "s"].map(|path| u.ino(path).unwrap());
    let before = numbers(&u);
    for path in ["d/f", "d/g"] {
        u.write(path, 0, "z").unwrap();
    }
    assert_eq!(numbers(&u), before);
    u.remount();
    assert_eq!(numbers(&u), before);
    for (name, attr) in u.list("d") {
        assert_eq!(attr.ino, u.ino(&format!("d/{name}")).unwrap());
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let u = Union::new(&[""]);
    let file = fs::File::create(u.lowers[0].join("f")).unwrap();
    file.set_len(64 << 20).unwrap();
    u.write("f", 32 << 20, "x").unwrap();
    let m = fs::metadata(u.upper().join("f")).unwrap();
    assert_eq!(m.len(), 64 << 20);
    assert!(m.blocks() * 512 < 1 << 20, "{} blocks", m.blocks());
}

#[test]
fn a_symlink_and_a_fifo_are_copied_as_they_are() {
    let mut u = Union::new(&["s->/no/where"]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        u.lowers[0].join("p"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    u.remount();
    u.link("s", "s2").unwrap();
    u.chmod("p", 0o600).unwrap();
    assert_eq!(u.tell_upper(), ["p special", "s->/no/where", "s2->/no/where"]);
    assert_eq!(fs::metadata(u.upper().join("p")).unwrap().mode() & 0o777, 0o600);
}
