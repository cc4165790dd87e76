//! What FUSE costs on this machine, whatever a filesystem does: one answers stat(2) of a file from a
//! constant, with no caching, and a client asks it again and again; and it has the content of another file
//! in memory, which a client reads once, and forgets what is written to that.
//!
//! `cargo run --release --example round_trip` prints microseconds for each request, by the number
//! of threads that answer, with client and daemon on one processor, and with processors that poll
//! while they have nothing to do (as with `idle=poll`; it takes root); and seconds to read 512 MiB, and to
//! write 1 GiB.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyWrite,
    Request, WriteFlags,
};

const REQUESTS: u32 = 20_000;
/// Bytes of the file that has some, and of what it has again and again.
const SIZE: u64 = 512 << 20;
/// Bytes that are written to it.
const WRITTEN: u64 = 1 << 30;
static CONTENT: [u8; 1 << 20] = [b'x'; 1 << 20];

struct Null;

fn attr(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: if ino == 3 { SIZE } else { 0 },
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
            b"large" => {
                reply.entry(&Duration::ZERO, &attr(3, FileType::RegularFile), Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = SIZE.saturating_sub(offset).min(u64::from(size)) as usize;
        reply.data(&CONTENT[..size.min(CONTENT.len())]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let kind = if ino.0 == 1 { FileType::Directory } else { FileType::RegularFile };
        reply.attr(&Duration::ZERO, &attr(ino.0, kind));
    }
}

fn mount(dir: &Path, threads: usize) -> BackgroundSession {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("null".into())];
    config.n_threads = Some(threads);
    config.clone_fd = true;
    fuser::spawn_mount(Null, dir, &config).expect("mount")
}

/// Seconds that it takes to use the large file of a fresh mount, the median of five.
fn measure_data(how: &OpenOptions, mut use_it: impl FnMut(&mut File)) -> f64 {
    let mut runs: Vec<f64> = (0..5)
        .map(|_| {
            let dir = tempfile::tempdir().expect("a directory");
            let session = mount(dir.path(), 4);
            let mut large = how.open(dir.path().join("large")).expect("open");
            let begin = Instant::now();
            use_it(&mut large);
            let seconds = begin.elapsed().as_secs_f64();
            drop(large);
            drop(session);
            seconds
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn read_all(large: &mut File) {
    let mut buffer = vec![0; 128 << 10];
    while large.read(&mut buffer).expect("read") > 0 {}
}

fn write_all(large: &mut File) {
    (0..WRITTEN / CONTENT.len() as u64).for_each(|_| large.write_all(&CONTENT).expect("write"));
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
        let session = mount(dir.path(), threads);
        let micros = measure(&dir.path().join("f"));
        let place = match (pinned, polls) {
            (true, _) => "one processor",
            (false, true) => "all processors, polling",
            (false, false) => "all processors",
        };
        println!("{threads} threads, {place}: {micros:.1} us");
        drop(session);
    }
    pin(0..cpus);
    let reading = measure_data(OpenOptions::new().read(true), read_all);
    println!("to read {} MiB from its memory, 4 threads: {reading:.3} s", SIZE >> 20);
    let writing = measure_data(OpenOptions::new().write(true), write_all);
    println!("to write {} MiB that it forgets, 4 threads: {writing:.3} s", WRITTEN >> 20);
}
