//! Modes, owners, times and xattrs through the kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::common::is_root;
use crate::common::mounted::{Mount, run};
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
    let m = Mount::new(&["f=1 g=1 g:mode=6755"]);
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
    let mut m = Mount::new(&["f=1"]);
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
    let forged = Command::new("setfattr")
        .args(["-n", "user.overlay.opaque", "-v", "y"])
        .arg(m.at("d"))
        .output()
        .unwrap();
    assert!(!forged.status.success());
}

#[test]
fn default_acls_are_inherited() {
    need_mount!();
    let m = Mount::new(&["d/"]);
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
}
