//! Random operations while something breaks: the daemon is killed at any moment, or a system
//! call of its fails. Whatever happens, an operation that reported success is there, one that
//! reported another failure than a plain directory's is there or not, as a whole; also after
//! a remount.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::mounted::wait_until;
use crate::mounts::{By, Stacked};
use crate::op::{self, Op, With};
use crate::subject::{Directory, Plain, Subject};
use crate::{MARKED, common, from_env, mounted, need_mount, plain, same};

/// Runs of each kind, and operations of one, unless the environment asks for others.
const RUNS: u64 = 2;
const STEPS: u64 = 150;
/// Errors that are injected; a plain directory gives none of them here.
const ERRORS: [(&str, i32); 3] =
    [("EIO", libc::EIO), ("ENOSPC", libc::ENOSPC), ("EDQUOT", libc::EDQUOT)];
/// The calls that are made to fail, by kind.
const CALLS: [&str; 3] = [
    "renameat,renameat2,unlinkat,mkdirat,mknodat,linkat,symlinkat",
    "fchownat,chmod,fchmod,utimensat,ftruncate,pwrite64,copy_file_range,setxattr,fsync,write",
    "openat,openat2,statx,getdents64,pread64",
];

/// A mount and the plain directory that tells what it must show.
struct Broken {
    ours: Box<Directory<Stacked>>,
    theirs: Directory<Plain>,
    done: Vec<Op>,
    seed: u64,
    _dir: tempfile::TempDir,
}

impl Broken {
    fn new(seed: u64, form: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let with = With::Links;
        let ours = mounted(By::Plyfs, &dir.path().join("ours"), &MARKED, with, &["--form", form]);
        let theirs = plain(dir.path(), with);
        Self { ours, theirs, done: Vec::new(), seed, _dir: dir }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("seed {}, {what}, after {:#?}", self.seed, self.done)
    }

    /// Compares what a crash must not change: all but link counts and times.
    fn agree(&self) -> Result<(), String> {
        let plainly = |lines: Vec<String>| -> Vec<String> {
            lines.iter().map(|line| without(&without(line, " links "), " mtime ")).collect()
        };
        same(&plainly(self.ours.snapshot()), &plainly(self.theirs.snapshot()))
    }

    /// Takes the answer of an operation in, whose failures in `excused` may mean anything.
    fn check(&mut self, op: &Op, answer: Result<Vec<u8>, i32>, excused: &[i32]) {
        self.done.push(op.clone());
        match answer {
            Err(errno) if excused.contains(&errno) => {
                if self.agree().is_ok() {
                    return; // it was not done
                }
                let after = self.theirs.apply(op);
                if let Err(lines) = self.agree() {
                    self.fail(&format!("neither old nor new ({errno}, {after:?}): {lines}"));
                }
            }
            answer => {
                let expected = self.theirs.apply(op);
                if answer.is_ok() != expected.is_ok() {
                    self.fail(&format!("ours {answer:?}, theirs {expected:?}"));
                }
                if let Err(lines) = self.agree() {
                    self.fail(&lines);
                }
            }
        }
    }

    fn close_all(&mut self) {
        for slot in 0..op::SLOTS {
            let _ = (self.ours.apply(&Op::Close(slot)), self.theirs.apply(&Op::Close(slot)));
        }
    }

    /// The tree must still be so after a remount, and workdir be clean.
    fn finish(mut self) {
        let op = Op::Remount;
        let _ = (self.ours.apply(&op), self.theirs.apply(&op));
        if let Err(lines) = self.agree() {
            self.fail(&format!("after a remount: {lines}"));
        }
        let (_, work) = self.ours.mounting.daemon();
        assert_eq!(std::fs::read_dir(work.join("tmp")).unwrap().count(), 0);
    }
}

/// A line without the part that follows `mark`, a word.
fn without(line: &str, mark: &str) -> String {
    match line.split_once(mark) {
        None => line.to_owned(),
        Some((before, rest)) => {
            let after = rest.find(' ').map_or("", |at| &rest[at..]);
            format!("{before}{after}")
        }
    }
}

/// An operation that one call does; what is open has no place here, for it dies with a daemon.
fn draw(rng: &mut SmallRng) -> Op {
    loop {
        match op::random(rng, common::is_root(), With::Links) {
            Op::Remount
            | Op::Stack
            | Op::Open(..)
            | Op::OpenWrite(..)
            | Op::OpenTruncate(..)
            | Op::OpenChmod(..)
            | Op::OpenPunch(..)
            | Op::OpenRead(..)
            | Op::Close(..) => {}
            op => return op,
        }
    }
}

/// Runs those of the seeds that are `known` to have found something once, and others.
fn runs(name: &str, known: &[u64], run: impl Fn(u64, &str)) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let seed = from_env("PLYFS_MODEL_SEED");
    let base = seed.unwrap_or(u64::from(now.subsec_nanos()) << 20);
    let count = if seed.is_some() { 1 } else { from_env("PLYFS_BREAKAGE_RUNS").unwrap_or(RUNS) };
    eprintln!("{name}: seeds {base} to {}", base + count);
    let known = known.iter().copied().filter(|_| seed.is_none());
    for n in known.chain(base..base + count) {
        run(n, if n % 2 == 0 { "plain" } else { "rich" });
    }
}

fn steps() -> u64 {
    from_env("PLYFS_MODEL_STEPS").unwrap_or(STEPS)
}

#[test]
fn killed_at_any_moment() {
    need_mount!();
    runs("killed", &[], |seed, form| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut broken = Broken::new(seed, form);
        let mut left = steps();
        while left > 0 {
            let (pid, _) = broken.ours.mounting.daemon();
            let after = Duration::from_micros(rng.random_range(0..30_000));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(after);
                assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
            });
            // Nothing is compared before the daemon is dead: that would take its time.
            let mut answers = Vec::new();
            // The last is of a request that a ring had.
            let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::ECANCELED];
            loop {
                let op = draw(&mut rng);
                let answer = broken.ours.apply(&op);
                let is_dead = matches!(answer, Err(errno) if dead.contains(&errno));
                answers.push((op, answer));
                if is_dead {
                    break;
                }
            }
            killer.join().unwrap();
            broken.ours.mounting.revive();
            let last = answers.pop().unwrap();
            for (op, answer) in answers {
                let expected = broken.theirs.apply(&op);
                broken.done.push(op);
                if answer.is_ok() != expected.is_ok() {
                    broken.fail(&format!("ours {answer:?}, theirs {expected:?}"));
                }
                left = left.saturating_sub(1);
            }
            broken.check(&last.0, last.1, &dead);
        }
        broken.finish();
    });
}

/// strace(1), attached to a process, that makes one call of each of its threads fail.
struct Saboteur {
    strace: Child,
}

impl Saboteur {
    fn attach(pid: &str, calls: &str, error: &str, nth: u32) -> Self {
        let inject = format!("inject={calls}:error={error}:when={nth}");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-p", pid, "-e", &format!("trace={calls}")]);
        let strace = strace.args(["-e", &inject]).stderr(Stdio::null()).spawn().unwrap();
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        wait_until("strace is attached", || {
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                let status = std::fs::read_to_string(task.path().join("status"));
                status.is_ok_and(|text| !text.contains("TracerPid:\t0\n"))
            })
        });
        Self { strace }
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        // SIGINT lets it detach first.
        let pid = self.strace.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        let _ = self.strace.wait();
    }
}

#[test]
fn with_errors_from_below() {
    need_mount!();
    let can_trace = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    if !can_trace.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: no strace, or it may not trace here");
    }
    // A link of the index that could not be dropped after a copy of several names had failed.
    let known = [641_622_562_832_384];
    runs("errors", &known, |seed, form| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut broken = Broken::new(seed, form);
        let mut excused = 0;
        for _ in 0..steps() {
            let (pid, _) = broken.ours.mounting.daemon();
            let (name, errno) = ERRORS[rng.random_range(0..ERRORS.len())];
            let calls = CALLS[rng.random_range(0..CALLS.len())];
            let op = draw(&mut rng);
            // One that answers has started: what fails while it starts, ends it.
            assert!(broken.ours.root.symlink_metadata().is_ok());
            let saboteur = Saboteur::attach(&pid, calls, name, rng.random_range(1..6));
            let answer = broken.ours.apply(&op);
            drop(saboteur);
            excused += u32::from(answer == Err(errno));
            broken.check(&op, answer, &[errno]);
            if rng.random_range(0..20) == 0 {
                broken.close_all();
                let _ = broken.ours.apply(&Op::Remount);
            }
        }
        assert!(excused > 0, "no error was met");
        broken.finish();
    });
}
