//! The ways to start and to end a mount.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::mounted::{
    Mount, daemon_of, is_mounted, mount_line, plyfs, run, sh, threads, wait_until,
};
use crate::common::{is_root, tell};
use crate::need_mount;

fn mount_options(m: &Mount) -> String {
    format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        m.lower(0).display(),
        m.lower(1).display(),
        m.upper().display(),
        m.path("work").display()
    )
}

#[test]
fn as_a_mount_program() {
    need_mount!();
    let m = Mount::unmounted(&["a=1", "b=2"]);
    let options = mount_options(&m);
    let source = |line: String| line.split(' ').next().unwrap().to_owned();
    let forms: [(&[&str], &str); 4] = [
        (&["-o", &format!("{options},,volatile,")], env!("CARGO_BIN_EXE_plyfs")),
        (&["-o", &format!("{options},fsname=my\\,name")], "my,name"),
        (&["SOURCE", "MERGED", "-o", &format!("rw,dev,suid,{options}")], "SOURCE"),
        (&["-o", &options, "-o", "rw,private"], env!("CARGO_BIN_EXE_plyfs")),
    ];
    for (args, expected) in forms {
        let mut command = plyfs();
        let merged = m.merged();
        let args: Vec<_> = args
            .iter()
            .map(|arg| if *arg == "MERGED" { merged.to_str().unwrap() } else { arg })
            .collect();
        command.args(&args);
        if !args.contains(&merged.to_str().unwrap()) {
            command.arg(&merged);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let line = mount_line(&merged).unwrap();
        assert!(line.contains(" fuse.plyfs "), "{line}");
        assert_eq!(source(line), expected);
        assert_eq!(tell(&merged), ["a=1", "b=2"]);
        m.unmount();
    }
}

#[test]
fn unknown_options_warn_and_mount() {
    need_mount!();
    let m = Mount::unmounted(&["a=1", "b=2"]);
    let options = format!("{},frobnicate=7", mount_options(&m));
    let output = plyfs().args(["-o", &options]).arg(m.merged()).output().unwrap();
    assert!(output.status.success());
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(warning.contains("frobnicate") && warning.lines().count() == 1, "{warning}");
    assert_eq!(tell(&m.merged()), ["a=1", "b=2"]);
}

#[test]
fn without_upper_it_is_read_only() {
    need_mount!();
    let m = Mount::unmounted(&["a=1", "b=2"]);
    let lowers = format!("lowerdir={}:{}", m.lower(0).display(), m.lower(1).display());
    run(plyfs().args(["-o", &lowers]).arg(m.merged()));
    let error = std::fs::write(m.at("a"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(tell(&m.merged()), ["a=1", "b=2"]);
}

#[test]
fn relative_and_symlinked_lowers_with_odd_names() {
    need_mount!();
    let m = Mount::unmounted(&["a=1"]);
    std::fs::rename(m.lower(0), m.path("od:d,n")).unwrap();
    std::os::unix::fs::symlink("od:d,n", m.path("short")).unwrap();
    for lower in [r"lowerdir=od\:d\,n", "lowerdir=short", "lowerdir=./short"] {
        run(plyfs().args(["-o", lower, "merged"]).current_dir(m.path("")));
        assert_eq!(tell(&m.merged()), ["a=1"]);
        m.unmount();
    }
}

#[test]
fn every_way_to_end_it_ends_it() {
    need_mount!();
    let m = Mount::unmounted(&["a=1", "b=2"]);
    let merged = m.merged();
    let quoted = format!("'{}'", merged.display());
    let mut ways =
        vec![format!("fusermount3 -u {quoted}"), "kill -TERM $PID".into(), "kill -INT $PID".into()];
    if is_root() {
        ways.push(format!("umount {quoted}"));
    }
    for way in ways {
        let mut command = plyfs();
        command.args(["-f", "-o", &mount_options(&m)]).arg(&merged);
        let mut daemon = command.spawn().unwrap();
        wait_until("it is mounted", || is_mounted(&merged));
        std::fs::write(m.at("written"), &way).unwrap();
        sh(&way.replace("$PID", &daemon.id().to_string()));
        let status = daemon.wait().unwrap();
        assert!(status.success(), "{way}: {status}");
        assert!(!is_mounted(&merged), "{way}");
        assert_eq!(std::fs::read_to_string(m.upper().join("written")).unwrap(), way);
    }
}

#[test]
fn the_daemon_leaves_its_caller_alone() {
    need_mount!();
    let mut m = Mount::unmounted(&["a=1"]);
    // A pipe held by the daemon would keep `cat` waiting.
    let line = format!(
        "{} mount --lower '{}' --upper '{}' --work '{}' '{}' | cat",
        env!("CARGO_BIN_EXE_plyfs"),
        m.lower(0).display(),
        m.upper().display(),
        m.path("work").display(),
        m.merged().display()
    );
    sh(&line);
    assert_eq!(tell(&m.merged()), ["a=1"]);
    m.remount();
}

#[test]
fn after_kill_9_it_can_be_mounted_again() {
    need_mount!();
    let mut m = Mount::new(&["d/f=1 gone=1"]);
    m.sh("echo 2 >> d/f; rm gone; echo 3 > new");
    let pid = daemon_of(&m);
    sh(&format!("kill -9 {pid}"));
    let dead = || {
        let error = std::fs::metadata(m.at("new")).err();
        error.and_then(|e| e.raw_os_error()) == Some(libc::ENOTCONN)
    };
    wait_until("the daemon is dead", dead);
    m.unmount();
    m.mount();
    m.expect("d/ d/f=12\\n new=3\\n");
}

#[test]
fn a_mountpoint_inside_its_own_lower() {
    need_mount!();
    let m = Mount::unmounted(&["in/side=1 f=1"]);
    let inside = m.lower(0).join("in");
    run(plyfs().arg("mount").arg("--lower").arg(m.lower(0)).arg(&inside));
    let told = Command::new("timeout").args(["5", "ls", "-l"]).arg(&inside).output().unwrap();
    crate::common::mounted::unmount_if_mounted(&inside);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    // An ordinary user has no private clone of the layer's mount: there the mountpoint is left out.
    assert!(told.contains(" f") && (told.contains(" in") || !is_root()), "{told}");
}

/// Many layers share one private mount: what is mounted on one is that layer, what is mounted inside
/// one, or where they all lie, is none of it.
#[test]
fn mounts_on_and_inside_many_layers() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: it takes root");
    }
    struct Undo(Vec<String>);
    impl Drop for Undo {
        fn drop(&mut self) {
            for at in self.0.iter().rev() {
                sh(&format!("umount -l '{at}'"));
            }
        }
    }
    let mut m = Mount::unmounted(&["in/a=1", "hidden=2", "c=3", "d=4", "e=5"]);
    let other = m.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("b"), "from another mount").unwrap();
    let [inside, on] =
        [m.lower(0).join("in"), m.lower(1).to_owned()].map(|at| at.display().to_string());
    let mut undo = Undo(Vec::new());
    sh(&format!("mount -t tmpfs inside '{inside}'"));
    undo.0.push(inside.clone());
    std::fs::write(format!("{inside}/stranger"), "").unwrap();
    // On the same filesystem: inode and device alone do not tell the two apart.
    sh(&format!("mount --bind '{}' '{on}'", other.display()));
    undo.0.push(on);
    m.mount();
    let expected = ["b=from another mount", "c=3", "d=4", "e=5", "in/", "in/a=1"];
    assert_eq!(tell(&m.merged()), expected);
    m.sh("echo more >> in/a; echo more >> b");
    m.remount();
    let expected = ["b=from another mountmore\\n", "c=3", "d=4", "e=5", "in/", "in/a=1more\\n"];
    assert_eq!(tell(&m.merged()), expected);
    m.unmount();
}

#[test]
fn a_union_as_a_layer_of_a_union() {
    need_mount!();
    let mut first = Mount::new(&["d/f=1 gone=1", "d/g=2"]);
    first.sh("rm gone; echo 3 >> d/g");
    let second = Mount::unmounted(&[""]);
    run(plyfs()
        .args(["mount", "--lower"])
        .arg(first.merged())
        .arg("--upper")
        .arg(second.upper())
        .arg("--work")
        .arg(second.path("work"))
        .arg(second.merged()));
    second.sh("echo 4 >> d/f; mv d e; rm e/g");
    assert_eq!(tell(&second.merged()), ["e/", "e/f=14\\n"]);
    second.unmount();
    first.expect("d/ d/f=1 d/g=23\\n");
}

#[test]
fn a_union_as_the_upper_layer_of_a_union() {
    need_mount!();
    for form in ["plain", "rich"] {
        let mut first = Mount::new(&["up/d/mine=1", ""]);
        first.sh("mkdir -p wk up");
        let second = Mount::unmounted(&["d/f=1 d/g=2 o/p=3 keep=4 h=5 h2=>h"]);
        let (up, wk) = (first.at("up"), first.at("wk"));
        let mount = || {
            let mut command = plyfs();
            command.args(["mount", "--form", form, "--lower"]).arg(second.lower(0));
            command.arg("--upper").arg(&up).arg("--work").arg(&wk);
            run(command.arg(second.merged()));
        };
        mount();
        second.sh(
            "rm d/f; rm -r o; mkdir o; echo 6 > o/new; mv d e; echo x >> h; ln keep k2; chmod 600 keep
             echo mine > .wh.keep; mkfifo pipe; mv e/g .wh.g",
        );
        let expected = [
            ".wh.g=2",
            ".wh.keep=mine\\n",
            "e/",
            "e/mine=1",
            "h2=5x\\n",
            "h=5x\\n",
            "k2=4",
            "keep=4",
            "o/",
            "o/new=6\\n",
            "pipe special",
        ];
        assert_eq!(tell(&second.merged()), expected, "{form}");
        second.unmount();
        first.remount();
        mount();
        assert_eq!(tell(&second.merged()), expected, "{form}, remounted");
        second.unmount();
    }
}

#[test]
fn the_marker_goes_with_the_daemon_whatever_it_was_reading() {
    need_mount!();
    let words: Vec<_> = (0..40).map(|n| format!("d{n}/e/f=1")).collect();
    let mut m = Mount::unmounted(&[&words.join(" ")]);
    m.options = vec!["--volatile".into()];
    for _ in 0..5 {
        m.mount();
        let daemon = daemon_of(&m);
        m.sh("echo > new; find . > /dev/null");
        assert_eq!(threads(&daemon, "ahead").len(), 1, "somebody reads");
        m.unmount();
        wait_until("the daemon ends", || {
            !std::path::Path::new(&format!("/proc/{daemon}")).exists()
        });
        assert!(!m.path("work/volatile").exists());
    }
}

#[test]
fn a_volatile_mount_leaves_a_marker_that_a_crash_of_the_machine_betrays() {
    need_mount!();
    let mut m = Mount::unmounted(&["f=1", ""]);
    let marker = m.path("work/volatile");
    m.options = vec!["--volatile".into()];
    m.mount();
    assert!(marker.exists());
    m.unmount();
    wait_until("the marker is gone", || !marker.exists());
    // The daemon's death alone loses nothing.
    m.mount();
    m.sh("echo 2 >> f");
    sh(&format!("kill -9 {}", daemon_of(&m)));
    run(plyfs().args(["umount", "--lazy"]).arg(m.merged()));
    m.options.clear();
    m.mount();
    assert!(!marker.exists(), "a mount that syncs has synced what the last one left");
    m.unmount();
    // What a machine that went down in between leaves.
    let after_a_crash = || std::fs::write(&marker, "another boot\n").unwrap();
    after_a_crash();
    let mut refused = plyfs();
    refused.args(["mount", "--lower"]).arg(m.lower(0)).arg("--upper").arg(m.upper());
    refused.arg("--work").arg(m.path("work")).arg(m.merged());
    let error = crate::common::mounted::fails(&mut refused);
    assert!(error.contains("volatile") && error.contains("--accept-loss"), "{error}");
    assert!(!is_mounted(&m.merged()) && marker.exists());
    run(refused.arg("--accept-loss"));
    assert!(!marker.exists());
    m.unmount();
    // podman could not answer: there it is a warning.
    after_a_crash();
    let output = plyfs().args(["-o", &mount_options(&m)]).arg(m.merged()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("may lack"), "{said}");
    m.expect("f=12\\n");
}

#[test]
fn one_upper_has_one_mount() {
    need_mount!();
    let m = Mount::new(&["a=1", "b=2"]);
    let other = m.path("other");
    std::fs::create_dir(&other).unwrap();
    let error = crate::common::mounted::fails(plyfs().args(["-o", &mount_options(&m)]).arg(&other));
    assert!(error.contains("in use") && error.contains(m.merged().to_str().unwrap()), "{error}");
    let mut elsewhere = plyfs();
    elsewhere.args(["mount", "--lower"]).arg(m.lower(0)).arg("--upper").arg(m.upper());
    let other_work = m.path("other-work");
    std::fs::create_dir(&other_work).unwrap();
    let error = crate::common::mounted::fails(elsewhere.arg("--work").arg(&other_work).arg(&other));
    let (pid, expected) = (daemon_of(&m), "with another workdir");
    assert!(error.contains(&format!("pid {pid}")) && error.contains(expected), "{error}");
    assert!(!is_mounted(Path::new(&other)));
}

/// Runs a shell script as an ordinary user who may open /dev/fuse, in a mount namespace of
/// its own; `$PLYFS` is the program, `$HOME` a directory of the user's.
fn as_ordinary_user(m: &Mount, script: &str) -> String {
    let home = m.path("home");
    let dir = m.path("").display().to_string();
    let setup = format!(
        "chmod 755 '{dir}'; cp {program} '{dir}/plyfs'; mkdir '{home}'; chown 65534:65534 '{home}'
         mknod '{dir}/fuse' c 10 229; chmod 666 '{dir}/fuse'
         mount --bind '{dir}/fuse' /dev/fuse
         cd '{home}'; exec env -i PATH=\"$PATH\" HOME='{home}' PLYFS='{dir}/plyfs' \
         setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc \"$0\"",
        program = env!("CARGO_BIN_EXE_plyfs"),
        home = home.display(),
    );
    run(Command::new("unshare").args(["-m", "sh", "-euc", &setup, script]))
}

#[test]
fn an_ordinary_user_mounts_with_fusermount3() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: here everything is tested as an ordinary user anyway");
    }
    if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success()) {
        return eprintln!("skipped: no mount namespace of one's own here");
    }
    let m = Mount::unmounted(&[""]);
    let told = as_ordinary_user(
        &m,
        "umask 022; mkdir -p lower/d upper work m
         mkdir -m 755 lower/shut; echo s > lower/shut/f; chmod 555 lower/shut
         echo low > lower/d/f; echo ro > lower/ro; chmod 444 lower/ro; mkdir -m 500 lower/closed
         $PLYFS mount --lower lower --upper upper --work work m
         trap '$PLYFS umount m' EXIT
         grep ' fuse.plyfs ' /proc/mounts | grep -q \"$HOME/m\"
         cat m/d/f; echo more >> m/d/f; mv m/d m/e; rm m/ro; cat m/e/f
         chmod 600 m/shut/f; echo more >> m/shut/f; stat -c '%a' m/shut
         (umask 777; echo secret > m/unreadable); chmod 600 m/unreadable; cat m/unreadable
         python3 -c 'import os; f=os.open(\"m/w\",os.O_CREAT|os.O_RDWR,0o444); os.write(f,b\"x\"); print(os.fstat(f).st_size)'
         stat -c '%U %a' m/e m/w
         trap - EXIT; $PLYFS umount m; ls -A upper",
    );
    let lines: Vec<_> = told.lines().collect();
    let expected = [
        "low",
        "low",
        "more",
        "555",
        "secret",
        "1",
        "nobody 755",
        "nobody 444",
        ".wh.d",
        ".wh.ro",
        "e",
        "shut",
        "unreadable",
        "w",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn an_ordinary_users_rich_upper() {
    need_mount!();
    let can_be_another =
        || Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success());
    if !is_root() || !can_be_another() {
        return eprintln!("skipped: needs root, and a mount namespace of one's own");
    }
    let m = Mount::unmounted(&[""]);
    // What its owner may not read cannot have a pointer, for nobody would find it again.
    let told = as_ordinary_user(
        &m,
        "umask 022; mkdir -p lower/d upper work m
         head -c 100000 /dev/zero | tr '\\0' 1 > lower/big; cp lower/big lower/kept; echo x > lower/d/x
         mount() { $PLYFS mount --form rich --lower lower --upper upper --work work m; }
         mount; trap '$PLYFS umount --lazy m' EXIT
         chmod 600 m/kept; chmod 200 m/big; mv m/d m/e; mv m/e m/f; mkdir m/n; mv m/f m/n/g; chmod 300 m/n/g
         $PLYFS umount m; mount
         chmod 600 m/big; chmod 700 m/n/g
         for f in m/big m/kept; do tr -d 1 < $f | wc -c; wc -c < $f; done; cat m/n/g/x
         trap - EXIT; $PLYFS umount m; du -k upper/kept | cut -f1",
    );
    let lines: Vec<_> = told.lines().collect();
    let (blocks, shown) = lines.split_last().unwrap();
    assert_eq!(shown, ["0", "100000", "0", "100000", "x"]);
    assert!(blocks.parse::<u32>().unwrap() < 40, "a metacopy: {blocks}");
    // Root cannot follow an ordinary user's pointers, and says so.
    let mut refused = plyfs();
    let home = m.path("home");
    refused.args(["mount", "--lower"]).arg(home.join("lower"));
    refused.arg("--upper").arg(home.join("upper")).arg("--work").arg(home.join("work"));
    let error = crate::common::mounted::fails(refused.arg(m.merged()));
    assert!(error.contains("an ordinary user"), "{error}");
}

#[test]
fn the_daemon_keeps_no_file_of_its_caller() {
    need_mount!();
    let m = Mount::unmounted(&["a=1"]);
    let line = format!(
        "exec 7>'{leak}'; '{program}' mount --lower '{lower}' --upper '{upper}' --work '{work}' '{merged}'",
        leak = m.path("leak").display(),
        program = env!("CARGO_BIN_EXE_plyfs"),
        lower = m.lower(0).display(),
        upper = m.upper().display(),
        work = m.path("work").display(),
        merged = m.merged().display(),
    );
    sh(&line);
    let pid = daemon_of(&m);
    let open = sh(&format!("ls -l /proc/{pid}/fd"));
    assert!(!open.contains("leak"), "{open}");
    assert!(open.contains("/dev/fuse") && open.contains("/dev/null"), "{open}");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
}

#[test]
fn requests_are_counted() {
    need_mount!();
    let m = Mount::new(&["d/f=1"]);
    for _ in 0..3 {
        assert!(m.at("none").symlink_metadata().is_err());
        assert_eq!(std::fs::read(m.at("d/f")).unwrap(), b"1");
    }
    let told = run(plyfs().args(["stats", "--format", "json"]).arg(m.merged()));
    let counts: serde_json::Value = serde_json::from_str(&told).unwrap();
    // What is known is not asked again: missing names, data.
    assert_eq!((&counts["LOOKUP"], &counts["READ"]), (&3.into(), &1.into()), "{told}");
    let table = run(plyfs().arg("stats").arg(m.merged()));
    assert!(table.starts_with("REQUEST") && table.contains("LOOKUP            3"), "{table}");
    let error = crate::common::mounted::fails(plyfs().arg("stats").arg(m.upper()));
    assert!(error.contains("no plyfs tree"), "{error}");
}

#[test]
fn what_ran_beside_the_workers_leaves_nothing_behind() {
    need_mount!();
    let mut m = Mount::unmounted(&["big="]);
    std::fs::write(m.lower(0).join("big"), vec![1; 8 << 20]).unwrap();
    m.options = vec!["--volatile".to_owned()];
    for n in 0..3 {
        m.mount();
        std::fs::write(m.at("big"), n.to_string()).unwrap();
        m.unmount();
        wait_until("the daemon has ended", || m.path("work/volatile").metadata().is_err());
        // At once: a lock that is still held would be waited for.
        let lock = sh(&format!("flock -n '{}' echo free", m.path("work/lock").display()));
        assert_eq!(lock, "free\n");
    }
}
