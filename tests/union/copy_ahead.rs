//! Files that are copied up in the order of their listing: the next ones are copied beforehand.

use std::collections::HashSet;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::copies_ahead;
use crate::common::union::{Union, fingerprint};
use plyfs::layers::override_stat::OverrideXattr;
use plyfs::overlay::{Overrides, Ownership, SetAttr, ToCopy, UpperForm};
use plyfs::sys::{self, TimeChange, Timestamp};

/// A union that syncs, and what is to be copied ahead.
struct Ahead {
    union: Union,
    due: Arc<Mutex<Vec<ToCopy>>>,
}

impl Deref for Ahead {
    type Target = Union;

    fn deref(&self) -> &Union {
        &self.union
    }
}

impl DerefMut for Ahead {
    fn deref_mut(&mut self) -> &mut Union {
        &mut self.union
    }
}

impl Ahead {
    fn new(mut union: Union) -> Self {
        union.sync();
        let due = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&due);
        union.overlay().copies_ahead_by(move |files| to.lock().unwrap().extend(files));
        Self { union, due }
    }

    /// Copies what is to be copied ahead; how many that are.
    fn copy_ahead(&self) -> usize {
        let files = std::mem::take(&mut *self.due.lock().unwrap());
        files.iter().for_each(|file| self.overlay().copy_ahead(file));
        files.len()
    }
}

/// Such a union of `count` files `d/fN` with N as text, and their paths as they are listed. `None` where
/// nothing is copied ahead.
fn of_files(count: usize, more: &str) -> Option<(Ahead, Vec<String>)> {
    let words = (0..count).map(|n| format!("d/f{n}={n} ")).collect::<String>() + more;
    let u = Union::new(&[&words]);
    if !copies_ahead(&u.work()) {
        eprintln!("skipped: a filesystem without files without a name, or full");
        return None;
    }
    let u = Ahead::new(u);
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

/// The inodes of files without a name that this process has open in the union's workdir.
fn nameless(u: &Union) -> HashSet<u64> {
    let work = fs::canonicalize(u.work()).unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
        let fd = fd.ok()?.path();
        let is_ours = fs::read_link(&fd).ok()?.starts_with(&work);
        fs::metadata(&fd).ok().filter(|m| is_ours && m.nlink() == 0)
    });
    open.map(|m| m.ino()).collect()
}

fn in_upper(u: &Union, path: &str) -> u64 {
    fs::metadata(u.upper().join(path)).unwrap().ino()
}

/// Changes 40 files in this order, of which all but the first ones find a copy.
fn find_copies(mut u: Ahead, paths: &[String], first: usize) {
    let before = fingerprint(&u.lowers[0]);
    let mut found = 0;
    for path in paths {
        let made = nameless(&u);
        u.chmod(path, 0o600).unwrap();
        found += usize::from(made.contains(&in_upper(&u, path)));
        u.copy_ahead();
    }
    // One more, if the next of the first ones was so in another order by chance.
    assert!([40 - first, 39 - first].contains(&found), "all but {first}: {found}");
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

#[test]
fn who_comes_to_a_file_finds_its_copy() {
    let Some((u, paths)) = of_files(40, "d/f3:mode=0751") else { return };
    find_copies(u, &paths, 3);
}

#[test]
fn who_goes_by_names_finds_copies_too() {
    let Some((u, mut paths)) = of_files(40, "d/f3:mode=0751") else { return };
    paths.sort();
    find_copies(u, &paths, 6);
}

/// Copies three files up, so that the next are copied ahead; returns the first of these.
fn with_copies_ahead(u: &Ahead, paths: &[String]) -> String {
    paths[..3].iter().for_each(|path| u.chmod(path, 0o640).unwrap());
    assert_eq!(u.copy_ahead(), 2);
    assert_eq!(nameless(u).len(), 2);
    paths[3].clone()
}

/// Gives the lower files all kinds of owners, permissions and xattrs, as far as this process may.
fn vary(file: &fs::File, n: usize) {
    let _ = std::os::unix::fs::fchown(file, Some(n as u32 % 3 * 1000), Some(n as u32 % 5));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl = [
        &[2, 0, 0, 0][..], // its version
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 7, 0, 0, 0], // user 7 may read
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    let xattrs: [(&[u8], &[u8]); 3] = [
        (b"user.note", b"kept"),
        (b"security.capability", &capability),
        (b"system.posix_acl_access", &acl),
    ];
    if let Some((name, value)) = xattrs.get(n % 4) {
        let _ = sys::set_xattr(file.as_fd(), name, value, 0);
    }
    let modes = [0o644, 0, 0o4751, 0o2775, 0o600, 0o444, 0o6711];
    if n % 4 != 2 {
        file.set_permissions(fs::Permissions::from_mode(modes[n % modes.len()])).unwrap();
    }
}

/// What a real file has.
fn all_of(path: &std::path::Path) -> String {
    let file = sys::open_dir(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().as_encoded_bytes();
    let file = sys::open_at(file.as_fd(), name, sys::O_PATH).unwrap();
    let stat = sys::fstat(file.as_fd()).unwrap();
    let list = sys::list_xattrs(file.as_fd()).unwrap();
    let mut xattrs: Vec<_> = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| (name.to_vec(), sys::get_xattr(file.as_fd(), name).unwrap()))
        .collect();
    xattrs.sort();
    let times = (stat.atime, stat.mtime);
    format!("{name:?} {:o} {} {} {} {times:?} {xattrs:?}", stat.mode, stat.uid, stat.gid, stat.size)
}

#[test]
fn a_copy_made_ahead_has_what_any_other_copy_has() {
    const FILES: usize = 60;
    let in_xattrs = Overrides::In(OverrideXattr::Containers);
    let in_xattrs = Ownership { overrides: in_xattrs, ..Ownership::default() };
    for (form, ownership) in [
        (UpperForm::Plain, Ownership::default()),
        (UpperForm::Rich, Ownership::default()),
        (UpperForm::Plain, in_xattrs.clone()),
        (UpperForm::Rich, in_xattrs),
    ] {
        let told = [false, true].map(|ahead| {
            let words: String = (0..FILES).map(|n| format!("d/f{n}={n} ")).collect();
            let mut u = match form {
                UpperForm::Rich => Union::rich(&[&words]),
                _ => Union::new(&[&words]),
            };
            for n in 0..FILES {
                let file = fs::File::open(u.lowers[0].join(format!("d/f{n}"))).unwrap();
                let time =
                    std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000 + n as u64, 7);
                file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
                vary(&file, n);
            }
            u.own(ownership.clone());
            let u = Ahead::new(u);
            let mut found = 0;
            for path in listed(&u, "d") {
                let made = nameless(&u);
                let now = TimeChange::At(Timestamp { secs: 77, nanos: 7 });
                let change = SetAttr { mtime: Some(now), ..SetAttr::default() };
                u.overlay().setattr(u.ino(&path).unwrap(), &change).unwrap();
                found += usize::from(made.contains(&in_upper(&u, &path)));
                if ahead {
                    u.copy_ahead();
                }
            }
            assert!(!copies_ahead(&u.work()) || found == if ahead { FILES - 3 } else { 0 });
            (0..FILES).map(|n| all_of(&u.upper().join(format!("d/f{n}")))).collect::<Vec<_>>()
        });
        assert_eq!(told[0], told[1]);
    }
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
    assert_eq!(u.copy_ahead(), 2);
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
            u.copy_ahead();
        });
    }
    assert!((56..=64).contains(&nameless(&u).len()), "{}", nameless(&u).len());
}

#[test]
fn a_mount_that_skips_syncs_copies_nothing_ahead() {
    let words: String = (0..12).map(|n| format!("d/f{n}=x ")).collect();
    let u = Union::new(&[&words]);
    u.overlay().copies_ahead_by(|files| panic!("{files:?}"));
    for path in listed(&u, "d") {
        u.chmod(&path, 0o640).unwrap();
    }
}

/// While one goes through a directory in order, with copies made ahead beside, others write to its
/// files, remove and rename them.
#[test]
fn others_meanwhile() {
    const FILES: usize = 300;
    let Some((mut u, paths)) = of_files(FILES, "e/") else { return };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    u.copy_ahead();
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
        done.store(true, Ordering::Relaxed);
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
}

#[test]
fn others_who_come_out_of_order_do_not_have_copies_made_twice() {
    for others in [1, 30] {
        let Some((u, paths)) = of_files(100, "") else { return };
        for (n, path) in paths.iter().enumerate() {
            u.chmod(path, 0o640).unwrap();
            u.copy_ahead();
            if n == 20 {
                for other in paths[60..].iter().rev().take(others) {
                    u.write(other, 0, "W").unwrap();
                }
                assert!(nameless(&u).len() > 8);
            }
        }
        assert!(nameless(&u).is_empty(), "{others}");
    }
}

#[test]
fn a_renamed_directory_has_its_files_copied_ahead() {
    let Some((u, _)) = of_files(60, "") else { return };
    u.rename("d", "e").unwrap();
    assert!(!u.due.lock().unwrap().is_empty());
}

#[test]
fn a_time_of_access_that_is_later_than_the_copy_is_kept() {
    let Some((u, paths)) = of_files(12, "") else { return };
    let next = with_copies_ahead(&u, &paths);
    let lower = u.lowers[0].join(&next);
    std::thread::sleep(std::time::Duration::from_millis(20)); // longer than the kernel's clock
    let before = fs::metadata(&lower).unwrap();
    fs::read(&lower).unwrap();
    let atime = |m: &fs::Metadata| (m.atime(), m.atime_nsec());
    let after = fs::metadata(&lower).unwrap();
    if atime(&after) == atime(&before) {
        return eprintln!("skipped: the filesystem marks no accesses");
    }
    let made = nameless(&u);
    u.chmod(&next, 0o640).unwrap();
    assert!(made.contains(&in_upper(&u, &next)));
    assert_eq!(atime(&fs::metadata(u.upper().join(&next)).unwrap()), atime(&after));
}

#[test]
fn who_writes_a_file_has_it_open_still_after_its_attributes_change() {
    let u = Union::new(&["f=text"]);
    u.write("f", 0, "T").unwrap();
    let copy = fs::metadata(u.upper().join("f")).unwrap();
    let is_open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let mut open = open.filter_map(|fd| fs::metadata(fd.ok()?.path()).ok());
        open.any(|m| (m.dev(), m.ino()) == (copy.dev(), copy.ino()))
    };
    assert!(is_open());
    u.chmod("f", 0o600).unwrap();
    assert!(is_open());
}
