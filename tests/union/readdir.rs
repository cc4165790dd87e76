//! Reading directories.

use std::sync::{Arc, Mutex};

use crate::common::union::Union;
use plyfs::layers::number::Ino;
use plyfs::overlay::Stale;

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
