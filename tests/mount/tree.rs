//! Names through the kernel.

use std::fs;

use crate::common::mounted::{Mount, sh};
use crate::common::union::fingerprint;
use crate::need_mount;

#[test]
fn what_programs_do_to_a_tree() {
    need_mount!();
    let mut m = Mount::new(&["d/a=1 d/b=2 gone/x=1 s->d/a", "d/c=3 low=4"]);
    let before = [fingerprint(m.lower(0)), fingerprint(m.lower(1))];
    m.sh("echo more >> d/a; rm d/b; rm -r gone; mkdir gone; touch gone/new; mv low high; cp -a d copy; ln high hard; ln -s x sym; mkdir -p p/q/r; rmdir p/q/r");
    m.expect(
        "copy/ copy/a=1more\\n copy/c=3 d/ d/a=1more\\n d/c=3 gone/ gone/new= hard=4 high=4 \
         p/ p/q/ s->d/a sym->x",
    );
    m.expect_upper(
        ".wh.low= copy/ copy/a=1more\\n copy/c=3 d/ d/.wh.b= d/a=1more\\n gone/ \
         gone/.wh..wh..opq= gone/new= hard=4 high=4 p/ p/q/ sym->x",
    );
    assert_eq!([fingerprint(m.lower(0)), fingerprint(m.lower(1))], before);
}

#[test]
fn mv_of_a_lower_directory_is_a_rename() {
    need_mount!();
    let mut m = Mount::new(&["d/e/f=1 d/g=2", "d/h=3"]);
    // rename(2) itself: mv would hide an EXDEV by copying.
    std::fs::rename(m.at("d"), m.at("n")).unwrap();
    m.expect("n/ n/e/ n/e/f=1 n/g=2 n/h=3");
}

#[test]
fn rm_rf_of_many() {
    need_mount!();
    let m = Mount::unmounted(&[""]);
    let many = m.lower(0).join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..3000 {
        std::fs::write(many.join(format!("file{n}")), "").unwrap();
    }
    let mut m = m;
    m.mount();
    assert_eq!(std::fs::read_dir(m.at("many")).unwrap().count(), 3000);
    sh(&format!("rm -r '{}'", m.at("many").display()));
    m.expect("");
    m.expect_upper(".wh.many=");
}

#[test]
fn numbers_agree_and_stay() {
    need_mount!();
    let mut m = Mount::new(&["d/f=1 d/g=2 d/h=>d/f"]);
    let list = "ls -ai d | sed 's/^ *//' | sort; stat -c '%i %n' d d/f d/g d/h";
    let before = m.sh(list);
    m.sh("echo x >> d/f; chmod 600 d/g; touch d");
    assert_eq!(m.sh(list), before);
    m.remount();
    assert_eq!(m.sh(list), before);
}

#[test]
fn many_processes_at_work() {
    need_mount!();
    let m = Mount::new(&["a/f=1 b/f=1 c/f=1 d/f=1"]);
    m.sh("for d in a b c d; do (for i in $(seq 60); do echo $i > $d/n$i; mv $d/n$i $d/m$i; \
         ln $d/m$i $d/l$i; rm $d/m$i; mkdir $d/dir$i; cat $d/f >/dev/null; done) & done; wait; \
         for d in a b c d; do test $(ls $d | wc -l) = 121; done");
}

#[test]
fn a_position_in_a_directory_stays_good() {
    need_mount!();
    let words: Vec<String> = (0..3000).map(|n| format!("low{n}=")).collect();
    let m = Mount::new(&[&words.join(" ")]);
    let dir = fs::File::open(m.merged()).unwrap();
    let read = |from: u64| {
        rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(from)).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut entries = rustix::fs::RawDir::new(&dir, &mut buffer);
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            found.push((entry.file_name().to_owned(), entry.next_entry_cookie(), entry.ino()));
        }
        found
    };
    let all = read(0);
    assert_eq!(all.len(), 3002);
    assert!(all.iter().all(|(_, _, number)| *number != 0));
    let (_, position, _) = all[1500];
    let rest = read(position);
    assert!(rest.iter().eq(&all[1501..]), "the second half, again");
    // Names come and go, before and behind the position; those that stay are all there.
    for (n, (name, ..)) in all.iter().enumerate().skip(2) {
        if n % 3 == 0 {
            fs::remove_file(m.merged().join(name.to_str().unwrap())).unwrap();
            fs::write(m.at(&format!("new{n}")), "").unwrap();
        }
    }
    // Whether a name that went meanwhile is told is not said (readdir(3)).
    let mut seen: Vec<_> = read(position).into_iter().map(|(name, ..)| name).collect();
    seen.sort();
    let told = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), told, "no name twice");
    let missing = all[1501..]
        .iter()
        .enumerate()
        .filter(|(n, (name, ..))| (n + 1501) % 3 != 0 && seen.binary_search(name).is_err());
    assert_eq!(missing.count(), 0, "names that stay are told");
}

#[test]
fn a_directory_that_something_is_mounted_on_is_busy() {
    need_mount!();
    if !crate::common::is_root() {
        return eprintln!("skipped: mounting inside needs root");
    }
    let m = Mount::new(&["d/x=1 other/y=2"]);
    let d = m.at("d").display().to_string();
    sh(&format!("mount --bind {} {d}", m.at("other").display()));
    let errors =
        [fs::remove_dir(m.at("d")).unwrap_err(), fs::rename(m.at("d"), m.at("e")).unwrap_err()];
    let seen = fs::read(m.at("d/y")).unwrap();
    sh(&format!("umount {d}"));
    assert_eq!(seen, b"2");
    assert!(errors.iter().all(|error| error.raw_os_error() == Some(libc::EBUSY)), "{errors:?}");
    m.expect_upper("");
}
