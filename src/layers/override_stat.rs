//! Owner, mode and type of a file that the layer's filesystem could not be given, kept in an
//! xattr (mount option `xattr_permissions`): containers/storage and fuse-overlayfs write it where
//! an ordinary user, or a network filesystem, holds files of many owners.
//!
//! ```text
//! user.containers.override_stat         "UID:GID:MODE[:TYPE]", MODE octal, TYPE one of file dir
//!                                       symlink pipe socket block-MAJOR-MINOR char-MAJOR-MINOR
//! user.fuseoverlayfs.override_stat      what fuse-overlayfs writes beside or instead of it; read
//! security.fuseoverlayfs.override_stat  what `xattr_permissions=1` reads and writes instead
//! user.containers.override_security.X   holds security.X, which a user may not set; so trusted.X
//! ```
//!
//! What has a TYPE that is not its own lies in the layer as a regular file; of a symlink, its
//! content is the target. All of these xattrs are the union's own: nobody sees or sets them
//! through the mount.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, FileType, Stat};

/// Where the owners and modes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideXattr {
    /// `xattr_permissions=1`: in a security xattr, which takes CAP_SYS_ADMIN.
    Privileged,
    /// `xattr_permissions=2`: in a user xattr.
    Containers,
}

const CONTAINERS: &[u8] = b"user.containers.override_stat";
const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.override_stat";
const PRIVILEGED: &[u8] = b"security.fuseoverlayfs.override_stat";
/// What all names of the union's own begin with, and what `security.` ones are held behind.
const PREFIX: &[u8] = b"user.containers.override_";
/// What only a privileged process can set.
const HELD: [&[u8]; 2] = [b"security.", b"trusted."];

/// The real mode of a file whose permissions are kept in an xattr: its owner, who mounts, must be
/// able to open it, and nobody may become another by it.
pub fn real_mode(permissions: u32, kind: FileType) -> u32 {
    permissions & 0o777 | if kind == FileType::Directory { 0o700 } else { 0o600 }
}

/// What a file is, whatever its filesystem says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with setuid, setgid and sticky.
    pub permissions: u32,
    /// Type and device number, where the xattr tells them.
    pub node: Option<(FileType, u64)>,
}

impl OverrideStat {
    /// What the filesystem says.
    pub fn of(stat: &Stat) -> Self {
        Self { uid: stat.uid, gid: stat.gid, permissions: stat.permissions(), node: None }
    }

    /// Puts owner and permissions in the place of the filesystem's.
    pub fn apply(&self, stat: &mut Stat) {
        (stat.uid, stat.gid) = (self.uid, self.gid);
        stat.mode = stat.mode & !0o7777 | self.permissions;
    }

    /// Puts the type in the place of the filesystem's, if the file is a stand-in.
    pub fn apply_type(&self, stat: &mut Stat) {
        if let (Some((kind, rdev)), FileType::RegularFile) = (self.node, stat.kind()) {
            let permissions = match kind {
                FileType::Directory => return, // no file stands for one
                FileType::Symlink => 0o777,    // as every symlink has
                _ => stat.permissions(),
            };
            stat.mode = kind.as_raw_mode() | permissions;
            stat.rdev = rdev;
        }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut words = text.splitn(4, ':');
        let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // Some write the type's bits too.
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let node = match words.next() {
            Some(word) => Some(parse_type(word)?),
            None => None,
        };
        Some(Self { uid, gid, permissions: mode & 0o7777, node })
    }

    fn encode(&self) -> String {
        let head = format!("{}:{}:{:04o}", self.uid, self.gid, self.permissions);
        match self.node {
            Some((kind, rdev)) => format!("{head}:{}", type_word(kind, rdev)),
            None => head,
        }
    }
}

/// A type's word, with what stands behind it.
fn parse_type(word: &str) -> Option<(FileType, u64)> {
    let mut parts = word.split(['-', ':']);
    let kind = match parts.next()? {
        "file" => FileType::RegularFile,
        "dir" => FileType::Directory,
        "symlink" => FileType::Symlink,
        "pipe" => FileType::Fifo,
        "socket" => FileType::Socket,
        "block" => FileType::BlockDevice,
        "char" => FileType::CharacterDevice,
        _ => return None,
    };
    if !matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
        return Some((kind, 0));
    }
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((kind, rustix::fs::makedev(major, minor)))
}

fn type_word(kind: FileType, rdev: u64) -> String {
    let numbers = format!("-{}-{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    match kind {
        FileType::RegularFile | FileType::Unknown => "file".to_owned(),
        FileType::Directory => "dir".to_owned(),
        FileType::Symlink => "symlink".to_owned(),
        FileType::Fifo => "pipe".to_owned(),
        FileType::Socket => "socket".to_owned(),
        FileType::BlockDevice => format!("block{numbers}"),
        FileType::CharacterDevice => format!("char{numbers}"),
    }
}

impl OverrideXattr {
    /// What a layer with this root was written with, for the root itself has the xattr then.
    pub fn of_layer(root: BorrowedFd<'_>) -> sys::Result<Option<Self>> {
        let found = |name| Ok(read(root, name)?.is_some());
        Ok(if found(CONTAINERS)? || found(FUSE_OVERLAYFS)? {
            Some(Self::Containers)
        } else if found(PRIVILEGED)? {
            Some(Self::Privileged)
        } else {
            None
        })
    }

    /// What is kept for the object, if anything is.
    ///
    /// # Errors
    /// EIO if the xattr is not of the form above.
    pub fn read(self, object: BorrowedFd<'_>) -> sys::Result<Option<OverrideStat>> {
        let value = match self {
            Self::Privileged => read(object, PRIVILEGED)?,
            // Of the two, fuse-overlayfs changes its own.
            Self::Containers => match read(object, FUSE_OVERLAYFS)? {
                Some(value) => Some(value),
                None => read(object, CONTAINERS)?,
            },
        };
        value.map(|value| OverrideStat::parse(&value).ok_or(Errno::IO)).transpose()
    }

    /// Keeps `stat` for the object.
    pub fn write(self, object: BorrowedFd<'_>, stat: &OverrideStat) -> sys::Result<()> {
        let value = stat.encode();
        match self {
            Self::Privileged => sys::set_xattr(object, PRIVILEGED, value.as_bytes(), 0),
            Self::Containers => {
                sys::set_xattr(object, CONTAINERS, value.as_bytes(), 0)?;
                // As long as it is there, it is what counts.
                match sys::remove_xattr(object, FUSE_OVERLAYFS) {
                    Err(Errno::NODATA) => Ok(()),
                    result => result,
                }
            }
        }
    }

    /// Whether an xattr of a layer is the union's own.
    pub fn is_reserved(self, name: &[u8]) -> bool {
        match self {
            Self::Privileged => name == PRIVILEGED,
            Self::Containers => name.starts_with(PREFIX),
        }
    }

    /// Whether it is the xattr that tells owner, mode and type.
    pub fn is_stat(self, name: &[u8]) -> bool {
        match self {
            Self::Privileged => name == PRIVILEGED,
            Self::Containers => name == CONTAINERS || name == FUSE_OVERLAYFS,
        }
    }

    /// Whether an object of this type can have the xattr: user xattrs are for regular files and
    /// directories alone (xattr(7)).
    pub fn is_for(self, kind: FileType) -> bool {
        self == Self::Privileged || matches!(kind, FileType::RegularFile | FileType::Directory)
    }

    /// The name under which the layer holds an xattr that the filesystem would refuse.
    pub fn held_name(self, name: &[u8]) -> Option<Cow<'static, [u8]>> {
        let is_held = self == Self::Containers && is_privileged(name);
        is_held.then(|| Cow::Owned([PREFIX, name].concat()))
    }

    /// The name that is shown for one that [`held_name`](Self::held_name) gave.
    pub fn shown_name(self, held: &[u8]) -> Option<&[u8]> {
        let name = held.strip_prefix(PREFIX).filter(|name| is_privileged(name))?;
        (self == Self::Containers).then_some(name)
    }
}

fn is_privileged(name: &[u8]) -> bool {
    HELD.iter().any(|prefix| name.starts_with(prefix))
}

fn read(object: BorrowedFd<'_>, name: &[u8]) -> sys::Result<Option<Vec<u8>>> {
    match sys::get_xattr(object, name) {
        Ok(value) => Ok(Some(value)),
        // EPERM: not a kind of file that can have it; EACCES: not to be read by who mounts.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_the_field() {
        let device = |major, minor| rustix::fs::makedev(major, minor);
        let plain = |uid, gid, permissions| OverrideStat { uid, gid, permissions, node: None };
        let typed =
            |kind, rdev| OverrideStat { node: Some((kind, rdev)), ..plain(1000, 1011, 0o644) };
        let table: &[(&str, OverrideStat)] = &[
            ("0:0:0755", plain(0, 0, 0o755)),
            ("0:0:40755", plain(0, 0, 0o755)),
            ("7:8:104711", plain(7, 8, 0o4711)),
            ("1000:1011:0644:file", typed(FileType::RegularFile, 0)),
            ("1000:1011:0644:dir", typed(FileType::Directory, 0)),
            ("1000:1011:0644:symlink", typed(FileType::Symlink, 0)),
            ("1000:1011:0644:pipe", typed(FileType::Fifo, 0)),
            ("1000:1011:0644:socket", typed(FileType::Socket, 0)),
            ("1000:1011:0644:block-8-1", typed(FileType::BlockDevice, device(8, 1))),
            ("1000:1011:0644:char-259-256", typed(FileType::CharacterDevice, device(259, 256))),
            ("1000:1011:0644:char-1:3", typed(FileType::CharacterDevice, device(1, 3))),
        ];
        for (text, expected) in table {
            let parsed = OverrideStat::parse(text.as_bytes());
            assert_eq!(parsed, Some(*expected), "{text}");
            assert_eq!(OverrideStat::parse(expected.encode().as_bytes()), parsed, "{text}");
        }
        for text in ["", "0", "0:0", "0:0:9", "a:0:0755", "0:0:0755:disk", "0:0:0755:char-1"] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn names_of_security_xattrs_come_back() {
        let kept = OverrideXattr::Containers;
        let held = kept.held_name(b"security.capability").unwrap();
        assert_eq!(&held[..], b"user.containers.override_security.capability");
        assert_eq!(kept.shown_name(&held), Some(&b"security.capability"[..]));
        assert!(kept.is_reserved(&held) && kept.is_reserved(CONTAINERS));
        assert!(!kept.is_reserved(b"user.containers.x") && kept.shown_name(CONTAINERS).is_none());
        assert_eq!(
            kept.shown_name(&kept.held_name(b"trusted.x").unwrap()),
            Some(&b"trusted.x"[..])
        );
        assert_eq!(kept.held_name(b"user.x"), None);
        assert_eq!(OverrideXattr::Privileged.held_name(b"security.capability"), None);
    }
}
