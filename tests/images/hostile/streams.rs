//! Tar streams that parsers read in different ways, fields out of range, names for terminals.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::slice::from_ref;

use super::tar_entry::{
    TarEntry, device, dir, each_kind, fifo, file, hard_link, pax_record, raw, symlink, tar,
};
use super::{Outcome, for_each_user};
use crate::archives::{docker_files, tar_of};

/// A tar whose one entry must never be seen: it stands in another one's data.
fn nested() -> Vec<u8> {
    let mut bytes = tar(&[file("smuggled")]);
    bytes.truncate(1024);
    bytes
}

fn octal(size: usize) -> Vec<u8> {
    format!("{size:011o}\0").into_bytes()
}

#[test]
fn data_is_never_read_as_entries() {
    let data = nested();
    let len = data.len().to_string();
    let hidden = || file("outer").data(nested());
    let no_size = || hidden().size(&octal(0));
    let extension = |kind: u8, data: &[u8]| TarEntry::new(kind, "extension").data(data);
    let long_name = extension(b'L', b"outer\0");
    let pax = |records: &[(&str, &str)]| {
        let records = records.iter().map(|(k, v)| pax_record(k.as_bytes(), v.as_bytes()));
        extension(b'x', &records.collect::<Vec<_>>().concat())
    };
    let size = pax(&[("size", &len)]);
    let global = TarEntry::new(b'g', "global").data(pax_record(b"size", len.as_bytes()));
    let whole = format!("outer={}", data.escape_ascii());
    // CVE-2025-62518, RUSTSEC-2026-0068 and -0112, and more of their kind: all as POSIX has it.
    let table: [(&str, Vec<TarEntry>); 8] = [
        ("plain", vec![hidden()]),
        ("size in pax, none in ustar", vec![no_size().pax("size", &len)]),
        ("size in pax, another in ustar", vec![hidden().size(&octal(512)).pax("size", &len)]),
        ("pax, then a long name", vec![size.clone(), long_name.clone(), no_size()]),
        ("a long name, then pax", vec![long_name, size.clone(), no_size()]),
        ("pax twice, the last counts", vec![pax(&[("size", "0")]), size.clone(), no_size()]),
        ("size twice in one pax", vec![pax(&[("size", "7"), ("size", &len)]), no_size()]),
        ("global", vec![global, no_size()]),
    ];
    for_each_user(|arena| {
        for (what, entries) in &table {
            arena.attack(what, from_ref(entries)).shows_only(&[&whole]);
        }
        // Other kinds have no data, whatever their size: what follows is the next entry, as Go's
        // and Python's readers take it.
        for entry in each_kind("odd").into_iter().skip(1) {
            let layer = vec![file("own"), entry.size(&octal(1024)), file("next"), file("last")];
            let shown = ["last=hit", "next=hit", "own=hit"];
            arena.attack("data of no file", &[layer]).shows(&shown);
        }
        // Kinds that nobody knows, and those that only some do.
        for kind in *b"8DMNSVXZ@\xff" {
            let odd = TarEntry::new(kind, "odd").data(nested());
            let outcome = arena.attack("unknown kind", &[vec![file("own"), odd, file("last")]]);
            if let Outcome::Loaded(Some(tree)) = outcome {
                assert!(!tree.iter().any(|line| line.starts_with("smuggled")), "{kind}: {tree:?}");
            }
        }
        // After the end of the archive nothing counts.
        let after = vec![file("own"), raw(vec![0; 1024]), file("smuggled")];
        arena.attack("after the end", &[after]).shows_only(&["own=hit"]);
    });
}

/// The same in the archive around the layers: no manifest can be smuggled in.
#[test]
fn data_of_an_archive_is_never_read_as_its_files() {
    for_each_user(|arena| {
        let name = arena.next_name();
        let evil = tar_of(&docker_files(&name, &[tar(&[file("evil")])]));
        let size = evil.len().to_string();
        let blob = file("blob").data(&evil).size(&octal(0)).pax("size", &size);
        arena.attack_archive("no other", &tar(from_ref(&blob))).refused("no image");
        let good = tar_of(&docker_files(&name, &[tar(&[file("good")])]));
        let both = [&tar(&[blob])[..], &good].concat();
        arena.attack_archive("ends early", &both).refused("no image");
        let mut first = file("blob").data(&evil).size(&octal(0)).pax("size", &size).bytes();
        first.extend(good);
        arena.attack_archive("a good one after it", &first).shows_only(&["good=hit"]);
    });
}

#[test]
fn sizes_and_numbers_out_of_range() {
    let base_256 = |first: u8, byte: u8| [&[first][..], &[byte; 11]].concat();
    let kinds: [fn() -> TarEntry; 6] = [
        || file("f"),
        || TarEntry::new(b'x', "pax"),
        || TarEntry::new(b'g', "global"),
        || TarEntry::new(b'L', "long"),
        || TarEntry::new(b'K', "link"),
        || TarEntry::new(b'S', "sparse"),
    ];
    let sizes = [
        base_256(0x80, 0xff),                                    // 2^88 - 1
        base_256(0xff, 0xff),                                    // -1
        base_256(0xff, 0),                                       // -2^88
        [&base_256(0x80, 0)[..4], &[0x7f], &[0xff; 7]].concat(), // 2^63 - 1
        [&base_256(0x80, 0)[..4], &[0x80], &[0; 7]].concat(),    // 2^63
        [&base_256(0x80, 0)[..4], &[0x40], &[0; 7]].concat(),    // 2^62
        b"77777777777\0".to_vec(),                               // 8 GiB
        b"-0000000001\0".to_vec(),
        b"9999999999a\0".to_vec(),
        vec![0xff; 12],
    ];
    for_each_user(|arena| {
        for size in &sizes {
            for kind in kinds {
                let layer = vec![file("own"), kind().size(size), file("last")];
                arena.attack(&size.escape_ascii().to_string(), &[layer]).refused("");
            }
        }
        for size in [
            "18446744073709551615",
            "18446744073709551616",
            "9223372036854775807",
            "9223372036854775808",
            "-1",
            "1e9",
            "0x10",
            " 3",
            "3\0",
            "\u{663}",
        ] {
            let layer = vec![file("own"), file("f").pax("size", size), file("last")];
            arena.attack(size, &[layer]).refused("");
        }
        for record in [
            &b"99999999999999999999 path=x\n"[..],
            b"-5 path=x\n",
            b"0 path=x\n",
            b"3 path=x\n",
            b"10 path=x",
            b"10path=x\n",
            b"8 path=x\n",
            b"11 path=x\n",
            b"8 pathx\n\n",
            b"\n",
            b"\0",
            b"18446744073709551615 path=x\n",
        ] {
            let layer = vec![TarEntry::new(b'x', "pax").data(record), file("f")];
            arena.attack(&record.escape_ascii().to_string(), &[layer]).refused("");
        }
    });
}

#[test]
fn numbers_of_all_fields_at_their_limits() {
    let fields = [(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)];
    for_each_user(|arena| {
        for (at, len) in fields {
            let mut low = vec![0xff; len];
            low[1] = 0x80;
            for bytes in [
                vec![0xff; len],
                low,
                vec![b'7'; len],
                [&[0x80][..], &vec![0xff; len - 1]].concat(),
            ] {
                for entry in [file("f"), dir("f"), device("f"), symlink("f", "x")] {
                    let what = format!("{}: {at}", bytes.escape_ascii());
                    arena.attack(&what, &[vec![entry.field(at, &bytes)]]).harmless();
                }
            }
        }
        for value in ["-1", "4294967294", "4294967296", "18446744073709551615", "x", ""] {
            for key in ["uid", "gid"] {
                for entry in [file("f"), dir("f"), symlink("f", "x")] {
                    let what = format!("{key} {value}");
                    arena.attack(&what, &[vec![entry.pax(key, value)]]).harmless();
                }
            }
        }
        let times =
            ["-9223372036854775808", "9223372036854775807", "-9223372036854775807.9", "1e400"];
        for value in times.into_iter().chain(["nan", "-", ".", "-.5", "1.999999999999", "1.x"]) {
            for entry in [file("f"), dir("f"), dir("."), symlink("f", "x")] {
                arena.attack(value, &[vec![entry.pax("mtime", value)]]).harmless();
            }
        }
        for name in ["a\0b", "\0", "a/\0"] {
            let layer = vec![file("x").pax("path", name)];
            arena.attack("NUL in a name", &[layer]).refused("");
            let link = vec![file("own"), hard_link("x", "y").pax("linkpath", name)];
            arena.attack("NUL in a link", &[link]).refused("");
            let link = vec![file("own"), symlink("x", "y").pax("linkpath", name)];
            arena.attack("NUL in a symlink", &[link]).refused("");
        }
    });
}

/// To chown(2), the last number of all is none: it would leave the file to whoever unpacks.
#[test]
fn the_owner_that_is_none() {
    for_each_user(|arena| {
        for key in ["uid", "gid"] {
            let layer = vec![file("f").pax(key, "4294967295").mode(0o6755)];
            arena.attack(key, &[layer]).refused("");
        }
        for at in [108, 116] {
            let layer = vec![dir("d").field(at, b"\x80\0\0\0\xff\xff\xff\xff")];
            arena.attack("base 256", &[layer]).refused("");
        }
    });
}

#[test]
fn names_never_command_a_terminal() {
    let names: [&[u8]; 7] = [
        b"\x1b[2J\x1b]0;title\x07",
        b"\r\nplyfs: all is well",
        b"\x9b31m",
        "\u{9b}31m\u{85}".as_bytes(),
        b"\x7f\x08\x08",
        b"\xff\xfe",
        b"\x1bP1$r\x1b\\",
    ];
    for_each_user(|arena| {
        for name in names {
            let what = name.escape_ascii().to_string();
            let up = [b"../", name].concat();
            let xattr = |entry: TarEntry| entry.pax("SCHILY.xattr.trusted.overlay.opaque", "y");
            let loaded = vec![
                file(name),
                symlink([b"link", name].concat(), name),
                fifo([b"fifo", name].concat()),
                device([b"device", name].concat()),
                xattr(file([b"xattr", name].concat())),
            ];
            arena.attack(&what, &[loaded]).shows(&[&format!("{what}=hit")]);
            let image = arena.last_loaded().to_owned();
            // In each kind of message.
            for entry in [
                file(&up),
                hard_link(name, &up),
                hard_link(name, "nothing"),
                TarEntry::new(b'@', name),
                TarEntry::new(name[0], "unknown"),
                file([name, &[b'n'; 300]].concat()),
                symlink(name, [name, &[b'n'; 5000]].concat()),
                file(name).pax("size", "x").size(b"x"),
                file("f")
                    .pax(&String::from_utf8_lossy(name), "x")
                    .pax("mtime", String::from_utf8_lossy(name).as_bytes()),
                file("f").pax("uid", name),
                file(name).field(100, b"\x1b[2J"),
            ] {
                arena.attack(&what, &[vec![entry]]).harmless();
            }
            // What a writable layer has changed and deleted.
            let layer = arena.with_mount(&what, &["--name", "changed", &image], |m| {
                let name = std::ffi::OsStr::from_bytes(name);
                std::fs::remove_file(m.join(name)).unwrap();
                std::fs::create_dir(m.join("new")).unwrap();
                std::fs::write(m.join("new").join(name), "").unwrap();
            });
            for verb in [&["ps"][..], &["images"], &["diff", "changed"], &["rm", "changed"]] {
                let arguments: Vec<_> = verb.iter().map(|word| word as &dyn AsRef<OsStr>).collect();
                let ended = arena.plyfs(&what, &arguments);
                assert!(ended.status.success() || layer.is_none(), "{what}: {}", ended.stderr);
            }
        }
    });
}
