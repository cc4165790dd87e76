//! Owners, permissions and types as the mount shows them, where the layers hold others.
//!
//! ```text
//! the file's own  ──>  its override xattr, if the union uses them  ──>  the id maps, squashing
//!                 held                                            held                    shown
//! ```
//!
//! Inside the union all is *held*: what comes through the mount is translated once, on its way in,
//! and what goes out, once.
//!
//! Where owners are kept in xattrs, the real file belongs to who mounts, and has the permissions
//! that are shown as far as that lets its owner read and write it. The xattr is changed first: a
//! crash after that leaves a real mode that nobody sees. What can have no such xattr (a user's
//! xattr_permissions=2: devices, FIFOs, sockets, and symlinks of others) is held as a regular file
//! that says its type.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, OFlags, Uid};

use super::Overlay;
use super::attr::{self, Owner};
use super::error::{Context, Error, Result, best_effort};
use super::inode::Inode;
use super::state::{Link, UpperFile};
use crate::layers::acl;
use crate::layers::id_map::{IdMap, UNMAPPED};
use crate::layers::override_stat::{OverrideStat, OverrideXattr, real_mode};
use crate::layers::private_xattr;
use crate::layers::upper::Temp;
use crate::sys::{self, Errno, FileType, Stat, TimeChange};

/// Whether owners and modes are kept in xattrs (mount option `xattr_permissions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overrides {
    /// If a layer was written so: its root has the xattr.
    #[default]
    AsLayers,
    /// No (`xattr_permissions=0`).
    No,
    /// Yes (`xattr_permissions=1` and `2`).
    In(OverrideXattr),
}

/// What the mount shows as owners.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// Users.
    pub uids: IdMap,
    /// Groups.
    pub gids: IdMap,
    /// Where the layers keep owners and modes.
    pub overrides: Overrides,
    /// Whose a symlink is, which can have no xattr: with `None` its owner's, as it lies on disk. A
    /// symlink of anybody else is held as a regular file.
    pub symlinks_are: Option<(u32, u32)>,
}

/// [`Ownership`], decided for the layers of a union.
#[derive(Debug)]
pub(super) struct Owners {
    /// Who mounts: whose new files are at first.
    pub(super) mounter: Owner,
    uids: IdMap,
    gids: IdMap,
    pub(super) overrides: Option<OverrideXattr>,
    symlinks_are: Option<(u32, u32)>,
}

/// A change of owner or permissions, held.
#[derive(Clone, Copy, Debug, Default)]
struct HeldChange {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
}

impl Owners {
    pub(super) fn new(
        ownership: &Ownership,
        mut roots: impl Iterator<Item = sys::Result<Option<OverrideXattr>>>,
    ) -> sys::Result<Self> {
        let overrides = match ownership.overrides {
            Overrides::In(xattr) => Some(xattr),
            Overrides::No => None,
            Overrides::AsLayers => roots.find_map(|found| found.transpose()).transpose()?,
        };
        let (uids, gids) = (ownership.uids.clone(), ownership.gids.clone());
        let symlinks_are = ownership.symlinks_are.filter(|_| overrides.is_some());
        let mounter = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        Ok(Self { mounter, uids, gids, overrides, symlinks_are })
    }

    /// Whether lists of other users and groups mean anything.
    pub(super) fn allow_acls(&self) -> bool {
        self.overrides.is_none() && self.uids.squashed().or(self.gids.squashed()).is_none()
    }

    pub(super) fn shown_uid(&self, held: u32) -> u32 {
        self.uids.shown(held)
    }

    pub(super) fn shown_gid(&self, held: u32) -> u32 {
        self.gids.shown(held)
    }

    /// An ACL as it is shown: without those who are not.
    pub(super) fn shown_acl(&self, acl: &[u8]) -> Vec<u8> {
        let shown = |map: &IdMap, id| Some(map.shown(id)).filter(|id| *id != UNMAPPED);
        acl::translate(acl, |id| shown(&self.uids, id), |id| shown(&self.gids, id))
    }

    /// An ACL as it is held.
    pub(super) fn held_acl(&self, acl: &[u8]) -> Result<Vec<u8>> {
        let held = acl::translate(acl, |id| self.uids.held(id), |id| self.gids.held(id));
        match held.len() == acl.len() {
            true => Ok(held),
            false => Err(Errno::OVERFLOW).context("hold the ids of an ACL", b""),
        }
    }

    /// Who holds a new file of this owner. Of a squashed one nobody sees the owner, so who may not
    /// give files away keeps them.
    pub(super) fn held_owner(&self, shown: Owner) -> Result<Owner> {
        let is_root = self.mounter.uid == 0;
        let held = |map: &IdMap, id: u32, own: u32| match map.squashed() {
            Some(_) if !is_root => Ok(own),
            _ => map.held(id).ok_or(Errno::OVERFLOW).context("hold an owner", b""),
        };
        Ok(Owner {
            uid: held(&self.uids, shown.uid, self.mounter.uid)?,
            gid: held(&self.gids, shown.gid, self.mounter.gid)?,
        })
    }

    /// The held id for one that a file is to be given; `None` if it is shown already.
    fn hold_id(map: &IdMap, id: Option<u32>) -> Result<Option<u32>> {
        match id {
            Some(id) if map.squashed() == Some(id) => Ok(None),
            Some(id) => map.held(id).ok_or(Errno::OVERFLOW).context("hold an owner", b"").map(Some),
            None => Ok(None),
        }
    }

    /// The held owner that a change asks for.
    ///
    /// An id that the layer holds already is no change: podman gives the root of a mount with
    /// mapped ids the owner that its directory has on disk.
    ///
    /// # Errors
    /// EOVERFLOW if no owner that a layer holds would be shown so.
    fn hold_change(&self, uid: Option<u32>, gid: Option<u32>, now: &Stat) -> Result<HeldChange> {
        let held = |map: &IdMap, id: Option<u32>, now: u32| match Self::hold_id(map, id) {
            Err(_) if id == Some(now) => Ok(None),
            result => result,
        };
        let (uid, gid) = (held(&self.uids, uid, now.uid)?, held(&self.gids, gid, now.gid)?);
        Ok(HeldChange { uid, gid, mode: None })
    }

    /// Whether owners are shown that are not held.
    fn maps(&self) -> bool {
        !self.uids.is_identity() || !self.gids.is_identity()
    }

    /// Whether nobody sees the owner that a file is given, so that it need not be given.
    fn hides_owners(&self) -> bool {
        self.uids.squashed().is_some() && self.gids.squashed().is_some()
    }

    /// Whether what the mount shows of an object of this type may not be what its filesystem says.
    fn keeps(&self, kind: FileType) -> bool {
        self.overrides.is_some_and(|xattr| xattr.is_for(kind))
            || kind == FileType::Symlink && self.symlinks_are.is_some()
    }

    /// Whose a real symlink is.
    fn symlink_owner(&self) -> (u32, u32) {
        self.symlinks_are.unwrap_or((self.mounter.uid, self.mounter.gid))
    }

    /// What is kept in the object's xattr, if it can have one and the union uses them.
    fn override_of(&self, object: BorrowedFd<'_>, stat: &Stat) -> Result<Option<OverrideStat>> {
        if let (FileType::Symlink, Some((uid, gid))) = (stat.kind(), self.symlinks_are) {
            return Ok(Some(OverrideStat { uid, gid, permissions: 0o777, node: None }));
        }
        match self.overrides.filter(|xattr| xattr.is_for(stat.kind())) {
            Some(xattr) => xattr.read(object).context("read override_stat", b""),
            None => Ok(None),
        }
    }

    /// The type of what has this name: a stand-in's is in its xattr.
    pub(super) fn kind(&self, dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<FileType> {
        let mut shown = *stat;
        if stat.kind() == FileType::RegularFile {
            let object = sys::open_at(dir, name, sys::O_PATH).context("open", name)?;
            if let Some(kept) = self.override_of(object.as_fd(), stat)? {
                kept.apply_type(&mut shown);
            }
        }
        Ok(shown.kind())
    }

    /// What the object holds: owner and permissions out of its xattr, if it has one.
    pub(super) fn held(&self, object: BorrowedFd<'_>, mut stat: Stat) -> Result<Stat> {
        if let Some(kept) = self.override_of(object, &stat)? {
            kept.apply(&mut stat);
        }
        Ok(stat)
    }

    /// Keeps owner and permissions in the object's xattr, and adapts its real mode.
    pub(super) fn keep(
        xattr: OverrideXattr,
        object: BorrowedFd<'_>,
        real: &Stat,
        kept: &OverrideStat,
    ) -> sys::Result<()> {
        xattr.write(object, kept)?;
        let mode = real_mode(kept.permissions, real.kind());
        if real.kind() != FileType::Symlink && real.permissions() != mode {
            sys::chmod(object, mode)?;
        }
        Ok(())
    }

    /// Changes owner and permissions of an object; owner first, for that drops setuid.
    fn apply(&self, object: BorrowedFd<'_>, change: &HeldChange) -> Result<()> {
        if let Some(xattr) = self.overrides
            && let real = sys::fstat(object).context("stat", b"")?
            && xattr.is_for(real.kind())
        {
            let kept = self.override_of(object, &real)?;
            let kept = after_change(kept.unwrap_or_else(|| OverrideStat::of(&real)), &real, change);
            if change.uid.or(change.gid).is_some() {
                drop_held_capabilities(xattr, object)?;
            }
            return Self::keep(xattr, object, &real, &kept).context("keep override_stat", b"");
        }
        if change.uid.or(change.gid).is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(object, c"", uid, gid, AtFlags::EMPTY_PATH)
                .context("chown", b"")?;
        }
        match change.mode {
            Some(mode) => sys::chmod(object, mode).context("chmod", b""),
            None => Ok(()),
        }
    }

    /// Changes the permissions of an object.
    pub(super) fn set_permissions(&self, object: BorrowedFd<'_>, mode: u32) -> Result<()> {
        self.apply(object, &HeldChange { mode: Some(mode), ..HeldChange::default() })
    }

    /// Whether a copy has the xattr too: those of the union's own are made anew.
    pub(super) fn copies(&self, name: &[u8]) -> bool {
        let is_held = self.overrides.is_some_and(|xattr| xattr.shown_name(name).is_some());
        is_held || private_xattr::unescape(name).is_some()
    }

    /// Gives a copy owner and permissions of the original, and its xattrs (a change of owner drops
    /// capabilities, so they come after). Returns its attributes of before.
    pub(super) fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        original: &Stat,
    ) -> Result<Stat> {
        let made = sys::fstat(to).context("stat copy", b"")?;
        let Some(xattr) = self.overrides.filter(|xattr| xattr.is_for(made.kind())) else {
            let owner = Owner { uid: original.uid, gid: original.gid };
            if !self.keeps(made.kind()) {
                match attr::chown(to, &made, owner) {
                    Err(Errno::PERM | Errno::INVAL) if self.hides_owners() => {}
                    result => result.context("chown copy", b"")?,
                }
            }
            // The mode comes last, for it may forbid its owner to set xattrs.
            let copied = private_xattr::copy_others(from, to).context("copy xattrs", b"")?;
            // chown(2) has dropped setuid and setgid, and an ACL may have changed the mode.
            let has_mode = made.permissions() == original.permissions()
                && original.mode & 0o6000 == 0
                && copied == 0;
            if original.kind() != FileType::Symlink && !has_mode {
                sys::chmod(to, original.mode).context("chmod copy", b"")?;
            }
            return Ok(made);
        };
        private_xattr::copy_with(from, to, |name| {
            // The real mode is the union's own, so lists that widen it are not copied.
            let is_copied = self.copies(name) && !name.starts_with(acl::PREFIX);
            is_copied.then(|| xattr.held_name(name).unwrap_or_else(|| name.to_vec().into()))
        })
        .context("copy xattrs", b"")?;
        let kept = self.override_of(from, original)?;
        let mut kept = kept.unwrap_or_else(|| OverrideStat::of(original));
        if original.kind() != made.kind() {
            kept.node = Some((original.kind(), original.rdev));
        }
        Self::keep(xattr, to, &made, &kept).context("keep override_stat", b"")?;
        Ok(made)
    }
}

/// What a chown or chmod makes of what is kept: as chown(2) says, a change of owner takes setuid
/// away, and setgid where the group may execute.
fn after_change(mut kept: OverrideStat, real: &Stat, change: &HeldChange) -> OverrideStat {
    if change.uid.or(change.gid).is_some() && real.kind() != FileType::Directory {
        kept.permissions &= !0o4000;
        if kept.permissions & 0o010 != 0 {
            kept.permissions &= !0o2000;
        }
    }
    kept.uid = change.uid.unwrap_or(kept.uid);
    kept.gid = change.gid.unwrap_or(kept.gid);
    kept.permissions = change.mode.unwrap_or(kept.permissions) & 0o7777;
    kept
}

/// Drops the capabilities of a file that the filesystem does not know of.
fn drop_held_capabilities(xattr: OverrideXattr, object: BorrowedFd<'_>) -> Result<()> {
    let Some(held) = xattr.held_name(b"security.capability") else {
        return Ok(());
    };
    match sys::remove_xattr(object, &held) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno).context("drop capabilities", b""),
    }
}

impl Overlay {
    /// What the mount shows for the real attributes of an inode.
    pub(super) fn shown(&self, inode: &Arc<Inode>, mut stat: Stat) -> Result<Stat> {
        if self.owners.keeps(stat.kind()) && !self.is_held_by_index(inode) {
            let object = self.object(inode)?;
            if let Some(kept) = self.owners.override_of(object.as_fd(), &stat)? {
                kept.apply(&mut stat);
                kept.apply_type(&mut stat);
            }
        }
        stat.uid = self.owners.shown_uid(stat.uid);
        stat.gid = self.owners.shown_gid(stat.gid);
        Ok(stat)
    }

    /// Whether a regular file must stand for a file of this type and held owner in upper, for its
    /// owner and permissions cannot be kept otherwise.
    pub(super) fn needs_stand_in(&self, kind: FileType, owner: Owner) -> bool {
        self.owners.overrides.is_some_and(|xattr| !xattr.is_for(kind))
            && !(kind == FileType::Symlink && (owner.uid, owner.gid) == self.owners.symlink_owner())
    }

    /// Whether a symlink's owner is kept in an xattr, which it cannot have itself.
    pub(super) fn replaces_symlinks(&self) -> bool {
        self.owners.overrides == Some(OverrideXattr::Containers)
    }

    /// Before a symlink of upper gets a second name: later its place could not be taken any more.
    pub(super) fn prepare_symlink_for_links(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.kind != FileType::Symlink || !self.replaces_symlinks() {
            return Ok(());
        }
        let _one_at_a_time = inode.copy_up.lock();
        let object = self.object(inode)?;
        let link = sys::fstat(object.as_fd()).context("stat", b"")?;
        match link.kind() {
            FileType::Symlink => {
                let held = OverrideStat::of(&self.owners.held(object.as_fd(), link)?);
                self.replace_symlink(inode, &object, &link, &held)
            }
            _ => Ok(()),
        }
    }

    /// Fails if a file cannot be given this owner, before anything is copied up for it.
    pub(super) fn check_owner(
        &self,
        inode: &Arc<Inode>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        if uid.or(gid).is_none() || !self.owners.maps() {
            return Ok(());
        }
        self.owners.hold_change(uid, gid, &self.stat_object(inode)?).map(drop)
    }

    /// Changes owner and permissions of a file of upper, as the mount shows them.
    pub(super) fn set_owner_and_mode(
        &self,
        inode: &Arc<Inode>,
        uid: Option<u32>,
        gid: Option<u32>,
        mode: Option<u32>,
    ) -> Result<()> {
        let change = match uid.or(gid) {
            Some(_) if self.owners.maps() => {
                self.owners.hold_change(uid, gid, &self.stat_object(inode)?)?
            }
            Some(_) => HeldChange { uid, gid, mode },
            None => HeldChange::default(),
        };
        let change = HeldChange { mode, ..change };
        if change.uid.or(change.gid).or(change.mode).is_none() {
            return Ok(());
        }
        if self.replaces_symlinks()
            && inode.kind == FileType::Symlink
            && self.change_symlink(inode, &change)?
        {
            return Ok(());
        }
        // Reading, changing and writing the xattr must not meet another's.
        let (_alone, _stable) = match self.owners.overrides {
            Some(_) => (Some(inode.attrs.write()), None),
            None => (None, Some(inode.attrs.read())),
        };
        self.owners.apply(self.object(inode)?.as_fd(), &change)
    }

    /// Before the content changes: capabilities go that the filesystem does not know of.
    pub(super) fn drop_held_capabilities(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.owners.overrides.map_or(Ok(()), |xattr| drop_held_capabilities(xattr, fd))
    }

    /// A symlink's owner, where that is kept in an xattr, which a symlink cannot have: a regular
    /// file takes its place. False if there is one already.
    fn change_symlink(&self, inode: &Arc<Inode>, change: &HeldChange) -> Result<bool> {
        let _one_at_a_time = inode.copy_up.lock();
        let object = self.object(inode)?;
        let link = sys::fstat(object.as_fd()).context("stat", b"")?;
        if link.kind() != FileType::Symlink {
            return Ok(false);
        }
        let held = OverrideStat::of(&self.owners.held(object.as_fd(), link)?);
        let kept = after_change(held, &link, change);
        if (kept.uid, kept.gid) == (held.uid, held.gid) {
            return Ok(true);
        }
        if link.nlink > 1 {
            return Err(Errno::PERM)
                .context("change the owner of a symlink with several names", b"");
        }
        self.replace_symlink(inode, &object, &link, &kept)?;
        Ok(true)
    }

    fn replace_symlink(
        &self,
        inode: &Arc<Inode>,
        object: &OwnedFd,
        link: &Stat,
        kept: &OverrideStat,
    ) -> Result<()> {
        let upper = self.upper()?;
        let mut temp = upper.temp();
        let kept = OverrideStat { node: Some((FileType::Symlink, 0)), ..*kept };
        let fd = temp.create_file().context("stand in for a symlink", b"")?;
        write_target(&fd, &read_target(object)?)?;
        OverrideXattr::Containers.write(fd.as_fd(), &kept).context("keep override_stat", b"")?;
        let times = (Some(TimeChange::At(link.atime)), Some(TimeChange::At(link.mtime)));
        sys::set_times(fd.as_fd(), times.0, times.1).context("set times", b"")?;
        if !self.skips_sync()? {
            rustix::fs::fsync(&fd).context("sync", b"")?;
        }
        let stat = sys::fstat(&fd).context("stat", b"")?;
        let index = upper.index();
        index.keep_spent(object.as_fd(), inode.ino).context("keep a symlink's number", b"")?;
        index.record_origin(&stat, inode.ino).context("record origin", b"")?;
        let replaced = self.publish_stand_in(inode, &mut temp, &stat);
        if replaced.is_err() {
            best_effort("forget an inode", index.forget_origin(stat.ino, inode.ino));
            best_effort("drop a spent link", index.drop_spent(inode.ino));
        }
        replaced
    }

    /// Moves what stands for a symlink to its name.
    fn publish_stand_in(&self, inode: &Arc<Inode>, temp: &mut Temp<'_>, stat: &Stat) -> Result<()> {
        loop {
            let Link { parent, name } = inode.any_link().ok_or(Error::NotFound)?;
            let _names = parent.dir.write();
            if !inode.state.read().links.iter().any(|link| link.is(&parent, &name)) {
                continue; // removed or renamed since
            }
            let dir = self.upper_dir(&parent)?;
            let before = sys::fstat(dir.as_fd()).context("stat", &name)?;
            self.with_write_permission(&parent, &dir, || temp.publish(dir.as_fd(), &name))
                .context("replace a symlink", &name)?;
            let restored = super::copy_up::copy_times(dir.as_fd(), &before);
            best_effort("restore a directory's times", restored);
            inode.set_upper(UpperFile::named(stat.ino), None);
            return Ok(());
        }
    }
}

/// The target of a symlink, or of a regular file that stands for one.
pub(super) fn read_target(object: &OwnedFd) -> Result<Vec<u8>> {
    match rustix::fs::readlinkat(object, c"", Vec::new()) {
        Ok(target) => return Ok(target.into_bytes()),
        Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno).context("read link", b""),
    }
    let fd = sys::reopen(object.as_fd(), sys::O_READ).context("open", b"")?;
    let mut target = vec![0; libc::PATH_MAX as usize];
    let len = rustix::io::pread(&fd, &mut target, 0).context("read link", b"")?;
    target.truncate(len);
    Ok(target)
}

/// Writes a symlink's target into the regular file that stands for it; `object` may be `O_PATH`.
pub(super) fn write_target(object: &OwnedFd, target: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = sys::reopen(object.as_fd(), flags).context("open", b"")?;
    match rustix::io::write(&fd, target).context("write a symlink's target", b"")? {
        len if len == target.len() => Ok(()),
        _ => Err(Errno::IO).context("write a symlink's target", b""),
    }
}
