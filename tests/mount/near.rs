//! Threads that answer on the processor of who asks.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::CpuSet;

use crate::common::mounted::{
    Mount, Runs, daemon_of, high_priority, processors_in, threads, wait_until,
};
use crate::need_mount;

/// A tree whose requests come by the device.
struct Tree {
    mount: Mount,
    daemon: String,
    /// Names that nobody has asked for begin here.
    asked: AtomicU32,
}

impl Tree {
    fn new(options: &[&str]) -> Self {
        let mut mount = Mount::unmounted(&["f=lower"]);
        mount.options.extend(["--io-uring", "off"].iter().chain(options).map(ToString::to_string));
        mount.mount();
        let daemon = daemon_of(&mount);
        // They start when the tree is there already.
        wait_until("threads read the device", || threads(&daemon, "requests").len() > 1);
        Self { mount, daemon, asked: AtomicU32::new(0) }
    }

    /// A request.
    fn ask(&self) {
        let name = format!("missing{}", self.asked.fetch_add(1, Ordering::Relaxed));
        assert!(fs::symlink_metadata(self.mount.at(&name)).is_err());
    }

    /// Asks in a thread that stays on a processor until all threads that answer run so.
    fn ask_from(&self, processor: usize, so: &Runs) {
        let ask = || {
            let mut only = CpuSet::new();
            only.set(processor);
            rustix::thread::sched_setaffinity(None, &only).unwrap();
            wait_until("all threads are where the program is", || {
                (0..64).for_each(|_| self.ask());
                all_run(&self.daemon, so)
            });
        };
        thread::scope(|scope| scope.spawn(ask).join().unwrap());
    }
}

fn all_run(daemon: &str, so: &Runs) -> bool {
    threads(daemon, "requests").iter().all(|thread| thread == so)
}

/// Whether requests come by io_uring in this run.
fn come_by_uring() -> bool {
    let so = std::env::var_os("PLYFS_TEST_URING").is_some();
    if so {
        eprintln!("skipped: requests come by io_uring");
    }
    so
}

/// Processors on which tests may run.
fn processors() -> Vec<usize> {
    processors_in(&rustix::thread::sched_getaffinity(None).unwrap())
}

#[test]
fn one_program_is_answered_where_it_runs_and_several_anywhere() {
    need_mount!();
    if come_by_uring() {
        return;
    }
    let all = processors();
    if all.len() < 2 {
        return eprintln!("skipped: there is one processor");
    }
    let tree = Tree::new(&[]);
    let anywhere = threads(&tree.daemon, "requests")[0].clone();
    assert_eq!(anywhere.on, all);
    let nice = high_priority();
    for processor in [all[0], all[1]] {
        tree.ask_from(processor, &Runs { on: vec![processor], nice });
    }
    wait_until("all threads run as before", || {
        for _ in 0..16 {
            thread::scope(|scope| scope.spawn(|| tree.ask()).join().unwrap());
        }
        all_run(&tree.daemon, &anywhere)
    });
}

#[test]
fn the_priority_stays_where_that_is_asked_for() {
    need_mount!();
    if come_by_uring() {
        return;
    }
    let tree = Tree::new(&["--priority", "normal"]);
    let nice = rustix::process::getpriority_process(None).unwrap();
    let processor = processors()[0];
    tree.ask_from(processor, &Runs { on: vec![processor], nice });
}
