//! Files that grow, which the disk writes meanwhile.

use std::time::{Duration, Instant};

use crate::common::union::Union;
use plyfs::layers::number::Ino;
use plyfs::overlay::{Grown, WriteFlags};

const MIB: usize = 1 << 20;

/// An empty file of a union that skips syncs or does not.
fn with_file(syncs: bool) -> (Union, Ino) {
    let mut u = Union::new(&[""]);
    if syncs {
        u.sync();
    }
    u.create("f", "").unwrap();
    let ino = u.ino("f").unwrap();
    (u, ino)
}

/// Writes a megabyte of `n` as the n-th; the file, if some of it is to be given to the disk then.
fn write(u: &Union, ino: Ino, n: usize) -> Option<Grown> {
    let data = vec![u8::try_from(n).unwrap(); MIB];
    let offset = (n * MIB) as u64;
    assert_eq!(u.overlay().write(ino, offset, &data, WriteFlags::default()).unwrap(), MIB);
    u.overlay().grown(ino, offset, MIB)
}

#[test]
fn what_was_written_of_a_large_file_leaves_memory() {
    let (u, ino) = with_file(true);
    let mut buffer = [0; 4096];
    let mut is_cached = |n: usize| {
        let offset = (n * MIB + MIB / 2) as u64;
        u.overlay().read_cached(ino, offset, &mut buffer).unwrap().is_some()
    };
    let given: Vec<_> = (0..80).filter_map(|n| Some((n, write(&u, ino, n)?))).collect();
    assert_eq!(given.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [63, 71, 79]);
    if !is_cached(0) {
        return eprintln!("skipped: the filesystem does not tell what is in memory");
    }
    if rustix::fs::statfs(u.upper()).unwrap().f_type == 0x0102_1994 {
        return eprintln!("skipped: tmpfs is memory");
    }
    let end = Instant::now() + Duration::from_secs(60);
    while is_cached(0) || is_cached(62) {
        assert!(Instant::now() < end, "it is not written, or not dropped");
        given[0].1.write_out();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_cached(70), "what came after is there still");
    let mut all = vec![0; 80 * MIB];
    assert_eq!(u.overlay().read(ino, 0, &mut all).unwrap(), all.len());
    assert!(all.chunks(MIB).enumerate().all(|(n, part)| part.iter().all(|b| usize::from(*b) == n)));
}

#[test]
fn only_files_that_grow_and_grow() {
    let (u, ino) = with_file(true);
    let given = |n| write(&u, ino, n).is_some();
    assert!(!given(55), "small");
    assert!(given(63));
    assert!(!given(64), "not yet a step more");
    assert!(!given(63), "written again");
    assert!(given(95), "over what was left out");
    let over_a_step = (104 << 20) - 2;
    let few = u.overlay().write(ino, over_a_step, b"few", WriteFlags::default()).unwrap();
    assert!(u.overlay().grown(ino, over_a_step, few).is_none(), "little at a time");
    let (u, ino) = with_file(false);
    assert!(write(&u, ino, 63).is_none(), "a volatile one");
}
