//! How many requests operations take, and how long processors wait for them.

use std::fs;

use crate::common::is_root;
use crate::common::mounted::{Mount, fails, plyfs, run, wait_until};
use crate::need_mount;

/// As `find -printf` does.
fn list_and_stat(m: &Mount) {
    for entry in fs::read_dir(m.at("d")).unwrap() {
        assert!(fs::symlink_metadata(entry.unwrap().path()).unwrap().is_file());
    }
}

/// Requests of these kinds that an operation takes.
fn requests<const N: usize>(m: &Mount, kinds: [&str; N], operation: impl FnOnce()) -> [u64; N] {
    let before = kinds.map(|kind| m.count(kind));
    operation();
    let after = kinds.map(|kind| m.count(kind));
    std::array::from_fn(|n| after[n] - before[n])
}

fn with_files(count: usize) -> Mount {
    let files: Vec<String> = (0..count).map(|n| format!("d/f{n}=x")).collect();
    Mount::new(&[&files.join(" ")])
}

fn read(m: &Mount, files: std::ops::Range<usize>) {
    for n in files {
        assert_eq!(fs::read_to_string(m.at(&format!("d/f{n}"))).unwrap(), "x");
    }
}

/// FUSE takes the time of access for unknown after each READ.
#[test]
fn who_lists_files_that_were_read_gets_all_attributes_at_once() {
    need_mount!();
    let m = with_files(40);
    list_and_stat(&m);
    read(&m, 0..40);
    let kinds = ["GETATTR", "READDIRPLUS"];
    // The kernel is told by a thread of its own, which may take a moment.
    wait_until("the directory is listed anew", || requests(&m, kinds, || list_and_stat(&m))[1] > 0);
    let [attrs, listings] = requests(&m, kinds, || list_and_stat(&m));
    assert!(attrs <= 1 && listings == 0, "{attrs} GETATTR, {listings} READDIRPLUS");
    let [attrs, listings] = requests(&m, kinds, || list_and_stat(&m));
    assert_eq!((attrs, listings), (0, 0));
}

#[test]
fn a_directory_of_which_few_files_were_read_stays_listed() {
    need_mount!();
    let m = with_files(40);
    list_and_stat(&m);
    read(&m, 0..4);
    let [attrs, listings] = requests(&m, ["GETATTR", "READDIRPLUS"], || list_and_stat(&m));
    assert!(attrs >= 4 && listings == 0, "{attrs} GETATTR, {listings} READDIRPLUS");
}

/// There the kernel believes in times of access, read or not.
#[test]
fn a_directory_of_a_read_only_mount_stays_listed() {
    need_mount!();
    let m = with_files(40);
    m.unmount();
    run(plyfs().args(["mount", "--lower"]).arg(m.lower(0)).arg(m.merged()));
    list_and_stat(&m);
    read(&m, 0..40);
    std::thread::sleep(std::time::Duration::from_millis(200)); // who would drop it has a thread
    let requests = requests(&m, ["GETATTR", "READDIRPLUS"], || list_and_stat(&m));
    assert_eq!(requests, [0, 0]);
}

/// What is read while the kernel fills in its listing must not keep it from having one.
#[test]
fn a_large_directory_that_is_read_while_it_is_listed_is_listed_once() {
    need_mount!();
    let m = with_files(2000);
    for entry in fs::read_dir(m.at("d")).unwrap() {
        fs::read(entry.unwrap().path()).unwrap();
    }
    let list = || assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 2000);
    // What drops it has a thread of its own, which may come late.
    wait_until("it is not listed anew", || requests(&m, ["READDIRPLUS"], list) == [0]);
}

/// What the machine bears, in microseconds, as all who ask for something have it.
fn bearable_latency() -> i32 {
    i32::from_ne_bytes(fs::read("/dev/cpu_dma_latency").unwrap()[..4].try_into().unwrap())
}

#[test]
fn processors_stay_awake_while_requests_come() {
    need_mount!();
    if !is_root() || fs::read("/dev/cpu_dma_latency").is_err() {
        return eprintln!("skipped: it takes root and /dev/cpu_dma_latency");
    }
    if bearable_latency() == 0 {
        return eprintln!("skipped: somebody else keeps them awake");
    }
    let mut m = Mount::unmounted(&["f=lower"]);
    m.options = ["--idle", "poll"].map(str::to_owned).to_vec();
    m.mount();
    let missing = std::cell::Cell::new(0);
    wait_until("processors poll", || {
        for _ in 0..200 {
            let name = format!("missing{}", missing.replace(missing.get() + 1));
            assert!(fs::symlink_metadata(m.at(&name)).is_err());
        }
        bearable_latency() == 0
    });
    wait_until("they may sleep again", || bearable_latency() != 0);
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "lower");
}

#[test]
fn an_ordinary_user_is_told_that_polling_takes_root() {
    need_mount!();
    if is_root() {
        return eprintln!("skipped: root may");
    }
    let m = Mount::unmounted(&["f=lower"]);
    let mut command = plyfs();
    command.args(["mount", "--idle", "poll", "--lower"]).arg(m.lower(0)).arg(m.merged());
    assert!(fails(&mut command).contains("idle=poll takes root"));
}
