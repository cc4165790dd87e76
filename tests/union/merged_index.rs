//! Lowers whose merged tree is known beforehand show the same as others, with fewer looks at them.

use plyfs::layers::number::Ino;
use plyfs::overlay::{Attr, MountOptions, Overlay, Overrides, UpperForm};
use plyfs::sys::FileType;

use crate::common::is_root;
use crate::common::union::{Union, fingerprint};

const LAYERS: [&str; 4] = [
    "top=0 d/a=0 d/.wh.gone= both/x=0 file-over-dir=f op/.wh..wh..opq= op/new=0 .wh.deleted=",
    "d/b=1 d/gone=1 both/y=1 file-over-dir/inside=1 op/old=1 deleted=1 deep/er/f=1 l->d/a",
    "d/c=2 both=file h=2 h2=>h deep/er/g=2 .wh.lowest=",
    "d/d=3 both/z=3 lowest=3 deep/.wh.er= deep/kept=3 d/e/f=3",
];

fn indexed(form: UpperForm) -> Union {
    let mut u = match form {
        UpperForm::Plain => Union::new(&LAYERS),
        UpperForm::Rich => Union::rich(&LAYERS),
    };
    u.indexed = true;
    u.remount();
    assert!(u.overlay().is_indexed_stack());
    u
}

/// Each path with its whole attributes, but for the link counts of directories: those of opaque
/// ones are known only by who has read them.
fn told(u: &Union) -> Vec<String> {
    let plain = |mut attr: Attr| {
        attr.stat.nlink *= u32::from(attr.kind != FileType::Directory);
        attr
    };
    let mut lines = Vec::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        lines.push(format!("{dir} {:?}", plain(u.stat(&dir).unwrap())));
        for (name, attr) in u.list(&dir) {
            let attr = plain(attr);
            let path = format!("{dir}/{name}");
            lines.push(format!("{path} {attr:?}"));
            if attr.kind == FileType::Directory {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn it_shows_what_the_layers_show() {
    let mut u = Union::new(&LAYERS);
    let (tree, attributes) = (u.tell(), told(&u));
    u.indexed = true;
    u.remount();
    assert_eq!(u.tell(), tree);
    for (ours, theirs) in told(&u).iter().zip(&attributes) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(told(&u).len(), attributes.len());
}

#[test]
fn changes_above_it_act_as_ever() {
    for form in [UpperForm::Plain, UpperForm::Rich] {
        let (mut u, mut plain) = (indexed(form), Union::new(&LAYERS));
        let lower = fingerprint(&u.lowers[1]);
        for union in [&u, &plain] {
            union.write("d/b", 0, "changed").unwrap();
            union.unlink("d/c").unwrap();
            union.rename("deep", "moved").unwrap();
            union.mkdir("deep").unwrap();
            union.create("deep/new", "n").unwrap();
            union.unlink("op/new").unwrap();
            union.rmdir("op").unwrap();
            union.mkdir("op").unwrap();
            union.write("h", 0, "both").unwrap();
            union.rename("d/e", "moved/e").unwrap();
            union.chmod("both", 0o700).unwrap();
            union.unlink("both/x").unwrap();
        }
        assert_eq!(u.tell(), plain.tell(), "{form:?}");
        u.remount();
        plain.remount();
        assert_eq!(u.tell(), plain.tell(), "{form:?}");
        assert_eq!(u.read("h2").unwrap(), "both");
        assert_eq!(fingerprint(&u.lowers[1]), lower);
    }
}

#[test]
fn it_answers_without_the_layers() {
    if is_root() {
        return; // who cannot be kept from reading a directory; an ordinary user runs this
    }
    let mut u = Union::new(&["d/f=1"]);
    let index = u.index();
    let d = u.lowers[0].join("d");
    let mode = |bits| std::os::unix::fs::PermissionsExt::from_mode(bits);
    std::fs::set_permissions(&d, mode(0)).unwrap();
    let mut options = MountOptions::new(u.lowers.clone());
    options.merged_index = Some(index);
    let union = Overlay::open(&options).unwrap();
    let found = union.lookup(Ino::ROOT, b"d").and_then(|d| union.lookup(d.ino, b"f"));
    std::fs::set_permissions(&d, mode(0o755)).unwrap();
    assert_eq!(found.unwrap().stat.size, 1);
    u.remount();
}

#[test]
fn a_stack_that_changed_has_none() {
    let mut u = indexed(UpperForm::Plain);
    let index = u.index();
    u.lowers.swap(0, 1);
    let mut options = MountOptions::new(u.lowers.clone());
    options.merged_index = Some(index.clone());
    assert!(!Overlay::open(&options).unwrap().is_indexed_stack());
    u.lowers.swap(0, 1);
    std::fs::write(u.lowers[0].join("more"), "changed").unwrap();
    options.lowers = u.lowers.clone();
    let union = Overlay::open(&options).unwrap();
    assert!(!union.is_indexed_stack());
    assert!(union.lookup(Ino::ROOT, b"more").is_ok());
    options.merged_index = Some(u.dir.path().join("none"));
    assert!(!Overlay::open(&options).unwrap().is_indexed_stack());
}

#[test]
fn no_xattr_of_a_layer_makes_it_lie() {
    let mut u = Union::new(&["a=forged b/one=1 c/two=2"]);
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("", "0:0:0755"), ("a", "0:0:0755:dir")] {
        let path = u.lowers[0].join(name);
        let xattr = "user.containers.override_stat";
        rustix::fs::setxattr(&path, xattr, value.as_bytes(), flags).unwrap();
    }
    // No file stands for a directory, whatever its xattr says.
    u.indexed = true;
    u.remount();
    assert_eq!(u.tell(), ["a=forged", "b/", "b/one=1", "c/", "c/two=2"]);
    u.ownership.overrides = Overrides::No;
    u.remount();
    assert_eq!(u.tell(), ["a=forged", "b/", "b/one=1", "c/", "c/two=2"]);
}

#[test]
fn owners_out_of_xattrs_are_in_the_index_that_says_so() {
    let mut u = Union::new(&["dev= f=1"]);
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("", "0:0:0755"), ("dev", "3:4:0640:char-1-3"), ("f", "7:8:4711")] {
        let path = u.lowers[0].join(name);
        rustix::fs::setxattr(&path, "user.containers.override_stat", value.as_bytes(), flags)
            .unwrap();
    }
    let mut options = MountOptions::new(u.lowers.clone());
    options.ownership.overrides =
        Overrides::In(plyfs::layers::override_stat::OverrideXattr::Containers);
    let path = u.dir.path().join("of-owners");
    let mut file = std::fs::File::create(&path).unwrap();
    assert!(Overlay::open(&options).unwrap().build_index(&mut file, u.dir.path()).unwrap());
    options.merged_index = Some(path);
    // What they say is not asked for again.
    for name in ["dev", "f"] {
        let path = u.lowers[0].join(name);
        rustix::fs::removexattr(&path, "user.containers.override_stat").unwrap();
    }
    let union = Overlay::open(&options).unwrap();
    assert!(union.is_indexed_stack());
    let shown = |name: &[u8]| union.lookup(Ino::ROOT, name).unwrap();
    let (dev, f) = (shown(b"dev"), shown(b"f"));
    assert_eq!(dev.kind, FileType::CharacterDevice);
    assert_eq!((dev.stat.uid, dev.stat.gid, dev.stat.rdev), (3, 4, rustix::fs::makedev(1, 3)));
    assert_eq!((f.stat.uid, f.stat.gid, f.stat.permissions()), (7, 8, 0o4711));
    options.ownership.overrides = Overrides::No;
    assert!(!Overlay::open(&options).unwrap().is_indexed_stack());
    u.remount();
}
