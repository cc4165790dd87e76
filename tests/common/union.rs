//! A union in a temporary directory, driven by paths, without /dev/fuse.

use std::path::{Path, PathBuf};

use plyfs::layers::number::Ino;
use plyfs::overlay::{
    Attr, Error, MountOptions, Node, NodeKind, Overlay, Owner, Ownership, RenameMode, Result,
    SetAttr, UpperForm, UpperOptions, WriteFlags,
};
use plyfs::sys::FileType;

/// Layers, and the union of them.
pub struct Union {
    pub dir: tempfile::TempDir,
    pub lowers: Vec<PathBuf>,
    pub form: UpperForm,
    pub ownership: Ownership,
    /// Whether the lowers have a merged index.
    pub indexed: bool,
    syncs: bool,
    overlay: Option<Overlay>,
}

impl Union {
    /// A union of these layers (see [`super::build`]), the topmost first, and an empty upper.
    pub fn new(layers: &[&str]) -> Self {
        Self::with_form(layers, UpperForm::Plain)
    }

    /// As [`new`](Self::new), with pointers allowed in upper.
    pub fn rich(layers: &[&str]) -> Self {
        Self::with_form(layers, UpperForm::Rich)
    }

    fn with_form(layers: &[&str], form: UpperForm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lowers = super::build_layers(dir.path(), layers);
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let ownership = Ownership::default();
        let (indexed, syncs) = (false, false); // no test here crashes the machine
        let mut union = Self { dir, lowers, form, ownership, indexed, syncs, overlay: None };
        union.remount();
        union
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    /// Closes the union and opens it anew with these owners.
    pub fn own(&mut self, ownership: Ownership) {
        self.ownership = ownership;
        self.remount();
    }

    /// Closes the union and opens it as one that skips no syncs.
    pub fn sync(&mut self) {
        self.syncs = true;
        self.remount();
    }

    /// Closes the union and opens it anew.
    pub fn remount(&mut self) {
        self.overlay = None;
        let mut options = MountOptions::new(self.lowers.clone());
        options.volatile = !self.syncs;
        options.form = self.form;
        options.ownership = self.ownership.clone();
        options.merged_index = self.indexed.then(|| self.index());
        options.upper = Some(UpperOptions { upper: self.upper(), work: self.work() });
        self.overlay = Some(Overlay::open(&options).unwrap());
    }

    /// Makes the merged index of the lowers.
    pub fn index(&self) -> PathBuf {
        let mut options = MountOptions::new(self.lowers.clone());
        options.ownership = self.ownership.clone();
        let lowers = Overlay::open(&options).unwrap();
        let path = self.dir.path().join("index");
        let mut file = std::fs::File::create(&path).unwrap();
        assert!(lowers.build_index(&mut file, self.dir.path()).unwrap());
        path
    }

    /// Closes the union, makes its upper the topmost lower layer, and opens it with a new one.
    pub fn stack(&mut self) {
        self.overlay = None;
        let below = self.dir.path().join(format!("stacked{}", self.lowers.len()));
        std::fs::rename(self.upper(), &below).unwrap();
        std::fs::remove_dir_all(self.work()).unwrap();
        std::fs::create_dir(self.upper()).unwrap();
        std::fs::create_dir(self.work()).unwrap();
        self.lowers.insert(0, below);
        self.remount();
    }

    /// What lies in upper.
    pub fn tell_upper(&self) -> Vec<String> {
        super::tell(&self.upper())
    }

    /// The inode of a path; the reference is kept, as an open file would.
    pub fn ino(&self, path: &str) -> Result<Ino> {
        let mut at = Ino::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.overlay().lookup(at, name.as_bytes())?.ino;
        }
        Ok(at)
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8])> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.ino(parent)?, name.as_bytes()))
    }

    pub fn stat(&self, path: &str) -> Result<Attr> {
        self.overlay().getattr(self.ino(path)?)
    }

    pub fn make(&self, path: &str, kind: NodeKind<'_>, mode: u32) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        let owner = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        self.overlay().create(parent, name, &Node { kind, mode, umask: 0o022, owner })
    }

    pub fn create(&self, path: &str, text: &str) -> Result<()> {
        let attr = self.make(path, NodeKind::File, 0o644)?;
        self.overlay().write(attr.ino, 0, text.as_bytes(), WriteFlags::default()).map(drop)
    }

    pub fn mkdir(&self, path: &str) -> Result<()> {
        self.make(path, NodeKind::Directory, 0o755).map(drop)
    }

    pub fn symlink(&self, path: &str, target: &str) -> Result<()> {
        self.make(path, NodeKind::Symlink(target.as_bytes()), 0o777).map(drop)
    }

    pub fn write(&self, path: &str, offset: u64, text: &str) -> Result<()> {
        let ino = self.ino(path)?;
        self.overlay().write(ino, offset, text.as_bytes(), WriteFlags::default()).map(drop)
    }

    pub fn truncate(&self, path: &str, size: u64) -> Result<()> {
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        self.overlay().setattr(self.ino(path)?, &change).map(drop)
    }

    pub fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
        self.overlay().setattr(self.ino(path)?, &change).map(drop)
    }

    pub fn read(&self, path: &str) -> Result<String> {
        self.read_ino(self.ino(path)?)
    }

    pub fn read_ino(&self, ino: Ino) -> Result<String> {
        let mut buffer = vec![0; 1 << 16];
        let len = self.overlay().read(ino, 0, &mut buffer)?;
        buffer.truncate(len);
        Ok(buffer.escape_ascii().to_string())
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.overlay().unlink(parent, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.overlay().rmdir(parent, name)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rename_with(from, to, RenameMode::Replace)
    }

    pub fn rename_with(&self, from: &str, to: &str, mode: RenameMode) -> Result<()> {
        let ((parent, name), (new_parent, new_name)) = (self.parent(from)?, self.parent(to)?);
        self.overlay().rename(parent, name, new_parent, new_name, mode)
    }

    pub fn link(&self, from: &str, to: &str) -> Result<()> {
        let ino = self.ino(from)?;
        let (parent, name) = self.parent(to)?;
        self.overlay().link(ino, parent, name).map(drop)
    }

    /// Names of a directory, sorted, each with its number; `.` and `..` left out.
    pub fn list(&self, path: &str) -> Vec<(String, Attr)> {
        let mut names = Vec::new();
        self.overlay()
            .readdir(self.ino(path).unwrap(), 2, |entry| {
                names.push((entry.name.escape_ascii().to_string(), entry.attr.unwrap()));
                true
            })
            .unwrap();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    }

    pub fn names(&self, path: &str) -> Vec<String> {
        self.list(path).into_iter().map(|(name, _)| name).collect()
    }

    /// The merged tree, told as [`super::tell`] tells a real one.
    pub fn tell(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            for (name, attr) in self.list(&dir) {
                let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                lines.push(match attr.kind {
                    FileType::Directory => {
                        todo.push(path.clone());
                        format!("{path}/")
                    }
                    FileType::Symlink => {
                        let target = self.overlay().readlink(attr.ino).unwrap();
                        format!("{path}->{}", target.escape_ascii())
                    }
                    FileType::RegularFile => {
                        format!("{path}={}", self.read_ino(attr.ino).unwrap())
                    }
                    FileType::CharacterDevice => format!("{path} c {}", attr.stat.rdev),
                    _ => format!("{path} special"),
                });
            }
        }
        lines.sort();
        lines
    }

    /// The merged tree must be this, now and after a remount.
    #[track_caller]
    pub fn expect(&mut self, words: &str) {
        let expected = sorted(words);
        assert_eq!(self.tell(), expected, "merged");
        self.remount();
        assert_eq!(self.tell(), expected, "after remount");
    }

    /// Upper must hold this.
    #[track_caller]
    pub fn expect_upper(&self, words: &str) {
        let expected = sorted(words);
        assert_eq!(self.tell_upper(), expected, "upper");
    }
}

fn sorted(words: &str) -> Vec<String> {
    let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    words.sort();
    words
}

/// The errno of a failure.
#[track_caller]
pub fn errno<T>(result: Result<T>) -> plyfs::sys::Errno {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.errno(),
    }
}

/// A fingerprint of a lower layer, to see that nothing wrote to it.
pub fn fingerprint(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let walk = walkdir::WalkDir::new(root).sort_by_file_name();
    walk.into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let m = entry.metadata().unwrap();
            format!(
                "{} {:o} {} {} {}.{} {}.{}",
                entry.path().display(),
                m.mode(),
                m.nlink(),
                m.size(),
                m.mtime(),
                m.mtime_nsec(),
                m.ctime(),
                m.ctime_nsec(),
            )
        })
        .collect()
}

/// Whether an error is the union's own kind for "not there".
pub fn is_not_found<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::NotFound))
}
