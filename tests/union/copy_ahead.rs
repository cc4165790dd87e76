//! Files that are copied up in the order of their listing: the next ones are copied beforehand.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::common::makes_nameless_copies;
use crate::common::union::{Union, fingerprint};
use plyfs::sys;

/// A union that syncs, of `count` files `d/fN` with N as text, and their paths as they are listed.
/// `None` where upper's filesystem has no files without a name.
fn of_files(count: usize, more: &str) -> Option<(Union, Vec<String>)> {
    let words = (0..count).map(|n| format!("d/f{n}={n} ")).collect::<String>() + more;
    let mut u = Union::new(&[&words]);
    if !makes_nameless_copies(&u.work()) {
        eprintln!("skipped: no files without a name");
        return None;
    }
    u.sync();
    let paths = listed(&u, "d");
    Some((u, paths))
}

/// The paths of a directory's names, in the order in which a program sees them.
fn listed(u: &Union, dir: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let add = |entry: &plyfs::overlay::DirEntry| {
        paths.push(format!("{dir}/{}", entry.name.escape_ascii()));
        true
    };
    u.overlay().readdir(u.ino(dir).unwrap(), 2, add).unwrap();
    paths
}

/// Copies what is to be copied ahead; how many that are.
fn copy_ahead(u: &Union) -> usize {
    let files = u.overlay().to_copy_ahead();
    files.iter().for_each(|file| u.overlay().copy_ahead(file));
    files.len()
}

/// The inodes of files without a name that this process has open in the union's workdir.
fn nameless(u: &Union) -> HashSet<u64> {
    let work = fs::canonicalize(u.work()).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
        let fd = fd.ok()?.path();
        let target = fs::read_link(&fd).ok()?;
        let is_ours = target.starts_with(&work) && target.to_str()?.ends_with("(deleted)");
        is_ours.then(|| fs::metadata(&fd).ok().map(|m| m.ino())).flatten()
    });
    open.collect()
}

fn in_upper(u: &Union, path: &str) -> u64 {
    fs::metadata(u.upper().join(path)).unwrap().ino()
}

#[test]
fn who_comes_to_a_file_finds_its_copy() {
    let Some((mut u, paths)) = of_files(40, "d/f3:mode=0751") else { return };
    let before = fingerprint(&u.lowers[0]);
    let mut found = 0;
    for path in &paths {
        let made = nameless(&u);
        u.chmod(path, 0o600).unwrap();
        found += usize::from(made.contains(&in_upper(&u, path)));
        copy_ahead(&u);
    }
    assert_eq!(found, 37, "all but three");
    assert!(nameless(&u).is_empty());
    for n in 0..40 {
        let path = format!("d/f{n}");
        assert_eq!(u.read(&path).unwrap(), n.to_string());
        let (copy, lower) = [u.upper(), u.lowers[0].clone()].map(|at| at.join(&path)).into();
        let (copy, lower) = (fs::metadata(copy).unwrap(), fs::metadata(lower).unwrap());
        assert_eq!(copy.mode() & 0o7777, 0o600);
        assert_eq!((copy.mtime(), copy.mtime_nsec()), (lower.mtime(), lower.mtime_nsec()));
    }
    assert_eq!(fingerprint(&u.lowers[0]), before);
    u.remount();
    assert_eq!(u.read("d/f7").unwrap(), "7");
    assert_eq!(fs::read_dir(u.work().join("tmp")).unwrap().count(), 0);
}

/// Copies three files up, so that the next are copied ahead; returns the first of these.
fn with_copies_ahead(u: &Union, paths: &[String]) -> String {
    paths[..3].iter().for_each(|path| u.chmod(path, 0o640).unwrap());
    assert_eq!(copy_ahead(u), 2);
    assert_eq!(nameless(u).len(), 2);
    paths[3].clone()
}

#[test]
fn a_copy_made_ahead_has_all_that_the_lower_file_has() {
    let Some((u, paths)) = of_files(12, "") else { return };
    let path = &paths[3];
    let file = u.lowers[0].join(path);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    let object = fs::File::open(&file).unwrap();
    let has_xattrs = sys::set_xattr(std::os::fd::AsFd::as_fd(&object), b"user.n", b"v", 0).is_ok();
    with_copies_ahead(&u, &paths);
    u.write(path, 0, "W").unwrap();
    let copy = fs::metadata(u.upper().join(path)).unwrap();
    assert_eq!(copy.mode() & 0o7777, 0o4751, "nobody asked to drop setuid");
    if has_xattrs {
        assert_eq!(u.overlay().get_xattr(u.ino(path).unwrap(), b"user.n").unwrap(), b"v");
    }
    assert!(u.read(path).unwrap().starts_with('W'));
}

#[test]
fn a_copy_of_what_has_changed_since_is_not_used() {
    let Some((u, paths)) = of_files(12, "") else { return };
    let next = with_copies_ahead(&u, &paths);
    fs::write(u.lowers[0].join(&next), "changed below").unwrap();
    u.chmod(&next, 0o640).unwrap();
    assert_eq!(fs::read_to_string(u.upper().join(&next)).unwrap(), "changed below");
}

#[test]
fn a_removed_file_stays_removed() {
    let Some((mut u, paths)) = of_files(12, "") else { return };
    let next = with_copies_ahead(&u, &paths);
    u.unlink(&next).unwrap();
    u.create(&next, "new").unwrap();
    assert_eq!(u.read(&next).unwrap(), "new");
    u.unlink(&next).unwrap();
    u.unlink(&paths[4]).unwrap();
    u.remount();
    assert_eq!(u.names("d").len(), 10);
}

#[test]
fn a_renamed_file_takes_its_copy_along() {
    let Some((mut u, paths)) = of_files(12, "e/") else { return };
    let next = with_copies_ahead(&u, &paths);
    let made = nameless(&u);
    let text = u.read(&next).unwrap();
    u.rename(&next, "e/moved").unwrap();
    assert!(made.contains(&in_upper(&u, "e/moved")));
    u.remount();
    assert_eq!(u.read("e/moved").unwrap(), text);
}

#[test]
fn what_is_large_or_has_several_names_is_not_copied_ahead() {
    let Some((u, _)) = of_files(0, "d/ a/1=1 a/2=2 a/3=3 a/4=4 a/5=5 a/6=6") else { return };
    let paths = listed(&u, "a");
    fs::hard_link(u.lowers[0].join(&paths[3]), u.lowers[0].join("another")).unwrap();
    fs::write(u.lowers[0].join(&paths[4]), vec![b'x'; 40_000]).unwrap();
    paths[..3].iter().for_each(|path| u.chmod(path, 0o640).unwrap());
    assert_eq!(copy_ahead(&u), 2);
    assert!(nameless(&u).is_empty());
    paths[3..].iter().for_each(|path| u.chmod(path, 0o640).unwrap());
    assert_eq!(u.stat(&paths[4]).unwrap().stat.size, 40_000);
}

#[test]
fn of_many_directories_the_oldest_go() {
    let words: String =
        (0..40).map(|d| (0..12).map(|n| format!("{d}/f{n}=x ")).collect::<String>()).collect();
    let Some((u, _)) = of_files(0, &(words + "d/")) else { return };
    for d in 0..40 {
        let paths = listed(&u, &d.to_string());
        paths[..5].iter().for_each(|path| {
            u.chmod(path, 0o640).unwrap();
            copy_ahead(&u);
        });
    }
    assert!((56..=64).contains(&nameless(&u).len()), "{}", nameless(&u).len());
}

#[test]
fn a_mount_that_skips_syncs_copies_nothing_ahead() {
    let words: String = (0..12).map(|n| format!("d/f{n}=x ")).collect();
    let u = Union::new(&[&words]);
    for path in listed(&u, "d") {
        u.chmod(&path, 0o640).unwrap();
        assert_eq!(copy_ahead(&u), 0);
    }
}

/// While one goes through a directory in order, with copies made ahead beside, others write to its
/// files, remove and rename them.
#[test]
fn others_meanwhile() {
    const FILES: usize = 300;
    let Some((mut u, paths)) = of_files(FILES, "e/") else { return };
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_done() {
                    copy_ahead(&u);
                    std::thread::yield_now();
                }
            });
        }
        let others = scope.spawn(|| {
            for (n, path) in paths.iter().enumerate().rev() {
                match n % 4 {
                    0 => u.write(path, 4, "+w").unwrap(),
                    1 => u.unlink(path).unwrap(),
                    2 => u.rename(path, &path.replace("d/", "e/")).unwrap(),
                    _ => {}
                }
            }
        });
        for path in &paths {
            let _ = u.chmod(path, 0o604); // it may be gone
        }
        others.join().unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    for remounted in [false, true] {
        for (n, path) in paths.iter().enumerate() {
            let text = path.trim_start_matches("d/f").to_owned();
            let moved = path.replace("d/", "e/");
            match n % 4 {
                0 => assert!(u.read(path).unwrap().ends_with("+w")),
                1 => assert!(u.read(path).is_err(), "{path} is back, remounted: {remounted}"),
                2 => assert_eq!((u.read(&moved).unwrap(), u.read(path).is_err()), (text, true)),
                _ => {
                    assert_eq!(u.read(path).unwrap(), text);
                    assert_eq!(u.stat(path).unwrap().stat.mode & 0o777, 0o604);
                }
            }
        }
        u.remount();
    }
    assert!(nameless(&u).is_empty());
}
