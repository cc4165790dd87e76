//! Reading directories.

use crate::common::union::Union;
use plyfs::layers::number::Ino;

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
