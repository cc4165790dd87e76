//! A real mount by the real program, unmounted in Drop.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub fn plyfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_plyfs"))
}

/// Runs a command that must succeed; its stdout.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell line that must succeed; its stdout.
#[track_caller]
pub fn sh(line: &str) -> String {
    run(Command::new("sh").arg("-euc").arg(line))
}

/// Runs a command that must fail with exactly one line on stderr; that line.
#[track_caller]
pub fn fails(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeded: {line}");
    assert!(output.stdout.is_empty(), "{command:?}: it printed a result");
    assert_eq!(line.lines().count(), 1, "{command:?}: {line}");
    line
}

/// Why no filesystem can be mounted here, if so.
pub fn cannot_mount() -> Option<&'static str> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Err(_) => Some("no access to /dev/fuse"),
        Ok(_) if super::is_root() => None,
        Ok(_) => match Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status() {
            Ok(status) if status.success() => None,
            _ => Some("no fusermount3"),
        },
    }
}

/// Leaves a test that needs a mount, with a word, where there can be none.
#[macro_export]
macro_rules! need_mount {
    () => {
        if let Some(why) = $crate::common::mounted::cannot_mount() {
            return eprintln!("skipped: {why}");
        }
    };
}

/// The options for the modes that all mounts shall have (`PLYFS_TEST_IO`, `PLYFS_TEST_URING`).
pub fn io_mode() -> Vec<String> {
    let option = |name: &str, variable| {
        let mode = std::env::var(variable).ok()?;
        Some([name.to_owned(), mode])
    };
    let options = [option("--io", "PLYFS_TEST_IO"), option("--io-uring", "PLYFS_TEST_URING")];
    options.into_iter().flatten().flatten().collect()
}

/// Layers, and a plyfs mount of them.
pub struct Mount {
    dir: tempfile::TempDir,
    lowers: Vec<PathBuf>,
    pub options: Vec<String>,
    /// How many files the daemon may open, if not as many as the test.
    pub nofile: Option<u32>,
}

impl Mount {
    /// Mounts these layers (see [`super::build`]), the topmost first, with an empty upper.
    pub fn new(layers: &[&str]) -> Self {
        let mut made = Self::unmounted(layers);
        made.mount();
        made
    }

    pub fn unmounted(layers: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lowers = super::build_layers(dir.path(), layers);
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, lowers, options: Vec::new(), nofile: None }
    }

    pub fn mount(&mut self) {
        let mut command = match self.nofile {
            None => plyfs(),
            Some(limit) => {
                let mut shell = Command::new("sh");
                let line = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
                shell.arg("-euc").arg(line).arg(env!("CARGO_BIN_EXE_plyfs"));
                shell
            }
        };
        command.arg("mount").args(&self.options);
        if !self.options.iter().any(|option| option == "--io") {
            command.args(io_mode());
        }
        for lower in &self.lowers {
            command.arg("--lower").arg(lower);
        }
        command.arg("--upper").arg(self.upper()).arg("--work").arg(self.path("work"));
        run(command.arg(self.merged()));
    }

    /// How many requests of a kind the daemon has answered.
    pub fn count(&self, request: &str) -> u64 {
        let counts = run(plyfs().arg("stats").arg(self.merged()));
        let line = counts.lines().find(|line| line.split(' ').next() == Some(request));
        line.map_or(0, |line| line.split_whitespace().last().unwrap().parse().unwrap())
    }

    pub fn unmount(&self) {
        run(plyfs().arg("umount").arg(self.merged()));
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn lower(&self, n: usize) -> &Path {
        &self.lowers[n]
    }

    pub fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    /// The mountpoint.
    pub fn merged(&self) -> PathBuf {
        self.path("merged")
    }

    /// A path in the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.merged().join(name)
    }

    /// Runs a shell line in the mount.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        run(Command::new("sh").arg("-euc").arg(line).current_dir(self.merged()))
    }

    /// The merged tree must be this, now and after a remount.
    #[track_caller]
    pub fn expect(&mut self, words: &str) {
        let mut expected: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        expected.sort();
        assert_eq!(super::tell(&self.merged()), expected, "merged");
        self.remount();
        assert_eq!(super::tell(&self.merged()), expected, "after remount");
    }

    #[track_caller]
    pub fn expect_upper(&self, words: &str) {
        let mut expected: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        expected.sort();
        assert_eq!(super::tell(&self.upper()), expected, "upper");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount_if_mounted(&self.merged());
    }
}

/// The process that serves a mount.
pub fn daemon_of(m: &Mount) -> String {
    let lock = std::fs::read_to_string(m.path("work/lock")).unwrap();
    lock.strip_prefix("pid ").unwrap().split(',').next().unwrap().to_owned()
}

/// Detaches a mountpoint, also of a dead daemon; a directory that is none is left alone.
pub fn unmount_if_mounted(mountpoint: &Path) {
    if is_mounted(mountpoint) {
        let _: std::io::Result<Output> =
            plyfs().args(["umount", "--lazy"]).arg(mountpoint).output();
    }
}

/// Whether something is mounted on this absolute path.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mount_line(mountpoint).is_some()
}

/// The mountpoint's line in /proc/mounts.
pub fn mount_line(mountpoint: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/mounts").unwrap();
    let wanted = mountpoint.display().to_string().replace(' ', "\\040");
    table.lines().rev().find(|line| line.split(' ').nth(1) == Some(&wanted)).map(str::to_owned)
}

/// Waits until something is so, or fails.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How a thread of a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// On these processors.
    pub on: Vec<usize>,
    /// With this nice value.
    pub nice: i32,
}

/// How the threads of a process run that have this name.
pub fn threads(process: &str, name: &str) -> Vec<Runs> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let runs = |task: std::fs::DirEntry| {
        let found = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let thread = rustix::process::Pid::from_raw(task.file_name().to_str()?.parse().ok()?);
        let set = rustix::thread::sched_getaffinity(thread).ok()?;
        let nice = rustix::process::getpriority_process(thread).ok()?;
        (found.trim() == name).then(|| Runs { on: processors_in(&set), nice })
    };
    tasks.filter_map(|task| runs(task.ok()?)).collect()
}

pub fn processors_in(set: &rustix::thread::CpuSet) -> Vec<usize> {
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|number| set.is_set(*number)).collect()
}

/// The nice value that threads have who are to have a high priority, as far as this process may.
pub fn high_priority() -> i32 {
    let nice = || rustix::process::getpriority_process(None).unwrap();
    let raise = move || {
        if nice() == 0 {
            let _ = rustix::process::setpriority_process(None, -10);
        }
        nice()
    };
    std::thread::spawn(raise).join().unwrap()
}
