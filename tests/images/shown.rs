//! A mounted tree, compared with what must show.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::common::is_root;
use crate::flatten::{Node, Tree, digest};

/// Every path of the mount, and nothing else, shows what the tree says.
#[track_caller]
pub fn expect_tree(mount: &Path, expected: &Tree, what: &str) {
    let mut shown: BTreeMap<Vec<u8>, (u64, Node)> = BTreeMap::new();
    for entry in walkdir::WalkDir::new(mount).min_depth(1) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(mount).unwrap().as_os_str().as_bytes().to_vec();
        shown.insert(path, node(entry.path()));
    }
    let wanted: Vec<_> = expected
        .paths
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, _)| text(path))
        .collect();
    let found: Vec<_> = shown.keys().map(|path| text(path)).collect();
    assert_eq!(found, wanted, "{what}: names");
    let mut inodes: BTreeMap<usize, u64> = BTreeMap::new();
    let mut groups: BTreeMap<u64, usize> = BTreeMap::new();
    for (path, at) in expected.paths.iter().filter(|(path, _)| !path.is_empty()) {
        let Some((ino, found)) = shown.get(path) else { continue };
        let mut wanted = expected.nodes[*at].clone();
        let mut found = found.clone();
        if !is_root() {
            wanted.xattrs.retain(|name, _| !name.starts_with("trusted."));
        }
        if wanted.mtime.is_none() {
            found.mtime = None;
        }
        assert_eq!(found, wanted, "{what}: {}", text(path));
        // Hard links: one node, one inode, and the other way round.
        assert_eq!(inodes.entry(*at).or_insert(*ino), ino, "{what}: {}", text(path));
        assert_eq!(groups.entry(*ino).or_insert(*at), at, "{what}: {}", text(path));
    }
    if let Some(at) = expected.paths.get(&b""[..]) {
        let (_, root) = node(mount);
        let node = &expected.nodes[*at];
        assert_eq!((root.mode, root.owner), (node.mode, node.owner), "{what}: the root");
    }
}

fn text(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

fn node(path: &Path) -> (u64, Node) {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let device = || {
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        format!("{:?}", (Some(major), Some(minor)))
    };
    let (kind, content) = match kind {
        k if k.is_dir() => ('d', String::new()),
        k if k.is_symlink() => {
            let target = std::fs::read_link(path).unwrap();
            ('l', target.as_os_str().as_bytes().escape_ascii().to_string())
        }
        k if k.is_fifo() => ('p', String::new()),
        k if k.is_char_device() => ('c', device()),
        k if k.is_block_device() => ('b', device()),
        _ => ('f', digest(&std::fs::read(path).unwrap())),
    };
    if kind == 'f' {
        let len = content.split(' ').next().unwrap();
        assert_eq!(meta.len().to_string(), len, "size of {}", path.display());
    }
    let shown = Node {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid().into(), meta.gid().into()),
        mtime: Some((meta.mtime(), meta.mtime_nsec() as u32)),
        content,
        xattrs: xattrs(path),
    };
    (meta.ino(), shown)
}

/// All xattrs but those that the host's security modules add.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap_or(OsStr::new(".")));
    let dir = plyfs::sys::open_dir(dir).unwrap();
    let fd = plyfs::sys::open_at(dir.as_fd(), name.as_bytes(), plyfs::sys::O_PATH).unwrap();
    let list = plyfs::sys::list_xattrs(fd.as_fd()).unwrap_or_default();
    list.split(|b| *b == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .filter(|name| is_root() || !name.starts_with(b"trusted.")) // the kernel's rule
        .map(|name| {
            let value = plyfs::sys::get_xattr(fd.as_fd(), name).unwrap();
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}
