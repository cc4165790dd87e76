//! Renaming files and directories, wherever they lie.

use crate::common::union::{Union, errno, fingerprint};
use plyfs::overlay::RenameMode;
use plyfs::sys::Errno;

#[test]
fn a_lower_file() {
    let mut u = Union::new(&["a=1 d/"]);
    u.rename("a", "d/b").unwrap();
    u.expect("d/ d/b=1");
    u.expect_upper(".wh.a= d/ d/b=1");
    u.rename("d/b", "a").unwrap();
    u.expect("a=1 d/");
    u.expect_upper("a=1 d/");
}

#[test]
fn over_a_lower_file() {
    let mut u = Union::new(&["a=1 b=2"]);
    u.rename("a", "b").unwrap();
    u.expect("b=1");
    u.unlink("b").unwrap();
    u.expect("");
    u.expect_upper(".wh.a= .wh.b=");
}

#[test]
fn a_merged_directory_moves_whole() {
    let mut u = Union::new(&["d/a=1 d/s/x=1", "d/b=2 d/s/y=2 d/gone=1"]);
    let before: Vec<_> = u.lowers.iter().map(|lower| fingerprint(lower)).collect();
    u.unlink("d/gone").unwrap();
    u.create("d/new", "3").unwrap();
    let number = u.ino("d/s/y").unwrap();
    u.rename("d", "e").unwrap();
    assert_eq!(u.ino("e/s/y").unwrap(), number);
    u.expect("e/ e/a=1 e/b=2 e/new=3 e/s/ e/s/x=1 e/s/y=2");
    assert_eq!(u.ino("e/s/y").unwrap(), number);
    u.mkdir("d").unwrap();
    u.expect("d/ e/ e/a=1 e/b=2 e/new=3 e/s/ e/s/x=1 e/s/y=2");
    let after: Vec<_> = u.lowers.iter().map(|lower| fingerprint(lower)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_new_directory_over_a_deleted_one() {
    let mut u = Union::new(&["d/old=1"]);
    u.unlink("d/old").unwrap();
    u.rmdir("d").unwrap();
    u.mkdir("n").unwrap();
    u.create("n/f", "1").unwrap();
    u.rename("n", "d").unwrap();
    u.expect("d/ d/f=1");
    u.unlink("d/f").unwrap();
    u.rmdir("d").unwrap();
    u.expect("");
}

#[test]
fn over_an_empty_merged_directory() {
    let mut u = Union::new(&["d/x=1 d/y=1 n/f=1", "d/z=1"]);
    for name in ["d/x", "d/y", "d/z"] {
        u.unlink(name).unwrap();
    }
    u.rename("n", "d").unwrap();
    u.expect("d/ d/f=1");
    let mut u = Union::new(&["d/ n/f=1"]);
    u.rename("n", "d").unwrap(); // a lower directory without an upper part
    u.expect("d/ d/f=1");
}

#[test]
fn refused() {
    let u = Union::new(&["d/x=1 e/s/ f=1 g=1"]);
    assert_eq!(errno(u.rename("e", "d")), Errno::NOTEMPTY);
    assert_eq!(errno(u.rename("e", "e/s/in")), Errno::INVAL);
    assert_eq!(errno(u.rename("e/s", "e")), Errno::NOTEMPTY);
    assert_eq!(errno(u.rename("e", "f")), Errno::NOTDIR);
    assert_eq!(errno(u.rename("f", "e")), Errno::ISDIR);
    assert_eq!(errno(u.rename("no", "f")), Errno::NOENT);
    assert_eq!(errno(u.rename_with("f", "g", RenameMode::NoReplace)), Errno::EXIST);
    assert_eq!(errno(u.rename_with("f", "no", RenameMode::Exchange)), Errno::NOENT);
    u.expect_upper("");
}

#[test]
fn exchange() {
    let mut u = Union::new(&["d/x=1 f=2 e/y=3", "d/z=4"]);
    u.rename_with("d", "f", RenameMode::Exchange).unwrap();
    u.expect("d=2 e/ e/y=3 f/ f/x=1 f/z=4");
    u.rename_with("e", "f", RenameMode::Exchange).unwrap();
    u.expect("d=2 e/ e/x=1 e/z=4 f/ f/y=3");
    u.unlink("d").unwrap();
    u.expect("e/ e/x=1 e/z=4 f/ f/y=3");
}

#[test]
fn into_and_out_of_opaque_directories() {
    let mut u = Union::new(&["o/.wh..wh..opq= o/a=1 p/b=1", "o/old=1 p/old=1"]);
    u.rename("o/a", "p/a").unwrap();
    u.rename("p/b", "o/b").unwrap();
    u.rename("p/old", "o/old").unwrap();
    u.expect("o/ o/b=1 o/old=1 p/ p/a=1");
    u.unlink("o/old").unwrap();
    u.expect("o/ o/b=1 p/ p/a=1");
}

#[test]
fn a_moved_directory_keeps_its_times() {
    let mut u = Union::new(&["d/s/f=1"]);
    let past = std::fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000));
    for dir in ["d/s", "d"] {
        std::fs::File::open(u.lowers[0].join(dir)).unwrap().set_times(past).unwrap();
    }
    u.remount();
    u.rename("d", "e").unwrap();
    for dir in ["e", "e/s"] {
        assert_eq!(u.stat(dir).unwrap().stat.mtime.secs, 1_000_000, "{dir}");
    }
}

#[test]
fn onto_itself() {
    let mut u = Union::new(&["f=1 d/x=1"]);
    u.rename("f", "f").unwrap();
    u.rename("d", "d").unwrap();
    u.expect("d/ d/x=1 f=1");
}

#[test]
fn names_below_may_go_while_a_directory_is_settled() {
    let words: Vec<String> = (0..300).map(|n| format!("d/s{n}/f={n}")).collect();
    let mut u = Union::new(&[&words.join(" ")]);
    for n in 0..300 {
        u.unlink(&format!("d/s{n}/f")).unwrap();
    }
    let d = u.ino("d").unwrap();
    std::thread::scope(|scope| {
        let overlay = u.overlay();
        let remover = scope.spawn(move || {
            (0..300).map(|n| overlay.rmdir(d, format!("s{n}").as_bytes())).collect::<Vec<_>>()
        });
        u.rename("d", "e").unwrap();
        assert!(remover.join().unwrap().iter().all(Result::is_ok));
    });
    u.expect("e/");
}

#[test]
fn a_directory_whose_marks_are_directories_is_renamed_over() {
    let mut u = Union::new(&["d/a=1 d/b=2 e/new=3"]);
    std::fs::create_dir_all(u.upper().join("d/.wh.a/inside")).unwrap();
    std::fs::write(u.upper().join("d/.wh.b"), "").unwrap();
    u.remount();
    assert!(u.names("d").is_empty());
    u.rename("e", "d").unwrap();
    u.expect("d/ d/new=3");
}
