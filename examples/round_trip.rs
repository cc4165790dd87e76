//! What a FUSE request costs on this machine, whatever a filesystem does with it: a filesystem of
//! one file answers stat(2) from a constant, with no caching, and a client asks it again and again.
//!
//! `cargo run --release --example round_trip` prints microseconds for each request, by the number
//! of threads that answer, with client and daemon on one processor, and with processors that poll
//! while they have nothing to do (as with `idle=poll`; it takes root).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, MountOption,
    ReplyAttr, ReplyEntry, Request,
};

const REQUESTS: u32 = 20_000;

struct Null;

fn attr(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Null {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.as_encoded_bytes() {
            b"f" => {
                reply.entry(&Duration::ZERO, &attr(2, FileType::RegularFile), Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let kind = if ino.0 == 1 { FileType::Directory } else { FileType::RegularFile };
        reply.attr(&Duration::ZERO, &attr(ino.0, kind));
    }
}

/// Microseconds of one request, the median of nine runs.
fn measure(file: &Path) -> f64 {
    let mut runs: Vec<f64> = (0..9)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..REQUESTS / 9 {
                std::fs::symlink_metadata(file).expect("stat");
            }
            begin.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS / 9)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// Keeps this process, and what it starts from now on, on one processor, or on all.
fn pin(processors: impl Iterator<Item = usize>) {
    let mut set = rustix::thread::CpuSet::new();
    processors.for_each(|cpu| set.set(cpu));
    rustix::thread::sched_setaffinity(None, &set).expect("choose processors");
}

/// Has processors poll until the file is closed (pm_qos_interface.rst of the kernel).
fn keep_awake() -> Option<File> {
    let mut file = OpenOptions::new().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0i32.to_ne_bytes()).ok()?;
    Some(file)
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let on_all = [1, 2, 4].map(|threads| (threads, false, false));
    let on_one = [1, 4].map(|threads| (threads, true, false));
    let polling = [1, 2, 4].map(|threads| (threads, false, true));
    for (threads, pinned, polls) in on_all.into_iter().chain(on_one).chain(polling) {
        let awake = if polls { keep_awake() } else { None };
        if polls && awake.is_none() {
            continue;
        }
        pin(0..if pinned { 1 } else { cpus });
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("null".into())];
        config.n_threads = Some(threads);
        config.clone_fd = true;
        let session = fuser::spawn_mount(Null, dir.path(), &config).expect("mount");
        let micros = measure(&dir.path().join("f"));
        let place = match (pinned, polls) {
            (true, _) => "one processor",
            (false, true) => "all processors, polling",
            (false, false) => "all processors",
        };
        println!("{threads} threads, {place}: {micros:.1} us");
        drop(session);
    }
}
