//! Requests that come by io_uring.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::is_root;
use crate::common::mounted::{
    Mount, daemon_of, fails, high_priority, is_mounted, plyfs, threads, wait_until,
};
use crate::need_mount;

/// Whether FUSE offers io_uring to mounts.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The switch in one position, until it goes.
struct Switched(String);

impl Switched {
    fn to(position: &str) -> Self {
        let before = fs::read_to_string(SWITCH).unwrap();
        fs::write(SWITCH, position).unwrap();
        Self(before)
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, &self.0);
    }
}

/// On one processor, which has few threads: more copy-ups than those at a time.
fn others_are_answered_during_copy_ups(m: &Mount) {
    let mut copies = Command::new("sh");
    copies.args(["-euc", "for n in 0 1 2 3 4 5 6 7; do printf x >> large$n & done; wait"]);
    let mut only = rustix::thread::CpuSet::new();
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    only.set((0..1024).find(|cpu| before.is_set(*cpu)).unwrap());
    rustix::thread::sched_setaffinity(None, &only).unwrap();
    let mut child = copies.current_dir(m.merged()).spawn().unwrap();
    let mut answered = 0;
    while child.try_wait().unwrap().is_none() {
        assert!(!m.at(&format!("missing{answered}")).exists());
        answered += 1;
    }
    rustix::thread::sched_setaffinity(None, &before).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(answered > 5, "{answered} look-ups");
    let daemon = daemon_of(m);
    assert!(!threads(&daemon, "beside").is_empty(), "nothing was given away");
    for n in 0..COPIES {
        assert_eq!(fs::metadata(m.at(&format!("large{n}"))).unwrap().len(), LARGE + 1);
    }
}

/// Bytes of a file whose copy takes tens of milliseconds.
const LARGE: u64 = 32 << 20;
/// How many are copied at a time.
const COPIES: usize = 8;

/// One test, for there is one switch.
#[test]
fn requests_come_by_io_uring_where_the_kernel_offers_it() {
    need_mount!();
    if !is_root() || !Path::new(SWITCH).exists() {
        return eprintln!("skipped: it takes root and Linux 6.14");
    }
    let switched = Switched::to("Y");
    let mut m = Mount::unmounted(&["a=lower d/b=x", "big=y"]);
    let all_have_it = std::env::var_os("PLYFS_TEST_URING").is_some();
    if !all_have_it {
        m.options = ["--io-uring", "on"].map(str::to_owned).to_vec();
    }
    for n in 0..COPIES {
        fs::write(m.lower(0).join(format!("large{n}")), vec![b'l'; LARGE as usize]).unwrap();
    }
    m.mount();
    // Each kind of body: a name, a structure and a name, data, nothing.
    m.sh("echo more >> a; mkdir e; mv d/b e/c; ln e/c e/d; ln -s a l; rm big");
    assert_eq!(m.sh("cat a e/c l; readlink l; ls e"), "lowermore\nxlowermore\na\nc\nd\n");
    let daemon = daemon_of(&m);
    let rings = threads(&daemon, "ring");
    assert!(rings.len() >= std::thread::available_parallelism().unwrap().get());
    let nice = high_priority();
    assert!(rings.iter().all(|thread| thread.on.len() == 1 && thread.nice == nice), "{rings:?}");
    assert_eq!(threads(&daemon, "requests").len(), 1);
    let large = vec![b'z'; (3 << 20) + 17];
    fs::write(m.at("large"), &large).unwrap();
    m.remount();
    assert_eq!(fs::read(m.at("large")).unwrap(), large);
    assert_eq!(m.sh("setfattr -n user.x -v y a; getfattr -n user.x --only-values a"), "y");
    others_are_answered_during_copy_ups(&m);
    let daemon = daemon_of(&m);
    m.unmount();
    wait_until("the daemon ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    drop(switched);

    if all_have_it {
        return; // and need it
    }
    let _switched = Switched::to("N");
    let mut command = plyfs();
    command.args(["mount", "--io-uring", "on", "--lower"]).arg(m.lower(0)).arg(m.merged());
    assert!(fails(&mut command).contains("/sys/module/fuse/parameters/enable_uring"));
    assert!(!is_mounted(&m.merged()));
}
