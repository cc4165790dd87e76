//! Few descriptors, large files, and who waits for whom.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use crate::common::mounted::{Mount, daemon_of, io_mode, sh};
use crate::need_mount;

fn open_descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn more_deleted_open_files_than_descriptors() {
    need_mount!();
    let mut m = Mount::unmounted(&["d/low=lower"]);
    m.nofile = Some(128);
    m.mount();
    let mut files = Vec::new();
    for n in 0..600 {
        let path = m.at(&format!("f{n}"));
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        write!(file, "text {n}").unwrap();
        fs::remove_file(&path).unwrap();
        files.push(file);
    }
    let lower = File::options().read(true).write(true).open(m.at("d/low")).unwrap();
    fs::remove_file(m.at("d/low")).unwrap();
    lower.write_all_at(b"L", 0).unwrap();
    for (n, file) in files.iter().enumerate() {
        let expected = format!("text {n}");
        let mut text = vec![0; 64];
        let len = file.read_at(&mut text, 0).unwrap();
        assert_eq!(&text[..len], expected.as_bytes());
        file.set_len(4).unwrap();
        let m = file.metadata().unwrap();
        assert_eq!((m.nlink(), m.len()), (0, 4), "{n}");
    }
    let mut text = [0; 5];
    lower.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"Lower");
    assert!(open_descriptors(&daemon_of(&m)) < 128);
    drop((files, lower));
    m.expect("d/");
    assert_eq!(fs::read_dir(m.path("work/tmp")).unwrap().count(), 0);
}

#[test]
fn many_known_files_with_few_descriptors() {
    need_mount!();
    let mut m = Mount::unmounted(&[""]);
    for d in 0..40 {
        let dir = m.lower(0).join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for f in 0..50 {
            fs::write(dir.join(format!("f{f}")), format!("{d} {f}")).unwrap();
        }
    }
    m.nofile = Some(64);
    m.mount();
    let mut texts = 0;
    for entry in walkdir::WalkDir::new(m.merged()) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let mut text = String::new();
            File::open(entry.path()).unwrap().read_to_string(&mut text).unwrap();
            texts += usize::from(text.contains(' '));
        }
    }
    assert_eq!(texts, 2000);
    m.sh("for d in d*; do echo x >> $d/f7; mv $d/f8 $d/g8; rm $d/f9; done");
    assert!(open_descriptors(&daemon_of(&m)) < 64);
}

#[test]
fn nobody_waits_for_copy_ups_in_progress() {
    need_mount!();
    let m = Mount::unmounted(&["other/x=1"]);
    // More copy-ups at a time than the daemon has workers.
    let count = 24;
    for n in 0..count {
        let data = vec![n; 48 << 20];
        fs::write(m.lower(0).join(format!("big{n}")), data).unwrap();
    }
    let mut m = m;
    m.mount();
    let writers: Vec<_> = (0..count)
        .map(|n| {
            let path = m.at(&format!("big{n}"));
            std::thread::spawn(move || {
                File::options().append(true).open(path).unwrap().write_all(b"end").unwrap();
            })
        })
        .collect();
    let mut answered_meanwhile = 0;
    let begin = Instant::now();
    while writers.iter().any(|writer| !writer.is_finished()) {
        // A name that was never asked for goes to the daemon each time.
        let asked = m.at(&format!("other/none{answered_meanwhile}"));
        assert!(fs::symlink_metadata(asked).is_err());
        answered_meanwhile += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begin.elapsed();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(answered_meanwhile > 3, "{answered_meanwhile} answers while it took {took:?}");
    assert_eq!(fs::metadata(m.at("big3")).unwrap().len(), (48 << 20) + 3);
}

#[test]
fn a_full_disk_in_the_middle_of_a_metacopy_leaves_the_old_file() {
    need_mount!();
    if !crate::common::is_root() {
        return eprintln!("skipped: only root mounts a small filesystem");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir_all(path("lower/d")).unwrap();
    fs::write(path("lower/d/big"), vec![b'b'; 8 << 20]).unwrap();
    for made in ["small", "m"] {
        fs::create_dir(path(made)).unwrap();
    }
    let plyfs = env!("CARGO_BIN_EXE_plyfs");
    let (small, merged, lower) = (path("small"), path("m"), path("lower"));
    sh(&format!("mount -t tmpfs -o size=4m small {small}"));
    struct Undo(String, String);
    impl Drop for Undo {
        fn drop(&mut self) {
            let (merged, small) = (&self.0, &self.1);
            sh(&format!(
                "'{}' umount --lazy {merged} || true; umount -l {small}",
                env!("CARGO_BIN_EXE_plyfs")
            ));
        }
    }
    let _undo = Undo(merged.clone(), small.clone());
    sh(&format!("mkdir {small}/upper {small}/work"));
    sh(&format!(
        "{plyfs} mount {} --form rich --lower {lower} --upper {small}/upper --work {small}/work {merged}",
        io_mode().join(" ")
    ));
    sh(&format!("chmod 600 {merged}/d/big; mv {merged}/d {merged}/e"));
    let big = format!("{merged}/e/big");
    let error = File::options().append(true).open(&big).unwrap().write_all(b"end").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let m = fs::metadata(&big).unwrap();
    assert_eq!((m.len(), m.mode() & 0o777), (8 << 20, 0o600));
    assert!(fs::read(&big).unwrap().iter().all(|byte| *byte == b'b'));
    assert_eq!(fs::read_dir(format!("{small}/work/tmp")).unwrap().count(), 0);
}
