//! Operations on what is in files.

use rustix::io::Errno;

use super::super::abi::{
    self, CopyFileRangeIn, FAllocateIn, FSyncIn, LSeekIn, LSeekOut, OpenOut, ReadIn, WriteIn,
    WriteOut,
};
use super::super::reply::Reply;
use super::super::request::Request;
use super::names::passthrough;
use super::{Ops, Result};
use crate::layers::number::Ino;
use crate::overlay::{Seek, SuidGid, Wait, WriteFlags};

/// Bytes of a copy_file_range(2) that take milliseconds.
const LONG_RANGE: usize = 4 << 20;

impl Ops {
    pub(super) fn open(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (Some(opens), ino) = (&self.opens, request.ino()) else {
            return Err(Errno::NOSYS.into());
        };
        let opened = match opens.open(ino, || self.backing(ino)) {
            Some(backing) => passthrough(&backing),
            None => OpenOut { fh: 0, open_flags: self.cached(ino), backing_id: 0 },
        };
        Ok(reply.structure(&opened)?)
    }

    pub(super) fn release(&self, request: &Request<'_>) {
        if let Some(opens) = &self.opens {
            let ino = request.ino();
            if let Some(read) = opens.release(ino) {
                self.overlay.was_closed(ino, read);
            }
        }
    }

    pub(super) fn read(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let ReadIn { offset, size, .. } = request.structure()?;
        let room = reply.room(size as usize)?;
        let read = match request.may_wait() {
            Ok(()) => self.overlay.read(request.ino(), offset, room)?,
            Err(elsewhere) => {
                self.overlay.read_cached(request.ino(), offset, room)?.ok_or(elsewhere)?
            }
        };
        if let Some(opens) = &self.opens {
            opens.count_read(request.ino(), read);
        }
        reply.filled(read);
        Ok(())
    }

    pub(super) fn write(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let (WriteIn { offset, size, write_flags, .. }, data) = request.split()?;
        let data = data.get(..size as usize).ok_or(Errno::INVAL)?;
        let suidgid = match write_flags & abi::WRITE_KILL_SUIDGID {
            0 => SuidGid::Keep,
            _ => SuidGid::Drop(request.caller()),
        };
        let ino = request.ino();
        let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
        let written = self.overlay.write(ino, offset, data, WriteFlags { suidgid })?;
        if let Some(file) = self.overlay.grown(ino, offset, written) {
            self.behind.give([file]);
        }
        Ok(reply_written(reply, written)?)
    }

    pub(super) fn fsync(&self, request: &Request<'_>) -> Result<()> {
        let FSyncIn { fsync_flags, .. } = request.structure()?;
        let _waiting = request.waits(self.overlay.sync_waits_for())?;
        Ok(self.overlay.fsync(request.ino(), fsync_flags & abi::FSYNC_DATA != 0)?)
    }

    pub(super) fn fallocate(&self, request: &Request<'_>) -> Result<()> {
        let FAllocateIn { offset, length, mode, .. } = request.structure()?;
        let (ino, mode) = (request.ino(), mode.cast_signed());
        let how = WriteFlags { suidgid: SuidGid::AsCallerMay(request.caller()) };
        let _waiting = request.waits(self.overlay.copy_up_waits_for(ino))?;
        Ok(self.overlay.fallocate(ino, mode, offset, length, how)?)
    }

    pub(super) fn lseek(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let LSeekIn { offset, whence, .. } = request.structure()?;
        let what = match whence.cast_signed() {
            libc::SEEK_HOLE => Seek::Hole,
            _ => Seek::Data,
        };
        let offset = self.overlay.seek(request.ino(), offset, what)?;
        Ok(reply.structure(&LSeekOut { offset })?)
    }

    pub(super) fn copy_file_range(
        &self,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<()> {
        let CopyFileRangeIn { off_in, nodeid_out, off_out, len, .. } = request.structure()?;
        let (from, to) = (request.ino(), Ino(nodeid_out));
        // The reply has 32 bits for what was copied.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let how = WriteFlags { suidgid: SuidGid::AsCallerMay(request.caller()) };
        let _waiting = request.waits(match len >= LONG_RANGE {
            true => Wait::Copy,
            false => self.overlay.copy_up_waits_for(to),
        })?;
        let copied = self.overlay.copy_range(from, off_in, to, off_out, len, how)?;
        Ok(reply_written(reply, copied)?)
    }
}

fn reply_written(reply: &mut Reply<'_>, written: usize) -> std::result::Result<(), Errno> {
    let size = u32::try_from(written).unwrap_or(u32::MAX);
    reply.structure(&WriteOut { size, padding: 0 })
}
