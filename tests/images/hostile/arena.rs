//! A place to be attacked in, and what must be true of it after an attack.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::slice::from_ref;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::running::{Ended, reachable_program, run};
use super::tar_entry::{TarEntry, file, tar};
use super::witness::Witness;
use super::{Outcome, as_user, contains};
use crate::archives::{config, docker_files, tar_of};
use crate::common::mounted::{cannot_mount, unmount_if_mounted};
use crate::common::{is_root, make_owner};

/// What the store may have at its top.
const STORE_NAMES: [&str; 6] = ["containers", "image", "l", "layers", "lock", "tmp"];

pub(super) struct Arena {
    dir: tempfile::TempDir,
    /// Who is attacked, if not who runs the tests.
    user: Option<u32>,
    program: PathBuf,
    /// The random word.
    secret: String,
    /// The neighbour's layer in the store.
    neighbour: PathBuf,
    witness: Option<Witness>,
    /// Images so far.
    count: usize,
    last_loaded: String,
}

impl Arena {
    pub(super) fn new(user: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut random = [0; 16];
        File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let stolen = stolen(&secret);
        for name in ["victim/dir", "cwd", "store", "m", "in"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for (path, content) in [
            ("secret", secret.as_bytes()),
            ("victim/secret", secret.as_bytes()),
            ("victim/file", b"untouched"),
            ("victim/suid", b"untouched"),
            ("victim/dir/inside", b"untouched"),
            ("victim/layer.tar", &stolen),
            ("victim/config.json", &config(from_ref(&stolen))),
        ] {
            fs::write(at(path), content).unwrap();
        }
        symlink("file", at("victim/link")).unwrap();
        rustix::fs::mkfifoat(CWD, at("victim/fifo"), Mode::RUSR).unwrap();
        if let Some(user) = user {
            for name in ["victim", "secret", "store", "m", "in"] {
                make_owner(&at(name), user);
            }
        }
        for (name, mode) in [("victim/suid", 0o4755), ("victim/dir", 0o2770), ("", 0o755)] {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        let program = reachable_program(user, dir.path());
        let mut arena = Self {
            dir,
            user,
            program,
            secret,
            neighbour: PathBuf::new(),
            witness: None,
            count: 0,
            last_loaded: String::new(),
        };
        arena.invite_the_neighbour();
        arena
    }

    fn invite_the_neighbour(&mut self) {
        let layer = tar(&[file("neighbour").data(&self.secret)]);
        let archive = self.write_archive(&tar_of(&docker_files("neighbour:1", &[layer])));
        let loaded = self.plyfs("the neighbour", &[&"load", &archive]);
        assert!(loaded.status.success(), "{}", loaded.stderr);
        let mut paths = walkdir::WalkDir::new(self.path("store/layers")).into_iter();
        let found = paths.find_map(|entry| {
            let path = entry.unwrap().into_path();
            path.ends_with("neighbour").then(|| path.parent().unwrap().to_owned())
        });
        self.neighbour = found.unwrap();
        let mut roots = ["victim", "secret", "cwd", "."].map(|name| self.path(name)).to_vec();
        roots.push(self.neighbour.clone());
        self.witness = Some(Witness::of(roots));
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        // (`Path::join` would lose the `.` that Witness needs.)
        PathBuf::from(format!("{}/{name}", self.dir.path().display()))
    }

    /// Whether the attacked is root.
    pub(super) fn is_root(&self) -> bool {
        self.user.is_none() && is_root()
    }

    pub(super) fn victim(&self) -> String {
        self.path("victim").display().to_string()
    }

    /// The bytes of victim/layer.tar; victim/config.json is a config of this layer.
    pub(super) fn victims_layer(&self) -> Vec<u8> {
        stolen(&self.secret)
    }

    /// Paths to the victim, or the neighbour, for whoever resolves them outside the layer.
    pub(super) fn ways_out(&self) -> Vec<String> {
        let victim = self.victim();
        let neighbour = self.neighbour.strip_prefix(self.path("store/layers")).unwrap();
        let mut ways = vec![
            victim.clone(),
            format!("{}{}", "../".repeat(40), &victim[1..]),
            format!("/proc/self/root{victim}"),
            "/proc/self/cwd/../victim".to_owned(),
            "/proc/self/fd/9".to_owned(),
            format!("../../{}", neighbour.display()),
            format!("../../../layers/{}", neighbour.display()),
        ];
        ways.extend((2..=4).map(|up| format!("{}victim", "../".repeat(up))));
        ways
    }

    /// Loads an image of these layers, the lowest first, and mounts it if that goes well.
    #[track_caller]
    pub(super) fn attack(&mut self, what: &str, layers: &[Vec<TarEntry>]) -> Outcome {
        let layers: Vec<_> = layers.iter().map(|layer| tar(layer)).collect();
        let name = self.next_name();
        self.attack_archive(what, &tar_of(&docker_files(&name, &layers)))
    }

    /// A name for the next image.
    pub(super) fn next_name(&mut self) -> String {
        self.count += 1;
        self.last_name()
    }

    fn last_name(&self) -> String {
        format!("attack:{}", self.count)
    }

    /// The image that was loaded last.
    pub(super) fn last_loaded(&self) -> &str {
        &self.last_loaded
    }

    #[track_caller]
    pub(super) fn attack_archive(&mut self, what: &str, archive: &[u8]) -> Outcome {
        let path = self.write_archive(archive);
        self.attack_path(what, &path)
    }

    #[track_caller]
    pub(super) fn attack_path(&mut self, what: &str, path: &Path) -> Outcome {
        let before = self.list_store();
        let load = self.plyfs(what, &[&"load", &path]);
        let outcome = if load.status.success() {
            let image = load.stdout.lines().last().unwrap().rsplit(": ").next().unwrap();
            self.last_loaded = image.trim_start_matches("sha256:").to_owned();
            let secret = &self.secret;
            let tell = |m: &Path| {
                tell_as_a_chroot_would(m, |path, text| {
                    assert!(!contains(text, secret), "{what}: {} shows it", path.display());
                })
            };
            Outcome::Loaded(self.with_mount(what, &["--read-only", &self.last_loaded], tell))
        } else {
            assert_eq!(load.status.code(), Some(1), "{what}: {}", load.stderr);
            assert_eq!(load.stdout, "", "{what}");
            let line = load.stderr.lines().last().unwrap_or_default();
            assert!(line.starts_with("plyfs: "), "{what}: {}", load.stderr);
            assert_eq!(self.list_store(), before, "{what}: left in the store");
            Outcome::Refused(line.to_owned())
        };
        self.check(what);
        outcome
    }

    /// Mounts an image and looks at it, as the user; `None` where nothing can be mounted.
    #[track_caller]
    pub(super) fn with_mount<T: Send>(
        &self,
        what: &str,
        arguments: &[&str],
        look: impl FnOnce(&Path) -> T + Send,
    ) -> Option<T> {
        if cannot_mount().is_some() || self.user.is_some() && !has_fusermount() {
            return None;
        }
        let m = self.path("m");
        let mut command: Vec<&dyn AsRef<OsStr>> = vec![&"mount"];
        command.extend(arguments.iter().map(|argument| argument as &dyn AsRef<OsStr>));
        command.push(&m);
        let mount = self.plyfs(what, &command);
        assert!(mount.status.success(), "{what}: {}", mount.stderr);
        let seen = as_user(self.user, || look(&m));
        let umount = self.plyfs(what, &[&"umount", &m]);
        assert!(umount.status.success(), "{what}: {}", umount.stderr);
        Some(seen)
    }

    /// Runs plyfs as the user.
    #[track_caller]
    pub(super) fn plyfs(&self, what: &str, arguments: &[&dyn AsRef<OsStr>]) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 1024; exec 9<../victim; exec \"$@\"", "sh"]);
        command.current_dir(self.path("cwd")).env("HOME", self.path("cwd"));
        command.env("PLYFS_ROOT", self.path("store"));
        let ended = run(what, &mut command, &self.program, arguments, self.user);
        for text in [&ended.stdout, &ended.stderr] {
            assert!(!contains(text.as_bytes(), &self.secret), "{what}: printed: {text}");
        }
        ended
    }

    fn write_archive(&self, archive: &[u8]) -> PathBuf {
        let path = self.path("in/image");
        fs::write(&path, archive).unwrap();
        path
    }

    /// What must be true after everything.
    #[track_caller]
    pub(super) fn check(&mut self, what: &str) {
        self.witness.as_mut().unwrap().check(what);
        let store = self.path("store");
        let unknown: Vec<_> =
            names(&store).into_iter().filter(|name| !STORE_NAMES.contains(&&name[..])).collect();
        assert!(unknown.is_empty(), "{what}: {unknown:?} in the store");
        assert!(names(&store.join("tmp")).is_empty(), "{what}: something in tmp");
        let is_id = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let layers = names(&store.join("layers"));
        assert!(layers.iter().all(|name| is_id(name)), "{what}: {layers:?} in layers");
        for short in names(&store.join("l")) {
            let target = fs::read_link(store.join("l").join(short)).unwrap();
            let inside = target.strip_prefix("../layers").unwrap();
            let id = inside.parent().and_then(Path::to_str).unwrap();
            assert!(inside.ends_with("diff") && is_id(id), "{what}: l/ leads to {target:?}");
        }
        for entry in self.walk_store() {
            let inside = entry.path().strip_prefix(&store).unwrap();
            if !inside.starts_with("layers") && !inside.starts_with("containers") {
                let (kind, is_short_name) = (entry.file_type(), inside.starts_with("l"));
                let is_record = inside.ends_with("tar-split.json.gz");
                let belongs = kind.is_dir()
                    || kind.is_file()
                    || kind.is_symlink() && (is_short_name || is_record);
                assert!(belongs, "{what}: {} in the store", inside.display());
            }
            if entry.file_type().is_file() {
                let (path, text) = (entry.path().display(), fs::read(entry.path()).unwrap());
                assert!(!contains(&text, &self.secret), "{what}: the secret is in {path}");
            }
        }
    }

    /// The store's paths and file sizes; not its locks.
    fn list_store(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in self.walk_store().filter(|entry| entry.file_name() != "lock") {
            let is_file = entry.file_type().is_file();
            let len = if is_file { entry.metadata().unwrap().len() } else { 0 };
            lines.push(format!("{} {len}", entry.path().display()));
        }
        lines.sort();
        lines
    }

    /// All of the store but the neighbour, which it would be an access to, and what has a path
    /// longer than PATH_MAX.
    fn walk_store(&self) -> impl Iterator<Item = walkdir::DirEntry> {
        let walk = walkdir::WalkDir::new(self.path("store")).into_iter();
        walk.filter_entry(|entry| entry.path() != self.neighbour).filter_map(Result::ok)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmount_if_mounted(&self.path("m"));
        // (Rust's own removal needs a descriptor for each level of a deep tree.)
        let _ = Command::new("rm").arg("-rf").arg(self.dir.path()).status();
    }
}

fn stolen(secret: &str) -> Vec<u8> {
    tar(&[file("stolen").data(secret)])
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn has_fusermount() -> bool {
    let found = Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Tells a tree as `common::tell` does. Gives `look` what its files hold, and what its symlinks
/// lead to if the tree is all there is.
fn tell_as_a_chroot_would(root: &Path, mut look: impl FnMut(&Path, &[u8])) -> Vec<String> {
    let top = plyfs::sys::open_dir(root).unwrap();
    let mut read = |path: &Path| {
        let (name, flags) = (path.as_os_str().as_bytes(), OFlags::PATH | OFlags::CLOEXEC);
        let found = loop {
            match openat2(&top, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                Err(Errno::AGAIN) => {} // something was renamed somewhere
                found => break File::from(found.ok()?),
            }
        };
        found.metadata().unwrap().is_file().then_some(())?;
        let text = fs::read(plyfs::sys::proc_path(found.as_fd())).unwrap();
        look(path, &text);
        Some(text)
    };
    let mut lines = Vec::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let Ok(entry) = entry else { continue }; // a path longer than PATH_MAX
        let path = entry.path().strip_prefix(root).unwrap();
        let name = path.as_os_str().as_bytes().escape_ascii();
        let (kind, text) = (entry.file_type(), read(path));
        lines.push(if kind.is_symlink() {
            for name in ["secret", "neighbour"] {
                read(&path.join(name));
            }
            format!("{name}->{}", fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_dir() {
            format!("{name}/")
        } else {
            text.map_or(format!("{name} special"), |text| format!("{name}={}", text.escape_ascii()))
        });
    }
    lines.sort();
    lines
}
