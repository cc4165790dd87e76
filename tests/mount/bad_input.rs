//! Mistakes get one clear line, a non-zero exit, and leave nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::common::is_root;
use crate::common::mounted::{Mount, daemon_of, fails, is_mounted, plyfs, run, sh};
use crate::need_mount;

fn with_lower(m: &Mount) -> Command {
    let mut command = plyfs();
    command.arg("mount").arg("--lower").arg(m.lower(0));
    command
}

fn with_upper(m: &Mount) -> Command {
    let mut command = with_lower(m);
    command.arg("--upper").arg(m.upper()).arg("--work").arg(m.path("work"));
    command
}

#[test]
fn mountpoints() {
    need_mount!();
    let m = Mount::unmounted(&["f=1"]);
    let missing = fails(with_upper(&m).arg(m.path("missing")));
    assert!(missing.contains("missing") && missing.contains("No such file"), "{missing}");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        m.lower(0).display(),
        m.upper().display(),
        m.path("work").display()
    );
    let missing = fails(plyfs().args(["-o", &options]).arg(m.path("missing")));
    assert!(missing.contains("missing") && missing.contains("No such file"), "{missing}");
    assert_eq!(fs::read_dir(m.path("work")).unwrap().count(), 0, "left in workdir");
    fs::write(m.path("file"), "").unwrap();
    let file = fails(with_upper(&m).arg(m.path("file")));
    assert!(file.contains("ot a directory"), "{file}");
    run(with_upper(&m).arg(m.merged()));
    let busy = fails(with_lower(&m).arg(m.merged()));
    assert!(busy.contains("busy"), "{busy}");
    m.unmount();
    let not_mounted = fails(plyfs().arg("umount").arg(m.merged()));
    assert!(not_mounted.contains("no plyfs tree"), "{not_mounted}");
    assert_eq!(fs::read_dir(m.upper()).unwrap().count(), 0);
}

#[test]
fn layers() {
    need_mount!();
    let m = Mount::unmounted(&["f=1"]);
    let lower = fails(plyfs().arg("mount").arg("--lower").arg(m.path("no")).arg(m.merged()));
    assert!(lower.contains("open lower") && lower.contains("No such file"), "{lower}");
    let option = format!("lowerdir={}", m.path("no").display());
    let lower = fails(plyfs().args(["-o", &option]).arg(m.merged()));
    assert!(lower.contains("open lower"), "{lower}");
    let inside = m.upper().join("work");
    fs::create_dir(&inside).unwrap();
    let mut command = with_lower(&m);
    command.arg("--upper").arg(m.upper()).arg("--work").arg(&inside).arg(m.merged());
    let inside = fails(&mut command);
    assert!(inside.contains("separate"), "{inside}");
    let mut command = with_lower(&m);
    command.arg("--upper").arg(m.upper()).arg("--work").arg("/sys").arg(m.merged());
    let elsewhere = fails(&mut command);
    assert!(elsewhere.contains("same filesystem"), "{elsewhere}");
    assert!(!is_mounted(&m.merged()));
}

#[test]
fn filesystems_that_cannot_be_written() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: making filesystems needs root");
    }
    let m = Mount::unmounted(&["f=1"]);
    let tmpfs = m.path("tmpfs");
    fs::create_dir(&tmpfs).unwrap();
    let shown = tmpfs.display();
    if Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&tmpfs)
        .status()
        .is_ok_and(|s| !s.success())
    {
        return eprintln!("skipped: no tmpfs here");
    }
    let outcome = std::panic::catch_unwind(|| {
        let command = || {
            let mut command = with_lower(&m);
            command.arg("--upper").arg(tmpfs.join("u")).arg("--work").arg(tmpfs.join("w"));
            command.arg(m.merged());
            command
        };
        sh(&format!(
            "mkdir '{shown}/u' '{shown}/w'; dd if=/dev/zero of='{shown}/fill' 2>/dev/null || true"
        ));
        let full = fails(&mut command());
        assert!(full.contains("No space left"), "{full}");
        sh(&format!("rm '{shown}/fill'; mount -o remount,ro '{shown}'"));
        let read_only = fails(&mut command());
        assert!(read_only.contains("Read-only"), "{read_only}");
    });
    sh(&format!("umount '{shown}'"));
    outcome.unwrap();
}

#[test]
fn a_full_upper_gives_enospc_and_keeps_the_old_file() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: making filesystems needs root");
    }
    let m = Mount::unmounted(&["small=1"]);
    fs::write(m.lower(0).join("big"), vec![7; 1 << 20]).unwrap();
    let tmpfs = m.path("tmpfs");
    fs::create_dir(&tmpfs).unwrap();
    let shown = tmpfs.display();
    if Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&tmpfs)
        .status()
        .is_ok_and(|s| !s.success())
    {
        return eprintln!("skipped: no tmpfs here");
    }
    let outcome = std::panic::catch_unwind(|| {
        sh(&format!("mkdir '{shown}/u' '{shown}/w'"));
        let mut command = with_lower(&m);
        command.arg("--upper").arg(tmpfs.join("u")).arg("--work").arg(tmpfs.join("w"));
        run(command.arg(m.merged()));
        let error = fs::File::options()
            .append(true)
            .open(m.at("big"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(fs::read(m.at("big")).unwrap() == vec![7; 1 << 20]);
        fs::write(m.at("small"), "2").unwrap();
        assert_eq!(crate::common::tell(&tmpfs.join("u")), ["small=2"]);
        assert_eq!(fs::read_dir(tmpfs.join("w/tmp")).unwrap().count(), 0);
        m.unmount();
    });
    crate::common::mounted::unmount_if_mounted(&m.merged());
    sh(&format!("umount -l '{shown}'"));
    outcome.unwrap();
}

#[test]
fn command_lines() {
    let m = Mount::unmounted(&["f=1"]);
    let at = m.merged().display().to_string();
    let table: &[(&[&str], &str)] = &[
        (&["-o", "lowerdir=/", "-x", &at], "unknown option -x"),
        (&["-o", "upperdir=/u,lowerdir=/", &at], "workdir"),
        (&["-o", "ro", &at], "no lowerdir"),
        (&["-o", "lowerdir=/"], "no mountpoint"),
        (&["-o", "lowerdir=/,uidmapping=0:1", &at], "uidmapping"),
        (&["mount", &at], "what shall be mounted"),
        (&["mount", "--lower", "/", "image", &at], "not both"),
    ];
    for (args, expected) in table {
        let line = fails(plyfs().args(*args).env("PLYFS_ROOT", m.path("store")));
        assert!(line.contains(expected), "{args:?}: {line}");
    }
    for args in [&["lod"][..], &["mount", "--loer", "x"], &[], &["rmi"]] {
        let output = plyfs().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.lines().count() == 1 || args.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn no_fuse_device_or_no_permission() {
    if !is_root() {
        return eprintln!("skipped: taking /dev/fuse away needs root");
    }
    let m = Mount::unmounted(&["f=1"]);
    fs::set_permissions(m.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    // In a mount namespace of its own, /dev/fuse is covered by another file.
    let covered = |over: &str| {
        let mut command = Command::new("unshare");
        let line = format!("mount --bind {over} /dev/fuse && exec \"$@\"");
        command.args(["-m", "sh", "-c", &line, "sh", env!("CARGO_BIN_EXE_plyfs"), "mount"]);
        command.arg("--lower").arg(m.lower(0)).arg(m.merged()).stdin(Stdio::null());
        command
    };
    if Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success())
        && fs::metadata("/dev/fuse").is_ok()
    {
        let output = covered("/dev/null").output().unwrap();
        assert!(!output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
    }
    if fs::metadata("/dev/fuse").is_ok_and(|meta| meta.permissions().mode() & 0o006 == 0) {
        let program = m.path("plyfs");
        fs::copy(env!("CARGO_BIN_EXE_plyfs"), &program).unwrap();
        let mut command = Command::new(&program);
        command.arg("mount").arg("--lower").arg(m.lower(0)).arg(m.merged());
        command.uid(65534).gid(65534).env("HOME", m.path(""));
        let denied = fails(&mut command);
        assert!(denied.contains("no permission to open /dev/fuse"), "{denied}");
    }
}

#[test]
fn a_mount_in_use_is_not_taken_away() {
    need_mount!();
    let m = Mount::new(&["f=1"]);
    let open = fs::File::open(m.at("f")).unwrap();
    let busy = fails(plyfs().arg("umount").arg(m.merged()));
    assert!(busy.contains("resource busy"), "{busy}");
    assert!(is_mounted(&m.merged()));
    drop(open);
    m.unmount();
}

#[test]
fn an_upper_that_overlaps_a_lower() {
    need_mount!();
    let m = Mount::unmounted(&["f=1 sub/"]);
    for upper in [m.lower(0).to_owned(), m.lower(0).join("sub"), m.path("")] {
        let mut command = with_lower(&m);
        command.arg("--upper").arg(&upper).arg("--work").arg(m.path("work")).arg(m.merged());
        let line = fails(&mut command);
        assert!(line.contains("overlaps the lower layer"), "{line}");
    }
    assert_eq!(crate::common::tell(m.lower(0)), ["f=1", "sub/"]);
}

#[test]
fn a_dead_mount_is_named_as_such() {
    need_mount!();
    let m = Mount::new(&["f=1"]);
    sh(&format!("kill -9 {}", daemon_of(&m)));
    crate::common::mounted::wait_until("it is dead", || fs::metadata(m.merged()).is_err());
    let line = fails(with_upper(&m).arg(m.merged()));
    assert!(line.contains("a dead mount is there"), "{line}");
}
