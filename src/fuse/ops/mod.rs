//! The FUSE operations: decode, one call into the union, reply. They decide nothing.
//!
//! OPEN, OPENDIR and FLUSH are answered ENOSYS once, after which the kernel opens, caches
//! and closes by itself (FUSE_NO_OPEN_SUPPORT): all I/O is addressed by inode (where the kernel
//! does the I/O itself, see `opens.rs`). Since the
//! union is the only writer, entries, attributes and missing names are cached for ever.
//!
//! - `names`: what makes, moves and removes names, and looks them up
//! - `data`: what is in files
//! - `attributes`: attributes, xattrs, flags
//! - `directories`: listings

mod attributes;
mod data;
mod directories;
mod names;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::{self, BatchForgetIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use super::awake::Awake;
use super::device::{Backing, Device};
use super::helper::Helper;
use super::init::Terms;
use super::opens::Opens;
use super::reply::{Answer, Reply};
use super::request::{By, Elsewhere, Request};
use super::stats::Stats;
use super::{Allow, Io, MountConfig};
use crate::layers::number::Ino;
use crate::overlay::{Error, Grown, Keeps, Overlay, ToCopy};

/// How long the kernel may believe what it was told, unless the mount says less: until it changes
/// it itself.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Threads that copy ahead: nearly all of the time they wait for the disk, which does more at a time.
const COPIERS: usize = 8;

/// A union behind the FUSE protocol.
#[derive(Debug)]
pub(super) struct Ops {
    overlay: Arc<Overlay>,
    device: Device,
    stats: Stats,
    awake: Option<Awake>,
    /// Gone before the union is, which the others have to the end.
    behind: Helper<Grown>,
    ahead: Helper<Ino>,
    /// The union gives them work, as long as this lives.
    _copiers: Arc<Helper<ToCopy>>,
    ttl: Duration,
    xattrs: bool,
    /// Where only they and root may ask.
    owner: Option<u32>,
    /// Where the kernel reads and writes the real files: what is open.
    opens: Option<Opens>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Union(#[from] Error),
    #[error(transparent)]
    Wire(#[from] Errno),
    /// None yet.
    #[error("to be answered in another thread")]
    Elsewhere,
}

impl From<Elsewhere> for Failure {
    fn from(_: Elsewhere) -> Self {
        Self::Elsewhere
    }
}

impl Failure {
    fn errno(&self) -> Errno {
        match self {
            Self::Union(error) => error.errno(),
            Self::Wire(errno) => *errno,
            Self::Elsewhere => Errno::AGAIN,
        }
    }
}

/// What became of a request.
pub(super) enum Served {
    /// It has a reply.
    Reply(OutHeader),
    /// The kernel expects none.
    Nothing,
    /// Nothing yet: it is to be answered by [`By::Beside`].
    Elsewhere,
}

type Result<T> = std::result::Result<T, Failure>;

impl Ops {
    pub(super) fn new(
        overlay: Arc<Overlay>,
        device: Device,
        config: &MountConfig,
        awake: Option<Awake>,
    ) -> Self {
        let us = rustix::process::geteuid().as_raw();
        let (reads, copies) = (Arc::clone(&overlay), Arc::clone(&overlay));
        let copiers = Helper::new("copy ahead", COPIERS, move |file, _| copies.copy_ahead(&file));
        let copiers = Arc::new(copiers);
        // They have the union, which must not have them.
        let to_copiers = Arc::downgrade(&copiers);
        overlay.copies_ahead_by(move |files| {
            if let Some(copiers) = to_copiers.upgrade() {
                copiers.give(files);
            }
        });
        // Only where the kernel tells of opens it tells when they end.
        let opens = (config.io == Io::Passthrough).then(Opens::default);
        overlay.keep_large_files(if opens.is_some() { Keeps::Layer } else { Keeps::Mount });
        Self {
            ahead: Helper::new("ahead", 1, move |dir, goes_on| reads.read_ahead(dir, goes_on)),
            _copiers: copiers,
            behind: Helper::new("behind", 1, |file: Grown, _| file.write_out()),
            overlay,
            device,
            stats: Stats::default(),
            awake,
            ttl: config.timeout.unwrap_or(FOREVER).min(FOREVER),
            xattrs: config.xattrs,
            owner: (config.allow == Allow::OwnerAndRoot).then_some(us),
            opens,
        }
    }

    /// What the mount wants of the kernel.
    pub(super) fn terms(&self, max_write: Option<u32>, ring: bool) -> Terms {
        let acls = self.xattrs && self.overlay.has_acls();
        Terms { acls, passthrough: self.opens.is_some(), max_write, ring }
    }

    /// Answers a request; what follows the reply's header comes into `payload`.
    pub(super) fn serve(&self, request: &Request<'_>, payload: &mut [u8]) -> Served {
        let mut reply = Reply::new(payload);
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer(request, &mut reply)));
        let header = request.header;
        Served::Reply(match answered {
            Ok(Ok(Answer::Nothing)) => return Served::Nothing,
            Ok(Err(Failure::Elsewhere)) => return Served::Elsewhere,
            Ok(Ok(Answer::Reply)) => OutHeader::reply(header.unique, reply.len()),
            Ok(Err(failure)) => {
                let kind = Opcode::of(header.opcode).map_or("?", Opcode::name);
                log::debug!("{kind} of {}: {failure}", header.nodeid);
                OutHeader::error(header.unique, failure.errno())
            }
            Err(_) => {
                log::error!("request {} of {}: a bug, see above", header.opcode, header.nodeid);
                OutHeader::error(header.unique, Errno::IO)
            }
        })
    }

    fn answer(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<Answer> {
        let opcode = Opcode::of(request.header.opcode).ok_or(Errno::NOSYS)?;
        if !may_ask(self.owner, opcode, request.header.uid) {
            return Err(Errno::ACCESS.into());
        }
        // Once, also if it is answered elsewhere in the end.
        if !matches!(request.by, By::Beside) {
            self.count(opcode);
            let InHeader { unique, nodeid, uid, pid, .. } = request.header;
            log::debug!("{unique}: {} of {nodeid} for user {uid}, pid {pid}", opcode.name());
        }
        match opcode {
            Opcode::Lookup => self.lookup(request, reply)?,
            Opcode::Forget => {
                self.forget(request.ino(), request.structure::<ForgetIn>()?.nlookup);
                return Ok(Answer::Nothing);
            }
            Opcode::BatchForget => {
                self.batch_forget(request)?;
                return Ok(Answer::Nothing);
            }
            Opcode::GetAttr => self.getattr(request, reply)?,
            Opcode::SetAttr => self.setattr(request, reply)?,
            Opcode::ReadLink => self.readlink(request, reply)?,
            Opcode::Symlink => self.symlink(request, reply)?,
            Opcode::MkNod => self.mknod(request, reply)?,
            Opcode::MkDir => self.mkdir(request, reply)?,
            Opcode::Unlink => self.unlink(request)?,
            Opcode::RmDir => self.rmdir(request)?,
            Opcode::Rename => self.rename(request)?,
            Opcode::Rename2 => self.rename2(request)?,
            Opcode::Link => self.link(request, reply)?,
            Opcode::Open => self.open(request, reply)?,
            Opcode::Read => self.read(request, reply)?,
            Opcode::Write => self.write(request, reply)?,
            Opcode::StatFs => self.statfs(reply)?,
            Opcode::Release => self.release(request),
            Opcode::FSync | Opcode::FSyncDir => self.fsync(request)?,
            Opcode::SetXattr => self.setxattr(request)?,
            Opcode::GetXattr => self.getxattr(request, reply)?,
            Opcode::ListXattr => self.listxattr(request, reply)?,
            Opcode::RemoveXattr => self.removexattr(request)?,
            Opcode::ReadDir => self.readdir(request, reply)?,
            Opcode::ReadDirPlus => self.readdirplus(request, reply)?,
            Opcode::Create => self.create(request, reply)?,
            Opcode::Ioctl => self.ioctl(request, reply)?,
            Opcode::FAllocate => self.fallocate(request)?,
            Opcode::LSeek => self.lseek(request, reply)?,
            Opcode::CopyFileRange => self.copy_file_range(request, reply)?,
            Opcode::ReleaseDir | Opcode::Destroy => {}
            // The kernel asks no more. INIT came before.
            Opcode::OpenDir | Opcode::Flush | Opcode::Interrupt => return Err(Errno::NOSYS.into()),
            Opcode::Init => return Err(Errno::IO.into()),
        }
        Ok(Answer::Reply)
    }

    /// Counts a request.
    fn count(&self, opcode: Opcode) {
        match opcode {
            Opcode::BatchForget => return, // each that it names counts
            Opcode::Rename2 => self.stats.count(Opcode::Rename),
            _ => self.stats.count(opcode),
        }
        // Nobody waits for a FORGET.
        if let Some(awake) = self.awake.as_ref().filter(|_| opcode != Opcode::Forget) {
            awake.note();
        }
    }

    fn forget(&self, ino: Ino, nlookup: u64) {
        self.overlay.forget(ino, nlookup);
    }

    fn batch_forget(&self, request: &Request<'_>) -> Result<()> {
        let (BatchForgetIn { count, .. }, mut rest) = request.split()?;
        for _ in 0..count {
            let (one, others) = ForgetOne::read_from_prefix(rest).map_err(|_| Errno::INVAL)?;
            self.stats.count(Opcode::Forget);
            self.forget(Ino(one.nodeid), one.nlookup);
            rest = others;
        }
        Ok(())
    }

    /// The real file, if the kernel can use it itself.
    fn backing(&self, ino: Ino) -> Option<Backing> {
        let file = self.overlay.backing(ino)?;
        let opened = self.device.open_backing(std::os::fd::AsFd::as_fd(&file));
        opened.inspect_err(|errno| log::debug!("no passthrough: {errno}")).ok()
    }

    /// How a file is opened whose data the daemon reads and writes. What upper has may have been
    /// written past the page cache.
    fn cached(&self, ino: Ino) -> u32 {
        match self.overlay.has_data_in_upper(ino) {
            true => abi::open::NOFLUSH,
            false => abi::open::NOFLUSH | abi::open::KEEP_CACHE,
        }
    }
}

/// Whether who asks may, where only `owner` and root may (`allow_root`). What the kernel asks by itself it
/// asks as anybody.
fn may_ask(owner: Option<u32>, opcode: Opcode, uid: u32) -> bool {
    let by_kernel = matches!(
        opcode,
        Opcode::Destroy
            | Opcode::Read
            | Opcode::ReadDir
            | Opcode::ReadDirPlus
            | Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Write
            | Opcode::FSync
            | Opcode::FSyncDir
            | Opcode::Release
            | Opcode::ReleaseDir
    );
    by_kernel || owner.is_none_or(|owner| uid == owner || uid == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_ask() {
        assert!(may_ask(None, Opcode::Lookup, 7));
        assert!(may_ask(Some(7), Opcode::Lookup, 7));
        assert!(may_ask(Some(7), Opcode::Lookup, 0));
        assert!(!may_ask(Some(7), Opcode::Lookup, 8));
        assert!(!may_ask(Some(7), Opcode::Create, 8));
        assert!(may_ask(Some(7), Opcode::Read, 8));
        assert!(may_ask(Some(7), Opcode::BatchForget, 8));
    }
}
