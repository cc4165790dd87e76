//! Who reads and writes the data: the modes of `--io` show the same, and never write a lower file.

use std::fs::{File, OpenOptions};
use std::io::{IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use rustix::io::{Errno, ReadWriteFlags};

use crate::common::is_root;
use crate::common::mounted::{Mount, fails, plyfs, run, wait_until};
use crate::need_mount;

/// The modes that can be had here.
fn modes() -> Vec<&'static str> {
    let mut modes = vec!["auto", "cache"];
    if is_root() {
        modes.push("passthrough");
    }
    modes
}

fn mounted(mode: &str, layers: &[&str]) -> Mount {
    let mut m = Mount::unmounted(layers);
    m.options = vec!["--io".to_owned(), mode.to_owned()];
    m.mount();
    m
}

fn read_all(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn open_both(m: &Mount) -> File {
    OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap()
}

/// `exec 3<f; printf X 1<>f` is where a rival writes into the lower file.
#[test]
fn a_reader_before_a_writer() {
    need_mount!();
    for mode in modes() {
        let m = mounted(mode, &["f=lower"]);
        let mut reader = File::open(m.at("f")).unwrap();
        assert_eq!(read_all(&mut reader), "lower", "{mode}");
        let mut writer = open_both(&m);
        writer.write_all(b"UP").unwrap();
        let mut late = File::open(m.at("f")).unwrap();
        for file in [&mut reader, &mut writer, &mut late] {
            assert_eq!(read_all(file), "UPwer", "{mode}");
        }
        writer.write_all_at(b"longer than before", 0).unwrap();
        assert_eq!(read_all(&mut reader), "longer than before", "{mode}");
        assert_eq!(std::fs::read_to_string(m.lower(0).join("f")).unwrap(), "lower", "{mode}");
        drop((reader, writer, late));
        // All anew, as it may be another way now.
        assert_eq!(read_all(&mut open_both(&m)), "longer than before", "{mode}");
        assert_eq!(std::fs::read_to_string(m.upper().join("f")).unwrap(), "longer than before");
    }
}

#[test]
fn writers_and_readers_of_a_file_of_upper() {
    need_mount!();
    for mode in modes() {
        let m = mounted(mode, &[""]);
        let mut first = File::create_new(m.at("f")).unwrap();
        first.write_all(b"first").unwrap();
        let mut reader = File::open(m.at("f")).unwrap();
        assert_eq!(read_all(&mut reader), "first", "{mode}");
        let mut append = OpenOptions::new().append(true).open(m.at("f")).unwrap();
        append.write_all(b", second").unwrap();
        first.write_all_at(b"FIRST", 0).unwrap();
        assert_eq!(read_all(&mut reader), "FIRST, second", "{mode}");
        assert_eq!(std::fs::metadata(m.at("f")).unwrap().size(), 13, "{mode}");
        first.set_len(3).unwrap();
        assert_eq!(read_all(&mut reader), "FIR", "{mode}");
        std::fs::remove_file(m.at("f")).unwrap();
        append.write_all(b"!").unwrap();
        assert_eq!(read_all(&mut reader), "FIR!", "{mode}");
        drop((first, reader, append));
        std::fs::write(m.at("f"), "another").unwrap();
        assert_eq!(std::fs::read_to_string(m.at("f")).unwrap(), "another", "{mode}");
    }
}

#[test]
fn what_was_cached_before_is_not_believed_after() {
    need_mount!();
    for mode in modes() {
        let m = mounted(mode, &["f=lower"]);
        assert_eq!(std::fs::read_to_string(m.at("f")).unwrap(), "lower");
        std::fs::write(m.at("f"), "cached").unwrap(); // copied up while it is open
        assert_eq!(std::fs::read_to_string(m.at("f")).unwrap(), "cached", "{mode}");
        open_both(&m).write_all(b"direct").unwrap();
        assert_eq!(std::fs::read_to_string(m.at("f")).unwrap(), "direct", "{mode}");
        let mapped = "python3 -c 'import mmap,sys; f=open(sys.argv[1],\"r+b\"); m=mmap.mmap(f.fileno(),0); m[0:3]=b\"MAP\"' \"$0\"";
        run(Command::new("sh").args(["-euc", mapped]).arg(m.at("f")));
        assert_eq!(std::fs::read_to_string(m.at("f")).unwrap(), "MAPect", "{mode}");
        assert_eq!(std::fs::read_to_string(m.upper().join("f")).unwrap(), "MAPect", "{mode}");
    }
}

#[test]
fn passthrough_asks_the_daemon_for_no_data() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: passthrough takes root");
    }
    let m = mounted("passthrough", &["f=lower"]);
    let data = vec![7; 1 << 20];
    std::fs::write(m.at("new"), &data).unwrap();
    assert_eq!(std::fs::read(m.at("new")).unwrap(), data);
    assert_eq!((m.count("READ"), m.count("WRITE")), (0, 0));
    assert_eq!(m.count("CREATE") + m.count("OPEN"), 2);
    m.unmount();
    run(plyfs().args(["mount", "--io", "passthrough", "--lower"]).arg(m.upper()).arg(m.merged()));
    assert_eq!(std::fs::read(m.at("new")).unwrap(), data);
    assert_eq!((m.count("READ"), m.count("OPEN")), (0, 1));
    assert!(File::options().write(true).open(m.at("new")).is_err());
}

/// Which of a file's data is in the page cache of its filesystem, in parts of 1 MiB.
fn cached(path: &Path) -> Vec<bool> {
    let file = File::open(path).unwrap();
    let parts = 0..file.metadata().unwrap().size() >> 20;
    let is_there = |n: u64| {
        let mut byte = [0];
        let part = &mut [IoSliceMut::new(&mut byte)];
        let read = rustix::io::preadv2(&file, part, n << 20, ReadWriteFlags::NOWAIT);
        read != Err(Errno::AGAIN) // some filesystems do not tell
    };
    parts.map(is_there).collect()
}

#[test]
fn a_large_lower_file_that_was_read_is_in_memory_once() {
    need_mount!();
    for mode in modes() {
        let mut m = Mount::unmounted(&[""]);
        let data: Vec<u8> = (0..10u32 << 20).flat_map(u32::to_le_bytes).collect();
        std::fs::write(m.lower(0).join("f"), &data).unwrap();
        File::open(m.lower(0).join("f")).unwrap().sync_all().unwrap();
        m.options = vec!["--io".to_owned(), mode.to_owned()];
        m.mount();
        let read = |size: usize| {
            let (before, mut read) = (m.count("READ"), vec![0; size]);
            File::open(m.at("f")).unwrap().read_exact(&mut read).unwrap();
            assert!(read == data[..size]);
            m.count("READ") - before
        };
        assert!(read(data.len()) > 0, "{mode}");
        if mode == "passthrough" {
            // Dropped when the file was closed, of which nobody waits for.
            wait_until("the mount has it no more", || read(data.len()) > 100);
            assert!(cached(&m.lower(0).join("f")).iter().all(|there| *there));
            wait_until("the mount has it no more", || read(1 << 20) > 0);
            // Who reads parts comes again, maybe.
            wait_until("the mount keeps it", || read(1 << 20) == 0);
        } else {
            wait_until("the mount keeps it", || read(data.len()) == 0);
        }
        // Where it was written it stays.
        open_both(&m).write_all(b"new").unwrap();
        let mut start = [0; 4];
        File::open(m.at("f")).unwrap().read_exact(&mut start).unwrap();
        assert_eq!(start[..3], *b"new");
    }
}

#[test]
fn setuid_goes_when_another_user_writes_past_the_daemon() {
    need_mount!();
    if !is_root() {
        return eprintln!("skipped: only root changes users");
    }
    for mode in modes() {
        let m = mounted(mode, &[""]);
        crate::common::open_to_all(&m.path(""));
        std::fs::write(m.at("f"), "x").unwrap();
        std::fs::set_permissions(m.at("f"), PermissionsExt::from_mode(0o6777)).unwrap();
        let write =
            ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "echo y >> \"$0\""];
        run(Command::new("setpriv").args(write).arg(m.at("f")));
        let mode_of = |path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode_of(m.at("f")), 0o777, "{mode}");
        assert_eq!(mode_of(m.upper().join("f")), 0o777, "{mode}");
    }
}

#[test]
fn an_ordinary_user_is_told_that_passthrough_takes_root() {
    need_mount!();
    if is_root() {
        return eprintln!("skipped: here it can be had");
    }
    let m = Mount::unmounted(&["f=lower"]);
    let mut command = plyfs();
    command.args(["mount", "--io", "passthrough", "--lower"]).arg(m.lower(0)).arg(m.merged());
    assert!(fails(&mut command).contains("io=passthrough takes"));
}
