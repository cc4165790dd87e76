//! Random operations on a union and on a plain directory with the same tree: after each step
//! both answer alike, and now and then also after a remount. A failure prints the seed and
//! the operations; `PLYFS_MODEL_SEED` replays one, `PLYFS_MODEL_RUNS` asks for more.
#![allow(missing_docs)]

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::union::Union;
use plyfs::overlay::RenameMode;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Operations of one run.
const STEPS: usize = 120;
/// Runs, unless the environment asks for another number.
const RUNS: u64 = 150;
/// Lower layers that a run starts from, topmost first.
const LAYERS: [&str; 2] = [
    "a/x=ax a/y=ay a/.wh.gone= b/.wh..wh..opq= b/own=1 f=top h=link h2=>h d/e/deep=1",
    "a/x=old a/gone=1 a/z=az b/hidden=1 f=low g=low c/k=1 c/l=>g s->f d/e/more=2",
];
/// Names that operations choose from.
const NAMES: [&str; 14] =
    ["a", "b", "c", "d", "f", "g", "h", "h2", "s", "x", "y", "own", "e", "new"];

#[derive(Clone, Debug)]
enum Op {
    Create(String),
    Write(String, u64, u8),
    Truncate(String, u64),
    Chmod(String, u32),
    Mkdir(String),
    Symlink(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Exchange(String, String),
    Link(String, String),
    Remount,
}

fn random_path(rng: &mut SmallRng) -> String {
    let depth = rng.random_range(1..=3);
    let parts: Vec<_> = (0..depth).map(|_| NAMES[rng.random_range(0..NAMES.len())]).collect();
    parts.join("/")
}

fn random_op(rng: &mut SmallRng) -> Op {
    let path = random_path(rng);
    match rng.random_range(0..24) {
        0..3 => Op::Create(path),
        3..7 => Op::Write(path, rng.random_range(0..20), rng.random_range(b'A'..=b'Z')),
        7 => Op::Truncate(path, rng.random_range(0..8)),
        // A directory that an ordinary user may not search would end the comparison.
        8 => Op::Chmod(path, [0o700, 0o744, 0o755, 0o711][rng.random_range(0..4)]),
        9..12 => Op::Mkdir(path),
        12 => Op::Symlink(path),
        13..16 => Op::Unlink(path),
        16..18 => Op::Rmdir(path),
        18..21 => Op::Rename(path, random_path(rng)),
        21 => Op::Exchange(path, random_path(rng)),
        22 => Op::Link(path, random_path(rng)),
        _ => Op::Remount,
    }
}

/// Does it to the union; the errno of a failure.
fn on_union(u: &mut Union, op: &Op) -> Result<(), i32> {
    let result = match op {
        Op::Create(path) => u.create(path, "new"),
        Op::Write(path, at, byte) => u.write(path, *at, &(*byte as char).to_string()),
        Op::Truncate(path, size) => u.truncate(path, *size),
        Op::Chmod(path, mode) => match u.stat(path) {
            Ok(attr) if attr.kind == plyfs::sys::FileType::Symlink => return Err(libc::ELOOP),
            _ => u.chmod(path, *mode),
        },
        Op::Mkdir(path) => u.mkdir(path),
        Op::Symlink(path) => u.symlink(path, "f"),
        Op::Unlink(path) => u.unlink(path),
        Op::Rmdir(path) => u.rmdir(path),
        Op::Rename(from, to) => u.rename(from, to),
        Op::Exchange(from, to) => u.rename_with(from, to, RenameMode::Exchange),
        Op::Link(from, to) => match u.stat(from) {
            Ok(attr) if attr.kind == plyfs::sys::FileType::Directory => return Err(libc::EPERM),
            _ => u.link(from, to),
        },
        Op::Remount => {
            u.remount();
            Ok(())
        }
    };
    result.map_err(|error| error.errno().raw_os_error())
}

/// Does it to a plain directory; no step through a symlink, as the union has none.
fn on_plain(root: &Path, op: &Op) -> Result<(), i32> {
    let at = |path: &str| -> Result<PathBuf, i32> {
        let mut dir = root.to_owned();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            dir.push(part);
            if parts.peek().is_some() {
                match fs::symlink_metadata(&dir) {
                    Ok(m) if m.is_dir() => {}
                    Ok(_) => return Err(libc::ENOTDIR),
                    Err(e) => return Err(e.raw_os_error().unwrap()),
                }
            }
        }
        Ok(dir)
    };
    let file = |path: &str| -> Result<fs::File, i32> {
        let path = at(path)?;
        let kind = fs::symlink_metadata(&path).map_err(|e| e.raw_os_error().unwrap())?;
        match kind {
            m if m.is_dir() => Err(libc::EISDIR),
            m if m.is_symlink() => Err(libc::EINVAL),
            _ => fs::File::options().write(true).open(path).map_err(|e| e.raw_os_error().unwrap()),
        }
    };
    let result = match op {
        Op::Create(path) => {
            let made = fs::File::options().write(true).create_new(true).open(at(path)?);
            made.and_then(|file| file.write_all_at(b"new", 0))
        }
        Op::Write(path, offset, byte) => file(path)?.write_all_at(&[*byte], *offset),
        Op::Truncate(path, size) => file(path)?.set_len(*size),
        Op::Chmod(path, mode) => {
            let path = at(path)?;
            match fs::symlink_metadata(&path) {
                Ok(m) if m.is_symlink() => return Err(libc::ELOOP),
                _ => fs::set_permissions(path, fs::Permissions::from_mode(*mode)),
            }
        }
        Op::Mkdir(path) => fs::create_dir(at(path)?),
        Op::Symlink(path) => symlink("f", at(path)?),
        Op::Unlink(path) => fs::remove_file(at(path)?),
        Op::Rmdir(path) => fs::remove_dir(at(path)?),
        Op::Rename(from, to) => fs::rename(at(from)?, at(to)?),
        Op::Exchange(from, to) => {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let cwd = rustix::fs::CWD;
            return rustix::fs::renameat_with(cwd, at(from)?, cwd, at(to)?, flags)
                .map_err(|e| e.raw_os_error());
        }
        Op::Link(from, to) => fs::hard_link(at(from)?, at(to)?),
        Op::Remount => Ok(()),
    };
    result.map_err(|e| e.raw_os_error().unwrap())
}

/// Modes and link counts of files, and which names are one file.
fn details_plain(root: &Path) -> Vec<String> {
    let mut groups: Vec<(u64, String)> = Vec::new();
    let walk = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name();
    let mut lines: Vec<String> = walk
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().strip_prefix(root).unwrap().display().to_string();
            let m = entry.path().symlink_metadata().unwrap();
            detail(&name, m.is_dir(), m.mode(), m.nlink(), m.ino(), &mut groups)
        })
        .collect();
    lines.sort();
    lines
}

fn details_union(u: &Union) -> Vec<String> {
    let mut groups: Vec<(u64, String)> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for (name, attr) in u.list(&dir) {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if attr.kind == plyfs::sys::FileType::Directory {
                todo.push(path.clone());
            }
            names.push(path);
        }
    }
    names.sort_by_key(|name| name.split('/').map(str::to_owned).collect::<Vec<_>>());
    let mut lines: Vec<String> = names
        .iter()
        .map(|name| {
            let attr = u.stat(name).unwrap();
            let is_dir = attr.kind == plyfs::sys::FileType::Directory;
            let nlink = u64::from(attr.stat.nlink);
            detail(name, is_dir, attr.stat.mode, nlink, attr.ino.0, &mut groups)
        })
        .collect();
    lines.sort();
    lines
}

fn detail(
    name: &str,
    is_dir: bool,
    mode: u32,
    nlink: u64,
    ino: u64,
    groups: &mut Vec<(u64, String)>,
) -> String {
    if is_dir {
        return format!("{name} {mode:o}");
    }
    let first = match groups.iter().find(|(known, _)| *known == ino) {
        Some((_, first)) => first.clone(),
        None => {
            groups.push((ino, name.to_owned()));
            name.to_owned()
        }
    };
    format!("{name} {mode:o} links {nlink} first {first}")
}

fn run(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut union = Union::new(&LAYERS);
    let plain = union.dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    flatten(&union, &plain);
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let op = random_op(&mut rng);
        done.push(op.clone());
        let (got, expected) = (on_union(&mut union, &op), on_plain(&plain, &op));
        let says = || format!("seed {seed}, after {done:#?}");
        // Which of two fitting errnos comes first is not worth a difference.
        assert_eq!(got.is_ok(), expected.is_ok(), "{got:?} / {expected:?}, {}", says());
        if got.is_ok() {
            assert_eq!(union.tell(), common::tell(&plain), "{}", says());
            assert_eq!(details_union(&union), details_plain(&plain), "{}", says());
        }
    }
    union.remount();
    assert_eq!(union.tell(), common::tell(&plain), "seed {seed}, after {done:#?}");
    assert_eq!(details_union(&union), details_plain(&plain), "seed {seed}, after {done:#?}");
}

/// Copies the merged tree, hard links included.
fn flatten(u: &Union, plain: &Path) {
    let mut first: Vec<(plyfs::layers::number::Ino, PathBuf)> = Vec::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for (name, attr) in u.list(&dir) {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let to = plain.join(&path);
            match attr.kind {
                plyfs::sys::FileType::Directory => {
                    fs::create_dir(&to).unwrap();
                    todo.push(path);
                }
                plyfs::sys::FileType::Symlink => symlink("f", &to).unwrap(),
                _ => match first.iter().find(|(ino, _)| *ino == attr.ino) {
                    Some((_, known)) => fs::hard_link(known, &to).unwrap(),
                    None => {
                        fs::write(&to, u.read(&path).unwrap()).unwrap();
                        first.push((attr.ino, to));
                    }
                },
            }
        }
    }
}

#[test]
fn random_operations_as_on_a_plain_directory() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = from_env("PLYFS_MODEL_SEED") {
        return run(seed);
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let base = u64::from(now.subsec_nanos()) << 20;
    for n in 0..from_env("PLYFS_MODEL_RUNS").unwrap_or(RUNS) {
        run(base + n);
    }
}
