//! Making new names: create, mkdir, symlink, mknod, link.
//!
//! A new file is made in place if one call makes it complete: right owner, mode and ACL.
//! Else it is built in workdir and published by a rename. Where upper has a whiteout of the
//! name, the file comes first and then the whiteout goes (a whiteout never hides its own
//! layer's name); a directory is made opaque before it appears.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::attr::{self, Attr, Owner};
use super::error::{Context, Error, Result, best_effort};
use super::fd_cache::FdKey;
use super::inode::Inode;
use super::listing::{Entry, Listing};
use super::ownership::{Owners, write_target};
use super::state::{Link, Links, State, UpperFile};
use super::{Overlay, held_name};
use crate::layers::number::Ino;
use crate::layers::override_stat::{OverrideStat, OverrideXattr, real_mode};
use crate::layers::upper::Upper;
use crate::layers::{acl, marks};
use crate::sys::{self, Errno, FileType, Stat};

/// A node to be made.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// What it is.
    pub kind: NodeKind<'a>,
    /// Permission bits as asked for.
    pub mode: u32,
    /// The caller's umask, which a default ACL of the parent overrides.
    pub umask: u32,
    /// Who it belongs to; a setgid parent overrides the group.
    pub owner: Owner,
}

/// What a new node is.
#[derive(Clone, Copy, Debug)]
pub enum NodeKind<'a> {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink to this target.
    Symlink(&'a [u8]),
    /// A device node, FIFO or socket.
    Special {
        /// Its type.
        kind: FileType,
        /// Device number, for device nodes.
        rdev: u64,
    },
}

impl NodeKind<'_> {
    /// A 0:0 device, which the index must know as a real one before it appears.
    fn looks_like_whiteout(&self) -> bool {
        matches!(self, Self::Special { kind: FileType::CharacterDevice, rdev: 0 })
    }

    fn file_type(&self) -> FileType {
        match self {
            Self::File => FileType::RegularFile,
            Self::Directory => FileType::Directory,
            Self::Symlink(_) => FileType::Symlink,
            Self::Special { kind, .. } => *kind,
        }
    }
}

/// A node as it shall appear.
struct Blueprint<'a> {
    kind: NodeKind<'a>,
    mode: u32,
    owner: Owner,
    opaque: bool,
}

/// What the parent directory means for a new node.
struct Site<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    parent: Stat,
    /// The parent's default ACL, which the node inherits.
    default_acl: Option<Vec<u8>>,
    /// Upper hides the name in the layers below.
    whiteout: bool,
}

impl Overlay {
    /// Makes a node and counts a reference to it.
    ///
    /// # Errors
    /// `Exists` if the merged directory has the name.
    pub fn create(&self, parent: Ino, name: &[u8], node: &Node<'_>) -> Result<Attr> {
        let name = &*held_name(name)?;
        let parent = self.inode(parent)?;
        drop(self.listing(&parent)?); // reads it, or fails as something else
        self.copy_up(&parent)?;
        let mut names = parent.dir.write();
        let names = names.as_deref_mut().ok_or(Error::Stale)?;
        if names.get(&self.hashing, name).is_some() {
            return Err(Error::Exists);
        }
        let dir = self.upper_dir(&parent)?;
        let site = self.site(&parent, names, dir.as_fd(), name)?;
        let open = self.make(&site, node)?;
        let looked_at = match &open {
            Some(fd) => sys::fstat(fd),
            None => sys::statx_at(site.dir, name),
        };
        let stat = match looked_at {
            Ok(stat) => stat,
            Err(errno) => {
                // What fails must not be there later.
                best_effort("take a new node back", self.upper()?.discard(site.dir, name));
                return Err(errno).context("stat", name);
            }
        };
        names.insert(&self.hashing, Entry::upper(name, stat.kind(), site.whiteout));
        self.watcher.tell(parent.ino);
        let inode = self.intern_new(&parent, name, node.kind.file_type(), &stat);
        if site.whiteout {
            // One that stays hides nothing of its own layer.
            best_effort("drop whiteout", self.upper()?.drop_whiteout(site.dir, name));
        }
        if let Some(fd) = open {
            self.fds.put(FdKey::Write(inode.ino), fd); // who creates a file writes it
        }
        self.counted_attr(inode, Some(stat))
    }

    /// Gives an inode another name and counts a reference to it.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let name = &*held_name(name)?;
        let (inode, parent) = (self.inode(ino)?, self.inode(parent)?);
        if self.listing(&parent)?.get(&self.hashing, name).is_some() {
            return Err(Error::Exists);
        }
        self.copy_up(&inode)?;
        self.prepare_symlink_for_links(&inode)?;
        self.copy_up(&parent)?;
        let mut names = parent.dir.write();
        let names = names.as_deref_mut().ok_or(Error::Stale)?;
        if names.get(&self.hashing, name).is_some() {
            return Err(Error::Exists);
        }
        let dir = self.upper_dir(&parent)?;
        let whiteout = self.prepare_name(&parent, dir.as_fd(), name)?;
        let object = self.object(&inode)?;
        sys::link_fd(object.as_fd(), dir.as_fd(), name).context("link", name)?;
        names.insert(&self.hashing, Entry::upper(name, inode.kind, whiteout));
        inode.add_new_link(&parent, name);
        if whiteout {
            best_effort("drop whiteout", self.upper()?.drop_whiteout(dir.as_fd(), name));
        }
        self.watcher.tell(parent.ino);
        self.watcher.tell(inode.ino);
        self.inodes.count_lookup(&inode);
        self.counted_attr(inode, None)
    }

    fn site<'a>(
        &self,
        parent: &Arc<Inode>,
        names: &mut Listing,
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    ) -> Result<Site<'a>> {
        let whiteout = self.prepare_name(parent, dir, name)?;
        let default_acl = match names.bequeaths_nothing {
            true => None,
            false => default_acl(dir).context("read default ACL", name)?,
        };
        names.bequeaths_nothing = default_acl.is_none();
        let default_acl = default_acl.filter(|_| self.acl);
        let parent = self.owners.held(dir, sys::fstat(dir).context("stat", name)?)?;
        Ok(Site { dir, name, parent, default_acl, whiteout })
    }

    /// Whether upper has a whiteout of `name`; one in the form of a device is rewritten as a
    /// `.wh.` file, so that the name is free.
    pub(super) fn prepare_name(
        &self,
        parent: &Inode,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<bool> {
        let has_lowers = !parent.state.read().lower_dirs().is_empty();
        if let Ok(stat) = sys::statx_at(dir, name)
            && stat.is_whiteout_device()
            && !self.upper()?.index().is_device(&stat)
        {
            if has_lowers {
                self.upper()?.make_whiteout(dir, name).context("make whiteout", name)?;
            }
            rustix::fs::unlinkat(dir, name, AtFlags::empty()).context("drop whiteout", name)?;
        }
        if !has_lowers {
            return Ok(false);
        }
        match sys::statx_at(dir, &marks::whiteout_of(name).file_name) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).context("look for a whiteout of", name),
        }
    }

    /// Makes the node; with a descriptor for writing, where it has one anyway.
    fn make(&self, site: &Site<'_>, node: &Node<'_>) -> Result<Option<OwnedFd>> {
        let mode = match site.default_acl {
            Some(_) => node.mode,
            None => node.mode & !node.umask,
        };
        let inherits = site.parent.mode & 0o2000 != 0;
        let held = self.owners.held_owner(node.owner)?;
        let owner = Owner { gid: if inherits { site.parent.gid } else { held.gid }, ..held };
        let is_dir = matches!(node.kind, NodeKind::Directory);
        let opaque = is_dir && site.whiteout;
        // What one call in place makes: user and group of who mounts, or the group of a setgid
        // parent, and no bits that mkdir(2) would drop.
        let mounter = self.owners.mounter;
        let own = owner.uid == mounter.uid && (inherits || owner.gid == mounter.gid);
        let is_kept = self.owners.overrides.is_some(); // what is in an xattr is no one call
        if own && !is_kept && !opaque && mode & 0o7000 == 0 && !node.kind.looks_like_whiteout() {
            let made = make_node(site.dir, site.name, node.kind, mode);
            let open = made.context("create", site.name)?;
            open.iter().for_each(|file| self.mark_no_accesses(file));
            return Ok(open);
        }
        let mode = if is_dir && inherits { mode | 0o2000 } else { mode };
        self.make_in_work(site, &Blueprint { kind: node.kind, mode, owner, opaque })?;
        Ok(None)
    }

    /// Builds the node in workdir. Where the parent has a default ACL, it is built in a
    /// directory there that has the same, so that the filesystem computes what it inherits.
    fn make_in_work(&self, site: &Site<'_>, blueprint: &Blueprint<'_>) -> Result<()> {
        let upper = self.upper()?;
        let mut temp = upper.temp();
        let Some(default_acl) = &site.default_acl else {
            let node = match self.owners.overrides {
                Some(xattr) => self.build_kept(xattr, temp.dir(), temp.name(), blueprint)?,
                None => {
                    self.build(temp.dir(), temp.name(), blueprint).context("create", site.name)?
                }
            };
            return publish_node(&node, blueprint, || temp.publish(site.dir, site.name))
                .context("create", site.name);
        };
        let (dir, name) = (temp.dir(), temp.name());
        let build = || {
            rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
            let nursery = sys::open_at(dir, name, sys::O_DIRECTORY)?;
            sys::set_xattr(nursery.as_fd(), acl::DEFAULT, default_acl, 0)?;
            let node = self.build(nursery.as_fd(), b"node", blueprint)?;
            let publish = || rustix::fs::renameat(&nursery, "node", site.dir, site.name);
            publish_node(&node, blueprint, publish)
        };
        build().context("create", site.name)
    }

    /// Makes the node complete with owner, all mode bits and the opaque mark.
    fn build(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        blueprint: &Blueprint<'_>,
    ) -> sys::Result<OwnedFd> {
        let Blueprint { kind, mode, owner, opaque } = *blueprint;
        // The mark is made inside, whatever the mode shall be.
        let bits = if opaque { mode | 0o700 } else { mode };
        drop(make_node(dir, name, kind, bits)?);
        let fd = sys::open_at(dir, name, sys::O_PATH)?;
        if opaque {
            Upper::make_opaque(fd.as_fd())?;
        }
        let made = sys::fstat(&fd)?;
        attr::chown(fd.as_fd(), &made, owner)?;
        let now = sys::fstat(&fd)?.permissions();
        let wanted = now & (mode | 0o077) & 0o777 | mode & 0o7000;
        if kind.file_type() != FileType::Symlink && now != wanted {
            sys::chmod(fd.as_fd(), wanted)?;
        }
        match &self.upper {
            Some(upper) if kind.looks_like_whiteout() => upper.index().record_device(&made)?,
            _ => {}
        }
        Ok(fd)
    }

    /// As [`build`](Self::build), where owner and mode are kept in an xattr.
    fn build_kept(
        &self,
        xattr: OverrideXattr,
        dir: BorrowedFd<'_>,
        name: &[u8],
        blueprint: &Blueprint<'_>,
    ) -> Result<OwnedFd> {
        let Blueprint { kind, mode, owner, opaque } = *blueprint;
        let file_type = kind.file_type();
        let stands_in = self.needs_stand_in(file_type, owner);
        let made = if stands_in { NodeKind::File } else { kind };
        let bits = real_mode(mode, made.file_type());
        drop(make_node(dir, name, made, bits).context("create", name)?);
        let fd = sys::open_at(dir, name, sys::O_PATH).context("open", name)?;
        if opaque {
            Upper::make_opaque(fd.as_fd()).context("make opaque", name)?;
        }
        if let (true, NodeKind::Symlink(target)) = (stands_in, kind) {
            write_target(&fd, target)?;
            if !self.skips_sync()? {
                // The target is this file's data, but a symlink's comes with its name.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = sys::reopen(fd.as_fd(), flags).context("open", name)?;
                rustix::fs::fsync(&file).context("sync", name)?;
            }
        }
        if !xattr.is_for(made.file_type()) {
            return Ok(fd); // a symlink of who mounts
        }
        let node = stands_in.then_some(match kind {
            NodeKind::Special { kind, rdev } => (kind, rdev),
            _ => (file_type, 0),
        });
        let kept = OverrideStat { uid: owner.uid, gid: owner.gid, permissions: mode, node };
        let real = sys::fstat(&fd).context("stat", name)?;
        Owners::keep(xattr, fd.as_fd(), &real, &kept).context("keep override_stat", name)?;
        Ok(fd)
    }

    /// The inode of a name that was just made.
    fn intern_new(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        kind: FileType,
        stat: &Stat,
    ) -> Arc<Inode> {
        let number = self.number(stat, true);
        let state = State {
            links: Links::One(Link { parent: Arc::clone(parent), name: name.into() }),
            upper: Some(UpperFile::named(stat.ino)),
            ..State::default()
        };
        self.inodes.intern(number, || Inode::new(number, kind, state))
    }
}

fn default_acl(dir: BorrowedFd<'_>) -> sys::Result<Option<Vec<u8>>> {
    match sys::get_xattr(dir, acl::DEFAULT) {
        Ok(acl) => Ok(Some(acl)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Moves a finished node to its name. A directory that changes its parent must be writable,
/// whatever its mode says.
fn publish_node(
    node: &OwnedFd,
    blueprint: &Blueprint<'_>,
    mut publish: impl FnMut() -> sys::Result<()>,
) -> sys::Result<()> {
    match blueprint.kind {
        NodeKind::Directory => sys::with_write_permission(node.as_fd(), publish),
        _ => publish(),
    }
}

/// Makes the bare node; a file is open for reading and writing.
fn make_node(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: NodeKind<'_>,
    mode: u32,
) -> sys::Result<Option<OwnedFd>> {
    let bits = Mode::from_raw_mode(mode);
    match kind {
        NodeKind::File => {
            let flags = sys::O_READWRITE | OFlags::CREATE | OFlags::EXCL;
            return rustix::fs::openat(dir, name, flags, bits).map(Some);
        }
        NodeKind::Directory => rustix::fs::mkdirat(dir, name, bits),
        NodeKind::Symlink(target) => rustix::fs::symlinkat(target, dir, name),
        NodeKind::Special { kind, rdev } => rustix::fs::mknodat(dir, name, kind, bits, rdev),
    }?;
    Ok(None)
}
