//! A real directory with all that a tar may hold, made for the programs that write tars.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use plyfs::sys::{self, TimeChange, Timestamp};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};

use crate::common::is_root;

/// What a kind of tar can hold, each more than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holds {
    /// Names below 100 bytes, small ids, times from 1970 to 2242.
    V7,
    /// Special files, paths below 256 bytes.
    Ustar,
    /// Ids of seven octal digits.
    FullUstar,
    /// As [`All`](Self::All), for programs whose own system calls take no paths over 4,096 bytes.
    Short,
    /// All there is.
    All,
}

/// Odd names: bytes that are no UTF-8, and what shells, tars and pax records may stumble over.
const NAMES: [&[u8]; 12] = [
    b"caf\xe9",
    b"\xff\xfe",
    "\u{fc}n\u{ef}".as_bytes(),
    b"new\nline",
    b"two\n\nlines\n",
    b" around ",
    b"tab\tback\\slash",
    b"-dash",
    b"a=b 12 path=c",
    b"100%25",
    b"'quotes\"",
    b"\x01\x7f\x1b[31m",
];
/// Owners that v7's fields hold, with ustar's fields, and those beyond.
const SMALL_IDS: [(u32, u32); 4] = [(0, 0), (1000, 50), (65_537, 70_000), (262_143, 200_000)];
const USTAR_IDS: [(u32, u32); 1] = [(2_097_151, 2_097_150)];
const LARGE_IDS: [(u32, u32); 3] =
    [(2_097_152, 2_097_153), (4_000_000_000, 5), (u32::MAX - 1, 3_000_000_000)];
/// Seconds and nanoseconds; the first three are of every tar.
const TIMES: [(i64, u32); 8] = [
    (1_234_567_890, 0),
    (0, 0),
    (7_000_000_000, 0),
    (1_234_567_890, 123_456_789),
    (-1, 0),
    (-2, 500_000_000),
    (-2_000_000_000, 1),
    (10_413_792_000, 999_999_999),
];
const BLOCK: u64 = 4096;

/// Makes the directory.
pub fn make(root: &Path, holds: Holds) {
    let dir = Rich { root: root.to_owned(), holds };
    dir.names();
    dir.modes_and_links();
    dir.sparse();
    if holds >= Holds::Ustar {
        dir.special_files();
        dir.file(["u".repeat(70), "v".repeat(70), "w".repeat(90)].join("/").as_bytes(), b"split");
    }
    if holds >= Holds::Short {
        dir.long_names();
        dir.xattrs();
        dir.deep(if holds == Holds::All { "long-component-" } else { "d" }, 300);
    }
    dir.owners_and_times();
}

struct Rich {
    root: PathBuf,
    holds: Holds,
}

impl Rich {
    fn at(&self, name: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(name))
    }

    fn file(&self, name: &[u8], data: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        path
    }

    fn names(&self) {
        for name in NAMES {
            self.file(&[b"names/", name].concat(), name);
        }
        self.file(b"times/empty", b"");
        for n in 0..self.times().len() {
            self.file(format!("times/{n}").as_bytes(), b"at its time");
        }
        for n in 0..self.ids().len() {
            self.file(format!("ids/{n}").as_bytes(), b"somebody's");
        }
    }

    fn ids(&self) -> Vec<(u32, u32)> {
        let mut ids = SMALL_IDS.to_vec();
        if self.holds >= Holds::FullUstar {
            ids.extend(USTAR_IDS);
        }
        if self.holds >= Holds::Short {
            ids.extend(LARGE_IDS);
        }
        ids
    }

    fn times(&self) -> &'static [(i64, u32)] {
        if self.holds >= Holds::Short { &TIMES } else { &TIMES[..3] }
    }

    fn modes_and_links(&self) {
        for mode in [0o4755, 0o2711, 0o1644, 0o6555, 0o444, 0o7777] {
            self.file(format!("modes/{mode:o}").as_bytes(), b"mode");
        }
        fs::create_dir(self.at(b"modes/sticky")).unwrap();
        fs::create_dir(self.at(b"modes/setgid")).unwrap();
        fs::create_dir(self.at(b"an empty directory")).unwrap();
        fs::create_dir(self.at(b"links")).unwrap();
        self.file(b"links/first", b"of three names");
        for name in [&b"links/second"[..], b"an empty directory.link"] {
            fs::hard_link(self.at(b"links/first"), self.at(name)).unwrap();
        }
        for (n, target) in ["first", "/etc", "../nowhere", ".", " a b\n"].into_iter().enumerate() {
            symlink(target, self.at(format!("links/symlink{n}").as_bytes())).unwrap();
        }
        symlink(OsStr::from_bytes(b"caf\xe9"), self.at(b"links/not-utf8")).unwrap();
        let symlink = self.at(b"links/symlink0");
        rustix::fs::link(symlink, self.at(b"links/of-a-symlink")).unwrap();
    }

    /// Files of these pieces of data, in blocks, and this many blocks long.
    fn sparse(&self) {
        let many: Vec<u64> = (0..40).map(|n| n * 4).collect();
        let files: [(&str, &[u64], u64); 6] = [
            ("many", &many, 160),
            ("four", &[0, 3, 6, 9], 10),
            ("hole-first", &[39], 40),
            ("hole-last", &[0], 64),
            ("all-hole", &[], 64),
            ("no-hole", &[0, 1], 2),
        ];
        for (name, pieces, blocks) in files {
            let file = File::create(self.file(format!("sparse/{name}").as_bytes(), b"")).unwrap();
            for at in pieces {
                let data = vec![b'a' + (at % 26) as u8; BLOCK as usize];
                file.write_all_at(&data, at * BLOCK).unwrap();
            }
            file.set_len(blocks * BLOCK - 5 * u64::from(name == "hole-last")).unwrap();
        }
    }

    fn special_files(&self) {
        fs::create_dir(self.at(b"special")).unwrap();
        let make = |name: &str, kind, device| {
            let path = self.at(format!("special/{name}").as_bytes());
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from(0o640), device).unwrap();
        };
        make("fifo", FileType::Fifo, 0);
        if is_root() {
            make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
            make("disk", FileType::BlockDevice, rustix::fs::makedev(259, 300));
        }
    }

    fn long_names(&self) {
        let longest = vec![b'n'; 255];
        self.file(&longest, b"longest name");
        self.file(&[b"long/", &[b'\xfe'; 255][..]].concat(), b"longest name, not UTF-8");
        let dir = [b"long/", &vec![b'd'; 255][..], b"/"].concat();
        self.file(&[&dir, &longest[..]].concat(), b"two of them");
        fs::hard_link(self.at(&longest), self.at(b"long/link")).unwrap();
        symlink("t".repeat(4000), self.at(b"long/symlink")).unwrap();
        symlink("t".repeat(101), self.at(b"long/symlink101")).unwrap();
        for len in [99, 100, 101, 155, 156, 254] {
            self.file(&[b"long/", &vec![b'l'; len][..]].concat(), b"at a limit");
        }
    }

    fn xattrs(&self) {
        let file = self.file(b"xattrs/file", b"noted");
        let dir = self.at(b"xattrs");
        let long = vec![7; 600];
        let values: [(&str, &[u8]); 5] = [
            ("user.note", b"kept"),
            ("user.empty", b""),
            ("user.odd value", b"\0\n12 user.x=1\n\xff="),
            ("user.long", &long),
            ("user.\u{e9}", b"a name beyond ASCII"),
        ];
        for (name, value) in values {
            set_xattr(&file, name, value);
            set_xattr(&dir, name, value);
        }
        if is_root() {
            let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            set_xattr(&self.file(b"xattrs/capable", b"binds"), "security.capability", capability);
            set_xattr(&file, "trusted.note", b"root's");
        }
    }

    /// Directories within one another; a file in the innermost one, and hard and symbolic links.
    fn deep(&self, name: &str, depth: usize) {
        let mut dir = sys::open_dir(&self.root).unwrap();
        for n in 0..depth {
            let name = if n == 0 { format!("{name}top") } else { name.to_owned() };
            rustix::fs::mkdirat(&dir, &name[..], Mode::from(0o755)).unwrap();
            dir = sys::open_at(dir.as_fd(), name.as_bytes(), sys::O_DIRECTORY).unwrap();
        }
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let file = rustix::fs::openat(&dir, c"leaf", flags, Mode::from(0o644)).unwrap();
        File::from(file).write_all_at(b"in the depth", 0).unwrap();
        let no_flags = AtFlags::empty();
        rustix::fs::linkat(&dir, c"leaf", &dir, c"link", no_flags).unwrap();
        rustix::fs::symlinkat(c"leaf", &dir, c"symlink").unwrap();
    }

    /// Comes last: everything has an owner, a mode and a time of its own.
    fn owners_and_times(&self) {
        let root = sys::open_dir(&self.root).unwrap();
        let mut count = 0;
        self.finish(root.as_fd(), b"", &mut count);
    }

    fn finish(&self, object: BorrowedFd<'_>, path: &[u8], count: &mut usize) {
        let kind = sys::fstat(object).unwrap().kind();
        if kind == sys::FileType::Directory {
            for entry in sys::read_dir(object).unwrap() {
                let below = sys::open_at(object, &entry.name, sys::O_PATH).unwrap();
                let path = [path, b"/", &entry.name].concat();
                self.finish(below.as_fd(), &path, count);
            }
        }
        *count += 1;
        let n = path.strip_prefix(b"/ids/").or(path.strip_prefix(b"/times/"));
        let n = n.and_then(|n| std::str::from_utf8(n).ok()?.parse().ok()).unwrap_or(*count);
        let capability = sys::get_xattr(object, b"security.capability");
        let ids = self.ids();
        let (user, group) = ids[n % ids.len()];
        if is_root() {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::fs::chownat(object, c"", Some(user), Some(group), AtFlags::EMPTY_PATH).unwrap();
        }
        if let Ok(capability) = capability {
            sys::set_xattr(object, b"security.capability", &capability, 0).unwrap(); // chown dropped it
        }
        let mode = match path {
            b"/modes/sticky" => Some(0o1777),
            b"/modes/setgid" => Some(0o2775),
            _ => path
                .strip_prefix(b"/modes/")
                .map(|text| u32::from_str_radix(std::str::from_utf8(text).unwrap(), 8).unwrap()),
        };
        if let Some(mode) = mode {
            fs::set_permissions(sys::proc_path(object), fs::Permissions::from_mode(mode)).unwrap();
        }
        let (secs, nanos) = self.times()[n % self.times().len()];
        let time = Some(TimeChange::At(Timestamp { secs, nanos }));
        sys::set_times(object, time, time).unwrap();
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}
