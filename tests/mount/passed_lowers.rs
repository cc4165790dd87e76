//! Large lower files of a writable mount, which the kernel reads itself (`io=passthrough`) until
//! somebody writes them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::is_root;
use crate::common::mounted::{Mount, run};
use crate::common::union::fingerprint;
use crate::need_mount;

const SIZE: usize = (1 << 20) + 5;

/// A mount of a layer with large files of these names, all of the byte `a`; none where there is no
/// passthrough.
fn mounted(names: &[&str]) -> Option<Mount> {
    if !is_root() {
        eprintln!("skipped: passthrough takes root");
        return None;
    }
    let mut m = Mount::unmounted(&["small=x"]);
    names.iter().for_each(|name| std::fs::write(m.lower(0).join(name), vec![b'a'; SIZE]).unwrap());
    m.options = vec!["--io".to_owned(), "passthrough".to_owned()];
    m.mount();
    Some(m)
}

fn writer(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn all(file: &File) -> Vec<u8> {
    let mut data = vec![0; 2 * SIZE];
    let read = file.read_at(&mut data, 0).unwrap();
    data.truncate(read);
    data
}

fn is_old(data: &[u8]) -> bool {
    data.len() == SIZE && data.iter().all(|byte| *byte == b'a')
}

#[test]
fn the_kernel_reads_what_nobody_writes() {
    need_mount!();
    let Some(m) = mounted(&["f"]) else { return };
    let accessed = |m: &Mount| std::fs::metadata(m.lower(0).join("f")).unwrap().atime();
    run(Command::new("touch").args(["-d", "2001-01-01"]).arg(m.lower(0).join("f")));
    let before = accessed(&m);
    let (reader, again) = (File::open(m.at("f")).unwrap(), File::open(m.at("f")).unwrap());
    assert!(is_old(&all(&reader)) && is_old(&all(&again)));
    assert_eq!((m.count("READ"), m.count("OPEN")), (0, 2));
    assert_eq!(accessed(&m), before);
    // A small one the daemon reads.
    assert_eq!(std::fs::read(m.at("small")).unwrap(), b"x");
    assert_eq!(m.count("READ"), 1);
}

#[test]
fn who_opened_it_before_it_is_written_reads_on() {
    need_mount!();
    let Some(mut m) = mounted(&["f"]) else { return };
    std::fs::hard_link(m.lower(0).join("f"), m.lower(0).join("g")).unwrap();
    let before = fingerprint(m.lower(0));
    let reader = File::open(m.at("f")).unwrap();
    let other = File::open(m.at("g")).unwrap();
    let number = reader.metadata().unwrap().ino();
    let writer = writer(&m.at("f"));
    assert!(is_old(&all(&writer)));
    writer.write_all_at(b"NEW", 0).unwrap();
    let appended = format!("NEW{}!", "a".repeat(SIZE - 3));
    File::options().append(true).open(m.at("g")).unwrap().write_all(b"!").unwrap();
    assert!(is_old(&all(&reader)) && is_old(&all(&other)));
    for file in [&writer, &File::open(m.at("f")).unwrap(), &File::open(m.at("g")).unwrap()] {
        assert!(all(file) == appended.as_bytes());
    }
    // One file: its attributes are the same by whatever it is asked.
    for at in [
        reader.metadata().unwrap(),
        writer.metadata().unwrap(),
        std::fs::metadata(m.at("f")).unwrap(),
        std::fs::metadata(m.at("g")).unwrap(),
    ] {
        assert_eq!((at.ino(), at.nlink(), at.size()), (number, 2, SIZE as u64 + 1));
    }
    reader.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    for at in [writer.metadata().unwrap(), std::fs::metadata(m.at("g")).unwrap()] {
        assert_eq!(at.mode() & 0o7777, 0o600);
    }
    std::fs::remove_file(m.at("g")).unwrap();
    assert_eq!((reader.metadata().unwrap().nlink(), writer.metadata().unwrap().nlink()), (1, 1));
    assert_eq!(fingerprint(m.lower(0)), before);
    drop((reader, other, writer));
    assert!(std::fs::read(m.at("f")).unwrap() == appended.as_bytes());
    m.remount();
    assert!(std::fs::read(m.at("f")).unwrap() == appended.as_bytes());
    assert!(!m.at("g").exists());
}

#[test]
fn truncation_is_a_write() {
    need_mount!();
    let Some(m) = mounted(&["f", "g", "h"]) else { return };
    let before = fingerprint(m.lower(0));
    let readers = ["f", "g", "h"].map(|name| File::open(m.at(name)).unwrap());
    m.sh("truncate -s 3 f; echo new > g");
    m.sh("python3 -c 'import os; os.open(\"h\", os.O_RDONLY | os.O_TRUNC)'");
    assert!(readers.iter().all(|reader| is_old(&all(reader))));
    for (name, data) in [("f", "aaa"), ("g", "new\n"), ("h", "")] {
        assert_eq!(std::fs::read_to_string(m.at(name)).unwrap(), data, "{name}");
        assert_eq!(std::fs::metadata(m.at(name)).unwrap().size(), data.len() as u64, "{name}");
    }
    assert_eq!(fingerprint(m.lower(0)), before);
}

#[test]
fn a_copy_up_without_a_write_leaves_readers_alone() {
    need_mount!();
    let Some(m) = mounted(&["f"]) else { return };
    let reader = File::open(m.at("f")).unwrap();
    m.sh("chmod 640 f; ln f g");
    let late = File::open(m.at("g")).unwrap();
    assert!(is_old(&all(&reader)) && is_old(&all(&late)));
    m.sh("echo new > f");
    assert!(is_old(&all(&reader)) && is_old(&all(&late)));
    assert_eq!(std::fs::read_to_string(m.at("g")).unwrap(), "new\n");
    // By a path that is no name of it, its first node cannot be written, and says so.
    let own = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let refused = File::options().write(true).open(own).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ESTALE));
}

#[test]
fn a_running_program_is_not_written() {
    need_mount!();
    let Some(m) = mounted(&[]) else { return };
    let program = std::fs::canonicalize("/usr/bin/python3").unwrap();
    std::fs::copy(program, m.lower(0).join("python")).unwrap();
    let waits = "print('runs', flush=True); input()";
    let mut child = Command::new(m.at("python"))
        .args(["-ISc", waits])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let busy = File::options().append(true).open(m.at("python")).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY));
    drop(child.stdin.take());
    child.wait().unwrap();
    m.sh("echo >> python");
    assert_eq!(m.sh("./python -ISc 'print(7)'"), "7\n");
}

/// Whoever comes while it is written for the first time sees what was written or what was before, and no
/// error.
#[test]
fn many_read_and_write_at_the_same_time() {
    need_mount!();
    let names: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
    let Some(m) = mounted(&names.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    let before = fingerprint(m.lower(0));
    for name in &names {
        let path = m.at(name);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let data = all(&File::open(&path).unwrap());
                        assert!(data.len() == SIZE);
                        assert!(data.iter().all(|byte| [b'a', b'b'].contains(byte)));
                    }
                });
            }
            // Each of two writes a half.
            let halves = [0..SIZE / 2, SIZE / 2..SIZE];
            let [first, second] = halves.map(|half| {
                let path = &path;
                move || {
                    writer(path).write_all_at(&vec![b'b'; half.len()], half.start as u64).unwrap()
                }
            });
            let writers = [scope.spawn(first), scope.spawn(second)];
            writers.into_iter().for_each(|writer| drop(writer.join()));
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(all(&File::open(&path).unwrap()) == vec![b'b'; SIZE], "{name}");
    }
    assert_eq!(fingerprint(m.lower(0)), before);
}
