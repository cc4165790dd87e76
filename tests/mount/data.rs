//! Data through the kernel's page cache.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use crate::common::mounted::{Mount, run};
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
