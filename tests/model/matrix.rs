//! Every kind of name, every call on it, as root and as another user: the answer and the
//! tree afterwards must be those of the kernel's overlayfs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::common;
use crate::mounts::{By, Stacked};
use crate::need_mount;
use crate::subject::snapshot;

/// The two lower layers of each case, topmost first.
const LAYERS: [&str; 2] = [
    "file=lower gone=x copied=lower closed=x closed:mode=0600 dir/in=1 empty/ merged/top=1 \
     gonedir/f=1 link->file dirlink->dir dangling->nowhere loop->loop linklink->link \
     shut/in=x shut:mode=0700 again/old=1",
    "merged/low=1 file=hidden again/older=1",
];
/// The names of a case.
const NAMES: [&str; 32] = [
    "file",
    "copied",
    "new",
    "closed",
    "gone",
    "none",
    "dir",
    "dir/in",
    "empty",
    "merged",
    "merged/low",
    "newdir",
    "gonedir",
    "gonedir/f",
    "again",
    "again/old",
    "shut",
    "shut/in",
    "link",
    "dirlink",
    "dirlink/in",
    "dangling",
    "loop",
    "linklink",
    "none/x",
    "file/x",
    "file/",
    "dir/",
    "dirlink/",
    "none/",
    "gone/",
    "dir/.",
];
/// The second names of calls that take two.
const OTHERS: [&str; 13] = [
    "file", "copied", "gone", "none", "dir", "empty", "newdir", "again", "link", "shut/in",
    "dir/sub", "none/x", "gonedir",
];
const USER: u32 = 1000;

type Call = Box<dyn Fn(&Path) -> rustix::io::Result<String>>;

/// What was done before the calls, by the filesystem itself.
fn prepare(case: &Path) {
    std::fs::write(case.join("copied"), "upper").unwrap();
    std::fs::write(case.join("new"), "new").unwrap();
    std::fs::create_dir(case.join("newdir")).unwrap();
    std::fs::remove_file(case.join("gone")).unwrap();
    std::fs::remove_dir_all(case.join("gonedir")).unwrap();
    std::fs::remove_dir_all(case.join("again")).unwrap();
    std::fs::create_dir(case.join("again")).unwrap();
}

fn done(result: rustix::io::Result<()>) -> rustix::io::Result<String> {
    result.map(|()| String::new())
}

/// The calls, each with what it is called in a report.
fn calls() -> Vec<(String, Call)> {
    let mut calls: Vec<(String, Call)> = Vec::new();
    let access = [("r", OFlags::RDONLY), ("w", OFlags::WRONLY), ("rw", OFlags::RDWR)];
    let extra = [
        ("", OFlags::empty()),
        ("trunc", OFlags::TRUNC),
        ("creat", OFlags::CREATE),
        ("excl", OFlags::CREATE.union(OFlags::EXCL)),
        ("creat+trunc", OFlags::CREATE.union(OFlags::TRUNC)),
        ("append", OFlags::APPEND),
        ("directory", OFlags::DIRECTORY),
        ("nofollow", OFlags::NOFOLLOW),
        ("creat+directory", OFlags::CREATE.union(OFlags::DIRECTORY)),
        ("path", OFlags::PATH),
    ];
    for name in NAMES {
        let mut add = |what: String, call: Call| calls.push((format!("{what} {name}"), call));
        for (mode, mode_flags) in access {
            for (with, flags) in extra {
                let flags = mode_flags | flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
                add(
                    format!("open {mode} {with}"),
                    Box::new(move |at| {
                        let fd = rustix::fs::open(at.join(name), flags, Mode::from(0o644))?;
                        let read = |fd: &rustix::fd::OwnedFd| {
                            let mut data = [0; 16];
                            let len = rustix::io::pread(fd, &mut data, 0)?;
                            Ok::<_, rustix::io::Errno>(data[..len].escape_ascii().to_string())
                        };
                        let wrote = rustix::io::write(&fd, b"W");
                        Ok(format!("wrote {wrote:?} read {:?}", read(&fd)))
                    }),
                );
            }
        }
        add("stat".into(), Box::new(move |at| told(at, name, AtFlags::empty())));
        add("lstat".into(), Box::new(move |at| told(at, name, AtFlags::SYMLINK_NOFOLLOW)));
        add(
            "access".into(),
            Box::new(move |at| {
                let may = |access| rustix::fs::access(at.join(name), access);
                Ok(format!(
                    "{:?} {:?} {:?}",
                    may(Access::READ_OK),
                    may(Access::WRITE_OK),
                    may(Access::EXEC_OK)
                ))
            }),
        );
        add(
            "readlink".into(),
            Box::new(move |at| {
                rustix::fs::readlink(at.join(name), Vec::new())
                    .map(|target| target.to_string_lossy().into_owned())
            }),
        );
        add(
            "list".into(),
            Box::new(move |at| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let fd = rustix::fs::open(at.join(name), flags, Mode::empty())?;
                let mut names: Vec<_> = rustix::fs::Dir::new(fd)?
                    .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                    .collect();
                names.sort();
                Ok(names.join(" "))
            }),
        );
        add("unlink".into(), Box::new(move |at| done(rustix::fs::unlink(at.join(name)))));
        add("rmdir".into(), Box::new(move |at| done(rustix::fs::rmdir(at.join(name)))));
        add(
            "mkdir".into(),
            Box::new(move |at| done(rustix::fs::mkdir(at.join(name), Mode::from(0o755)))),
        );
        for (what, kind, device) in [
            ("mkfifo", FileType::Fifo, 0),
            ("mknod f", FileType::RegularFile, 0),
            ("mknod c", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ] {
            add(
                what.into(),
                Box::new(move |at| {
                    let mode = Mode::from(0o640);
                    done(rustix::fs::mknodat(CWD, at.join(name), kind, mode, device))
                }),
            );
        }
        add("symlink".into(), Box::new(move |at| done(rustix::fs::symlink("to", at.join(name)))));
        for mode in [0o600, 0o4777, 0] {
            add(
                format!("chmod {mode:o}"),
                Box::new(move |at| done(rustix::fs::chmod(at.join(name), Mode::from(mode)))),
            );
        }
        for (what, follow) in [("chown", AtFlags::empty()), ("lchown", AtFlags::SYMLINK_NOFOLLOW)] {
            add(
                what.into(),
                Box::new(move |at| {
                    let (uid, gid) =
                        (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(USER));
                    done(rustix::fs::chownat(CWD, at.join(name), Some(uid), Some(gid), follow))
                }),
            );
        }
        add(
            "utimens".into(),
            Box::new(move |at| {
                let time = rustix::fs::Timespec { tv_sec: 77, tv_nsec: 7 };
                let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                done(rustix::fs::utimensat(CWD, at.join(name), &times, AtFlags::empty()))
            }),
        );
        for xattr in ["user.model", "trusted.model", "security.model", "system.model"] {
            add(
                format!("setxattr {xattr}"),
                Box::new(move |at| {
                    let path = at.join(name);
                    rustix::fs::lsetxattr(&path, xattr, b"v", XattrFlags::empty())?;
                    let mut value = [0; 8];
                    let len = rustix::fs::lgetxattr(&path, xattr, &mut value[..])?;
                    let removed = rustix::fs::lremovexattr(&path, xattr);
                    Ok(format!("{len} {removed:?}"))
                }),
            );
        }
        for other in OTHERS {
            for (what, flags) in [
                ("rename", RenameFlags::empty()),
                ("rename noreplace", RenameFlags::NOREPLACE),
                ("rename exchange", RenameFlags::EXCHANGE),
                ("rename whiteout", RenameFlags::WHITEOUT),
            ] {
                add(
                    format!("{what} to {other} of"),
                    Box::new(move |at| {
                        let (from, to) = (at.join(name), at.join(other));
                        done(rustix::fs::renameat_with(CWD, from, CWD, to, flags))
                    }),
                );
            }
            for (what, flags) in
                [("link", AtFlags::empty()), ("link follow", AtFlags::SYMLINK_FOLLOW)]
            {
                add(
                    format!("{what} to {other} of"),
                    Box::new(move |at| {
                        done(rustix::fs::linkat(CWD, at.join(name), CWD, at.join(other), flags))
                    }),
                );
            }
        }
    }
    calls
}

fn told(at: &Path, name: &str, flags: AtFlags) -> rustix::io::Result<String> {
    let stat = rustix::fs::statat(CWD, at.join(name), flags)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind == FileType::Directory { 0 } else { stat.st_size };
    let links = stat.st_nlink;
    Ok(format!("{:o} {}:{} size {size} links {links}", stat.st_mode, stat.st_uid, stat.st_gid))
}

/// Runs `work` with the credentials of `user`, on this thread alone.
fn as_user<T>(user: u32, work: impl FnOnce() -> T) -> T {
    let (uid, gid) = (rustix::process::Uid::from_raw(user), rustix::process::Gid::from_raw(user));
    let (root, root_group) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, root).unwrap();
    let result = work();
    set_thread_res_uid(root, root, root).unwrap();
    set_thread_res_gid(root_group, root_group, root_group).unwrap();
    result
}

/// All calls, or, unless `PLYFS_MATRIX` is `all`, every twelfth from a random one on.
fn chosen_calls() -> Vec<(String, Call)> {
    const STEP: usize = 12;
    if std::env::var("PLYFS_MATRIX").is_ok_and(|all| all == "all") {
        return calls();
    }
    let first = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos() as usize % STEP;
    calls().into_iter().skip(first).step_by(STEP).collect()
}

/// Each call's answer, and the tree that it left.
fn answers(by: By, dir: &Path, calls: &[(String, Call)], user: u32) -> BTreeMap<String, String> {
    std::fs::create_dir(dir).unwrap();
    let lowers: Vec<PathBuf> = (0..LAYERS.len()).map(|n| dir.join(format!("lower{n}"))).collect();
    for (lower, words) in lowers.iter().zip(LAYERS) {
        for n in 0..calls.len() {
            let case = lower.join(n.to_string());
            std::fs::create_dir_all(&case).unwrap();
            common::build(&case, words);
        }
        common::make_owner(lower, if user == 0 { 0 } else { USER });
    }
    let mount = Stacked::mount(by, dir, lowers, &[]);
    let mut answers = BTreeMap::new();
    for (n, (what, call)) in calls.iter().enumerate() {
        let case = mount.merged().join(n.to_string());
        as_user(user, || prepare(&case));
        let answer = match as_user(user, || call(&case)) {
            Ok(text) => format!("ok {text}"),
            Err(errno) => format!("{errno:?}"),
        };
        answers.insert(what.clone(), format!("{answer} {:#?}", snapshot(&case)));
    }
    answers
}

#[test]
fn every_call_on_every_kind_of_name_as_on_the_kernels_overlayfs() {
    need_mount!();
    if !common::is_root() {
        return eprintln!("skipped: only root mounts the kernel's overlayfs");
    }
    rustix::process::umask(Mode::from(0o022));
    let calls = chosen_calls();
    let mut wrong = Vec::new();
    for user in [0, USER] {
        let dir = tempfile::tempdir().unwrap();
        common::open_to_all(dir.path());
        let ours = answers(By::Plyfs, &dir.path().join("ours"), &calls, user);
        let theirs = answers(By::Kernel, &dir.path().join("theirs"), &calls, user);
        for (what, ours) in &ours {
            if *ours != theirs[what] {
                wrong.push(format!("user {user}, {what}:\n ours {ours}\n theirs {}", theirs[what]));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        2 * calls.len(),
        wrong.join("\n")
    );
}
