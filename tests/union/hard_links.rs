//! Hard links: one file, whatever its names, through copy-up and remount.

use std::os::fd::AsFd;

use crate::common::union::Union;

#[test]
fn names_of_a_lower_file_stay_one_file() {
    let mut u = Union::new(&["a=x b=>a d/c=>a"]);
    assert_eq!(u.stat("a").unwrap().stat.nlink, 3);
    let number = u.ino("a").unwrap();
    u.write("b", 1, "y").unwrap();
    for _ in 0..2 {
        for name in ["a", "b", "d/c"] {
            assert_eq!(u.read(name).unwrap(), "xy", "{name}");
            assert_eq!(u.ino(name).unwrap(), number, "{name}");
            assert_eq!(u.stat(name).unwrap().stat.nlink, 3, "{name}");
        }
        u.remount();
    }
    u.write("d/c", 2, "z").unwrap();
    u.expect("a=xyz b=xyz d/ d/c=xyz");
}

#[test]
fn the_link_count_follows() {
    let mut u = Union::new(&["a=x b=>a"]);
    u.unlink("a").unwrap();
    assert_eq!(u.stat("b").unwrap().stat.nlink, 1);
    u.remount();
    assert_eq!(u.stat("b").unwrap().stat.nlink, 1);
    u.link("b", "c").unwrap();
    assert_eq!(u.stat("b").unwrap().stat.nlink, 2);
    u.write("c", 1, "!").unwrap();
    u.expect("b=x! c=x!");
    u.unlink("b").unwrap();
    assert_eq!(u.stat("c").unwrap().stat.nlink, 1);
    u.unlink("c").unwrap();
    u.expect("");
    assert_eq!(std::fs::read_dir(u.work().join("index")).unwrap().count(), 0);
}

#[test]
fn new_links_in_upper() {
    let mut u = Union::new(&["d/"]);
    u.create("f", "1").unwrap();
    u.link("f", "d/g").unwrap();
    assert_eq!(u.stat("f").unwrap().stat.nlink, 2);
    assert_eq!(u.ino("f").unwrap(), u.ino("d/g").unwrap());
    u.remount();
    u.write("d/g", 0, "2").unwrap();
    u.unlink("f").unwrap();
    assert_eq!(u.stat("d/g").unwrap().stat.nlink, 1);
    u.expect("d/ d/g=2");
}

#[test]
fn rename_over_one_of_the_names() {
    let mut u = Union::new(&["a=x b=>a n=new"]);
    u.rename("n", "a").unwrap();
    assert_eq!(u.stat("b").unwrap().stat.nlink, 1);
    u.expect("a=new b=x");
    // Two names of one file: rename does nothing (rename(2)).
    u.link("a", "a2").unwrap();
    u.rename("a", "a2").unwrap();
    u.expect("a=new a2=new b=x");
}

#[test]
fn renaming_a_name_whose_data_went_up_under_another() {
    let mut u = Union::new(&["a=x b=>a c/d=>a"]);
    u.ino("a").unwrap();
    u.rename("b", "moved").unwrap();
    u.expect("a=x c/ c/d=x moved=x");
    u.write("moved", 1, "y").unwrap();
    u.rename("c", "e").unwrap(); // a directory with such a name in it
    assert_eq!(u.stat("a").unwrap().stat.nlink, 3);
    u.expect("a=xy e/ e/d=xy moved=xy");
}

#[test]
fn a_write_to_a_deleted_name_shows_under_the_others() {
    let mut u = Union::new(&["a=old b=>a"]);
    let open = u.ino("a").unwrap(); // b is not known
    u.unlink("a").unwrap();
    u.overlay().write(open, 0, b"new", plyfs::overlay::WriteFlags::default()).unwrap();
    assert_eq!(u.read("b").unwrap(), "new");
    u.expect("b=new");
}

#[test]
fn a_replaced_name_keeps_the_file_for_the_others() {
    let mut u = Union::new(&["d/a=x d/b=>d/a n=new"]);
    u.write("d/a", 1, "y").unwrap();
    u.unlink("d/a").unwrap();
    u.expect("d/ d/b=xy n=new");
    u.rename("n", "d/b").unwrap();
    u.expect("d/ d/b=new");
    assert_eq!(std::fs::read_dir(u.work().join("index")).unwrap().count(), 0);
}

#[test]
fn a_copy_up_cut_short_loses_nothing() {
    let mut u = Union::new(&["a=old b=>a"]);
    let number = u.ino("a").unwrap();
    // As a crash leaves it: all names counted, in the index, with no name in upper.
    let work = plyfs::sys::open_dir(&u.work()).unwrap();
    let index = plyfs::layers::index::Index::open(work.as_fd()).unwrap();
    index.start_count(number, 2).unwrap();
    std::fs::write(u.work().join("index").join(format!("{:016x}", number.0)), "old").unwrap();
    u.remount();
    u.write("b", 0, "new").unwrap();
    u.unlink("a").unwrap();
    u.expect("b=new");
}

#[test]
fn losing_a_name_is_a_change_of_the_file() {
    let mut u = Union::new(&["a=1 b=>a c=>a d=>a new=2"]);
    let ctime = |u: &Union, name: &str| u.stat(name).unwrap().stat.ctime;
    let before = ctime(&u, "a");
    u.unlink("b").unwrap(); // while all are the lower layer's
    let after = ctime(&u, "a");
    assert!(after > before);
    assert_eq!(u.tell_upper(), [".wh.b="]);
    u.remount();
    assert_eq!(ctime(&u, "a"), after);
    u.write("a", 0, "x").unwrap();
    let before = ctime(&u, "a");
    u.rename("new", "c").unwrap(); // a lower name of a file that is in upper
    assert!(ctime(&u, "a") > before);
    u.expect("a=x c=2 d=x");
}

#[test]
fn upper_has_each_name_that_is_known_of_a_changed_file() {
    let mut u = Union::new(&["l/a=x l/b=>l/a l/c=>l/a far/d=>l/a"]);
    u.chmod("l/b", 0o600).unwrap(); // the others are not known yet
    u.expect_upper("l/ l/b=x");
    assert_eq!(u.names("l"), ["a", "b", "c"]);
    u.write("l/c", 0, "y").unwrap();
    u.expect_upper("l/ l/a=y l/b=y l/c=y");
    u.ino("far/d").unwrap();
    u.write("l/c", 0, "z").unwrap();
    u.expect_upper("far/ far/d=z l/ l/a=z l/b=z l/c=z");
    assert_eq!(u.stat("l/a").unwrap().stat.nlink, 4);
    u.stack();
    u.expect("far/ far/d=z l/ l/a=z l/b=z l/c=z");
}

#[test]
fn a_name_that_comes_to_be_known_is_upper_s_when_it_is_written() {
    let u = Union::new(&["a=lower b=>a c=>a"]);
    u.ino("a").unwrap();
    u.ino("b").unwrap();
    u.write("a", 0, "1").unwrap();
    u.unlink("b").unwrap();
    u.write("c", 0, "2").unwrap();
    u.expect_upper(".wh.b= a=2ower c=2ower");
}
