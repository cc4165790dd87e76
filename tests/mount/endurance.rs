//! Many operations by several processes at once: at the end the daemon has the descriptors
//! and the memory that it began with. `PLYFS_ENDURANCE` says how many, in all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::is_root;
use crate::common::mounted::{Mount, daemon_of};
use crate::need_mount;

/// Operations, unless the environment asks for another number.
const OPERATIONS: u64 = 60_000;
const WORKERS: u64 = 4;
/// Names of a worker's directory.
const NAMES: u64 = 40;

/// Does one operation; that a name is missing or there already is no failure.
fn operate(dir: &Path, rng: &mut SmallRng) {
    let mut name = || format!("n{}", rng.random_range(0..NAMES));
    let (a, b) = (dir.join(name()), dir.join(name()));
    let result = match rng.random_range(0..12) {
        0 | 1 => fs::write(&a, "some text"),
        2 => fs::File::options().append(true).open(&a).and_then(|mut f| f.write_all(b"more")),
        3 => fs::read(&a).map(drop),
        4 => fs::remove_file(&a),
        5 => fs::rename(&a, &b),
        6 => fs::hard_link(&a, &b),
        7 => fs::create_dir(&a),
        8 => fs::remove_dir_all(&a),
        9 => fs::set_permissions(&a, fs::Permissions::from_mode(0o750)),
        10 => fs::read_dir(dir).map(|names| names.for_each(drop)),
        _ => {
            // Deleted while it is open.
            fs::write(&a, "gone").and_then(|()| {
                let mut open = fs::File::options().append(true).open(&a)?;
                fs::remove_file(&a)?;
                open.write_all(b"still there")
            })
        }
    };
    if let Err(error) = result {
        let expected = [
            libc::ENOENT,
            libc::EEXIST,
            libc::ENOTEMPTY,
            libc::EISDIR,
            libc::ENOTDIR,
            libc::EINVAL,
            libc::EPERM, // a hard link to a directory
        ];
        assert!(expected.contains(&error.raw_os_error().unwrap_or(0)), "{error}");
    }
}

fn work(m: &Mount, count: u64, seed: u64) {
    let workers: Vec<_> = (0..WORKERS)
        .map(|n| {
            let dir = m.at(&format!("w{n}"));
            std::thread::spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed + n);
                for _ in 0..count / WORKERS {
                    operate(&dir, &mut rng);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

/// Descriptors, and resident memory in KiB, when the kernel has forgotten what it can: that
/// takes a while, so it is the least of some looks.
fn weigh(m: &Mount) -> (usize, u64) {
    let looks = (0..15).map(|_| {
        if is_root() {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        look(m)
    });
    looks.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).unwrap()
}

fn look(m: &Mount) -> (usize, u64) {
    let pid = daemon_of(m);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), memory)
}

#[test]
fn many_operations_leave_nothing_behind() {
    need_mount!();
    let from_env = std::env::var("PLYFS_ENDURANCE").ok().and_then(|text| text.parse().ok());
    let count: u64 = from_env.unwrap_or(OPERATIONS);
    let mut m = Mount::unmounted(&[""]);
    for n in 0..WORKERS {
        let dir = m.lower(0).join(format!("w{n}"));
        fs::create_dir(&dir).unwrap();
        for name in 0..NAMES {
            fs::write(dir.join(format!("n{name}")), "lower").unwrap();
        }
    }
    m.options = vec!["--volatile".into()];
    m.nofile = Some(256);
    m.mount();
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    // What a daemon needs at work is there after the first tenth.
    work(&m, count / 10, seed);
    let (files, memory) = weigh(&m);
    work(&m, count, seed + WORKERS);
    let (files_after, memory_after) = weigh(&m);
    eprintln!(
        "{count} operations, seed {seed}: descriptors {files} to {files_after}, KiB {memory} to {memory_after}"
    );
    assert!(files_after <= files + 8, "{files} descriptors became {files_after}");
    // Of small amounts, a tenth is the allocator's noise.
    assert!(memory_after <= memory + memory / 10 + 512, "{memory} KiB became {memory_after}");
}
