//! Owners, permissions and types that the layers hold in another way than they are shown.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use plyfs::layers::id_map::UNMAPPED;
use plyfs::layers::override_stat::OverrideXattr;
use plyfs::overlay::{
    Attr, Node, NodeKind, Overrides, Owner, Ownership, Result, SetAttr, SuidGid, WriteFlags,
};
use plyfs::sys::{self, Caller, Errno, FileType};

use crate::common::union::{Union, errno};
use crate::common::{is_root, make_owner};

const OVERRIDE: &str = "user.containers.override_stat";
const CAPABILITY: &[u8] = b"security.capability";

fn maps(uids: &str, gids: &str) -> Ownership {
    let (uids, gids) = (uids.parse().unwrap(), gids.parse().unwrap());
    Ownership { uids, gids, ..Ownership::default() }
}

fn squash(uid: u32, gid: u32) -> Ownership {
    let mut ownership = Ownership::default();
    ownership.uids.squash_to(uid);
    ownership.gids.squash_to(gid);
    ownership
}

fn in_xattrs() -> Ownership {
    let overrides = Overrides::In(OverrideXattr::Containers);
    Ownership { overrides, ..Ownership::default() }
}

fn chown(u: &Union, path: &str, uid: u32, gid: u32) -> Result<Attr> {
    let change = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
    u.overlay().setattr(u.ino(path)?, &change)
}

fn make_as(u: &Union, owner: u32, name: &str, kind: NodeKind<'_>, mode: u32) -> Result<Attr> {
    let owner = Owner { uid: owner, gid: owner };
    let node = Node { kind, mode, umask: 0o022, owner };
    u.overlay().create(plyfs::layers::number::Ino::ROOT, name.as_bytes(), &node)
}

/// Type, owner, group and permissions as the union shows them.
fn shown(u: &Union, path: &str) -> (FileType, u32, u32, u32) {
    let Attr { kind, stat, .. } = u.stat(path).unwrap();
    (kind, stat.uid, stat.gid, stat.permissions())
}

/// The same as the filesystem has them.
fn real(path: &Path) -> (FileType, u32, u32, u32) {
    let stat = real_stat(path);
    (stat.kind(), stat.uid, stat.gid, stat.permissions())
}

fn real_stat(path: &Path) -> sys::Stat {
    let dir = sys::open_dir(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().as_encoded_bytes();
    sys::statx_at(dir.as_fd(), name).unwrap()
}

fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..len]).into_owned())
}

fn set_xattr(path: &Path, name: &str, value: &str) {
    rustix::fs::lsetxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
}

fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

use FileType::{CharacterDevice, Directory, Fifo, RegularFile, Symlink};

#[test]
fn mapped_owners_come_back() {
    if !is_root() {
        return eprintln!("skipped: only root gives files away");
    }
    let mut u = Union::new(&["f=lower d/g=lower"]);
    make_owner(u.lowers[0].as_path(), 3);
    u.own(maps("0:100000:10:1000:5000:10", "0:200000:10"));
    assert_eq!(shown(&u, "f"), (RegularFile, 100_003, 200_003, 0o644));
    u.write("d/g", 0, "upper").unwrap();
    assert_eq!(shown(&u, "d/g"), (RegularFile, 100_003, 200_003, 0o644));
    assert_eq!(real(&u.upper().join("d/g")), (RegularFile, 3, 3, 0o644));
    chown(&u, "f", 5007, 200_000).unwrap();
    assert_eq!(real(&u.upper().join("f")), (RegularFile, 1007, 0, 0o644));
    let owner = Owner { uid: 100_001, gid: 200_002 };
    let node = Node { kind: NodeKind::Directory, mode: 0o700, umask: 0, owner };
    u.overlay().create(plyfs::layers::number::Ino::ROOT, b"new", &node).unwrap();
    assert_eq!(real(&u.upper().join("new")), (Directory, 1, 2, 0o700));
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, 5007, 200_000, 0o644));
    assert_eq!(shown(&u, "new"), (Directory, 100_001, 200_002, 0o700));
    assert_eq!(real(&u.lowers[0].join("f")), (RegularFile, 3, 3, 0o644));
}

#[test]
fn an_owner_without_a_place_in_the_layers_is_refused() {
    let mut u = Union::new(&["f=lower"]);
    if is_root() {
        make_owner(u.lowers[0].as_path(), 77);
    }
    u.own(maps("5000000:0:10", "5000000:0:10"));
    assert_eq!(shown(&u, "f").1, UNMAPPED);
    assert_eq!(errno(chown(&u, "f", 11, 0)), Errno::OVERFLOW);
    assert_eq!(errno(make_as(&u, 50, "new", NodeKind::File, 0o644)), Errno::OVERFLOW);
    assert_eq!(u.names(""), ["f"]);
    u.expect_upper("");
}

#[test]
fn squashed_owners() {
    let mut u = Union::new(&["f=lower"]);
    u.own(squash(500, 600));
    assert_eq!(shown(&u, "f"), (RegularFile, 500, 600, 0o644));
    chown(&u, "f", 500, 600).unwrap(); // what is shown already
    make_as(&u, me().0, "new", NodeKind::File, 0o644).unwrap();
    u.write("f", 0, "upper").unwrap();
    assert_eq!(shown(&u, "new"), (RegularFile, 500, 600, 0o644));
    assert_eq!(real(&u.upper().join("f")), (RegularFile, me().0, me().1, 0o644));
    if is_root() {
        chown(&u, "f", 7, 8).unwrap();
        assert_eq!(real(&u.upper().join("f")), (RegularFile, 7, 8, 0o644));
    }
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, 500, 600, 0o644));
}

#[test]
fn owner_and_setuid_are_kept_in_an_xattr() {
    let mut u = Union::new(&["f=lower d/ g=bare"]);
    let lower = u.lowers[0].clone();
    set_xattr(&lower.join("f"), OVERRIDE, "5:6:4711");
    set_xattr(&lower.join("d"), OVERRIDE, "7:8:2750:dir");
    u.own(in_xattrs());
    assert_eq!(shown(&u, "f"), (RegularFile, 5, 6, 0o4711));
    assert_eq!(shown(&u, "d"), (Directory, 7, 8, 0o2750));
    assert_eq!(shown(&u, "g"), (RegularFile, me().0, me().1, 0o644));
    u.chmod("f", 0o4500).unwrap();
    chown(&u, "g", 9, 10).unwrap();
    let made = u.mkdir("d/sub");
    made.unwrap();
    let check = |u: &Union| {
        assert_eq!(shown(u, "f"), (RegularFile, 5, 6, 0o4500));
        assert_eq!(shown(u, "g"), (RegularFile, 9, 10, 0o644));
        assert_eq!(shown(u, "d"), (Directory, 7, 8, 0o2750));
        assert_eq!(shown(u, "d/sub"), (Directory, me().0, 8, 0o2755), "setgid is inherited");
    };
    check(&u);
    assert_eq!(real(&u.upper().join("f")), (RegularFile, me().0, me().1, 0o700));
    assert_eq!(xattr(&u.upper().join("f"), OVERRIDE).unwrap(), "5:6:4500");
    u.remount();
    check(&u);
    u.own(Ownership { overrides: Overrides::No, ..Ownership::default() });
    assert_eq!(shown(&u, "f"), (RegularFile, me().0, me().1, 0o700));
    assert_eq!(xattr(&lower.join("f"), OVERRIDE).unwrap(), "5:6:4711");
}

#[test]
fn chown_takes_setuid_away() {
    let mut u = Union::new(&["f=lower"]);
    u.own(in_xattrs());
    u.chmod("f", 0o6755).unwrap();
    assert_eq!(shown(&u, "f").3, 0o6755);
    chown(&u, "f", 5, 5).unwrap();
    assert_eq!(shown(&u, "f"), (RegularFile, 5, 5, 0o755));
}

#[test]
fn what_can_have_no_xattr_has_a_stand_in() {
    let mut u = Union::new(&["f=lower l->f"]);
    u.own(in_xattrs());
    let rdev = rustix::fs::makedev(259, 256);
    let device = NodeKind::Special { kind: CharacterDevice, rdev };
    make_as(&u, 3, "dev", device, 0o640).unwrap();
    make_as(&u, 3, "ff", NodeKind::Special { kind: Fifo, rdev: 0 }, 0o666).unwrap();
    make_as(&u, 3, "other", NodeKind::Symlink(b"a/target"), 0o777).unwrap();
    make_as(&u, me().0, "own", NodeKind::Symlink(b"b"), 0o777).unwrap();
    let white = NodeKind::Special { kind: CharacterDevice, rdev: 0 };
    make_as(&u, 3, "white", white, 0o600).unwrap();
    chown(&u, "own", 4, 4).unwrap();
    chown(&u, "l", 4, 4).unwrap();
    // The inode number that the symlink gave up belongs to nobody else.
    for n in 0..20 {
        u.create(&format!("n{n}"), "").unwrap();
    }
    let check = |u: &Union| {
        assert_eq!(shown(u, "dev"), (CharacterDevice, 3, 3, 0o640));
        assert_eq!(u.stat("dev").unwrap().stat.rdev, rdev);
        assert_eq!(shown(u, "ff"), (Fifo, 3, 3, 0o644));
        assert_eq!(shown(u, "other"), (Symlink, 3, 3, 0o777));
        assert_eq!(shown(u, "own"), (Symlink, 4, 4, 0o777));
        assert_eq!(shown(u, "l"), (Symlink, 4, 4, 0o777));
        assert_eq!(shown(u, "white"), (CharacterDevice, 3, 3, 0o600));
        for (name, target) in [("other", "a/target"), ("own", "b"), ("l", "f")] {
            assert_eq!(u.overlay().readlink(u.ino(name).unwrap()).unwrap(), target.as_bytes());
        }
        let numbers: std::collections::BTreeSet<_> =
            u.list("").into_iter().map(|(_, attr)| attr.ino).collect();
        assert_eq!(numbers.len(), u.list("").len());
    };
    check(&u);
    let number = u.ino("own").unwrap();
    u.remount();
    check(&u);
    assert_eq!(u.ino("own").unwrap(), number);
    assert_eq!(xattr(&u.upper().join("dev"), OVERRIDE).unwrap(), "3:3:0640:char-259-256");
    assert_eq!(real(&u.upper().join("own")).0, RegularFile);
    u.rename("other", "moved").unwrap();
    u.unlink("own").unwrap();
    u.remount();
    assert!(std::fs::read_dir(u.work().join("spent")).unwrap().count() <= 1, "but for l's");
    u.stack();
    assert_eq!(shown(&u, "dev"), (CharacterDevice, 3, 3, 0o640));
    u.rename("dev", "dev2").unwrap();
    u.rename("moved", "moved2").unwrap();
    assert_eq!(shown(&u, "dev2"), (CharacterDevice, 3, 3, 0o640));
    assert_eq!(u.overlay().readlink(u.ino("moved2").unwrap()).unwrap(), b"a/target");
}

#[test]
fn security_xattrs_are_held_behind_a_prefix() {
    let mut u = Union::new(&["f=lower"]);
    let held = "user.containers.override_security.capability";
    set_xattr(&u.lowers[0].join("f"), held, "caps");
    u.own(in_xattrs());
    let ino = u.ino("f").unwrap();
    let (union, user) = (u.overlay(), b"user.note");
    assert_eq!(union.get_xattr(ino, CAPABILITY).unwrap(), b"caps");
    union.set_xattr(ino, b"security.more", b"x", 0).unwrap();
    union.set_xattr(ino, user, b"y", 0).unwrap();
    assert_eq!(union.list_xattrs(ino).unwrap(), b"security.capability\0security.more\0user.note\0");
    assert_eq!(xattr(&u.upper().join("f"), held).unwrap(), "caps");
    union.write(ino, 0, b"new", plyfs::overlay::WriteFlags::default()).unwrap();
    assert!(union.get_xattr(ino, CAPABILITY).is_err(), "a write drops capabilities");
    union.remove_xattr(ino, b"security.more").unwrap();
    assert_eq!(union.list_xattrs(ino).unwrap(), b"user.note\0");
}

#[test]
fn nobody_forges_an_owner() {
    let mut u = Union::new(&["f=lower"]);
    u.own(in_xattrs());
    u.chmod("f", 0o640).unwrap();
    let (ino, union) = (u.ino("f").unwrap(), u.overlay());
    for name in [OVERRIDE, "user.containers.override_security.capability"] {
        assert_eq!(errno(union.set_xattr(ino, name.as_bytes(), b"0:0:4755", 0)), Errno::PERM);
        assert_eq!(errno(union.get_xattr(ino, name.as_bytes())), Errno::NODATA);
        assert_eq!(errno(union.remove_xattr(ino, name.as_bytes())), Errno::NODATA);
    }
    assert_eq!(union.list_xattrs(ino).unwrap(), b"");
    let acl = errno(union.set_xattr(ino, b"system.posix_acl_access", b"x", 0));
    assert_eq!(acl, Errno::OPNOTSUPP);
}

#[test]
fn a_layer_that_was_written_so_is_read_so() {
    let mut u = Union::new(&["f=lower", "f=below g=below"]);
    u.own(Ownership::default());
    let lower = u.lowers[0].clone();
    set_xattr(&lower.join("f"), OVERRIDE, "5:6:4711");
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, me().0, me().1, 0o644), "nothing says so yet");
    set_xattr(&lower, OVERRIDE, "0:0:0755");
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, 5, 6, 0o4711));
    chown(&u, "g", 1, 2).unwrap();
    u.remount();
    assert_eq!(shown(&u, "g"), (RegularFile, 1, 2, 0o644));
}

#[test]
fn what_fuse_overlayfs_wrote_last_counts() {
    let mut u = Union::new(&["f=lower"]);
    let theirs = "user.fuseoverlayfs.override_stat";
    u.own(in_xattrs());
    chown(&u, "f", 5, 6).unwrap();
    set_xattr(&u.upper().join("f"), theirs, "9:9:100600");
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, 9, 9, 0o600));
    u.chmod("f", 0o640).unwrap();
    assert_eq!(xattr(&u.upper().join("f"), theirs), None);
    u.remount();
    assert_eq!(shown(&u, "f"), (RegularFile, 9, 9, 0o640));
}

#[test]
fn a_forged_value_is_an_error_and_not_an_owner() {
    let mut u = Union::new(&["f=lower g=lower"]);
    set_xattr(&u.lowers[0].join("f"), OVERRIDE, "root");
    u.own(in_xattrs());
    assert_eq!(errno(u.stat("f")), Errno::IO);
    assert_eq!(shown(&u, "g").3, 0o644);
}

#[test]
fn an_owner_that_the_layer_holds_is_no_change() {
    let mut u = Union::new(&["d/"]);
    let (uid, gid) = me();
    u.own(maps(&format!("{uid}:70000:10"), &format!("{gid}:80000:10")));
    // As podman does with the root of a mount; 65533 has no place, and is not held either.
    chown(&u, "", uid, gid).unwrap();
    assert_eq!(shown(&u, ""), (Directory, 70_000, 80_000, 0o755));
    assert_eq!(errno(chown(&u, "", 65533, gid)), Errno::OVERFLOW);
    assert_eq!(real(&u.upper()), (Directory, uid, gid, 0o755));
}

/// A symlink of who mounts, which has an inode of its own in upper until its owner changes.
fn own_symlink(u: &Union, name: &str) -> Attr {
    make_as(u, me().0, name, NodeKind::Symlink(b"t"), 0o777).unwrap()
}

#[test]
fn the_number_of_a_deleted_symlink_that_is_open_is_nobody_elses() {
    let mut u = Union::new(&[""]);
    u.own(in_xattrs());
    let link = own_symlink(&u, "l");
    chown(&u, "l", 5, 5).unwrap();
    u.unlink("l").unwrap();
    for n in 0..50 {
        let name = format!("new{n}");
        u.create(&name, "data").unwrap();
        assert_ne!(u.ino(&name).unwrap(), link.ino);
    }
}

#[test]
fn a_stand_in_of_a_lower_is_copied_up_as_one() {
    let (uid, gid) = me();
    let mut u = Union::new(&["l=target m=target"]);
    for name in ["l", "m"] {
        set_xattr(&u.lowers[0].join(name), OVERRIDE, &format!("{uid}:{gid}:0777:symlink"));
    }
    u.own(in_xattrs());
    u.rename("l", "moved").unwrap();
    chown(&u, "m", 5, 5).unwrap();
    chown(&u, "m", uid, gid).unwrap();
    u.stack();
    chown(&u, "m", 6, 6).unwrap();
    u.remount();
    assert_eq!((shown(&u, "moved").0, shown(&u, "m")), (Symlink, (Symlink, 6, 6, 0o777)));
    assert_eq!(u.overlay().readlink(u.ino("moved").unwrap()).unwrap(), b"target");
}

#[test]
fn a_symlink_of_several_names_has_one_owner() {
    let mut u = Union::new(&["d/"]);
    u.own(in_xattrs());
    let number = own_symlink(&u, "a").ino;
    u.link("a", "d/b").unwrap();
    chown(&u, "a", 5, 6).unwrap();
    let check = |u: &Union, name: &str, links| {
        assert_eq!(shown(u, name), (Symlink, 5, 6, 0o777));
        let attr = u.stat(name).unwrap();
        assert_eq!((attr.ino, attr.stat.nlink), (number, links));
    };
    check(&u, "d/b", 2);
    u.remount();
    check(&u, "a", 2);
    u.rename("a", "c").unwrap();
    u.unlink("d/b").unwrap();
    u.remount();
    check(&u, "c", 1);
    u.unlink("c").unwrap();
    u.remount();
    assert_eq!(std::fs::read_dir(u.work().join("spent")).unwrap().count(), 0);
}

#[test]
fn a_crash_before_a_symlink_was_replaced_leaves_the_symlink() {
    let mut u = Union::new(&[""]);
    u.own(in_xattrs());
    let number = own_symlink(&u, "l").ino;
    let spent = u.work().join(format!("spent/{:016x}", number.0));
    std::fs::hard_link(u.upper().join("l"), spent).unwrap();
    u.remount();
    assert_eq!(u.stat("l").unwrap().stat.nlink, 1);
    chown(&u, "l", 5, 5).unwrap();
    assert_eq!(shown(&u, "l"), (Symlink, 5, 5, 0o777));
}

#[test]
fn what_a_user_sets_without_such_xattrs_is_no_owner_with_them() {
    let mut u = Union::new(&[""]);
    let ino = make_as(&u, me().0, "f", NodeKind::File, 0o755).unwrap().ino;
    let set = |ino| u.overlay().set_xattr(ino, OVERRIDE.as_bytes(), b"7:7:4755", 0);
    set(ino).unwrap();
    set(plyfs::layers::number::Ino::ROOT).unwrap();
    assert_eq!(u.overlay().get_xattr(ino, OVERRIDE.as_bytes()).unwrap(), b"7:7:4755");
    u.own(in_xattrs());
    assert_eq!(shown(&u, "f"), (RegularFile, me().0, me().1, 0o755));
    u.own(Ownership::default());
    assert_eq!(shown(&u, "f"), (RegularFile, me().0, me().1, 0o755));
}

#[test]
fn a_truncation_drops_capabilities() {
    for ownership in [Ownership::default(), in_xattrs()] {
        if !is_root() {
            continue; // only root sets them
        }
        let mut u = Union::new(&[""]);
        u.own(ownership);
        u.create("f", "x").unwrap();
        let (ino, union) = (u.ino("f").unwrap(), u.overlay());
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        union.set_xattr(ino, CAPABILITY, capability, 0).unwrap();
        u.truncate("f", 0).unwrap();
        assert_eq!(errno(union.get_xattr(ino, CAPABILITY)), Errno::NODATA);
    }
}

#[test]
fn changes_of_one_file_at_once_are_all_made() {
    let mut u = Union::new(&[""]);
    u.own(in_xattrs());
    for n in 0..200 {
        let name = format!("l{n}");
        own_symlink(&u, &name);
        let ino = u.ino(&name).unwrap();
        let change = |uid, gid| {
            let change = SetAttr { uid, gid, ..SetAttr::default() };
            u.overlay().setattr(ino, &change).unwrap();
        };
        std::thread::scope(|threads| {
            threads.spawn(|| change(Some(5), None));
            threads.spawn(|| change(None, Some(6)));
        });
        assert_eq!(shown(&u, &name), (Symlink, 5, 6, 0o777));
    }
}

#[test]
fn a_write_that_drops_setuid_undoes_no_chmod() {
    for ownership in [Ownership::default(), in_xattrs()] {
        let mut u = Union::new(&[""]);
        u.own(ownership);
        let ino = u.make("f", NodeKind::File, 0o755).unwrap().ino;
        let stranger = Caller { uid: 1, gid: 1, pid: 1 };
        let how = WriteFlags { suidgid: SuidGid::Drop(stranger) };
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    u.overlay().write(ino, 0, b"x", how).unwrap();
                }
            });
            for _ in 0..2000 {
                u.chmod("f", 0o4755).unwrap();
                u.chmod("f", 0o600).unwrap();
                assert_eq!(shown(&u, "f").3, 0o600);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
