//! A store and a mountpoint in a temporary directory, of who runs the tests or of an ordinary
//! user without subordinate ids.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Uid};
use serde_json::Value;

use crate::archives::{Layer, docker_files, tar_of};
use crate::common::mounted::{plyfs, run, unmount_if_mounted};
use crate::common::{is_root, open_to_all};
use crate::flatten::{Tree, flatten};
use crate::shown::expect_tree;

/// User and group `nobody`, who has no subordinate ids.
const NOBODY: u32 = 65534;

/// As whom plyfs runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Who runs the tests.
    Runner,
    /// An ordinary user.
    Nobody,
}

impl Who {
    /// Everybody whom there is to be tested: root tests as an ordinary user too.
    pub fn all() -> Vec<Self> {
        if !is_root() {
            return vec![Self::Runner];
        }
        let opens = |path| {
            let mut test = Command::new("sh");
            test.args(["-c", ": <> \"$0\"", path]).uid(NOBODY).gid(NOBODY).stderr(Stdio::null());
            test.status().is_ok_and(|status| status.success())
        };
        let has_helper = Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status();
        if !opens("/dev/fuse") || has_helper.is_err() {
            eprintln!("skipped: as an ordinary user (/dev/fuse of mode 0666 and fusermount3)");
            return vec![Self::Runner];
        }
        vec![Self::Runner, Self::Nobody]
    }
}

pub struct Place {
    pub dir: tempfile::TempDir,
    who: Who,
    program: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        Self::of(Who::Runner)
    }

    pub fn of(who: Who) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Self { dir, who, program: plyfs().get_program().into() };
        fs::create_dir(place.mountpoint()).unwrap();
        if who == Who::Nobody {
            open_to_all(place.dir.path());
            for own in ["store", "m", "made"] {
                fs::create_dir_all(place.path(own)).unwrap();
                chown(place.path(own), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            if place.plyfs().arg("--version").stdout(Stdio::null()).status().is_err() {
                let copy = place.path("plyfs"); // it was built where only root goes
                fs::copy(&place.program, &copy).unwrap();
                place.program = copy;
            }
        } else {
            fs::create_dir(place.path("made")).unwrap();
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path("m")
    }

    pub fn plyfs(&self) -> Command {
        let mut command = Command::new(&self.program);
        if self.who == Who::Nobody {
            command.uid(NOBODY).gid(NOBODY); // which takes the supplementary groups away
        }
        command.env("PLYFS_ROOT", self.path("store"));
        command
    }

    /// Writes a file that everybody may read.
    pub fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    /// Loads a file; what the images are called, `NAME:TAG` or an ID.
    #[track_caller]
    pub fn load(&self, file: &Path) -> Vec<String> {
        self.load_with(&[], file)
    }

    #[track_caller]
    pub fn load_with(&self, options: &[&str], file: &Path) -> Vec<String> {
        let out = run(self.plyfs().arg("load").args(options).arg(file));
        out.lines()
            .map(|line| {
                let line = line.strip_prefix("Loaded image").unwrap();
                line.strip_prefix(" ID: ").or(line.strip_prefix(": ")).unwrap().to_owned()
            })
            .collect()
    }

    /// Loads an archive.
    #[track_caller]
    pub fn load_bytes(&self, archive: &[u8]) {
        let path = self.write("archive", archive);
        run(self.plyfs().arg("load").arg(&path));
        fs::remove_file(&path).unwrap();
    }

    /// The images' IDs, whole.
    pub fn ids(&self) -> Vec<String> {
        let ids = run(self.plyfs().args(["images", "-q", "--no-trunc"]));
        ids.lines().map(str::to_owned).collect()
    }

    /// How many layers the store has, without what stacks inherit.
    pub fn layers(&self) -> usize {
        let homes = fs::read_dir(self.path("store/layers")).unwrap();
        homes
            .filter(|home| home.as_ref().unwrap().path().join("tar-split.json.gz").exists())
            .count()
    }

    /// Mounts an image read-only, runs `check` on the tree as who mounted it, unmounts.
    pub fn with_image(&self, image: &str, check: impl FnOnce(&Path) + Send) {
        run(self.plyfs().args(["mount", "--read-only", image]).arg(self.mountpoint()));
        self.as_who(|| check(&self.mountpoint()));
        run(self.plyfs().arg("umount").arg(self.mountpoint()));
    }

    /// Runs `check` as the user. (FUSE lets nobody else in, and asks for all ids of the thread.)
    fn as_who(&self, check: impl FnOnce() + Send) {
        if self.who == Who::Runner {
            return check();
        }
        let as_nobody = || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(NOBODY)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).unwrap();
            check();
        };
        let result = std::thread::scope(|scope| scope.spawn(as_nobody).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    /// Loads an archive of one image: its tree, what `verify` and `save` make of it, and the image
    /// that is saved.
    #[track_caller]
    pub fn round_trip(&self, archive: &[u8], expected: &Tree, what: &str) {
        let names = self.load(&self.write("image", archive));
        self.come_back(&[(&names[0], expected, what)]);
    }

    /// Loaded images show these trees, are whole, and have the same IDs and trees when they are
    /// saved and loaded elsewhere.
    #[track_caller]
    pub fn come_back(&self, images: &[(&str, &Tree, &str)]) {
        let names: Vec<_> =
            images.iter().map(|(name, ..)| name.strip_prefix("sha256:").unwrap_or(name)).collect();
        for (name, (_, expected, what)) in names.iter().zip(images) {
            let what = format!("{what}, {:?}", self.who);
            self.with_image(name, |tree| expect_tree(tree, expected, &what));
        }
        let told = self.plyfs().arg("verify").args(&names).output().unwrap();
        let text = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
        let off: Vec<_> = text.lines().filter(|line| !line.ends_with(": OK")).collect();
        assert!(off.is_empty(), "{:?} ({}): {off:#?}", self.who, images[0].2);
        let saved = self.path("made/saved.tar");
        run(self.plyfs().arg("save").args(&names).arg("-o").arg(&saved));
        let other = Self::of(self.who);
        let loaded = other.load(&saved);
        fs::remove_file(&saved).unwrap();
        let ids = other.ids();
        assert!(!ids.is_empty() && ids.iter().all(|id| self.ids().contains(id)), "{ids:?}");
        for (name, (_, expected, what)) in loaded.iter().zip(images) {
            let what = format!("{what}, saved, {:?}", self.who);
            let name = name.strip_prefix("sha256:").unwrap_or(name);
            other.with_image(name, |tree| expect_tree(tree, expected, &what));
        }
        assert_eq!(loaded.len(), images.len());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unmount_if_mounted(&self.mountpoint());
    }
}

/// An image that a test makes of layers.
pub struct Image {
    pub what: String,
    pub layers: Vec<Vec<u8>>,
    /// What it must show.
    pub tree: Tree,
}

impl Image {
    /// One that must show what its layers say, the lowest first.
    pub fn new(what: &str, layers: &[Layer]) -> Self {
        let layers: Vec<_> = layers.iter().map(Layer::tar).collect();
        Self { what: what.to_owned(), tree: flatten(&layers), layers }
    }
}

/// Images, all in one archive, show what they must to everybody, and come back.
#[track_caller]
pub fn expect_images(images: &[Image]) {
    let (mut files, mut items) = (Vec::new(), Vec::new());
    let mut known = HashSet::new();
    for (n, image) in images.iter().enumerate() {
        let own = docker_files(&format!("x:{n}"), &image.layers);
        for (path, data) in own {
            if path == "manifest.json" {
                let list: Vec<Value> = serde_json::from_slice(&data).unwrap();
                items.extend(list);
            } else if known.insert(path.clone()) {
                files.push((path, data));
            }
        }
    }
    files.push(("manifest.json".into(), serde_json::to_vec(&items).unwrap()));
    let archive = tar_of(&files);
    for who in Who::all() {
        let place = Place::of(who);
        let names = place.load(&place.write("image", &archive));
        let loaded = names.iter().zip(images);
        let loaded: Vec<_> = loaded.map(|(name, i)| (&name[..], &i.tree, &i.what[..])).collect();
        place.come_back(&loaded);
    }
}
