//! What the tests share: layers built from a small text, unions of them driven without
//! /dev/fuse, and trees told as text.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test program uses a part

pub mod mounted;
pub mod union;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Makes a tree from words: `d/` a directory, `f=text` a file, `l->target` a symlink,
/// `h=>f` a hard link to `f`, `f:mode=0600` a mode.
pub fn build(root: &Path, words: &str) {
    for word in words.split_whitespace() {
        if let Some((name, target)) = word.split_once("->") {
            make_parent(root, name);
            symlink(target, root.join(name)).unwrap();
        } else if let Some((name, target)) = word.split_once("=>") {
            make_parent(root, name);
            fs::hard_link(root.join(target), root.join(name)).unwrap();
        } else if let Some((name, mode)) = word.split_once(":mode=") {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        } else if let Some((name, text)) = word.split_once('=') {
            make_parent(root, name);
            fs::write(root.join(name), text).unwrap();
        } else {
            fs::create_dir_all(root.join(word)).unwrap();
        }
    }
}

/// Makes a directory `lowerN` for each of these layers (see [`build`]), the topmost first.
pub fn build_layers(dir: &Path, layers: &[&str]) -> Vec<PathBuf> {
    let mut lowers = Vec::new();
    for (n, words) in layers.iter().enumerate() {
        let path = dir.join(format!("lower{n}"));
        fs::create_dir(&path).unwrap();
        build(&path, words);
        lowers.push(path);
    }
    lowers
}

fn make_parent(root: &Path, name: &str) {
    if let Some(parent) = root.join(name).parent() {
        fs::create_dir_all(parent).unwrap();
    }
}

/// Tells a real tree as one line per path, sorted: kind, and what a file or symlink holds.
pub fn tell(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let walk = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name();
    for entry in walk {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap();
        let name = path.as_os_str().as_bytes().escape_ascii().to_string();
        let kind = entry.file_type();
        lines.push(if kind.is_dir() {
            format!("{name}/")
        } else if kind.is_symlink() {
            format!("{name}->{}", fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_file() {
            format!("{name}={}", fs::read(entry.path()).unwrap().escape_ascii())
        } else if kind.is_char_device() {
            format!("{name} c {}", entry.metadata().unwrap().rdev())
        } else {
            format!("{name} special")
        });
    }
    lines.sort();
    lines
}

/// Whether a union that has its workdir here copies files ahead: on ext4, xfs or tmpfs, with room.
pub fn copies_ahead(work: &Path) -> bool {
    let room = rustix::fs::statvfs(work).unwrap();
    [0xef53, 0x5846_5342, 0x0102_1994].contains(&rustix::fs::statfs(work).unwrap().f_type)
        && room.f_bavail * room.f_frsize > 300 << 20
        && (room.f_files == 0 || room.f_favail > 4000)
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives everything below `root` this owner and group.
pub fn make_owner(root: &Path, owner: u32) {
    for entry in walkdir::WalkDir::new(root) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(owner), Some(owner)).unwrap();
    }
}

/// Lets other users reach what lies in a temporary directory.
pub fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
