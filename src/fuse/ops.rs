//! The FUSE operations: decode, one call into the union, reply. They decide nothing.
//!
//! OPEN, OPENDIR and FLUSH are answered ENOSYS once, after which the kernel opens, caches
//! and closes by itself (FUSE_NO_OPEN_SUPPORT): all I/O is addressed by inode (where the kernel
//! does the I/O itself, see `opens.rs`). Since the
//! union is the only writer, entries, attributes and missing names are cached for ever.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow,
};

use super::awake::Awake;
use super::beside::{Beside, Place};
use super::convert;
use super::opens::Opens;
use super::stats::{Request, STATS_XATTR, Stats};
use super::{Io, MountConfig};
use crate::layers::number::Ino;
use crate::overlay::{
    Attr, DirEntry, Error, Node, NodeKind, Overlay, Owner, RenameMode, Result, Seek, SetAttr,
    SuidGid, Wait, WriteFlags,
};
use crate::sys::{self, Caller, FileType};

/// How long the kernel may believe what it was told, unless the mount says less: until it changes
/// it itself.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
const GENERATION: Generation = Generation(0);
/// Largest WRITE in bytes: what the kernel's default page limit (256) allows.
const MAX_WRITE: u32 = 1 << 20;
/// Bytes of a copy_file_range(2) that take milliseconds.
const LONG_RANGE: usize = 4 << 20;
/// What files the kernel may read and write itself: those of filesystems that stand on others, too.
const STACK_DEPTH: u32 = 2;
/// Read-ahead and other background requests in flight at a time.
const MAX_BACKGROUND: u16 = 64;

/// A union behind the FUSE protocol.
#[derive(Debug)]
pub(super) struct Ops {
    overlay: Arc<Overlay>,
    beside: Beside,
    stats: Stats,
    awake: Option<Awake>,
    ttl: Duration,
    max_write: u32,
    xattrs: bool,
    /// Where the kernel reads and writes the real files: what is open.
    opens: Option<Opens>,
}

impl Ops {
    pub(super) fn new(overlay: Arc<Overlay>, config: &MountConfig, awake: Option<Awake>) -> Self {
        Self {
            overlay,
            beside: Beside::new(config.threads),
            stats: Stats::default(),
            awake,
            ttl: config.timeout.unwrap_or(FOREVER).min(FOREVER),
            max_write: config.max_write.unwrap_or(MAX_WRITE),
            xattrs: config.xattrs,
            opens: (config.io == Io::Passthrough).then(Opens::default),
        }
    }

    /// Counts a request that somebody waits for.
    fn count(&self, request: Request) {
        self.stats.count(request);
        if let Some(awake) = &self.awake {
            awake.note();
        }
    }

    /// How a file is opened whose data the daemon reads and writes. What upper has may have been
    /// written past the page cache.
    fn cached(&self, ino: Ino) -> FopenFlags {
        match self.overlay.has_data_in_upper(ino) {
            true => FopenFlags::FOPEN_NOFLUSH,
            false => FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE,
        }
    }

    /// Runs an operation here, or beside the workers if it takes long.
    fn run(&self, wait: Wait, operation: impl FnOnce(&Overlay) + Send + 'static) {
        match self.beside.place(wait) {
            Place::Here(_here) => operation(&self.overlay),
            Place::Beside => self.beside.run(&self.overlay, operation),
        }
    }
}

thread_local! {
    /// Reused by every READ of a worker: a fresh buffer costs more than a small read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn errno(operation: &str, error: &Error) -> Errno {
    convert::errno(operation, error)
}

/// Replies with an inode, found or made.
fn reply_entry(reply: ReplyEntry, ttl: Duration, operation: &str, result: &Result<Attr>) {
    match result {
        Ok(attr) => reply.entry(&ttl, &convert::attr(attr), GENERATION),
        Err(error) => reply.error(errno(operation, error)),
    }
}

fn reply_attr(reply: ReplyAttr, ttl: Duration, operation: &str, result: &Result<Attr>) {
    match result {
        Ok(attr) => reply.attr(&ttl, &convert::attr(attr)),
        Err(error) => reply.error(errno(operation, error)),
    }
}

fn reply_empty(reply: ReplyEmpty, operation: &str, result: &Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, error)),
    }
}

fn reply_written(reply: ReplyWrite, operation: &str, result: &Result<usize>) {
    match result {
        Ok(written) => reply.written(u32::try_from(*written).unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(operation, error)),
    }
}

fn reply_xattr(reply: ReplyXattr, operation: &str, size: u32, result: &Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(value),
        Err(error) => reply.error(errno(operation, error)),
    }
}

fn log_no_backing(error: &io::Error) {
    log::debug!("no passthrough: {error}");
}

fn owner(req: &fuser::Request) -> Owner {
    Owner { uid: req.uid(), gid: req.gid() }
}

fn caller(req: &fuser::Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// A missing name as the kernel caches it: an entry with inode 0.
fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

impl Filesystem for Ops {
    fn init(&mut self, _req: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_HAS_IOCTL_DIR
            | InitFlags::FUSE_DONT_MASK;
        let acl = match self.xattrs && self.overlay.has_acls() {
            true => InitFlags::FUSE_POSIX_ACL,
            false => InitFlags::empty(),
        };
        let io = match &self.opens {
            None => InitFlags::FUSE_NO_OPEN_SUPPORT,
            Some(_) => InitFlags::FUSE_PASSTHROUGH,
        };
        let offered = (wanted | acl | io) & config.capabilities();
        if let Err(refused) = config.add_capabilities(offered) {
            log::warn!("the kernel refuses {refused:?}");
        }
        if !offered.contains(io) && self.opens.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if !offered.contains(io | InitFlags::FUSE_NO_OPENDIR_SUPPORT) {
            return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        }
        if self.opens.is_some() && config.set_max_stack_depth(STACK_DEPTH).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        // Where the kernel's limit is lower it tells the nearest value.
        if let Err(nearest) = config.set_max_write(self.max_write) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(MAX_WRITE) {
            let _ = config.set_max_readahead(nearest);
        }
        if config.set_max_background(MAX_BACKGROUND).is_err() {
            log::debug!("the kernel keeps its limit of background requests");
        }
        Ok(())
    }

    fn lookup(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Request::Lookup);
        match self.overlay.lookup(convert::ino(parent), name.as_bytes()) {
            Err(Error::NotFound) => reply.entry(&self.ttl, &no_entry(), GENERATION),
            result => reply_entry(reply, self.ttl, "lookup", &result),
        }
    }

    fn forget(&self, _req: &fuser::Request, ino: INodeNo, nlookup: u64) {
        self.stats.count(Request::Forget); // nobody waits for it
        self.overlay.forget(convert::ino(ino), nlookup);
    }

    fn getattr(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.count(Request::GetAttr);
        reply_attr(reply, self.ttl, "getattr", &self.overlay.getattr(convert::ino(ino)));
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Request::SetAttr);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::time_change),
            mtime: mtime.map(convert::time_change),
            // The wire's FATTR_KILL_SUIDGID is not passed on by fuser.
            suidgid: SuidGid::AsCallerMay(caller(req)),
        };
        let ino = convert::ino(ino);
        let ttl = self.ttl;
        if change.names_nothing() && self.opens.as_ref().is_some_and(|o| o.is_passthrough(ino)) {
            // No WRITE will say what it drops.
            let dropped = self.overlay.drop_before_write(ino, caller(req));
            return reply_attr(reply, ttl, "setattr", &dropped);
        }
        self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
            reply_attr(reply, ttl, "setattr", &overlay.setattr(ino, &change));
        });
    }

    fn readlink(&self, _req: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        self.count(Request::ReadLink);
        match self.overlay.readlink(convert::ino(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Request::MkNod);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::Unknown => NodeKind::File,
            kind => NodeKind::Special { kind, rdev: convert::decode_device(rdev) },
        };
        let node = Node { kind, mode: mode & 0o7777, umask, owner: owner(req) };
        let result = self.overlay.create(convert::ino(parent), name.as_bytes(), &node);
        reply_entry(reply, self.ttl, "mknod", &result);
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Request::MkDir);
        let node =
            Node { kind: NodeKind::Directory, mode: mode & 0o7777, umask, owner: owner(req) };
        let result = self.overlay.create(convert::ino(parent), name.as_bytes(), &node);
        reply_entry(reply, self.ttl, "mkdir", &result);
    }

    fn unlink(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Request::Unlink);
        let result = self.overlay.unlink(convert::ino(parent), name.as_bytes());
        reply_empty(reply, "unlink", &result);
    }

    fn rmdir(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Request::RmDir);
        let result = self.overlay.rmdir(convert::ino(parent), name.as_bytes());
        reply_empty(reply, "rmdir", &result);
    }

    fn symlink(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.count(Request::Symlink);
        let kind = NodeKind::Symlink(target.as_os_str().as_bytes());
        let node = Node { kind, mode: 0o777, umask: 0, owner: owner(req) };
        let result = self.overlay.create(convert::ino(parent), link_name.as_bytes(), &node);
        reply_entry(reply, self.ttl, "symlink", &result);
    }

    fn rename(
        &self,
        _req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Request::Rename);
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            flags if flags.is_empty() => RenameMode::Replace,
            _ => return reply.error(Errno::EINVAL), // as the kernel's overlayfs
        };
        let (parent, newparent) = (convert::ino(parent), convert::ino(newparent));
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let mut wait = self.overlay.rename_waits_for(parent, &name);
        if mode == RenameMode::Exchange {
            wait = wait.max(self.overlay.rename_waits_for(newparent, &newname));
        }
        self.run(wait, move |overlay| {
            let result = overlay.rename(parent, &name, newparent, &newname, mode);
            reply_empty(reply, "rename", &result);
        });
    }

    fn link(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.count(Request::Link);
        let (ino, parent) = (convert::ino(ino), convert::ino(newparent));
        let name = newname.as_bytes().to_vec();
        let ttl = self.ttl;
        self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
            reply_entry(reply, ttl, "link", &overlay.link(ino, parent, &name));
        });
    }

    fn open(&self, _req: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Request::Open);
        let (Some(opens), ino) = (&self.opens, convert::ino(ino)) else {
            return reply.error(Errno::ENOSYS);
        };
        let backing = opens.open(ino, || {
            let file = self.overlay.backing(ino)?;
            reply.open_backing(&file).inspect_err(log_no_backing).ok()
        });
        match backing {
            Some(backing) => {
                reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &backing);
            }
            None => reply.opened(FileHandle(0), self.cached(ino)),
        }
    }

    fn release(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Request::Release);
        if let Some(opens) = &self.opens {
            opens.release(convert::ino(ino));
        }
        reply.ok();
    }

    fn create(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Request::Create);
        let node = Node { kind: NodeKind::File, mode: mode & 0o7777, umask, owner: owner(req) };
        let created = self.overlay.create(convert::ino(parent), name.as_bytes(), &node);
        if let (Ok(attr), Some(opens)) = (&created, &self.opens) {
            let backing = opens.open(attr.ino, || {
                let file = self.overlay.backing(attr.ino)?;
                reply.open_backing(&file).inspect_err(log_no_backing).ok()
            });
            if let Some(backing) = backing {
                let (attr, flags) = (convert::attr(attr), FopenFlags::FOPEN_NOFLUSH);
                let (ttl, handle) = (self.ttl, FileHandle(0));
                return reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, &backing);
            }
        }
        match created {
            Ok(attr) => reply.created(
                &self.ttl,
                &convert::attr(&attr),
                GENERATION,
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(error) => reply.error(errno("create", &error)),
        }
    }

    fn read(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Request::Read);
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.overlay.read(convert::ino(ino), offset, &mut buffer[..size]) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(errno("read", &error)),
            }
        });
    }

    fn write(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Request::Write);
        let suidgid = match write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            true => SuidGid::Drop(caller(req)),
            false => SuidGid::Keep,
        };
        let (ino, how) = (convert::ino(ino), WriteFlags { suidgid });
        match self.beside.place(self.overlay.copy_up_waits_for(ino)) {
            Place::Here(_here) => {
                reply_written(reply, "write", &self.overlay.write(ino, offset, data, how));
            }
            Place::Beside => {
                let data = data.to_vec();
                self.beside.run(&self.overlay, move |overlay| {
                    reply_written(reply, "write", &overlay.write(ino, offset, &data, how));
                });
            }
        }
    }

    fn flush(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Request::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Request::FSync);
        self.run(self.overlay.sync_waits_for(), move |overlay| {
            reply_empty(reply, "fsync", &overlay.fsync(convert::ino(ino), datasync));
        });
    }

    fn opendir(&self, _req: &fuser::Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Request::OpenDir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Request::ReadDir);
        let result = self.overlay.readdir(convert::ino(ino), offset, |entry: &DirEntry| {
            let number = INodeNo(entry.ino.0);
            let name = OsStr::from_bytes(&entry.name);
            let full = reply.add(number, entry.cookie, convert::kind(entry.kind), name);
            if !full && entry.counted {
                self.overlay.forget(entry.ino, 1); // READDIR makes no references
            }
            !full
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdir", &error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(Request::ReadDirPlus);
        let result = self.overlay.readdir(convert::ino(ino), offset, |entry: &DirEntry| {
            let name = OsStr::from_bytes(&entry.name);
            match &entry.attr {
                Some(attr) => {
                    let attr = convert::attr(attr);
                    !reply.add(attr.ino, entry.cookie, name, &self.ttl, &attr, GENERATION)
                }
                // Node 0: no attributes come with the name.
                None => {
                    let (ino, kind) = (INodeNo(entry.ino.0), convert::kind(entry.kind));
                    let attr = FileAttr { ino, kind, ..no_entry() };
                    !reply.add(INodeNo(0), entry.cookie, name, &self.ttl, &attr, GENERATION)
                }
            }
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdirplus", &error)),
        }
    }

    fn fsyncdir(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Request::FSyncDir);
        self.run(self.overlay.sync_waits_for(), move |overlay| {
            reply_empty(reply, "fsyncdir", &overlay.fsync(convert::ino(ino), datasync));
        });
    }

    fn statfs(&self, _req: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Request::StatFs);
        match self.overlay.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                crate::layers::marks::NAME_MAX as u32,
                s.fragment_size,
            ),
            Err(error) => reply.error(errno("statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Request::SetXattr);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS); // and the kernel asks no more
        }
        let (ino, flags) = (convert::ino(ino), flags.cast_unsigned());
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let caller = caller(req);
        self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
            let result = overlay.set_xattr_by(caller, ino, &name, &value, flags);
            reply_empty(reply, "setxattr", &result);
        });
    }

    fn getxattr(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.count(Request::GetXattr);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let result = if ino == INodeNo::ROOT && name == STATS_XATTR {
            Ok(self.stats.tell().into_bytes())
        } else {
            self.overlay.get_xattr(convert::ino(ino), name.as_bytes())
        };
        reply_xattr(reply, "getxattr", size, &result);
    }

    fn listxattr(&self, _req: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Request::ListXattr);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        reply_xattr(reply, "listxattr", size, &self.overlay.list_xattrs(convert::ino(ino)));
    }

    fn removexattr(&self, _req: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Request::RemoveXattr);
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let (ino, name) = (convert::ino(ino), name.as_bytes().to_vec());
        self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
            reply_empty(reply, "removexattr", &overlay.remove_xattr(ino, &name));
        });
    }

    fn ioctl(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Request::Ioctl);
        let ino = convert::ino(ino);
        // Of a number, the kernel sends the low 32 bits; of a long, an int.
        match (libc::Ioctl::from(cmd), in_data) {
            (libc::FS_IOC_GETFLAGS, _) => match self.overlay.flags(ino) {
                Ok(flags) => reply.ioctl(0, &flags.to_ne_bytes()),
                Err(error) => reply.error(errno("get flags", &error)),
            },
            (libc::FS_IOC_SETFLAGS, [a, b, c, d, ..]) => {
                let flags = u32::from_ne_bytes([*a, *b, *c, *d]);
                self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
                    match overlay.set_flags(ino, flags) {
                        Ok(()) => reply.ioctl(0, &[]),
                        Err(error) => reply.error(errno("set flags", &error)),
                    }
                });
            }
            (sys::FS_IOC_FSGETXATTR, _) => match self.overlay.extended_flags(ino) {
                Ok(flags) => reply.ioctl(0, &flags),
                Err(error) => reply.error(errno("get flags", &error)),
            },
            (sys::FS_IOC_FSSETXATTR, data) => match sys::ExtendedFlags::try_from(data) {
                Err(_) => reply.error(Errno::EINVAL),
                Ok(flags) => self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
                    match overlay.set_extended_flags(ino, &flags) {
                        Ok(()) => reply.ioctl(0, &[]),
                        Err(error) => reply.error(errno("set flags", &error)),
                    }
                }),
            },
            _ => reply.error(Errno::ENOTTY),
        }
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Request::FAllocate);
        let how = WriteFlags { suidgid: SuidGid::AsCallerMay(caller(req)) };
        let ino = convert::ino(ino);
        self.run(self.overlay.copy_up_waits_for(ino), move |overlay| {
            reply_empty(reply, "fallocate", &overlay.fallocate(ino, mode, offset, length, how));
        });
    }

    fn lseek(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Request::LSeek);
        let what = if whence == libc::SEEK_HOLE { Seek::Hole } else { Seek::Data };
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        match self.overlay.seek(convert::ino(ino), offset, what) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(error) => reply.error(errno("lseek", &error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &fuser::Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Request::CopyFileRange);
        let (from, to) = (convert::ino(ino_in), convert::ino(ino_out));
        // The reply has 32 bits for what was copied.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let how = WriteFlags { suidgid: SuidGid::AsCallerMay(caller(req)) };
        let wait = match len >= LONG_RANGE {
            true => Wait::Copy,
            false => self.overlay.copy_up_waits_for(to),
        };
        self.run(wait, move |overlay| {
            let result = overlay.copy_range(from, offset_in, to, offset_out, len, how);
            reply_written(reply, "copy_file_range", &result);
        });
    }
}
