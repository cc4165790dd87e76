//! Modes, owners, times and xattrs through the kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::common::is_root;
use crate::common::mounted::{Mount, run, sh};
use crate::need_mount;

#[test]
fn changes_last() {
    need_mount!();
    let mut m = Mount::new(&["d/f=1"]);
    m.sh("chmod 4750 d/f; touch -d '1969-12-31 23:59:57.25 UTC' d/f; touch -d '2038-02-01 UTC' d");
    for _ in 0..2 {
        let meta = fs::metadata(m.at("d/f")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o4750);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-3, 250_000_000));
        assert_eq!(fs::metadata(m.at("d")).unwrap().mtime(), 2_148_595_200);
        m.remount();
    }
    let upper = fs::metadata(m.upper().join("d/f")).unwrap();
    assert_eq!((upper.mode() & 0o7777, upper.mtime()), (0o4750, -3));
}

#[test]
fn owners_and_what_drops_setuid() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: changing owners needs root");
    }
    let m = Mount::new(&["f=1 g=1 g:mode=6755 low=1 low:mode=4777"]);
    fs::set_permissions(m.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    chown(m.at("f"), Some(12), Some(34)).unwrap();
    let meta = fs::metadata(m.at("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    chown(m.at("g"), Some(12), None).unwrap();
    assert_eq!(fs::metadata(m.at("g")).unwrap().mode() & 0o7777, 0o755);
    // A write by somebody without CAP_FSETID drops both bits; root's does not.
    let as_user = |line: &str| {
        run(Command::new("setpriv")
            .args(["--reuid=12", "--regid=34", "--clear-groups", "sh", "-euc", line])
            .current_dir(m.merged()))
    };
    let writes = [
        "echo x >> f",
        "truncate -s 1 f",
        "printf x | dd of=f conv=notrunc",
        "fallocate -l 9000 f",
    ];
    for line in writes {
        fs::set_permissions(m.at("f"), fs::Permissions::from_mode(0o6777)).unwrap();
        m.sh(line);
        assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7777, 0o6777, "root: {line}");
        as_user(line);
        assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7777, 0o777, "user: {line}");
    }
    // The kernel must not go on believing in the bit, whatever it is asked for.
    let mode_alone = || m.sh("stat -c %a low").trim().to_owned();
    assert_eq!(mode_alone(), "4777");
    as_user("echo x >> low");
    assert_eq!(mode_alone(), "777");
    let denied = Command::new("setpriv")
        .args(["--reuid=12", "--regid=34", "--clear-groups", "touch", "new"])
        .current_dir(m.merged())
        .output()
        .unwrap();
    assert!(!denied.status.success(), "permissions are checked");
    // New files are their maker's.
    fs::create_dir(m.at("open")).unwrap();
    fs::set_permissions(m.at("open"), fs::Permissions::from_mode(0o777)).unwrap();
    as_user("umask 027; touch open/f; mkdir open/d; ln -s x open/l; mkfifo open/p");
    for name in ["f", "d", "l", "p"] {
        let meta = fs::symlink_metadata(m.upper().join("open").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34), "{name}");
    }
    assert_eq!(fs::metadata(m.at("open/f")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(m.at("open/d")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn device_nodes() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: device nodes need root");
    }
    let m = Mount::unmounted(&["f=1"]);
    sh(&format!("mknod '{}/low' c 4000 500000", m.lower(0).display()));
    let mut m = m;
    m.mount();
    m.sh("rm low");
    m.sh("mknod null c 1 3; mknod big b 259 1048575; mknod zero c 0 0; echo x > null; rm f");
    for _ in 0..2 {
        assert_eq!(
            m.sh("stat -c '%F %t:%T' null big zero").lines().collect::<Vec<_>>(),
            [
                "character special file 1:3",
                "block special file 103:fffff",
                "character special file 0:0",
            ]
        );
        m.remount();
    }
    m.sh("rm null big zero");
    m.expect("");
}

#[test]
fn xattrs() {
    need_mount!();
    let mut m = Mount::new(&["f=1 d/"]);
    let set = Command::new("setfattr").args(["-n", "user.k", "-v", "v"]).arg(m.at("f")).output();
    match set {
        Err(_) => return eprintln!("skipped: no setfattr"),
        Ok(output) if !output.status.success() => return eprintln!("skipped: no user xattrs here"),
        Ok(_) => {}
    }
    m.sh("setfattr -n user.d -v 1 d; setfattr -n user.gone -v 1 f; setfattr -x user.gone f");
    for _ in 0..2 {
        let dump = m.sh("getfattr -d -m - f d 2>/dev/null | grep -v security.selinux");
        let lines: Vec<_> = dump.lines().filter(|line| line.contains('=')).collect();
        assert_eq!(lines, ["user.k=\"v\"", "user.d=\"1\""]);
        m.remount();
    }
    // One that would be a union's own is held under another name, and marks nothing.
    m.sh("setfattr -n user.overlay.opaque -v y d");
    m.remount();
    assert_eq!(m.sh("getfattr --only-values -n user.overlay.opaque d"), "y");
    let mut get = Command::new("getfattr");
    let held = run(get.args(["-d", "-m", "opaque"]).arg(m.upper().join("d")));
    assert!(held.contains("user.overlay.overlay.opaque=\"y\""), "{held}");
}

#[test]
fn default_acls_are_inherited() {
    need_mount!();
    let m = Mount::new(&["d/"]);
    m.sh("umask 022; touch d/before"); // there is nothing to inherit yet
    let entries = ["-d", "-m", "u:12:rwx,g::r-x,o::---"];
    match Command::new("setfacl").args(entries).arg(m.at("d")).output() {
        Err(_) => return eprintln!("skipped: no setfacl"),
        Ok(output) if !output.status.success() => return eprintln!("skipped: no ACLs here"),
        Ok(_) => {}
    }
    m.sh("umask 077; touch d/f; mkdir d/sub; mkdir -m 1777 d/sticky");
    let acl = m.sh("getfacl -cn d/f d/sub");
    assert!(acl.contains("user:12:rwx") && acl.contains("#effective:rw-"), "{acl}");
    assert!(acl.contains("default:user:12:rwx"), "{acl}");
    assert_eq!(fs::metadata(m.at("d/f")).unwrap().mode() & 0o7777, 0o660);
    assert!(m.sh("getfacl -cn d/sticky").contains("default:user:12:rwx"));
    m.sh("setfacl -k d; umask 022; touch d/after");
    for file in ["d/before", "d/after"] {
        assert_eq!(
            m.sh(&format!("getfacl -cnE {file}")).trim(),
            "user::rw-\ngroup::r--\nother::r--"
        );
    }
}

#[test]
fn inode_flags() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: immutable files need root");
    }
    let m = Mount::new(&["low=1 d/f=2 plain=3"]);
    let flags = |name: &str| {
        let file = fs::File::open(m.at(name)).unwrap();
        rustix::fs::ioctl_getflags(&file)
    };
    let set = |path: &std::path::Path, flags| {
        rustix::fs::ioctl_setflags(fs::File::open(path).unwrap(), flags)
    };
    let denied = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    };
    use rustix::fs::IFlags;
    // A file of the lower layer, marked there.
    if set(&m.lower(0).join("low"), IFlags::IMMUTABLE).is_err() {
        return eprintln!("skipped: no immutable files on this filesystem");
    }
    assert!(flags("low").unwrap().contains(IFlags::IMMUTABLE));
    denied(fs::write(m.at("low"), "x"));
    denied(fs::remove_file(m.at("low")));
    denied(fs::rename(m.at("low"), m.at("moved")));
    denied(fs::rename(m.at("plain"), m.at("low")));
    denied(fs::hard_link(m.at("low"), m.at("second")));
    set(&m.lower(0).join("low"), IFlags::empty()).unwrap();
    // One that is marked through the mount.
    set(&m.at("d/f"), IFlags::IMMUTABLE | IFlags::NODUMP).unwrap();
    assert!(flags("d/f").unwrap().contains(IFlags::IMMUTABLE | IFlags::NODUMP));
    denied(fs::write(m.at("d/f"), "x"));
    denied(fs::remove_file(m.at("d/f")));
    assert_eq!(fs::read_dir(m.upper().join("d")).unwrap().count(), 1, "no whiteout was made");
    set(&m.at("d/f"), IFlags::APPEND).unwrap();
    denied(fs::write(m.at("d/f"), "x"));
    let mut append = fs::File::options().append(true).open(m.at("d/f")).unwrap();
    std::io::Write::write_all(&mut append, b"more").unwrap();
    assert_eq!(fs::read(m.at("d/f")).unwrap(), b"2more");
    set(&m.at("d/f"), IFlags::empty()).unwrap();
    fs::remove_file(m.at("d/f")).unwrap();
    let error = rustix::fs::ioctl_getflags(fs::File::open("/dev/null").unwrap()).unwrap_err();
    assert_eq!(error, rustix::io::Errno::NOTTY);
}

#[test]
fn access_times() {
    need_mount!();
    let old = fs::FileTimes::new()
        .set_accessed(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000))
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(500));
    // Policy, atime of a file of upper after a read: changed or not.
    let table =
        [("noatime", [false, false]), ("relatime", [true, false]), ("strictatime", [true, true])];
    for (policy, expected) in table {
        let m = Mount::unmounted(&["low=1"]);
        let age = |path: std::path::PathBuf| fs::File::open(path).unwrap().set_times(old).unwrap();
        fs::write(m.upper().join("f"), "text").unwrap();
        age(m.upper().join("f"));
        age(m.lower(0).join("low"));
        let (lower, upper, work) =
            (m.lower(0).display(), m.upper().display().to_string(), m.path("work"));
        let options =
            format!("lowerdir={lower},upperdir={upper},workdir={},{policy}", work.display());
        for changes in expected {
            run(Command::new(env!("CARGO_BIN_EXE_plyfs")).args(["-o", &options]).arg(m.merged()));
            let before = fs::metadata(m.at("f")).unwrap().atime_nsec();
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(fs::read(m.at("f")).unwrap(), b"text");
            assert_eq!(fs::read(m.at("low")).unwrap(), b"1");
            let after = fs::metadata(m.at("f")).unwrap().atime_nsec();
            assert_eq!(before != after, changes, "{policy}");
            m.unmount();
        }
        if is_root() {
            assert_eq!(fs::metadata(m.lower(0).join("low")).unwrap().atime(), 1000, "{policy}");
        }
    }
}

#[test]
fn capabilities_outlive_chmod_and_go_with_a_write() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: capabilities of files need root");
    }
    const NAME: &str = "security.capability";
    // VFS_CAP_REVISION_2 with cap_net_raw, effective (linux/capability.h).
    let value: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let m = Mount::unmounted(&["write=1 cut=1 given=1"]);
    for name in ["write", "cut", "given"] {
        let path = m.lower(0).join(name);
        if rustix::fs::setxattr(&path, NAME, &value, rustix::fs::XattrFlags::empty()).is_err() {
            return eprintln!("skipped: no capabilities on this filesystem");
        }
    }
    let mut m = m;
    m.mount();
    let has = |path: std::path::PathBuf| {
        let mut found = [0; 32];
        rustix::fs::getxattr(path, NAME, &mut found[..]).is_ok()
    };
    m.sh("chmod 711 write cut given");
    for name in ["write", "cut", "given"] {
        assert!(has(m.at(name)) && has(m.upper().join(name)), "{name}");
    }
    m.sh("echo x >> write; truncate -s 0 cut; chown 12 given");
    for name in ["write", "cut", "given"] {
        assert!(!has(m.at(name)) && !has(m.upper().join(name)), "{name}");
    }
}

#[test]
fn what_a_stranger_changes_loses_setgid_too() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let m = Mount::new(&["f=1 acl=1"]);
    fs::set_permissions(m.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mode = |name: &str| fs::metadata(m.at(name)).unwrap().mode() & 0o7777;
    let by = |user: &str, groups: &str, line: &str| {
        run(Command::new("setpriv")
            .args([user, "--regid=1000", groups, "sh", "-euc", line])
            .current_dir(m.merged()))
    };
    let set = || {
        chown(m.at("f"), Some(1000), Some(2000)).unwrap();
        fs::set_permissions(m.at("f"), fs::Permissions::from_mode(0o2666)).unwrap();
    };
    let changes = ["echo x >> f", "truncate -s 1 f", "fallocate -l 5000 f"];
    for line in changes {
        set();
        by("--reuid=1001", "--groups=2000", line);
        assert_eq!(mode("f"), 0o2666, "in the group: {line}");
        by("--reuid=1001", "--clear-groups", line);
        assert_eq!(mode("f"), 0o666, "not in the group: {line}");
    }
    // chown(2) to nobody else.
    chown(m.at("f"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(m.at("f"), fs::Permissions::from_mode(0o6755)).unwrap();
    by("--reuid=1001", "--clear-groups", "python3 -c 'import os; os.chown(\"f\", -1, -1)' || true");
    assert_eq!(mode("f"), 0o6755, "a stranger takes nothing away");
    chown(m.at("f"), None, None).unwrap();
    assert_eq!(mode("f"), 0o755);
    // Removing an ACL that is not there is no failure.
    rustix::fs::removexattr(m.at("acl"), "system.posix_acl_access").unwrap();
    assert_eq!(fs::read_dir(m.upper()).unwrap().count(), 1, "acl was not copied up");
}

#[test]
fn what_is_asked_during_a_change_is_not_believed_for_ever() {
    need_mount!();
    let m = Mount::new(&["f=1"]);
    fs::write(m.at("f"), "upper").unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over() {
                    let _ = fs::metadata(m.at("f")); // it has another name now and then
                }
            });
        }
        for n in 0..400 {
            match n % 3 {
                0 => drop(rustix::fs::setxattr(
                    m.at("f"),
                    "user.n",
                    n.to_string().as_bytes(),
                    rustix::fs::XattrFlags::empty(),
                )),
                1 => {
                    let file = fs::File::options().write(true).open(m.at("f")).unwrap();
                    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
                    let _ = rustix::fs::fallocate(&file, keep, 0, 4096 * (n + 1));
                }
                _ => {
                    fs::rename(m.at("f"), m.at("g")).unwrap();
                    fs::rename(m.at("g"), m.at("f")).unwrap();
                }
            }
            std::thread::sleep(std::time::Duration::from_micros(300));
            let (shown, real) =
                (fs::metadata(m.at("f")).unwrap(), fs::metadata(m.upper().join("f")).unwrap());
            let times = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec());
            if times(&shown) != times(&real) {
                is_over.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("change {n}: {:?} is shown, {:?} is so", times(&shown), times(&real));
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
