//! A lower layer, and reading one directory of a layer with its marks told apart.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::marks::{self, Meaning};
use super::override_stat::OverrideXattr;
use super::redirect::Namespace;
use super::shared_mount::SharedMount;
use super::{Error, marks::NAME_MAX};
use crate::sys::{self, Errno, FileType, Stat};

/// One read-only layer: an open directory.
///
/// What is mounted inside it is no part of the layer, as with the kernel's overlayfs: the
/// union's own mountpoint may lie there. Where the caller may, the layer is opened in a private
/// mount, which has nothing mounted inside: in one of its own, or in one of a directory above it
/// that all layers share.
#[derive(Debug)]
pub struct Lower {
    root: OwnedFd,
    /// Of the root, when it was opened.
    stat: Stat,
    path: PathBuf,
    /// Its path without symlinks, where that was looked at.
    real_path: Option<PathBuf>,
    is_private: bool,
    is_rich: bool,
    override_xattr: Option<OverrideXattr>,
}

impl Lower {
    /// Opens the layers at these paths.
    pub fn open_all(paths: &[PathBuf], namespace: Namespace) -> Result<Vec<Self>, Error> {
        let shared = SharedMount::of(paths);
        let open = |(n, path): (usize, &PathBuf)| {
            let shared_root = shared.as_ref().and_then(|shared| shared.open(n));
            let (root, stat, is_private) = match shared_root {
                Some((root, stat)) => (root, stat, true),
                None => open_private(path)?,
            };
            let real_path = shared.as_ref().map(|shared| shared.path(n).to_owned());
            let lower = Self::new(root, stat, path, namespace)?;
            Ok(Self { is_private, real_path, ..lower })
        };
        paths.iter().enumerate().map(open).collect()
    }

    fn new(root: OwnedFd, stat: Stat, path: &Path, namespace: Namespace) -> Result<Self, Error> {
        let failed = |errno| Error::io("read xattrs of", path)(errno);
        // Most have none, which is known by one look.
        let has_xattrs = match sys::list_xattrs(root.as_fd()) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => false,
            list => !list.map_err(failed)?.is_empty(),
        };
        let (mut is_rich, mut override_xattr) = (false, None);
        if has_xattrs {
            is_rich =
                namespace.is_rich(root.as_fd()).map_err(Error::of_pointers(namespace, path))?;
            override_xattr = OverrideXattr::of_layer(root.as_fd()).map_err(failed)?;
        }
        let (path, is_private, real_path) = (path.to_owned(), false, None);
        Ok(Self { root, stat, path, real_path, is_private, is_rich, override_xattr })
    }

    /// Where it keeps owners and modes, if not where files have them.
    pub fn override_xattr(&self) -> Option<OverrideXattr> {
        self.override_xattr
    }

    /// Its path without symlinks.
    pub fn real_path(&self) -> std::io::Result<PathBuf> {
        self.real_path.as_ref().map_or_else(|| self.path.canonicalize(), |path| Ok(path.clone()))
    }

    /// Whether nothing can be mounted inside; else a name may lead to another filesystem.
    pub fn is_private(&self) -> bool {
        self.is_private
    }

    /// Whether it may hold pointers (see [`super::redirect`]): it was a rich upper once.
    pub fn is_rich(&self) -> bool {
        self.is_rich
    }

    /// The layer's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The attributes of the layer's root directory.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Where the layer was found.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a layer as a mount of its own, where that is allowed; whether it is.
fn open_private(path: &Path) -> Result<(OwnedFd, Stat, bool), Error> {
    let opened = sys::open_dir(path).map_err(Error::io("open lower", path))?;
    let stat = sys::fstat(&opened).map_err(Error::io("stat", path))?;
    Ok(match sys::clone_mount(opened.as_fd()) {
        Ok(private) => (private, stat, true),
        Err(_) => (opened, stat, false),
    })
}

/// An ordinary name in one directory of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// The name.
    pub name: Box<[u8]>,
    /// Its type, always known.
    pub kind: FileType,
}

/// What one layer says of one directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LayerDir {
    /// The names it has.
    pub entries: Vec<LayerEntry>,
    /// The names that it hides in the layers below.
    pub whiteouts: Vec<Box<[u8]>>,
    /// Whether it hides everything below.
    pub opaque: bool,
}

/// Reads one directory of one layer; `is_real` tells a 0:0 device that is no whiteout.
pub fn read_layer_dir(
    dir: BorrowedFd<'_>,
    is_real: &dyn Fn(&Stat) -> bool,
) -> sys::Result<LayerDir> {
    let mut found = LayerDir { opaque: marks::has_opaque_xattr(dir)?, ..LayerDir::default() };
    for raw in sys::read_dir(dir)? {
        match marks::meaning(&raw.name) {
            Meaning::Name => match visible_kind(dir, &raw, is_real)? {
                Some(kind) => found.entries.push(LayerEntry { name: raw.name, kind }),
                None => found.whiteouts.push(raw.name),
            },
            Meaning::Opaque => found.opaque = true,
            Meaning::Whiteout(_)
                if raw.name[..] == *marks::OPAQUE_DEVICE
                    && visible_kind(dir, &raw, is_real)?.is_none() =>
            {
                found.opaque = true
            }
            Meaning::Whiteout(hidden) => found.whiteouts.push(hidden.into()),
            Meaning::LongWhiteout => found.whiteouts.extend(long_name(dir, &raw.name)?),
            Meaning::Reserved => {}
        }
    }
    Ok(found)
}

/// The entry's type, or `None` if it is a 0:0 device, a whiteout.
fn visible_kind(
    dir: BorrowedFd<'_>,
    raw: &sys::RawEntry,
    is_real: &dyn Fn(&Stat) -> bool,
) -> sys::Result<Option<FileType>> {
    if !matches!(raw.kind, FileType::CharacterDevice | FileType::Unknown) {
        return Ok(Some(raw.kind));
    }
    let stat = sys::statx_at(dir, &raw.name)?;
    Ok((!stat.is_whiteout_device() || is_real(&stat)).then(|| stat.kind()))
}

/// The name inside a hashed whiteout, if the file is a well-formed one.
fn long_name(dir: BorrowedFd<'_>, mark: &[u8]) -> sys::Result<Option<Box<[u8]>>> {
    if sys::statx_at(dir, mark)?.kind() != FileType::RegularFile {
        return Ok(None);
    }
    let fd = sys::open_at(dir, mark, sys::O_READ)?;
    let mut name = vec![0; NAME_MAX + 1];
    let len = rustix::io::pread(&fd, &mut name, 0)?;
    name.truncate(len);
    let well_formed = marks::whiteout_of(&name).file_name == mark;
    Ok(well_formed.then(|| name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(path: &Path) -> LayerDir {
        let fd = sys::open_dir(path).unwrap();
        let mut found = read_layer_dir(fd.as_fd(), &|_| false).unwrap();
        found.entries.sort_by(|a, b| a.name.cmp(&b.name));
        found.whiteouts.sort();
        found
    }

    #[test]
    fn names_and_marks_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let long = marks::whiteout_of(&[b'x'; 255]);
        fs::write(dir.path().join("plain"), "").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join(".wh.gone"), "").unwrap();
        fs::write(dir.path().join(".wh."), "").unwrap();
        fs::write(dir.path().join(std::str::from_utf8(&long.file_name).unwrap()), &long.content)
            .unwrap();
        fs::write(dir.path().join(".wh..wh.long.forged"), "plain").unwrap();
        let found = read(dir.path());
        let names: Vec<_> = found.entries.iter().map(|e| (&e.name[..], e.kind)).collect();
        assert_eq!(
            names,
            [(&b"plain"[..], FileType::RegularFile), (&b"sub"[..], FileType::Directory)]
        );
        assert_eq!(found.whiteouts, [Box::from(&b"gone"[..]), Box::from(&[b'x'; 255][..])]);
        assert!(!found.opaque);
    }

    #[test]
    fn opaque_in_its_forms() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!read(dir.path()).opaque);
        fs::write(dir.path().join(".wh..wh..opq"), "").unwrap();
        assert!(read(dir.path()).opaque);
        fs::remove_file(dir.path().join(".wh..wh..opq")).unwrap();
        let fd = sys::open_dir(dir.path()).unwrap();
        for xattr in ["user.overlay.opaque", "user.fuseoverlayfs.opaque", "trusted.overlay.opaque"]
        {
            match sys::set_xattr(fd.as_fd(), xattr.as_bytes(), b"y", 0) {
                // None on this filesystem, or not for an ordinary user.
                Err(sys::Errno::OPNOTSUPP | sys::Errno::PERM) => continue,
                result => result.unwrap(),
            }
            assert!(read(dir.path()).opaque, "{xattr}");
            sys::set_xattr(fd.as_fd(), xattr.as_bytes(), b"n", 0).unwrap();
            assert!(!read(dir.path()).opaque, "{xattr}");
            sys::remove_xattr(fd.as_fd(), xattr.as_bytes()).unwrap();
        }
    }
}
