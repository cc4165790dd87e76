//! Writable layers of images.

use crate::archives::{Place, docker_files, rich_layers, tar_of};
use crate::common::mounted::{fails, run};
use crate::need_mount;

fn loaded() -> Place {
    let place = Place::new();
    std::fs::write(place.path("image"), tar_of(&docker_files("img:1", &rich_layers()))).unwrap();
    run(place.plyfs().arg("load").arg(place.path("image")));
    place
}

#[test]
fn a_named_layer_outlives_its_mounts() {
    need_mount!();
    let place = loaded();
    let m = place.mountpoint();
    let mount = || run(place.plyfs().args(["mount", "img:1", "--name", "web"]).arg(&m));
    assert_eq!(mount(), "web\n");
    std::fs::write(m.join("new"), "1").unwrap();
    std::fs::remove_file(m.join("suid")).unwrap();
    let row = run(place.plyfs().arg("ps"));
    assert!(row.contains("web") && row.contains("img:1") && row.contains(m.to_str().unwrap()));
    let in_use = fails(place.plyfs().args(["rm", "web"]));
    assert!(in_use.contains("in use") && in_use.contains(m.to_str().unwrap()), "{in_use}");
    run(place.plyfs().arg("umount").arg(&m));
    assert_eq!(run(place.plyfs().args(["diff", "web"])), "A /new\nD /suid\n");
    mount();
    assert_eq!(std::fs::read_to_string(m.join("new")).unwrap(), "1");
    assert!(!m.join("suid").exists());
    run(place.plyfs().arg("umount").arg(&m));
    let row: serde_json::Value =
        serde_json::from_str(&run(place.plyfs().args(["ps", "--format", "json"]))).unwrap();
    assert_eq!((row["Name"].as_str(), row["Mountpoint"].as_str()), (Some("web"), Some("")));
    assert_eq!(run(place.plyfs().args(["rm", "web"])), "web\n");
    assert_eq!(std::fs::read_dir(place.path("store/containers")).unwrap().count(), 0);
    let gone = fails(place.plyfs().args(["rm", "web"]));
    assert!(gone.contains("no writable layer web"), "{gone}");
}

#[test]
fn two_containers_of_one_image_do_not_see_each_other() {
    need_mount!();
    let place = loaded();
    let other = Place::new();
    let mount = |at| run(place.plyfs().args(["mount", "img:1"]).arg(at));
    let (first, second) = (mount(place.mountpoint()), mount(other.mountpoint()));
    assert_ne!(first, second);
    std::fs::write(place.mountpoint().join("noted"), "changed").unwrap();
    std::fs::remove_dir_all(place.mountpoint().join("mixed")).unwrap();
    assert_eq!(std::fs::read_to_string(other.mountpoint().join("noted")).unwrap(), "xattr");
    assert!(other.mountpoint().join("mixed/low").exists());
    for at in [place.mountpoint(), other.mountpoint()] {
        run(place.plyfs().arg("umount").arg(at));
    }
}

#[test]
fn mistakes_leave_no_container() {
    need_mount!();
    let place = loaded();
    let containers = || std::fs::read_dir(place.path("store/containers")).unwrap().count();
    fails(place.plyfs().args(["mount", "img:1"]).arg(place.path("nowhere")));
    fails(place.plyfs().args(["mount", "img:1", "--name", "../x"]).arg(place.mountpoint()));
    assert_eq!(containers(), 0);
    run(place.plyfs().args(["mount", "img:1", "--name", "web"]).arg(place.mountpoint()));
    let other = Place::new();
    let twice =
        fails(place.plyfs().args(["mount", "img:1", "--name", "web"]).arg(other.mountpoint()));
    assert!(twice.contains("in use"), "{twice}");
    assert_eq!(containers(), 1);
}

#[test]
fn read_only_leaves_no_writable_layer() {
    need_mount!();
    let place = loaded();
    place.with_image("img:1", |tree| {
        let error = std::fs::write(tree.join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    });
    assert_eq!(std::fs::read_dir(place.path("store/containers")).unwrap().count(), 0);
}

#[test]
fn a_name_that_cannot_be_printed_does_not_cost_the_mount() {
    need_mount!();
    let place = loaded();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = place.plyfs();
    command.args(["mount", "img:1", "--name", "web"]).arg(place.mountpoint()).stdout(full);
    assert!(!command.status().unwrap().success());
    assert!(place.mountpoint().join("bin").is_dir());
    assert_eq!(std::fs::read_dir(place.path("store/containers")).unwrap().count(), 1);
}
