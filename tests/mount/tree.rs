//! Names through the kernel.

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
