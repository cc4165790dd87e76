//! Data through the kernel's page cache.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use crate::common::mounted::{Mount, daemon_of, run, threads};
use crate::common::union::fingerprint;
use crate::need_mount;

#[test]
fn a_reader_from_before_copy_up_sees_later_writes() {
    need_mount!();
    let m = Mount::new(&["f=lower"]);
    let before = fingerprint(m.lower(0));
    let mut reader = File::open(m.at("f")).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    File::options().append(true).open(m.at("f")).unwrap().write_all(b"+new").unwrap();
    reader.rewind().unwrap();
    text.clear();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower+new");
    assert_eq!(fingerprint(m.lower(0)), before);
}

#[test]
fn opening_for_writing_copies_nothing() {
    need_mount!();
    let m = Mount::new(&["f=lower"]);
    drop(File::options().read(true).write(true).open(m.at("f")).unwrap());
    m.expect_upper("");
}

#[test]
fn large_data_survives_a_remount() {
    need_mount!();
    let mut m = Mount::new(&[""]);
    let data: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_le_bytes).collect();
    let mut file = File::create(m.at("big")).unwrap();
    file.write_all(&data).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(std::fs::read(m.at("big")).unwrap() == data);
    m.remount();
    assert!(std::fs::read(m.at("big")).unwrap() == data);
}

#[test]
fn the_disk_writes_a_large_file_while_more_comes() {
    need_mount!();
    if std::env::var("PLYFS_TEST_IO").is_ok_and(|io| io == "passthrough") {
        return; // the kernel writes
    }
    let mut m = Mount::new(&[""]);
    let daemon = daemon_of(&m);
    m.sh("dd if=/dev/zero bs=1M count=60 status=none of=small");
    assert!(threads(&daemon, "behind").is_empty());
    let line = "seq 12000000 | head -c 90000000";
    m.sh(&format!("{line} | dd bs=1M iflag=fullblock status=none of=large"));
    assert_eq!(threads(&daemon, "behind").len(), 1);
    let compare = format!("{line} | cmp - large");
    m.sh(&compare);
    m.remount();
    m.sh(&compare);
}

#[test]
fn a_change_of_attributes_leaves_nothing_open() {
    need_mount!();
    let m = Mount::new(&["d/a=1 d/b=2 d/c=3 d/e=4"]);
    let daemon = daemon_of(&m);
    let open = || std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    m.sh("ls -l d > /dev/null; chmod 700 d/a");
    let before = open();
    m.sh("chmod 755 d/b; touch d/c; chown $(id -u) d/e; mv d/e d/x");
    assert_eq!(open(), before);
    m.expect_upper("d/ d/.wh.e= d/a=1 d/b=2 d/c=3 d/x=4");
}

#[test]
fn a_shared_mapping_writes() {
    need_mount!();
    let mut m = Mount::new(&["f=aaaaaaaa"]);
    let script = "import mmap,os
f=os.open('f',os.O_RDWR)
m=mmap.mmap(f,8)
r=mmap.mmap(os.open('f',os.O_RDONLY),8,prot=mmap.PROT_READ)
m[2:4]=b'XY'
assert r[:]==b'aaXYaaaa'
m.flush()
os.pwrite(f,b'Z',7)
assert r[:]==b'aaXYaaaZ', r[:]";
    if std::process::Command::new("python3").arg("-V").output().is_err() {
        return eprintln!("skipped: no python3");
    }
    run(std::process::Command::new("python3").arg("-c").arg(script).current_dir(m.merged()));
    m.expect("f=aaXYaaaZ");
}

#[test]
fn direct_synchronous_and_appending_writes() {
    need_mount!();
    let mut m = Mount::new(&["f=x"]);
    let mut append = File::options().append(true).open(m.at("f")).unwrap();
    append.write_all(b"1").unwrap();
    let sync = File::options().write(true).custom_flags(libc::O_SYNC).open(m.at("f")).unwrap();
    sync.write_all_at(b"y", 0).unwrap();
    append.write_all(b"2").unwrap();
    drop((append, sync));
    let direct = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(m.at("d"));
    if let Ok(direct) = direct {
        let block = vec![b'z'; 8192];
        let start = block.as_ptr().align_offset(512);
        direct.write_all_at(&block[start..start + 512], 0).unwrap();
        assert_eq!(direct.metadata().unwrap().len(), 512);
        std::fs::remove_file(m.at("d")).unwrap();
    }
    m.expect("f=y12");
}

#[test]
fn holes_and_allocation() {
    need_mount!();
    let m = Mount::new(&[""]);
    let mut file = File::create_new(m.at("f")).unwrap();
    file.write_all_at(b"end", 1 << 20).unwrap();
    file.sync_all().unwrap();
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!(data > 0 && data <= 1 << 20, "{data}");
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    assert_eq!(hole, 0);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 16).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 1 << 16);
    file.seek(SeekFrom::Start(0)).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 1 << 20, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 3);
}

#[test]
fn locks_hold_between_processes() {
    need_mount!();
    let m = Mount::new(&["f=x"]);
    let file = File::open(m.at("f")).unwrap();
    file.lock().unwrap();
    let other = File::open(m.at("f")).unwrap();
    assert!(other.try_lock().is_err());
    file.unlock().unwrap();
    other.try_lock().unwrap();
}

#[test]
fn a_program_runs_from_the_mount_and_is_busy_while_it_does() {
    need_mount!();
    let m = Mount::unmounted(&[""]);
    std::fs::copy("/bin/sleep", m.lower(0).join("sleep")).unwrap();
    let mut m = m;
    m.mount();
    let mut child = std::process::Command::new(m.at("sleep")).arg("30").spawn().unwrap();
    let result = File::options().write(true).open(m.at("sleep"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
    drop(File::options().write(true).open(m.at("sleep")).unwrap());
}

/// Applies each mode of fallocate(2) that the filesystem below has, to a lower file in the
/// mount and to a plain file beside upper: both must answer alike and hold the same.
#[test]
fn fallocate_in_all_modes_of_the_filesystem_below() {
    use rustix::fs::FallocateFlags as F;
    need_mount!();
    let modes = [
        F::empty(),
        F::KEEP_SIZE,
        F::PUNCH_HOLE | F::KEEP_SIZE,
        F::ZERO_RANGE,
        F::ZERO_RANGE | F::KEEP_SIZE,
        F::COLLAPSE_RANGE,
        F::INSERT_RANGE,
        F::UNSHARE_RANGE,
    ];
    let m = Mount::unmounted(&[""]);
    let data: Vec<u8> = (0..12 * 4096).map(|n| (n % 255 + 1) as u8).collect();
    for n in 0..modes.len() {
        std::fs::write(m.lower(0).join(format!("f{n}")), &data).unwrap();
    }
    let mut m = m;
    m.mount();
    for (n, mode) in modes.into_iter().enumerate() {
        let name = format!("f{n}");
        let plain = m.path(&name);
        std::fs::write(&plain, &data).unwrap();
        let call = |path: std::path::PathBuf| {
            let file = File::options().read(true).write(true).open(path).unwrap();
            rustix::fs::fallocate(&file, mode, 4096, 8192)
        };
        // FUSE itself refuses the last modes, wherever it is used.
        let (ours, theirs) = (call(m.at(&name)), call(plain.clone()));
        let fuse_has = !mode.intersects(F::COLLAPSE_RANGE | F::INSERT_RANGE | F::UNSHARE_RANGE);
        match fuse_has {
            true => assert_eq!(ours, theirs, "{mode:?}"),
            false => assert_eq!(ours, Err(rustix::io::Errno::OPNOTSUPP), "{mode:?}"),
        }
        if ours.is_ok() {
            assert!(std::fs::read(m.at(&name)).unwrap() == std::fs::read(&plain).unwrap());
            let len = std::fs::metadata(m.upper().join(&name)).unwrap().len();
            assert_eq!(len, std::fs::metadata(&plain).unwrap().len(), "{mode:?}");
        }
    }
}

#[test]
fn copy_file_range_between_lower_files() {
    need_mount!();
    let mut m = Mount::new(&["from=0123456789 to=abcdefghij"]);
    let from = File::open(m.at("from")).unwrap();
    let to = File::options().write(true).open(m.at("to")).unwrap();
    let (mut read_at, mut write_at) = (2, 5);
    let copied =
        rustix::fs::copy_file_range(&from, Some(&mut read_at), &to, Some(&mut write_at), 4);
    assert_eq!(copied, Ok(4));
    drop((from, to));
    m.expect("from=0123456789 to=abcde2345j");
    m.expect_upper("to=abcde2345j");
}

#[test]
fn syncs_of_files_and_directories() {
    need_mount!();
    let mut m = Mount::new(&["d/f=1"]);
    std::fs::write(m.at("d/new"), "2").unwrap();
    for name in ["d/new", "d/f", "d", ""] {
        let file = File::open(m.at(name)).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        rustix::fs::syncfs(&file).unwrap();
    }
    m.expect("d/ d/f=1 d/new=2");
}

#[test]
fn record_locks_of_processes_and_of_open_files() {
    need_mount!();
    let m = Mount::new(&["f=x"]);
    let script = "import fcntl,os,struct,sys
lock=lambda kind: struct.pack('hhqqi4x',kind,0,0,10,0)
a=os.open('f',os.O_RDWR); b=os.open('f',os.O_RDWR)
fcntl.fcntl(a,fcntl.F_OFD_SETLK,lock(fcntl.F_WRLCK))
def held(command):
    try: fcntl.fcntl(b,command,lock(fcntl.F_WRLCK)); return False
    except BlockingIOError: return True
assert held(fcntl.F_OFD_SETLK), 'an open file description lock'
fcntl.fcntl(a,fcntl.F_OFD_SETLK,lock(fcntl.F_UNLCK))
fcntl.fcntl(a,fcntl.F_SETLK,lock(fcntl.F_WRLCK))
if os.fork()==0: os._exit(0 if held(fcntl.F_SETLK) else 1)
assert os.wait()[1]==0, 'a lock of the process'";
    match std::process::Command::new("python3")
        .arg("-c")
        .arg("import fcntl; fcntl.F_OFD_SETLK")
        .output()
    {
        Ok(output) if output.status.success() => {}
        _ => return eprintln!("skipped: no python3 that knows these locks"),
    }
    run(std::process::Command::new("python3").arg("-c").arg(script).current_dir(m.merged()));
}

#[test]
fn statfs_is_that_of_upper() {
    need_mount!();
    let m = Mount::new(&["f=1"]);
    let (ours, theirs) =
        (rustix::fs::statvfs(m.at("f")).unwrap(), rustix::fs::statvfs(m.upper()).unwrap());
    assert_eq!((ours.f_blocks, ours.f_frsize), (theirs.f_blocks, theirs.f_frsize));
    assert_eq!((ours.f_files, ours.f_namemax), (theirs.f_files, 255));
}

#[test]
fn descriptors_of_a_file_that_is_renamed_over() {
    need_mount!();
    let mut m = Mount::new(&["old=lower other=2"]);
    let open = File::options().read(true).write(true).open(m.at("old")).unwrap();
    std::fs::rename(m.at("other"), m.at("old")).unwrap();
    open.write_all_at(b"L", 0).unwrap();
    open.set_len(3).unwrap();
    open.sync_all().unwrap();
    let mut text = [0; 8];
    let len = open.read_at(&mut text, 0).unwrap();
    assert_eq!((&text[..len], open.metadata().unwrap().nlink()), (&b"Low"[..], 0));
    drop(open);
    m.expect("old=2");
    m.expect_upper(".wh.other= old=2");
}
