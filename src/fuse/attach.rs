//! Attaching to and detaching from a directory: mount(2) where the caller may, else
//! fusermount3, the setuid helper (through fuser).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuser::{Config, MountOption, Session};
use rustix::mount::{MountFlags, UnmountFlags};

use super::ops::Ops;
use super::{Allow, Error, FS_TYPE, MountConfig};
use crate::sys::Errno;

/// A flag of mount(2), as mount(8) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountFlag {
    /// `ro`
    ReadOnly,
    /// `nodev`
    NoDev,
    /// `nosuid`
    NoSuid,
    /// `noexec`
    NoExec,
    /// `noatime`
    NoAtime,
    /// `sync`
    Sync,
    /// `dirsync`
    DirSync,
}

impl MountFlag {
    fn kernel(self) -> MountFlags {
        match self {
            Self::ReadOnly => MountFlags::RDONLY,
            Self::NoDev => MountFlags::NODEV,
            Self::NoSuid => MountFlags::NOSUID,
            Self::NoExec => MountFlags::NOEXEC,
            Self::NoAtime => MountFlags::NOATIME,
            Self::Sync => MountFlags::SYNCHRONOUS,
            Self::DirSync => MountFlags::DIRSYNC,
        }
    }

    fn fuser(self) -> MountOption {
        match self {
            Self::ReadOnly => MountOption::RO,
            Self::NoDev => MountOption::NoDev,
            Self::NoSuid => MountOption::NoSuid,
            Self::NoExec => MountOption::NoExec,
            Self::NoAtime => MountOption::NoAtime,
            Self::Sync => MountOption::Sync,
            Self::DirSync => MountOption::DirSync,
        }
    }
}

/// The mountpoint's absolute path, if it is a directory.
pub(super) fn check_mountpoint(path: &Path) -> Result<PathBuf, Error> {
    let error = |cause| Error::Mountpoint { path: path.display().to_string(), cause };
    let absolute = path.canonicalize().map_err(error)?;
    if !absolute.metadata().map_err(error)?.is_dir() {
        return Err(error(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    Ok(absolute)
}

/// Mounts and shakes hands with the kernel.
pub(super) fn attach(
    ops: Ops,
    mountpoint: &Path,
    config: &MountConfig,
    mut session: Config,
) -> Result<Session<Ops>, Error> {
    let refused =
        |message: String| Error::Refused { path: mountpoint.display().to_string(), message };
    let device = open_device()?;
    match mount_directly(&device, mountpoint, config) {
        Ok(()) => {
            let acl = session.acl;
            Session::from_fd(ops, OwnedFd::from(device), acl, session).map_err(|error| {
                // Nobody will serve it: take it away again.
                let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
                refused(error.to_string())
            })
        }
        Err(Errno::PERM) => {
            drop(device);
            session.mount_options = helper_options(config);
            Session::new(ops, mountpoint, &session)
                .map_err(|error| refused(explain_helper(&error.to_string())))
        }
        Err(errno) => Err(refused(errno.to_string())),
    }
}

fn open_device() -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => Error::NoDevice,
            io::ErrorKind::PermissionDenied => Error::DeviceDenied,
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                Error::NoDevice
            }
            _ => Error::Refused { path: "/dev/fuse".into(), message: error.to_string() },
        }
    })
}

/// mount(2); EPERM if the caller has no CAP_SYS_ADMIN over its mount namespace.
fn mount_directly(device: &File, mountpoint: &Path, config: &MountConfig) -> Result<(), Errno> {
    let root_mode = std::fs::metadata(mountpoint).map_or(libc::S_IFDIR, |m| m.mode());
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        root_mode & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if config.allow != Allow::Owner {
        data.push_str(",allow_other"); // allow_root is enforced by the session
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = config.flags.iter().map(|flag| flag.kernel()).collect();
    rustix::mount::mount(config.source.as_str(), mountpoint, FS_TYPE, flags, data.as_c_str())
}

fn helper_options(config: &MountConfig) -> Vec<MountOption> {
    let source = config.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = vec![
        MountOption::FSName(source),
        MountOption::Subtype("plyfs".into()),
        MountOption::DefaultPermissions,
    ];
    options.extend(config.flags.iter().map(|flag| flag.fuser()));
    options
}

/// What fusermount3 said, or that it is missing.
fn explain_helper(message: &str) -> String {
    if message.contains("No such file or directory") && !message.contains("fusermount") {
        return "an ordinary user needs fusermount3 (Debian package fuse3)".to_owned();
    }
    message.trim_end().to_owned()
}

/// Detaches the mount on `mountpoint`; `lazy` also while it is in use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let error = |message| Error::Unmount { path: mountpoint.display().to_string(), message };
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(Errno::INVAL) => return Err(error("not mounted".to_owned())),
        Err(errno) => return Err(error(errno.to_string())),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    match helper.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(error(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())),
        Err(io_error) if io_error.kind() == io::ErrorKind::NotFound => {
            Err(error("an ordinary user needs fusermount3 (Debian package fuse3)".to_owned()))
        }
        Err(io_error) => Err(error(format!("fusermount3: {io_error}"))),
    }
}
