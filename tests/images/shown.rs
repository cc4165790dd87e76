//! A real tree: read into what the flattening gives, and compared with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs::sys::{self, FileType, Stat};

use crate::flatten::{Node, Tree, digest};

/// Every path of the mount, and nothing else, shows what the tree says, also to an ordinary user who
/// has mounted it, whoever owns the files.
#[track_caller]
pub fn expect_tree(mount: &Path, expected: &Tree, what: &str) {
    let shown = read_tree(mount);
    let wanted: BTreeMap<_, _> = expected.paths.iter().collect();
    let names = |paths: Vec<&Vec<u8>>| paths.into_iter().map(|p| text(p)).collect::<Vec<_>>();
    let is_below = |path: &&Vec<u8>| !path.is_empty();
    let found = names(shown.paths.keys().filter(is_below).collect());
    assert_eq!(found, names(wanted.keys().copied().filter(is_below).collect()), "{what}: names");
    let mut known: BTreeMap<usize, usize> = BTreeMap::new();
    let mut known_back: BTreeMap<usize, usize> = BTreeMap::new();
    for (path, at) in wanted {
        let found_at = shown.paths[path];
        expect_node(
            &shown.nodes[found_at],
            &expected.nodes[*at],
            &format!("{what}: {}", text(path)),
        );
        // Hard links: one node, one inode, and the other way round.
        assert_eq!(*known.entry(*at).or_insert(found_at), found_at, "{what}: {}", text(path));
        assert_eq!(known_back.entry(found_at).or_insert(*at), at, "{what}: {}", text(path));
    }
}

#[track_caller]
fn expect_node(found: &Node, expected: &Node, what: &str) {
    let (mut found, mut wanted) = (found.clone(), expected.clone());
    if !rustix::process::geteuid().is_root() {
        wanted.xattrs.retain(|name, _| !name.starts_with("trusted."));
    }
    if wanted.mtime.is_none() {
        found.mtime = None;
    }
    assert_eq!(found, wanted, "{what}");
}

fn text(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// All that lies below a directory, and the directory itself, under an empty path.
pub fn read_tree(root: &Path) -> Tree {
    let root = sys::open_dir(root).unwrap();
    let (mut tree, mut known) = (Tree::default(), BTreeMap::new());
    add(&mut tree, &mut known, root.as_fd(), Vec::new());
    tree
}

/// Adds an object and what lies below it. Paths may be longer than any system call takes.
fn add(
    tree: &mut Tree,
    known: &mut BTreeMap<(u64, u64), usize>,
    object: BorrowedFd<'_>,
    path: Vec<u8>,
) {
    let stat = sys::fstat(object).unwrap();
    let node = *known.entry((stat.dev, stat.ino)).or_insert_with(|| {
        tree.nodes.push(node(object, &stat, &text(&path)));
        tree.nodes.len() - 1
    });
    if stat.kind() == FileType::Directory {
        for entry in sys::read_dir(object).unwrap() {
            let path = match &path[..] {
                b"" => entry.name.to_vec(),
                dir => [dir, b"/", &entry.name].concat(),
            };
            let below = sys::open_at(object, &entry.name, sys::O_PATH);
            let below = below.unwrap_or_else(|e| panic!("open {}: {e}", text(&path)));
            add(tree, known, below.as_fd(), path);
        }
    }
    tree.paths.insert(path, node);
}

fn node(object: BorrowedFd<'_>, stat: &Stat, what: &str) -> Node {
    let device = || format!("{:?}", (rustix::fs::major(stat.rdev), rustix::fs::minor(stat.rdev)));
    let (kind, content) = match stat.kind() {
        FileType::Directory => ('d', String::new()),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(object, c"", Vec::new()).unwrap();
            ('l', target.to_bytes().escape_ascii().to_string())
        }
        FileType::Fifo => ('p', String::new()),
        FileType::CharacterDevice => ('c', device()),
        FileType::BlockDevice => ('b', device()),
        _ => ('f', content(object, stat, what)),
    };
    Node {
        kind,
        mode: stat.permissions(),
        owner: (stat.uid.into(), stat.gid.into()),
        mtime: Some((stat.mtime.secs, stat.mtime.nanos)),
        xattrs: xattrs(object),
        content,
    }
}

fn content(object: BorrowedFd<'_>, stat: &Stat, what: &str) -> String {
    let file = sys::reopen(object, sys::O_READ).unwrap_or_else(|e| panic!("open {what}: {e}"));
    let file = File::from(file);
    let mut data = Vec::new();
    (&file).read_to_end(&mut data).unwrap_or_else(|e| panic!("read {what}: {e}"));
    assert_eq!(data.len() as u64, stat.size, "size of {what}");
    digest(&data)
}

/// The xattrs of what lies at `path`.
pub fn xattrs_at(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
    let dir = sys::open_dir(dir).unwrap();
    let object = sys::open_at(dir.as_fd(), name.as_bytes(), sys::O_PATH).unwrap();
    xattrs(object.as_fd())
}

/// All xattrs but those that the host's security modules add.
fn xattrs(object: BorrowedFd<'_>) -> BTreeMap<String, Vec<u8>> {
    let list = sys::list_xattrs(object).unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    list.split(|b| *b == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .filter(|name| is_root || !name.starts_with(b"trusted."))
        .map(|name| {
            let value = sys::get_xattr(object, name);
            let value = value.unwrap_or_else(|e| panic!("xattr {}: {e}", name.escape_ascii()));
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}
