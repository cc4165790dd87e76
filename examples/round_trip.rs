//! What FUSE costs on this machine, whatever a filesystem does: one answers stat(2) of a file from a
//! constant, with no caching, and a client asks it again and again; and it has the content of another file
//! in memory, which a client reads once, and forgets what is written to that.
//!
//! It makes directories and files, too, and remembers their names alone:
//! `cargo run --release --example round_trip DIR` mounts it for other programs until it is unmounted.
//!
//! `cargo run --release --example round_trip` prints microseconds for each request, by the number
//! of threads that answer, with client and daemon on one processor, and with processors that poll
//! while they have nothing to do (as with `idle=poll`; it takes root); and seconds to read 512 MiB, and to
//! write 1 GiB.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, IoctlFlags, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyEntry, ReplyIoctl, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

const REQUESTS: u32 = 20_000;
/// Bytes of the file that has some, and of what it has again and again.
const SIZE: u64 = 512 << 20;
/// Bytes that are written to it.
const WRITTEN: u64 = 1 << 30;
static CONTENT: [u8; 1 << 20] = [b'x'; 1 << 20];

/// What was made has numbers from here on; the others are the root, `f` and `large`.
const FIRST_MADE: u64 = 10;
/// Of directories that were made.
const DIRECTORY: u64 = 1 << 62;
const FOREVER: Duration = Duration::from_secs(1 << 20);

#[derive(Default)]
struct Null {
    /// What was made, by directory and name.
    names: Mutex<HashMap<(u64, OsString), u64>>,
}

impl Null {
    fn make(&self, parent: INodeNo, name: &OsStr, kind: FileType) -> FileAttr {
        let mut names = self.names.lock().expect("a lock");
        let number = FIRST_MADE + names.len() as u64;
        let ino = if kind == FileType::Directory { DIRECTORY | number } else { number };
        names.insert((parent.0, name.to_owned()), ino);
        attr(ino)
    }
}

fn attr(ino: u64) -> FileAttr {
    let is_directory = ino == 1 || ino & DIRECTORY != 0;
    let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
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
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (ttl, ino) = match name.as_encoded_bytes() {
            b"f" => (Duration::ZERO, Some(2)),
            b"large" => (Duration::ZERO, Some(3)),
            _ => {
                let names = self.names.lock().expect("a lock");
                (FOREVER, names.get(&(parent.0, name.to_owned())).copied())
            }
        };
        match ino {
            Some(ino) => reply.entry(&ttl, &attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.entry(&FOREVER, &self.make(parent, name, FileType::Directory), Generation(0));
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(parent, name, FileType::RegularFile);
        reply.created(&FOREVER, &made, Generation(0), FileHandle(0), FopenFlags::FOPEN_NOFLUSH);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&FOREVER, &attr(ino.0));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::NO_XATTR);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
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
        let ttl = if ino.0 < FIRST_MADE { Duration::ZERO } else { FOREVER };
        reply.attr(&ttl, &attr(ino.0));
    }
}

fn mount(dir: &Path, threads: usize) -> BackgroundSession {
    fuser::spawn_mount(Null::default(), dir, &config(threads)).expect("mount")
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("null".into()), MountOption::DefaultPermissions];
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config
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
    if let Some(dir) = std::env::args_os().nth(1) {
        return fuser::mount(Null::default(), dir, &config(4)).expect("mount");
    }
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
