//! A rich upper: pointers into the lower layers instead of copies.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use plyfs::sys;

use crate::common::union::{Union, errno, fingerprint};

/// Bytes of a file that is worth a metacopy.
const BIG: usize = 1 << 20;

/// A union whose lower layer has `big`, all of ones; none where xattrs are missing.
fn with_big() -> Option<Union> {
    let u = Union::rich(&["d/e/deep=1 d/f=2 other/x=3"]);
    let upper = sys::open_dir(&u.upper()).unwrap();
    if !sys::list_xattrs(upper.as_fd()).is_ok_and(|list| list.windows(6).any(|w| w == b"plyfs.")) {
        eprintln!("skipped: no private xattrs here");
        return None;
    }
    fs::write(u.lowers[0].join("big"), vec![b'1'; BIG]).unwrap();
    let mut u = u;
    u.remount();
    Some(u)
}

fn blocks(u: &Union) -> u64 {
    fs::metadata(u.upper().join("big")).unwrap().blocks()
}

#[test]
fn a_change_of_attributes_copies_no_data() {
    let Some(mut u) = with_big() else { return };
    let before = fingerprint(&u.lowers[0]);
    let shown = u.stat("big").unwrap().stat;
    u.chmod("big", 0o4711).unwrap();
    assert!(blocks(&u) < 32, "{}", blocks(&u));
    for _ in 0..2 {
        let now = u.stat("big").unwrap().stat;
        assert_eq!((now.mode & 0o7777, now.size), (0o4711, BIG as u64));
        assert_eq!(now.blocks, shown.blocks, "a file of no blocks would be taken for a hole");
        assert_eq!(now.mtime, shown.mtime);
        assert_eq!(u.read("big").unwrap(), "1".repeat(1 << 16));
        u.remount();
    }
    assert_eq!(fingerprint(&u.lowers[0]), before);
}

#[test]
fn the_first_write_completes_it() {
    let Some(mut u) = with_big() else { return };
    u.chmod("big", 0o640).unwrap();
    let ino = u.ino("big").unwrap();
    u.overlay().set_xattr(ino, b"user.note", b"kept", 0).unwrap();
    u.remount();
    assert_eq!(u.ino("big").unwrap(), ino);
    u.write("big", 3, "x").unwrap();
    assert!(blocks(&u) * 512 >= BIG as u64);
    for _ in 0..2 {
        let stat = u.stat("big").unwrap();
        assert_eq!((stat.ino, stat.stat.mode & 0o7777, stat.stat.size), (ino, 0o640, BIG as u64));
        assert!(u.read("big").unwrap().starts_with("111x111"));
        assert_eq!(u.overlay().get_xattr(ino, b"user.note").unwrap(), b"kept");
        u.remount();
    }
    assert_eq!(fs::metadata(u.upper().join("big")).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_metacopy_is_renamed_linked_unlinked_and_cut() {
    let Some(mut u) = with_big() else { return };
    u.rename("big", "other/moved").unwrap();
    u.remount();
    assert!(u.read("other/moved").unwrap().starts_with("111"));
    assert!(fs::metadata(u.upper().join("other/moved")).unwrap().blocks() < 32);
    u.link("other/moved", "second").unwrap();
    u.write("second", 0, "2").unwrap();
    assert!(u.read("other/moved").unwrap().starts_with("211"));
    u.truncate("second", 2).unwrap();
    let open = u.ino("second").unwrap();
    u.unlink("second").unwrap();
    u.unlink("other/moved").unwrap();
    assert_eq!(u.read_ino(open).unwrap(), "21");
    u.expect("d/ d/e/ d/e/deep=1 d/f=2 other/ other/x=3");
}

#[test]
fn an_open_metacopy_outlives_its_name() {
    let Some(u) = with_big() else { return };
    u.chmod("big", 0o600).unwrap();
    let open = u.ino("big").unwrap();
    u.unlink("big").unwrap();
    assert!(u.read_ino(open).unwrap().starts_with("111"));
    u.overlay().write(open, 1, b"x", plyfs::overlay::WriteFlags::default()).unwrap();
    assert!(u.read_ino(open).unwrap().starts_with("1x1"));
    assert_eq!(u.overlay().getattr(open).unwrap().stat.nlink, 0);
    assert_eq!(u.tell_upper(), [".wh.big="]);
}

#[test]
fn a_renamed_directory_is_not_copied() {
    let Some(mut u) = with_big() else { return };
    u.unlink("big").unwrap();
    let number = u.ino("d/e/deep").unwrap();
    u.rename("d", "other/moved").unwrap();
    assert_eq!(u.tell_upper(), [".wh.big=", ".wh.d=", "other/", "other/moved/"]);
    u.expect("other/ other/x=3 other/moved/ other/moved/e/ other/moved/e/deep=1 other/moved/f=2");
    assert_eq!(u.ino("other/moved/e/deep").unwrap(), number);
    // Out of the moved one, over a name of the lower layer, and back.
    u.mkdir("d").unwrap();
    u.rename("other/moved/e", "d/e").unwrap();
    u.unlink("other/moved/f").unwrap();
    u.write("d/e/deep", 0, "x").unwrap();
    u.expect("d/ d/e/ d/e/deep=x other/ other/x=3 other/moved/");
    u.rmdir("other/moved").unwrap();
    u.rename("d", "other/moved").unwrap();
    u.expect("other/ other/x=3 other/moved/ other/moved/e/ other/moved/e/deep=x");
    u.stack();
    u.expect("other/ other/x=3 other/moved/ other/moved/e/ other/moved/e/deep=x");
}

#[test]
fn a_failed_rename_over_an_emptied_directory_brings_nothing_back() {
    let Some(mut u) = with_big() else { return };
    if !crate::common::is_root() {
        return eprintln!("skipped: append-only directories need root");
    }
    u.unlink("big").unwrap();
    u.rename("d", "other/moved").unwrap();
    for name in ["e/deep", "f"] {
        u.unlink(&format!("other/moved/{name}")).unwrap();
    }
    u.rmdir("other/moved/e").unwrap();
    u.mkdir("new").unwrap();
    let other = fs::File::open(u.upper().join("other")).unwrap();
    if rustix::fs::ioctl_setflags(&other, rustix::fs::IFlags::APPEND).is_err() {
        return eprintln!("skipped: no append-only directories on this filesystem");
    }
    let refused = u.rename("new", "other/moved");
    rustix::fs::ioctl_setflags(&other, rustix::fs::IFlags::empty()).unwrap();
    assert_eq!(errno(refused), sys::Errno::PERM);
    u.expect("new/ other/ other/x=3 other/moved/");
    u.rename("other/moved", "back").unwrap();
    u.expect("new/ other/ other/x=3 back/");
}

#[test]
fn attributes_changed_while_a_metacopy_is_completed_are_kept() {
    let Some(mut u) = with_big() else { return };
    fs::write(u.lowers[0].join("big"), vec![b'1'; 200 << 20]).unwrap();
    u.remount();
    u.chmod("big", 0o640).unwrap();
    let ino = u.ino("big").unwrap();
    std::thread::scope(|scope| {
        let u = &u;
        let writer = scope.spawn(move || u.write("big", 0, "x"));
        let mut mode = 0o600;
        while !writer.is_finished() {
            mode = if mode == 0o600 { 0o644 } else { 0o600 };
            u.chmod("big", mode).unwrap();
            u.overlay().set_xattr(ino, b"user.mode", mode.to_string().as_bytes(), 0).unwrap();
        }
        writer.join().unwrap().unwrap();
    });
    let mode = u.stat("big").unwrap().stat.mode & 0o777;
    let noted = u.overlay().get_xattr(ino, b"user.mode").unwrap();
    assert_eq!(noted, mode.to_string().as_bytes());
    assert_eq!(fs::metadata(u.upper().join("big")).unwrap().permissions().mode() & 0o777, mode);
}

#[test]
fn data_that_is_not_the_one_pointed_to_is_an_error() {
    let Some(mut u) = with_big() else { return };
    u.chmod("big", 0o600).unwrap();
    fs::write(u.lowers[0].join("big"), vec![b'2'; BIG + 1]).unwrap();
    u.remount();
    assert_eq!(errno(u.read("big")), sys::Errno::IO);
    assert_eq!(u.names(""), ["big", "d", "other"]);
}

#[test]
fn a_pointer_below_the_stack_hides_no_other_name() {
    let Some(mut u) = with_big() else { return };
    u.rename("d", "moved").unwrap();
    let dir = sys::open_dir(&u.upper().join("moved")).unwrap();
    let list = sys::list_xattrs(dir.as_fd()).unwrap();
    let name = list.split(|byte| *byte == 0).find(|name| name.ends_with(b".redirect")).unwrap();
    sys::set_xattr(dir.as_fd(), name, b"0+65535 d\0", 0).unwrap();
    u.remount();
    assert_eq!(errno(u.ino("moved")), sys::Errno::IO);
    let mut names = Vec::new();
    let root = plyfs::layers::number::Ino::ROOT;
    let list = u.overlay().readdir(root, 2, |entry| {
        names.push(entry.name.escape_ascii().to_string());
        true
    });
    list.unwrap();
    names.sort();
    assert_eq!(names, ["big", "moved", "other"]);
}

#[test]
fn a_layer_that_was_never_a_rich_upper_points_nowhere() {
    let Some(mut u) = with_big() else { return };
    for namespace in ["user", "trusted"] {
        let dir = sys::open_dir(&u.lowers[0].join("other")).unwrap();
        let name = format!("{namespace}.plyfs.redirect");
        let set = sys::set_xattr(dir.as_fd(), name.as_bytes(), b"0+1 d\0", 0);
        if set.is_ok() {
            u.remount();
            assert_eq!(u.names("other"), ["x"], "{namespace}");
        }
    }
}

#[test]
fn a_plain_mount_of_a_rich_upper_follows_and_makes_none() {
    let Some(mut u) = with_big() else { return };
    u.rename("d", "moved").unwrap();
    u.chmod("big", 0o600).unwrap();
    u.form = plyfs::overlay::UpperForm::Plain;
    u.remount();
    assert_eq!(u.read("moved/e/deep").unwrap(), "1");
    assert!(u.read("big").unwrap().starts_with("111"));
    u.rename("moved", "again").unwrap();
    u.rename("other", "there").unwrap();
    assert!(u.upper().join("again/e/deep").exists());
    assert!(u.upper().join("there/x").exists());
    u.unlink("big").unwrap();
    u.expect("again/ again/e/ again/e/deep=1 again/f=2 there/ there/x=3");
}

#[test]
fn a_copy_of_a_lower_metacopy_has_its_attributes() {
    for plain in [false, true] {
        let Some(mut u) = with_big() else { return };
        let set = |path: &std::path::Path, name: &str, value: &[u8]| {
            let file = fs::File::open(path).unwrap();
            sys::set_xattr(file.as_fd(), name.as_bytes(), value, 0).unwrap();
        };
        set(&u.lowers[0].join("big"), "user.changed", b"old");
        set(&u.lowers[0].join("big"), "user.removed", b"old");
        u.remount();
        let ino = u.ino("big").unwrap();
        u.chmod("big", 0o640).unwrap();
        u.overlay().set_xattr(ino, b"user.changed", b"new", 0).unwrap();
        u.overlay().remove_xattr(ino, b"user.removed").unwrap();
        u.stack();
        if plain {
            u.form = plyfs::overlay::UpperForm::Plain;
            u.remount();
            u.chmod("big", 0o600).unwrap();
        } else {
            u.write("big", 0, "x").unwrap();
        }
        assert!(blocks(&u) * 512 >= BIG as u64, "the data came, too");
        for _ in 0..2 {
            let ino = u.ino("big").unwrap();
            let mode = if plain { 0o600 } else { 0o640 };
            assert_eq!(u.stat("big").unwrap().stat.mode & 0o7777, mode);
            assert_eq!(u.overlay().get_xattr(ino, b"user.changed").unwrap(), b"new");
            assert_eq!(u.overlay().list_xattrs(ino).unwrap(), b"user.changed\0");
            u.remount();
        }
    }
}

#[test]
fn a_file_that_its_owner_may_not_write_becomes_one() {
    let Some(mut u) = with_big() else { return };
    let lower = u.lowers[0].join("big");
    let file = fs::File::open(&lower).unwrap();
    sys::set_xattr(file.as_fd(), b"user.note", b"kept", 0).unwrap();
    fs::set_permissions(&lower, fs::Permissions::from_mode(0o444)).unwrap();
    u.remount();
    u.chmod("big", 0o440).unwrap();
    assert!(blocks(&u) < 32, "{}", blocks(&u));
    let ino = u.ino("big").unwrap();
    assert_eq!(u.overlay().get_xattr(ino, b"user.note").unwrap(), b"kept");
    u.write("big", 0, "x").unwrap(); // by who has it open
    assert!(blocks(&u) * 512 >= BIG as u64);
    for _ in 0..2 {
        let ino = u.ino("big").unwrap();
        assert_eq!(u.stat("big").unwrap().stat.mode & 0o7777, 0o440);
        assert_eq!(u.overlay().get_xattr(ino, b"user.note").unwrap(), b"kept");
        u.remount();
    }
}
