//! plyfs, watched: it ends by itself, in time, in memory, and prints only text.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::as_user;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory that plyfs may hold at any time, in kB.
const MEMORY: u64 = 150_000;

/// How a run of plyfs ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs a shell line, the program and its arguments in `$@`, as a user. It must end as a program
/// should, whatever it was given.
#[track_caller]
pub(super) fn run(
    what: &str,
    command: &mut Command,
    program: &Path,
    arguments: &[&dyn AsRef<OsStr>],
    user: Option<u32>,
) -> Ended {
    let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().unwrap());
    command.arg(program).args(arguments).stdin(Stdio::null());
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    if let Some(user) = user {
        command.uid(user).gid(user); // and no groups
    }
    let (status, peak) = watch(what, &mut command.spawn().unwrap(), program);
    let [stdout, stderr] = [&mut stdout, &mut stderr].map(|file| text_of(what, file));
    // 101: it panicked.
    assert!(status.code().is_some_and(|code| code < 100), "{what}: {status}: {stderr}");
    assert!(peak < MEMORY, "{what}: it held {peak} kB of memory");
    Ended { status, stdout, stderr }
}

/// Waits for the end; how it was, and how much memory was held.
#[track_caller]
fn watch(what: &str, child: &mut Child, program: &Path) -> (ExitStatus, u64) {
    let begun = Instant::now();
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, peak);
        }
        peak = peak.max(most_resident(child.id(), program));
        if begun.elapsed() > PATIENCE || peak > 4 * MEMORY {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{what}: no end after {:?} with {peak} kB of memory", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The most memory that a process has held so far, in kB; 0 before it runs the program. (Until
/// then it shows what the test holds.)
fn most_resident(pid: u32, program: &Path) -> u64 {
    if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|runs| runs != program) {
        return 0;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// What was printed: UTF-8 without control characters.
#[track_caller]
fn text_of(what: &str, file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let shown = bytes.escape_ascii().to_string();
    let text = String::from_utf8(bytes).unwrap_or_else(|_| panic!("{what}: printed {shown}"));
    let commands = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(commands), "{what}: printed {shown}");
    text
}

/// The program under test where the user can run it: in its place, or copied to `dir`.
pub(super) fn reachable_program(user: Option<u32>, dir: &Path) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_plyfs")).canonicalize().unwrap();
    if as_user(user, || File::open(&program).is_ok()) {
        return program;
    }
    let copy = dir.join("plyfs");
    std::fs::copy(&program, &copy).unwrap();
    copy
}
