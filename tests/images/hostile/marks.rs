//! Marks and private attributes that an image forges; devices, setuid programs.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::slice::from_ref;

use sha2::{Digest, Sha256};

use super::tar_entry::{TarEntry, device, dir, each_kind, fifo, file, hard_link, symlink};
use super::{as_user, for_each_user};

#[test]
fn whiteouts_of_nothing() {
    for_each_user(|arena| {
        for mark in [".wh.", ".wh..", ".wh..."] {
            for name in [mark.to_owned(), format!("d/{mark}"), format!("no/such/{mark}")] {
                for entry in each_kind(&name) {
                    let layer = vec![file("own"), dir("d"), file("d/f"), entry];
                    arena.attack(&name, &[vec![file("f")], layer]).refused("whiteout of nothing");
                }
            }
        }
        let through = symlink("l", arena.victim());
        let layers = [vec![through.clone(), file("l/.wh...")]];
        arena.attack("through a symlink", &layers).refused("whiteout of nothing");
    });
}

#[test]
fn marks_of_any_kind_hide_what_is_below_alone() {
    for_each_user(|arena| {
        let below = vec![file("f"), dir("d"), file("d/f")];
        for mark in [".wh.f", "d/.wh..wh..opq", ".wh.d"] {
            // A device is left out of a user's store; a hard link to a mark is one too.
            for entry in each_kind(mark).into_iter().take(5) {
                let above = vec![file("own"), entry, file("d/g")];
                let shown: &[&str] = match mark {
                    ".wh.f" => &["d/", "d/f=hit", "d/g=hit", "own=hit"],
                    _ => &["d/", "d/g=hit", "f=hit", "own=hit"],
                };
                arena.attack(mark, &[below.clone(), above]).shows_only(shown);
            }
        }
        let victim = arena.victim();
        let odd = vec![
            symlink(".wh.d", &victim),
            file(".wh.d/hit"),
            symlink(".wh..wh.plnk", &victim),
            file(".wh..wh.plnk/hit"),
            file(".wh..wh..wh..opq"),
            file(".wh./hit"),
            file(".wh.../hit"),
        ];
        arena.attack("below marks", &[below, odd]).harmless();
    });
}

/// A whiteout of a name too long for one holds the name: whatever stands there, nothing but
/// that name of that directory can be hidden, and nothing hangs.
#[test]
fn long_whiteouts() {
    for_each_user(|arena| {
        let long = "n".repeat(255);
        let mark = |name: &[u8]| {
            let hash: String = Sha256::digest(name).iter().map(|b| format!("{b:02x}")).collect();
            format!("d/.wh..wh.long.{hash}")
        };
        let below = vec![file("f"), dir("d"), file("d/f"), file(format!("d/{long}"))];
        let huge = vec![b'x'; 2 << 20];
        for name in [&b""[..], b".", b"..", b"../f", b"/", b"a\0b", b"\x1b[2J", &huge] {
            let above = vec![file(mark(name)).data(name)];
            arena.attack("long", &[below.clone(), above]).shows(&["f=hit", "d/f=hit"]);
        }
        let mark = mark(long.as_bytes());
        let secret = format!("{}/secret", arena.victim());
        for entry in [fifo(&mark), symlink(&mark, &secret), dir(&mark), device(&mark)] {
            let layers = [below.clone(), vec![file("own"), entry]];
            arena.attack("long, no file", &layers).shows(&["f=hit", "d/f=hit"]);
        }
    });
}

/// Attributes by which unions keep their own books, each with a value that would do harm.
const FORGED: [(&str, &str); 22] = [
    ("trusted.overlay.opaque", "y"),
    ("trusted.overlay.redirect", "/../../victim"),
    ("trusted.overlay.metacopy", ""),
    ("trusted.overlay.origin", "\0\u{fb}!"),
    ("trusted.overlay.whiteout", "y"),
    ("trusted.overlay.impure", "y"),
    ("trusted.overlay.nlink", "U+9"),
    ("trusted.overlay.overlay.opaque", "y"),
    ("user.overlay.opaque", "y"),
    ("user.overlay.redirect", "/../../victim"),
    ("user.overlay.metacopy", ""),
    ("user.overlay.whiteout", "y"),
    ("user.fuseoverlayfs.opaque", "y"),
    ("user.fuseoverlayfs.override_stat", "0:0:4755:char-1-3"),
    ("user.containers.override_stat", "0:0:4755:char-1-3"),
    ("user.plyfs.opaque", "y"),
    ("user.plyfs.redirect", "../../victim"),
    ("user.plyfs.metacopy", "y"),
    ("trusted.plyfs.opaque", "y"),
    ("trusted.plyfs.redirect", "../../victim"),
    ("trusted.plyfs.metacopy", "y"),
    ("security.fuseoverlayfs.override_stat", "0:0:4755:char-1-3"),
];

#[test]
fn attributes_of_unions_have_no_effect() {
    for_each_user(|arena| {
        let below = vec![dir(".").mode(0o755), dir("d"), file("d/low"), file("f").data("low")];
        let plain = vec![dir("."), dir("d"), file("d/high").mode(0o600), file("g").data("high")];
        let forge = |entry: &TarEntry, forged: &[(&str, &str)]| {
            forged.iter().fold(entry.clone(), |entry, (name, value)| {
                entry.pax(&format!("SCHILY.xattr.{name}"), value)
            })
        };
        let shown = ["d/", "d/high=hit", "d/low=hit", "f=low", "g=high"];
        let modes = |root: &Path| {
            let meta = |name: &str| root.join(name).symlink_metadata().unwrap();
            let modes = ["", "d", "d/high", "g"].map(|name| (meta(name).mode(), meta(name).uid()));
            let list = crate::shown::xattrs_at(&root.join("g"));
            (modes, list.into_keys().collect::<Vec<_>>())
        };
        arena.attack("none", &[below.clone(), plain.clone()]).shows_only(&shown);
        let honest = arena.with_mount("none", &["--read-only", arena.last_loaded()], modes);
        for forged in FORGED.chunks(1).chain([&FORGED[..]]) {
            let what = forged[0].0;
            let above: Vec<_> = plain.iter().map(|entry| forge(entry, forged)).collect();
            arena.attack(what, &[below.clone(), above]).shows_only(&shown);
            let image = arena.last_loaded().to_owned();
            let found = arena.with_mount(what, &["--read-only", &image], modes);
            let (Some(honest), Some(found)) = (&honest, found) else { continue };
            assert_eq!(found.0, honest.0, "{what}");
            let visible = found.1.iter().filter(|name| !name.starts_with("security."));
            assert_eq!(visible.count(), 0, "{what}: {:?}", found.1);
            // Nor when there is a layer to write to.
            let rewrite = |m: &Path| {
                std::fs::rename(m.join("d"), m.join("e")).unwrap();
                std::fs::write(m.join("g"), "new").unwrap();
                crate::common::tell(m)
            };
            let told = arena.with_mount(what, &[&image], rewrite).unwrap();
            assert_eq!(told, ["e/", "e/high=hit", "e/low=hit", "f=low", "g=new"], "{what}");
            arena.check(what);
        }
        // The store has none of them either, whoever looks.
        for entry in walkdir::WalkDir::new(arena.path("store/layers")).min_depth(1) {
            let entry = entry.unwrap();
            let mut list = crate::shown::xattrs_at(entry.path());
            list.retain(|name, _| !name.starts_with("security."));
            if !arena.is_root() {
                // The loader's own, which says what the tar's header does.
                let own = list.remove("user.containers.override_stat").unwrap_or_default();
                assert!(!own.ends_with(b"char-1-3"), "{}", entry.path().display());
                list.retain(|name, _| !name.starts_with("user.containers.override_security."));
            }
            assert!(list.is_empty(), "{}: {list:?}", entry.path().display());
        }
    });
}

#[test]
fn devices_of_an_ordinary_users_store_are_files_that_say_so() {
    for_each_user(|arena| {
        let layer = vec![
            file("own"),
            device("null"),
            TarEntry::new(b'4', "disk").field(329, b"0000010").field(337, b"0000000"),
            hard_link("again", "null"),
        ];
        let shown = ["own=hit", "disk special", "null special", "again special"];
        arena.attack("devices", from_ref(&layer)).shows(&shown);
        if !arena.is_root() {
            for entry in walkdir::WalkDir::new(arena.path("store/layers")) {
                let kind = entry.unwrap().file_type();
                assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{kind:?}");
            }
        }
    });
}

#[test]
fn nobody_else_reaches_setuid_programs() {
    for_each_user(|arena| {
        let layer = vec![dir(".").mode(0o777), file("suid").mode(0o6777)];
        arena.attack("setuid", &[layer]).shows(&["suid=hit"]);
        if !arena.is_root() && !crate::common::is_root() {
            return eprintln!("skipped: only root can try it as another user");
        }
        let layers = arena.path("store/layers");
        let mut programs = walkdir::WalkDir::new(&layers).into_iter().map(Result::unwrap);
        let program = programs.find(|entry| entry.path().ends_with("suid")).unwrap().into_path();
        // An ordinary user's is not even setuid: the mount alone shows it so.
        let is_setuid = program.symlink_metadata().unwrap().mode() & 0o6000 != 0;
        assert_eq!(is_setuid, arena.is_root());
        for path in [&layers, &program, &arena.path("store/tmp"), &arena.path("store/containers")] {
            let tried =
                as_user(Some(65533), || (path.read_dir().map(drop), path.join(".").metadata()));
            assert!(tried.0.is_err() && tried.1.is_err(), "{}", path.display());
        }
        let through = arena.path("store/l").read_dir().unwrap().next().unwrap().unwrap().path();
        assert!(as_user(Some(65533), || through.metadata()).is_err());
    });
}
