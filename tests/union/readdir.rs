//! Reading directories.

use std::sync::{Arc, Mutex};

use crate::common::union::Union;
use plyfs::layers::number::Ino;
use plyfs::overlay::{DirEntry, Stale};

#[test]
fn no_name_twice_and_none_missing() {
    let u = Union::new(&["a=1 d/x=1 c=0", "b=1 d/y=1 c=1", "c=1 d/x=2"]);
    u.create("d/z", "").unwrap();
    assert_eq!(u.names(""), ["a", "b", "c", "d"]);
    assert_eq!(u.names("d"), ["x", "y", "z"]);
    assert_eq!(u.read("c").unwrap(), "0");
}

#[test]
fn dots_come_first_and_know_where_they_are() {
    let u = Union::new(&["d/e/"]);
    let mut dots = Vec::new();
    let (d, e) = (u.ino("d").unwrap(), u.ino("d/e").unwrap());
    for dir in [Ino::ROOT, e] {
        u.overlay()
            .readdir(dir, 0, |entry| {
                dots.push((entry.name.clone(), entry.ino));
                dots.len() % 2 != 0
            })
            .unwrap();
    }
    let expected = [(".", Ino::ROOT), ("..", Ino::ROOT), (".", e), ("..", d)];
    let expected: Vec<_> = expected.map(|(n, i)| (Box::from(n.as_bytes()), i)).to_vec();
    assert_eq!(dots, expected);
}

#[test]
fn a_directory_emptied_while_it_is_read() {
    let words: Vec<String> = (0..500).map(|n| format!("f{n}=")).collect();
    let mut u = Union::new(&[&words.join(" ")]);
    let mut cookie = 2;
    loop {
        let mut batch = Vec::new();
        u.overlay()
            .readdir(Ino::ROOT, cookie, |entry| {
                cookie = entry.cookie;
                batch.push(String::from_utf8(entry.name.to_vec()).unwrap());
                batch.len() < 50
            })
            .unwrap();
        if batch.is_empty() {
            break;
        }
        batch.iter().for_each(|name| u.unlink(name).unwrap());
    }
    u.expect("");
}

/// A directory `d` of 40 files, as a kernel sees it that drops a listing if `obeys`.
struct Listed {
    union: Union,
    dir: Ino,
    told: Arc<Mutex<Vec<Stale>>>,
}

impl Listed {
    fn new(obeys: bool) -> Self {
        let words: Vec<String> = (0..40).map(|n| format!("d/f{n}=x")).collect();
        let union = Union::new(&[&words.join(" ")]);
        let told: Arc<Mutex<Vec<Stale>>> = Arc::default();
        let tell = Arc::clone(&told);
        union.overlay().watch(move |stale| {
            tell.lock().unwrap().push(stale);
            obeys
        });
        let dir = union.ino("d").unwrap();
        Self { union, dir, told }
    }

    /// Lists from a cookie on, at most so many names; returns where it goes on.
    fn list(&self, from: u64, count: usize) -> u64 {
        let (mut cookie, mut left) = (from, count);
        let take = |entry: &plyfs::overlay::DirEntry| {
            if left == 0 {
                return false;
            }
            (cookie, left) = (entry.cookie, left - 1);
            true
        };
        self.union.overlay().readdir(self.dir, from, take).unwrap();
        cookie
    }

    fn list_all(&self) {
        let end = self.list(0, usize::MAX);
        assert_eq!(self.list(end, usize::MAX), end);
    }

    /// Reads so many files; returns how often the kernel is told to drop the listing.
    fn read(&self, count: usize) -> usize {
        self.told.lock().unwrap().clear();
        for n in 0..count {
            let file = self.union.ino(&format!("d/f{n}")).unwrap();
            assert_eq!(self.union.overlay().read(file, 0, &mut [0; 8]).unwrap(), 1);
        }
        let told = self.told.lock().unwrap();
        assert!(told.iter().all(|stale| *stale == Stale::Listing(self.dir)), "{told:?}");
        told.len()
    }
}

#[test]
fn a_listing_is_dropped_once_when_an_eighth_of_it_was_read() {
    let kernel = Listed::new(true);
    assert_eq!(kernel.read(40), 0); // it has none
    kernel.list_all();
    assert_eq!(kernel.read(4), 0);
    assert_eq!(kernel.read(1), 1);
    assert_eq!(kernel.read(40), 0);
    kernel.list_all();
    assert_eq!(kernel.read(40), 1);
}

#[test]
fn a_listing_is_not_dropped_before_it_is_whole() {
    let kernel = Listed::new(true);
    let half = kernel.list(0, 20);
    assert_eq!(kernel.read(40), 0);
    let end = kernel.list(half, usize::MAX);
    assert_eq!(kernel.read(40), 0);
    kernel.list(end, usize::MAX);
    assert_eq!(kernel.read(40), 1);
}

#[test]
fn a_kernel_that_drops_no_listing_is_told_again() {
    let kernel = Listed::new(false);
    kernel.list_all();
    assert_eq!(kernel.read(40), 8);
}

/// Lists a directory as the kernel does: up to the answer that has no more names.
fn list_whole(u: &Union, path: &str) {
    let (dir, mut cookie) = (u.ino(path).unwrap(), 0);
    loop {
        let begin = cookie;
        let take = |entry: &DirEntry| {
            cookie = entry.cookie;
            true
        };
        u.overlay().readdir(dir, begin, take).unwrap();
        if cookie == begin {
            return;
        }
    }
}

#[test]
fn who_walks_finds_the_next_directories_read() {
    let u = Union::new(&["a/f=1 b/f=1 b/c/f=1 d/f=1", "a/f=1 b/c/g=1 d/g=1 e/f=1"]);
    let seems_walked = |path: &str| u.overlay().seems_walked(u.ino(path).unwrap());
    // A layer must not change while it is mounted; what does not show was read before.
    let change = |name: &str| std::fs::write(u.lowers[1].join(name), "").unwrap();
    assert!(!seems_walked("") && !seems_walked("b"));
    list_whole(&u, "");
    assert!(seems_walked("b") && !seems_walked("b/c"));
    u.overlay().read_ahead(Ino::ROOT, || true);
    for name in ["a/late", "d/late", "e/late", "b/c/late"] {
        change(name);
    }
    assert_eq!((u.names("a"), u.names("e")), (vec!["f".into()], vec!["f".into()]));
    assert_eq!(u.names("d"), ["f", "g"]);
    list_whole(&u, "b");
    assert!(!seems_walked("b") && seems_walked("b/c"));
    u.overlay().read_ahead(u.ino("b").unwrap(), || true);
    change("b/c/later");
    assert_eq!(u.names("b/c"), ["f", "g", "late"]);
}

#[test]
fn a_directory_that_is_too_large_is_not_read_ahead() {
    let names: Vec<String> = (0..4000).map(|n| format!("large/{n:0200}=")).collect();
    let u = Union::new(&[&format!("small/f=1 {}", names.join(" "))]);
    list_whole(&u, "");
    u.overlay().read_ahead(Ino::ROOT, || true);
    for name in ["small/late", "large/late"] {
        std::fs::write(u.lowers[0].join(name), "").unwrap();
    }
    assert_eq!((u.names("small").len(), u.names("large").len()), (1, 4001));
}
