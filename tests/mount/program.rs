//! plyfs as a mount program: what podman, mount(8) and users of fuse-overlayfs write.

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Command, Output};

use crate::common::is_root;
use crate::common::mounted::{
    Mount, is_mounted, mount_line, plyfs, run, sh, unmount_if_mounted, wait_until,
};
use crate::need_mount;

/// Calls the program as podman does, in the directory of the layers, with these options more.
fn call(m: &Mount, options: &str) -> Output {
    let all = format!("lowerdir=lower0,upperdir=upper,workdir=work,,{options}");
    plyfs().args(["-o", &all, "merged"]).current_dir(m.path("")).output().unwrap()
}

#[track_caller]
fn mount(m: &Mount, options: &str) {
    let output = call(m, options);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "{options}: {told}");
}

#[track_caller]
fn owner(m: &Mount, name: &str) -> (u32, u32, u32) {
    let found = std::fs::symlink_metadata(m.at(name)).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
fn owners_as_podman_asks_for_them() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let lower = std::fs::metadata(m.lower(0).join("f")).unwrap();
    let (uid, gid) = (lower.uid(), lower.gid());
    let maps = format!("uidmapping=:{uid}:70000:10,gidmapping=:{gid}:80000:10");
    let table = [
        (maps.as_str(), (70000, 80000)),
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=7", (7, gid)),
        ("squash_to_root,squash_to_gid=8", (0, 8)),
        ("volatile", (uid, gid)),
    ];
    for (options, (uid, gid)) in table {
        mount(&m, options);
        assert_eq!(owner(&m, "f"), (uid, gid, 0o644), "{options}");
        m.unmount();
    }
}

#[test]
fn nobody_owns_a_file_of_an_unmapped_owner() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: only root makes files of others");
    }
    let m = Mount::unmounted(&["f=lower mine=lower"]);
    crate::common::open_to_all(&m.path(""));
    std::os::unix::fs::chown(m.lower(0).join("f"), Some(7), Some(7)).unwrap();
    mount(&m, "uidmapping=0:65534:1,gidmapping=0:65534:1");
    assert_eq!((owner(&m, "f"), owner(&m, "mine")), ((65534, 65534, 0o644), (65534, 65534, 0o644)));
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"];
    let line = "cd \"$0\"; for f in f mine; do chmod 4755 $f; echo more >> $f; done 2>/dev/null; cat f mine";
    let told = run(Command::new("setpriv").args(nobody).arg(line).arg(m.merged()));
    assert_eq!(told, "lowerlowermore\n");
    assert_eq!(owner(&m, "f").2, 0o644);
}

#[test]
fn setuid_and_owner_survive_in_xattrs() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: only root changes owners through a mount");
    }
    let m = Mount::unmounted(&["f=lower"]);
    let check = |m: &Mount| {
        assert_eq!(owner(m, "f"), (5, 6, 0o4711));
        assert_eq!(owner(m, "l"), (7, 8, 0o777));
        assert_eq!(std::fs::read_link(m.at("l")).unwrap().to_str(), Some("target"));
    };
    mount(&m, "xattr_permissions=2");
    let line = "cd \"$0\"; chown 5:6 f; chmod 4711 f; ln -s target l; chown -h 7:8 l; mkfifo p
                chown 9 p; getfattr -d -m - f";
    let told = run(Command::new("sh").args(["-euc", line]).arg(m.merged()));
    assert_eq!(told, "", "where it is kept is nobody's business");
    check(&m);
    m.unmount();
    let upper = std::fs::metadata(m.upper().join("f")).unwrap();
    assert_eq!((upper.uid(), upper.gid(), upper.mode() & 0o7777), (0, 0, 0o711));
    mount(&m, "xattr_permissions=2");
    check(&m);
    let told = sh(&format!("stat -c '%F %u' '{}'", m.at("p").display()));
    assert_eq!(told, "fifo 9\n");
}

#[test]
fn a_user_namespace_with_one_id_shows_an_image_of_many_owners() {
    need_mount!();
    if !Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|s| s.success()) {
        return eprintln!("skipped: no user namespace to be had here");
    }
    let m = Mount::unmounted(&["f=lower d/g=lower"]);
    for (name, value) in [("", "0:0:0755"), ("d", "33:33:0755"), ("f", "0:0:4755")] {
        let path = m.lower(0).join(name);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.containers.override_stat", value.as_bytes(), flags)
            .unwrap();
    }
    let script = format!(
        "cd '{}'
         {} -o lowerdir=lower0,upperdir=upper,workdir=work,xattr_permissions=2 merged
         cd merged; stat -c '%n %u %a' f d; chmod 4711 f; echo more >> d/g; ln -s f l; mkfifo p
         mknod c c 1 3 || echo none; stat -c '%n %u %a' f l p; cd ..; umount merged",
        m.path("").display(),
        env!("CARGO_BIN_EXE_plyfs")
    );
    let told = run(Command::new("unshare").args(["-Urm", "sh", "-euc", &script]));
    let lines: Vec<_> = told.lines().collect();
    let nobody = "d 65534 755";
    assert_eq!(lines, ["f 0 4755", nobody, "none", "f 0 4711", "l 0 777", "p 0 644"]);
}

#[test]
fn attributes_that_are_not_wanted() {
    need_mount!();
    let m = Mount::unmounted(&["d/e/f=lower"]);
    let links = |m: &Mount| std::fs::metadata(m.at("d")).unwrap().nlink();
    let tell = |m: &Mount, line: &str| {
        let output = Command::new("sh").args(["-c", line]).arg(m.at("d")).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    mount(&m, "static_nlink,noacl");
    assert_eq!(links(&m), 1);
    assert!(tell(&m, "setfacl -m u:3:r \"$0\"").contains("not supported"));
    assert_eq!(tell(&m, "setfattr -n user.x -v 1 \"$0\""), "");
    m.unmount();
    mount(&m, "noxattrs=1");
    assert_eq!(links(&m), 1, "upper and lower");
    assert!(tell(&m, "setfattr -n user.y -v 1 \"$0\"").contains("not supported"));
    assert!(tell(&m, "getfattr --absolute-names -n user.x \"$0\"").contains("not supported"));
    m.unmount();
    mount(&m, "noacl");
    assert_eq!(tell(&m, "getfattr --absolute-names -n user.x \"$0\""), "");
}

#[test]
fn names_in_the_mount_table() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    mount(&m, "fsname=some\\,where,subtype=union");
    let line = mount_line(&m.merged()).unwrap();
    assert!(line.starts_with("some,where ") && line.contains(" fuse.union "), "{line}");
    std::fs::read(m.at("f")).unwrap();
    assert!(run(plyfs().arg("stats").arg(m.merged())).contains("LOOKUP"));
    m.unmount();
    assert!(!is_mounted(&m.merged()));
}

#[test]
fn under_the_name_of_fuse_overlayfs() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let program = m.path("fuse-overlayfs");
    symlink(env!("CARGO_BIN_EXE_plyfs"), &program).unwrap();
    for flag in ["--version", "-V"] {
        let told = run(Command::new(&program).arg(flag));
        assert_eq!(told, format!("plyfs {}\n", env!("CARGO_PKG_VERSION")));
    }
    assert!(run(Command::new(&program).arg("--help")).starts_with("usage: "));
    let mut command = Command::new(&program);
    command.args(["-o", "lowerdir=lower0", "merged"]).current_dir(m.path(""));
    run(&mut command);
    let line = mount_line(&m.merged()).unwrap();
    assert!(line.contains(" fuse.fuse-overlayfs "), "{line}");
    m.unmount();
}

#[test]
fn mount_8_finds_its_helper() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let program = m.path("mount.fuse.plyfs");
    symlink(env!("CARGO_BIN_EXE_plyfs"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["layers", "merged", "-n", "-t", "fuse.plyfs", "-o", "rw,lowerdir=lower0"]);
    run(command.current_dir(m.path("")));
    assert!(mount_line(&m.merged()).unwrap().starts_with("layers "));
}

#[test]
fn five_hundred_lowers() {
    need_mount!();
    let m = Mount::unmounted(&["base=0"]);
    let mut lowers = Vec::new();
    std::fs::create_dir(m.path("l")).unwrap();
    for n in 0..500 {
        let layer = m.path(&format!("layer{n}"));
        std::fs::create_dir_all(layer.join("d")).unwrap();
        std::fs::write(layer.join(format!("d/f{n}")), "x").unwrap();
        std::fs::write(layer.join("top"), n.to_string()).unwrap();
        let link = format!("ABCDEFGHIJKLMNOPQRSTUVW{n:03}");
        symlink(format!("../layer{n}"), m.path("l").join(&link)).unwrap();
        lowers.push(format!("l/{link}"));
    }
    let options =
        format!("lowerdir={}:lower0,upperdir=upper,workdir=work,,volatile", lowers.join(":"));
    run(plyfs().args(["-o", &options, "merged"]).current_dir(m.path("")));
    assert_eq!(std::fs::read_dir(m.at("d")).unwrap().count(), 500);
    assert_eq!(std::fs::read_to_string(m.at("top")).unwrap(), "0");
    assert_eq!(std::fs::read_to_string(m.at("base")).unwrap(), "0");
    std::fs::write(m.at("d/f499"), "changed").unwrap();
    assert_eq!(std::fs::read_to_string(m.upper().join("d/f499")).unwrap(), "changed");
}

#[test]
fn the_kernel_believes_for_as_long_as_it_is_told() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let asked = |options: &str| {
        mount(&m, options);
        for _ in 0..5 {
            std::fs::metadata(m.at("f")).unwrap();
        }
        let counts = run(plyfs().arg("stats").arg(m.merged()));
        m.unmount();
        let count = |name: &str| {
            let line = counts.lines().find(|line| line.contains(name)).unwrap_or("0");
            line.split_whitespace().last().unwrap().parse::<u32>().unwrap()
        };
        count("LOOKUP")
    };
    assert_eq!(asked("volatile"), 1);
    assert_eq!(asked("timeout=0"), 5);
    assert_eq!(asked("timeout=3600"), 1);
}

#[test]
fn a_daemon_that_dies_takes_its_mount_along() {
    need_mount!();
    if Command::new("fusermount3").arg("-V").output().is_err() {
        return eprintln!("skipped: no fusermount3");
    }
    let m = Mount::unmounted(&["f=lower"]);
    if !is_root() {
        let told = String::from_utf8(call(&m, "auto_unmount").stderr).unwrap();
        return assert!(told.contains("takes allow_other"), "{told}");
    }
    mount(&m, "auto_unmount");
    let line = mount_line(&m.merged()).unwrap();
    assert!(!line.contains("nosuid") && !line.contains("nodev"), "{line}");
    let daemon = crate::common::mounted::daemon_of(&m);
    sh(&format!("kill -9 {daemon}"));
    wait_until("it is unmounted", || !is_mounted(&m.merged()));
    mount(&m, "auto_unmount");
    m.unmount();
    assert!(!is_mounted(&m.merged()));
}

#[test]
fn what_cannot_be_is_said() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let has_selinux = std::path::Path::new("/sys/fs/selinux/enforce").exists();
    let mut table = vec![
        ("ino32_t", "inode numbers have 64 bits"),
        ("redirect_dir=on", "only redirect_dir=off"),
        ("plugins=x", "plugins are not supported"),
        ("uidmapping=1:2", "an id map is"),
        ("uidmapping=0:0:10:5:5:5", "overlap"),
        ("timeout=soon", "timeout=soon"),
    ];
    if !has_selinux && is_root() {
        table.push(("context=\"u:r:t:s0:c1,c2\"", "it has no SELinux"));
    }
    for (options, expected) in table {
        let output = call(&m, options);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        unmount_if_mounted(&m.merged());
        assert!(!output.status.success() && told.lines().count() == 1, "{options}: {told}");
        assert!(told.contains(expected), "{options}: {told}");
    }
}

/// Runs a script in a mount namespace of its own; `None` where there is none to be had.
fn in_a_namespace(m: &Mount, script: &str) -> Option<String> {
    let flags = if is_root() { "-m" } else { "-Urm" };
    if !Command::new("unshare").args([flags, "true"]).status().is_ok_and(|s| s.success()) {
        return None;
    }
    let script = script.replace("PLYFS", env!("CARGO_BIN_EXE_plyfs"));
    let script = format!("cd '{}'; {script}", m.path("").display());
    Some(run(Command::new("unshare").args([flags, "sh", "-euc", &script])))
}

fn is_running(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    state.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

const MOUNT: &str = "PLYFS -o lowerdir=lower0,upperdir=upper,workdir=work merged
     cut -d, -f1 work/lock | cut -c5-";

#[test]
fn a_mount_ends_with_its_namespace() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    for n in 0..3 {
        let script = format!(
            "{MOUNT}; echo {n} >> merged/g; mv merged/f merged/f{n}; mv merged/f{n} merged/f"
        );
        let Some(daemon) = in_a_namespace(&m, &script) else {
            return eprintln!("skipped: no mount namespace of one's own here");
        };
        wait_until("the daemon ends", || !is_running(daemon.trim()));
    }
    assert_eq!(std::fs::read_to_string(m.upper().join("g")).unwrap(), "0\n1\n2\n");
}

#[test]
fn a_daemon_ends_its_mount_in_another_namespace() {
    need_mount!();
    let m = Mount::unmounted(&["f=lower"]);
    let script = format!(
        "pid=$({MOUNT}); cat merged/f; ls -A /proc/$pid/root; kill $pid
         while mountpoint -q merged; do sleep 0.01; done; ls -A merged"
    );
    match in_a_namespace(&m, &script) {
        None => eprintln!("skipped: no mount namespace of one's own here"),
        // It keeps no mount of the namespace busy.
        Some(told) => assert_eq!(told, "lowerdev\nproc\n"),
    }
}
