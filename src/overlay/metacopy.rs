//! Metacopies: files of a rich upper whose attributes alone were copied up, with a pointer to
//! the data in a lower layer.
//!
//! A metacopy has one name: a file of several is copied whole. To complete it, a whole copy is
//! built beside it and takes its place by a rename, with the attributes that it has at that
//! moment: those who change attributes hold `Inode::attrs` shared, the rename holds it alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::Overlay;
use super::copy_up::OpenCopy;
use super::error::{Context, Result};
use super::inode::Inode;
use super::state::LowerData;
use crate::layers::private_xattr;
use crate::layers::redirect::{self, Below, Metacopy};
use crate::sys::{self, Stat, Timestamp};

/// Longer than the step of any kernel's clock for file times (at most 10 ms).
const TICK: Duration = Duration::from_millis(50);

impl Overlay {
    /// As [`copy_up_attributes`](Self::copy_up_attributes), before the mode becomes `mode`:
    /// with some, no pointer may stay.
    pub(super) fn copy_up_for_mode(
        &self,
        inode: &Arc<Inode>,
        mode: u32,
    ) -> Result<Option<OpenCopy<'_>>> {
        if self.may_point(mode) {
            return self.copy_up_attributes(inode);
        }
        self.copy_up(inode)?;
        if inode.is_dir() && self.upper()?.is_rich() {
            let dir = self.upper_dir(inode)?;
            if self.namespace.has_redirect(dir.as_fd()).context("read redirect", b"")? {
                self.settle_deeply(inode)?;
                self.namespace.drop_redirect(dir.as_fd()).context("drop redirect", b"")?;
            }
        }
        Ok(None)
    }

    /// Whether an object of this mode may have a pointer: it must be found again.
    pub(super) fn may_point(&self, mode: u32) -> bool {
        !self.namespace.needs_read_mode() || mode & 0o400 != 0
    }

    /// Makes `fd` a metacopy, if that is allowed and worth it; else the data must be copied.
    pub(super) fn point_to_data(
        &self,
        inode: &Inode,
        lower: &Stat,
        fd: BorrowedFd<'_>,
    ) -> Option<Arc<LowerData>> {
        let is_worth_it = lower.nlink == 1 && lower.size >= redirect::METACOPY_MIN;
        if !self.makes_pointers || !is_worth_it || !self.may_point(lower.mode) {
            return None;
        }
        let data = {
            let state = inode.state.read();
            let of_lower = || {
                let file = state.lower()?;
                let Stat { blocks, size, mtime, .. } = *lower;
                Some(Arc::new(LowerData { file, blocks, size, mtime }))
            };
            state.data.clone().or_else(of_lower)?
        };
        let path = data.file.path().into();
        let file = Below { depth: data.file.dir.layer, path };
        let LowerData { blocks, size, mtime, .. } = *data;
        let pointer = Metacopy { file, blocks, size, mtime };
        let made = rustix::fs::ftruncate(fd, lower.size)
            .and_then(|()| self.namespace.write_metacopy(fd, &pointer));
        made.inspect_err(|errno| log::debug!("no metacopy: {errno}")).ok()?;
        Some(data)
    }

    /// Gives the copy of a metacopy what has changed since its attributes were looked at, at the
    /// time `begun`; the caller holds the inode's attributes alone.
    pub(super) fn mirror_attributes(
        &self,
        inode: &Arc<Inode>,
        then: &Stat,
        begun: Timestamp,
        copy: &OwnedFd,
    ) -> Result<()> {
        let (object, now) = (self.object(inode)?, self.stat_object(inode)?);
        // A change of the same tick as the last look would have the same time.
        let is_told = begun.since(then.ctime) > TICK;
        if is_told && now.ctime == then.ctime {
            return Ok(());
        }
        if self.owners.overrides.is_none() {
            // The mode that it has may forbid its owner to set xattrs.
            sys::chmod(copy.as_fd(), now.permissions() | 0o600).context("chmod copy", b"")?;
        }
        private_xattr::drop_excess(object.as_fd(), copy.as_fd(), |name| self.owners.copies(name))
            .context("copy xattrs", b"")?;
        self.copy_attributes(object.as_fd(), copy.as_fd(), &now)?;
        if !self.skips_sync()? {
            rustix::fs::fsync(copy).context("sync copy", b"")?;
        }
        Ok(())
    }
}
