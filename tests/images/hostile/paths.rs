//! Names, links and roots that lead out of the layer.

use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, Ordering};

use super::for_each_user;
use super::tar_entry::{TarEntry, device, dir, each_kind, fifo, file, hard_link, symlink, tar};
use crate::archives::{docker_files, tar_of};

#[test]
fn dot_dot_is_refused() {
    for_each_user(|arena| {
        let far = format!("{}{}/hit", "../".repeat(40), &arena.victim()[1..]);
        let names =
            ["..", "../victim/hit", "../../../../victim/hit", "d/../../x", "d/..", "/../x", &far];
        for name in names {
            let marks = [format!("{name}/.wh.file"), format!("{name}/.wh..wh..opq")];
            for entry in each_kind(name).into_iter().chain(marks.iter().map(file)) {
                arena.attack(name, &[vec![dir("d"), file("own"), entry]]).refused("'..'");
            }
            let linked = vec![file("own"), hard_link("hit", name)];
            arena.attack(name, &[linked]).refused("'..'");
        }
    });
}

#[test]
fn absolute_names_are_names_in_the_layer() {
    for_each_user(|arena| {
        let victim = arena.victim();
        let at = |name: &str| format!("{victim}/{name}");
        let mut layer = vec![file("own"), dir("/"), dir(&victim)];
        layer.extend(each_kind(&at("hit")).into_iter().take(4)); // the last is a hard link
        layer.extend([file(at("file")), file(at("dir/.wh.inside")), file(at(".wh..wh..opq"))]);
        layer.extend([symlink(at("link"), at("secret")), symlink(at("dir/secret"), "../secret")]);
        let shown = [at("hit=hit"), at("file=hit"), at(&format!("link->{victim}/secret"))];
        let shown: Vec<_> = shown.iter().map(|line| &line[1..]).collect();
        arena.attack("absolute names", from_ref(&layer)).shows(&shown);
        arena.attack("absolute names above", &[vec![file("x")], layer]).shows(&shown);
        for target in [at("secret"), at("file"), at("dir/inside"), "/etc/passwd".into()] {
            arena.attack(&target, &[vec![hard_link("hit", &target)]]).refused("link to nothing");
        }
    });
}

/// What is tried through a symlink: each makes or changes something behind it.
fn intrusions(link: &str) -> Vec<TarEntry> {
    let at = |name: &str| format!("{link}/{name}");
    vec![
        file(at("hit")),
        file(at("file")),
        dir(at("hit")),
        dir(at("dir")),
        dir(at("")),
        file(at("dir/implied/hit")),
        symlink(at("hit"), "file"),
        device(at("hit")),
        fifo(at("hit")),
        file(at(".wh.file")),
        file(at(".wh..wh..opq")),
        hard_link(at("hit"), "own"),
        hard_link(at("suid"), "own"),
    ]
}

#[test]
fn through_symlinks() {
    for_each_user(|arena| {
        let (mut links, mut through) = (vec![file("own")], Vec::new());
        for (n, way) in arena.ways_out().iter().enumerate() {
            for (m, _) in intrusions("").iter().enumerate() {
                let link = format!("l{n}-{m}");
                links.push(symlink(&link, way));
                through.push(intrusions(&link).swap_remove(m));
            }
        }
        let both = [&links[..], &through].concat();
        arena.attack("in one layer", from_ref(&both)).shows(&["own=hit"]);
        arena.attack("twice in one layer", &[[&both[..], &through].concat()]).harmless();
        through.insert(0, file("own"));
        arena.attack("in the layer above", &[links, through]).shows(&["own=hit"]);
    });
}

/// openat2(2) gives EAGAIN for a `..` while anything on the machine is renamed or mounted.
#[test]
fn while_others_rename() {
    for_each_user(|arena| {
        let mut layer = vec![dir("d/e"), symlink("d/e/up", "../..")];
        layer.extend((0..200).map(|n| file(format!("d/e/up/f{n}"))));
        let (here, there) = (arena.path("in/here"), arena.path("in/there"));
        std::fs::write(&here, "").unwrap();
        let stop = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::fs::rename(&here, &there).unwrap();
                    std::fs::rename(&there, &here).unwrap();
                }
            });
            let layers = [tar(&layer)];
            std::fs::write(arena.path("in/image"), tar_of(&docker_files("x:1", &layers))).unwrap();
            let ended = arena.plyfs("load", &[&"load", &arena.path("in/image")]);
            stop.store(true, Ordering::Relaxed);
            ended
        });
        assert!(ended.status.success(), "{}", ended.stderr);
    });
}

#[test]
fn through_chains_of_symlinks() {
    for_each_user(|arena| {
        for (n, way) in arena.ways_out().iter().enumerate() {
            let chain = vec![
                file("own"),
                dir("d"),
                symlink("a", "b"),
                symlink("b", "d/c"),
                symlink("d/c", "../e"),
                symlink("e", way),
                symlink("loop", "loop2"),
                symlink("loop2", "loop"),
            ];
            let what = format!("chain {n}");
            let through = [intrusions("a"), intrusions("loop")].concat();
            arena.attack(&what, &[[&chain[..], &through].concat()]).harmless();
            arena.attack(&what, &[chain, [vec![file("own")], through].concat()]).harmless();
        }
    });
}

#[test]
fn nothing_is_linked_in_from_outside() {
    for_each_user(|arena| {
        for way in arena.ways_out() {
            for name in ["l/secret", "l/neighbour", "l/file", "l/suid", "l/dir/inside"] {
                let (link, take) = (symlink("l", &way), hard_link("hit", name));
                let what = format!("{name} by {way}");
                arena.attack(&what, &[vec![link.clone(), take.clone()]]).refused("link to nothing");
                arena.attack(&what, &[vec![link], vec![take]]).refused("link to nothing");
            }
            // A link to the symlink itself is one: another name of a symlink.
            let leaf = symlink("leaf", format!("{way}/secret"));
            let again = hard_link("again", "leaf");
            arena.attack(&way, &[vec![leaf.clone(), again.clone()]]).harmless();
            arena.attack(&way, &[vec![leaf], vec![again, file("again/x")]]).harmless();
        }
    });
}

#[test]
fn symlinks_and_directories_that_change_places() {
    for_each_user(|arena| {
        for way in arena.ways_out() {
            // Attributes of directories are set last: not of what stands there by then.
            let listed = [dir("d").mode(0o1777), dir("d/dir").mode(0o1777), dir("i/dir")];
            let swapped = [symlink("d", &way), symlink("i", &way)];
            let steps: [&[TarEntry]; 4] = [
                &[&listed[..], &swapped].concat(),
                &[&listed[..], &swapped, &[file("d/hit"), file("i/dir/hit")]].concat(),
                &[&swapped[..], &listed, &[file("d/hit"), file("d/dir/hit")]].concat(),
                &[&listed[..], &swapped, &listed, &swapped, &[dir("d"), dir("i/dir")]].concat(),
            ];
            for (n, step) in steps.iter().enumerate() {
                let what = format!("{way}, step {n}");
                arena.attack(&what, &[step.to_vec()]).harmless();
                arena.attack(&what, &[step.to_vec(), step.to_vec()]).harmless();
            }
            // What is replaced goes, not what its symlinks lead to.
            let full = [dir("d"), symlink("d/l", &way), dir("d/e"), symlink("d/e/l", &way)];
            arena.attack(&way, &[[&full[..], &[file("d")]].concat()]).shows_only(&["d=hit"]);
            arena.attack(&way, &[full.to_vec(), vec![file(".wh.d")]]).shows_only(&[]);
        }
    });
}

#[test]
fn roots_that_are_no_directory() {
    for_each_user(|arena| {
        for name in [".", "./", "/", "./.", "//", ""] {
            for entry in each_kind(name).into_iter().filter(|entry| entry.bytes()[156] != b'5') {
                let layer = vec![file("own"), entry.clone()];
                arena.attack(name, &[layer]).refused("root is not a directory");
                arena.attack(name, &[vec![file("own")], vec![entry]]).refused("root is not");
            }
        }
        let root = symlink(".", arena.victim());
        arena.attack(".", &[vec![root, file("hit")]]).refused("root is not a directory");
    });
}

#[test]
fn something_else_in_the_place_of_etc_passwd() {
    for_each_user(|arena| {
        let mut instead = each_kind("etc/passwd");
        instead
            .extend(["/dev/tty", "/proc/self/fd/0", "passwd"].map(|to| symlink("etc/passwd", to)));
        instead.extend(arena.ways_out().iter().map(|way| symlink("etc/passwd", way)));
        for entry in instead {
            let real = vec![file("own"), dir("etc"), file("etc/passwd"), file("etc/group")];
            let other = vec![file("own"), entry.clone()];
            let etc = symlink("etc", arena.victim());
            for layers in [vec![other.clone()], vec![real, other], vec![vec![etc, entry]]] {
                arena.attack("/etc/passwd", &layers).harmless();
            }
        }
        for verb in ["images", "ps"] {
            assert!(arena.plyfs(verb, &[&verb]).status.success());
        }
    });
}

#[test]
fn hard_links_to_what_cannot_be_linked() {
    for_each_user(|arena| {
        let nothing = "link to nothing";
        let table: [(&str, Vec<TarEntry>, &str); 7] = [
            ("itself", vec![hard_link("a", "a")], "link to itself"),
            ("itself, a file", vec![file("a"), hard_link("a", "a")], ""),
            ("each other", vec![hard_link("a", "b"), hard_link("b", "a")], nothing),
            ("what comes later", vec![hard_link("a", "b"), file("b")], nothing),
            ("a directory", vec![dir("d"), hard_link("a", "d")], "a directory"),
            ("the root", vec![hard_link("a", "/")], ""),
            ("its own parent", vec![dir("d"), hard_link("d/a", "d")], "a directory"),
        ];
        for (what, layer, expected) in table {
            arena.attack(what, from_ref(&layer)).refused(expected);
            let below = vec![dir("d"), file("d/f")];
            arena.attack(what, &[below, layer]).harmless();
        }
        let over_its_parent = vec![dir("d"), file("d/f"), hard_link("d", "d/f")];
        arena.attack("over its parent", &[over_its_parent]).refused("");
    });
}

#[test]
fn duplicates() {
    for_each_user(|arena| {
        let layer = vec![
            file("a").data("first"),
            hard_link("b", "a"),
            file("a").data("last"),
            file("t").data("first"),
            symlink("t", "b"),
            file("t").data("last"), // and not b
            dir("d"),
            file("d/in"),
            dir("d"),
            file("d"),
            dir("d"),
            file("d/last"),
        ];
        let shown = ["a=last", "b=first", "d/", "d/last=hit", "t=last"];
        arena.attack("duplicates", &[layer]).shows_only(&shown);
        // A file of a layer below, linked and then written: below it stays.
        let below = vec![file("f").data("below"), file("g").data("below")];
        let above = vec![
            hard_link("f2", "f"),
            file("f").data("above"),
            hard_link("g", "f2"),
            file("f2").mode(0o600),
        ];
        arena.attack("below", from_ref(&below)).shows_only(&["f=below", "g=below"]);
        let shown = ["f2=hit", "f=above", "g=below"]; // ('2' is before '=')
        arena.attack("above", &[below.clone(), above]).shows_only(&shown);
        arena.attack("below again", &[below]).shows_only(&["f=below", "g=below"]);
    });
}
