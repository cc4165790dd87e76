//! kill -9 of the daemon in the middle of work: what a program saw succeed is there, nothing
//! deleted is back, nothing half-done shows.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::mounted::{Mount, daemon_of, sh, threads, wait_until};
use crate::need_mount;

const ROUNDS: u32 = 6;
const FILES: u32 = 120;

/// Deletes a name, writes through one hard link of another, and renames a directory, in turn;
/// each success is noted outside the mount.
const WORK: &str = r#"
for i in $(seq $FROM $TO); do
    rm f$i && echo f$i >> ../deleted
    echo w$i >> d/h$((i + 60)) && echo "f$((i + 60)) w$i" >> ../written
    mv d/s d/s2; mv d/s2 d/s
done"#;

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn kill_9_at_any_moment() {
    need_mount!();
    let mut words = String::new();
    for n in 1..=FILES {
        words += &format!("f{n}={n} d/h{n}=>f{n} d/s/g{n}={n} ");
    }
    let mut m = Mount::unmounted(&[&words]);
    m.options = vec!["--volatile".into()]; // the machine does not crash here
    for round in 0..ROUNDS {
        m.mount();
        let pid = daemon_of(&m);
        let mut work = Command::new("sh")
            .args(["-c", WORK])
            .env("FROM", (round * 10 + 1).to_string())
            .env("TO", (round * 10 + 10).to_string())
            .current_dir(m.merged())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(5 + round * 7)));
        sh(&format!("kill -9 {pid}"));
        work.wait().unwrap();
        sh(&format!("'{}' umount --lazy '{}'", env!("CARGO_BIN_EXE_plyfs"), m.merged().display()));
        m.mount();
        check(&m);
        m.unmount();
    }
}

/// The files of a directory that are changed in order are copied beforehand, without names.
#[test]
fn kill_9_while_copies_are_made_ahead() {
    need_mount!();
    const FILES: usize = 600;
    let words: String = (0..FILES).map(|n| format!("d{}/f{n}={n} ", n % 4)).collect();
    for round in 0..4 {
        let mut m = Mount::unmounted(&[&words]);
        if !crate::common::copies_ahead(&m.path("work")) {
            return eprintln!("skipped: a filesystem without files without a name, or full");
        }
        m.mount();
        let pid = daemon_of(&m);
        let mut work = Command::new("chmod")
            .args(["-R", "-c", "g+w,o-r", "."])
            .current_dir(m.merged())
            .stdout(std::fs::File::create(m.path("changed")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("copies are made ahead", || !threads(&pid, "copy ahead").is_empty());
        std::thread::sleep(Duration::from_millis(4 * round));
        sh(&format!("kill -9 {pid}"));
        work.wait().unwrap();
        sh(&format!("'{}' umount --lazy '{}'", env!("CARGO_BIN_EXE_plyfs"), m.merged().display()));
        m.mount();
        for n in 0..FILES {
            let name = format!("d{}/f{n}", n % 4);
            assert_eq!(std::fs::read_to_string(m.at(&name)).unwrap(), n.to_string());
        }
        let changed = lines(&m.path("changed"));
        let files = changed.iter().filter_map(|line| line.split('\'').nth(1));
        let files: Vec<_> = files.filter(|path| path.contains("/f")).collect();
        assert!(files.len() >= 3, "{changed:?}");
        for path in files {
            let mode = m.at(path).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o024, 0o020, "{path}");
        }
        assert_eq!(std::fs::read_dir(m.path("work/tmp")).unwrap().count(), 0);
        m.unmount();
    }
}

fn check(m: &Mount) {
    for name in lines(&m.path("deleted")) {
        assert!(!m.at(&name).exists(), "{name} is back");
    }
    for line in lines(&m.path("written")) {
        let (name, word) = line.split_once(' ').unwrap();
        for name in [name.to_owned(), name.replace('f', "d/h")] {
            if name.starts_with('f') && !m.at(&name).exists() {
                continue; // deleted in a later round
            }
            let text = std::fs::read_to_string(m.at(&name)).unwrap();
            assert!(
                text.lines().any(|line| line.ends_with(word)),
                "{name} has lost {word}: {text}"
            );
        }
    }
    let tree = crate::common::tell(&m.merged());
    assert!(!tree.iter().any(|line| line.contains(".wh.")), "{tree:?}");
    let inside = tree.iter().filter(|line| line.starts_with("d/s")).count();
    assert_eq!(inside, FILES as usize + 1, "d/s is whole, under one of its names");
    assert_eq!(std::fs::read_dir(m.path("work/tmp")).unwrap().count(), 0);
}
