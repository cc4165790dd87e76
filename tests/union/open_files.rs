//! Files that are in use while their names change.

use crate::common::union::{Union, errno};
use plyfs::overlay::{SetAttr, WriteFlags};
use plyfs::sys::Errno;

#[test]
fn a_deleted_file_is_usable_and_its_name_is_free() {
    for layers in [&["f=text"][..], &[""][..]] {
        let mut u = Union::new(layers);
        if u.ino("f").is_err() {
            u.create("f", "text").unwrap();
        }
        let open = u.ino("f").unwrap();
        u.unlink("f").unwrap();
        u.create("f", "other").unwrap();
        assert_eq!(u.read_ino(open).unwrap(), "text");
        assert_eq!(u.overlay().getattr(open).unwrap().stat.nlink, 0);
        u.overlay().write(open, 4, b"+more", WriteFlags::default()).unwrap();
        assert_eq!(u.read_ino(open).unwrap(), "text+more");
        let shorter = SetAttr { size: Some(2), mode: Some(0o600), ..SetAttr::default() };
        let attr = u.overlay().setattr(open, &shorter).unwrap();
        assert_eq!((attr.stat.size, attr.stat.mode & 0o777, attr.stat.nlink), (2, 0o600, 0));
        u.overlay().fsync(open, false).unwrap();
        assert_ne!(u.ino("f").unwrap(), open);
        u.expect("f=other");
    }
}

#[test]
fn a_file_replaced_by_rename_is_usable() {
    let mut u = Union::new(&["a=old b=new"]);
    let open = u.ino("a").unwrap();
    u.rename("b", "a").unwrap();
    u.overlay().write(open, 0, b"OLD", WriteFlags::default()).unwrap();
    assert_eq!(u.read_ino(open).unwrap(), "OLD");
    u.expect("a=new");
}

#[test]
fn a_file_below_a_renamed_directory_is_reached() {
    let mut u = Union::new(&["d/e/f=1"]);
    let open = u.ino("d/e/f").unwrap();
    u.rename("d", "moved").unwrap();
    u.overlay().write(open, 1, b"2", WriteFlags::default()).unwrap();
    u.mkdir("d").unwrap();
    u.rename("moved/e", "d/e2").unwrap();
    u.overlay().write(open, 2, b"3", WriteFlags::default()).unwrap();
    u.expect("d/ d/e2/ d/e2/f=123 moved/");
}

#[test]
fn a_deleted_directory_has_a_number_and_no_names() {
    let u = Union::new(&["d/"]);
    u.mkdir("n").unwrap();
    for name in ["d", "n"] {
        let open = u.ino(name).unwrap();
        u.rmdir(name).unwrap();
        assert_eq!(u.overlay().getattr(open).unwrap().stat.nlink, 0);
        assert!(u.overlay().lookup(open, b"x").is_err());
    }
}

#[test]
fn forgotten_inodes_leave_the_table() {
    let u = Union::new(&["d/e/f=1 d/g=1"]);
    let known = u.overlay().known_inodes();
    for _ in 0..3 {
        let mut seen = Vec::new();
        for path in ["d", "d/e", "d/e/f", "d/g"] {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent_ino = seen
                .iter()
                .find(|(known, _)| *known == parent)
                .map_or(plyfs::layers::number::Ino::ROOT, |(_, ino)| *ino);
            let attr = u.overlay().lookup(parent_ino, name.as_bytes()).unwrap();
            seen.push((path, attr.ino));
        }
        // In the order in which the kernel may do it: parents before children.
        for (_, ino) in seen {
            u.overlay().forget(ino, 1);
        }
        assert_eq!(u.overlay().known_inodes(), known);
    }
}

#[test]
fn without_upper_nothing_can_change() {
    let dir = tempfile::tempdir().unwrap();
    crate::common::build(dir.path(), "f=1");
    let options = plyfs::overlay::MountOptions::new(vec![dir.path().to_owned()]);
    let overlay = plyfs::overlay::Overlay::open(&options).unwrap();
    let ino = overlay.lookup(plyfs::layers::number::Ino::ROOT, b"f").unwrap().ino;
    let written = overlay.write(ino, 0, b"2", WriteFlags::default());
    assert_eq!(errno(written), Errno::ROFS);
    assert_eq!(errno(overlay.unlink(plyfs::layers::number::Ino::ROOT, b"f")), Errno::ROFS);
}

#[test]
fn what_is_in_memory_is_read_without_waiting() {
    let u = Union::new(&["f=some-text"]);
    let ino = u.ino("f").unwrap();
    assert_eq!(u.read_ino(ino).unwrap(), "some-text"); // and now it is
    let mut buffer = [0; 64];
    let mut read_at = |offset| {
        let read = u.overlay().read_cached(ino, offset, &mut buffer).unwrap()?;
        Some(buffer[..read].to_vec())
    };
    let Some(all) = read_at(0) else {
        return eprintln!("skipped: the filesystem does not tell what is in memory");
    };
    assert_eq!(all, b"some-text");
    assert_eq!(read_at(5).unwrap(), b"text");
    assert_eq!(read_at(100).unwrap(), b"");
}
