//! Attaching to and detaching from a directory: mount(2) where the caller may, else
//! fusermount3, the setuid helper.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::device::{self, Device};
use super::{Allow, Error, MountConfig};
use crate::sys::Errno;

/// The setuid helper that mounts and unmounts for ordinary users (fuse3).
const HELPER: &str = "fusermount3";

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

    /// Its name as an option.
    fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::NoDev => "nodev",
            Self::NoSuid => "nosuid",
            Self::NoExec => "noexec",
            Self::NoAtime => "noatime",
            Self::Sync => "sync",
            Self::DirSync => "dirsync",
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

/// Mounts: the connection, on which the kernel waits for an answer, and what keeps the helper
/// waiting.
pub(super) fn attach(
    mountpoint: &Path,
    config: &MountConfig,
) -> Result<(Device, Option<UnixStream>), Error> {
    let device = open_device()?;
    let refused = |message| Error::Refused { path: mountpoint.display().to_string(), message };
    if config.auto_unmount && config.allow == Allow::Owner && !rustix::process::getuid().is_root() {
        let reason =
            "auto_unmount takes allow_other or allow_root, for fusermount3 must see the dead tree";
        return Err(refused(reason.to_owned()));
    }
    let directly = match config.auto_unmount {
        true => Err(Errno::PERM), // only the helper outlives us
        false => mount_directly(&device, mountpoint, config),
    };
    let (device, helper) = match directly {
        Ok(()) => (OwnedFd::from(device), None),
        Err(Errno::PERM) => mount_by_helper(mountpoint, config).map_err(refused)?,
        Err(Errno::INVAL) if !config.contexts.is_empty() => {
            let reason = "the kernel refuses the options, perhaps for it has no SELinux and so no";
            return Err(refused(format!("{reason} {}", config.contexts.join(" "))));
        }
        Err(errno) => return Err(refused(errno.to_string())),
    };
    Ok((Device::new(device), helper.filter(|_| config.auto_unmount)))
}

pub(super) fn open_device() -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open(device::PATH).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => Error::NoDevice,
            io::ErrorKind::PermissionDenied => Error::DeviceDenied,
            _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                Error::NoDevice
            }
            _ => Error::Refused { path: device::PATH.into(), message: error.to_string() },
        }
    })
}

/// mount(2); EPERM if the caller has no CAP_SYS_ADMIN over its mount namespace.
fn mount_directly(device: &File, mountpoint: &Path, config: &MountConfig) -> Result<(), Errno> {
    let root_mode = std::fs::metadata(mountpoint).map_or(libc::S_IFDIR, |m| m.mode());
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        root_mode & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if config.checks_permissions {
        data.push_str(",default_permissions");
    }
    if config.allow != Allow::Owner {
        data.push_str(",allow_other"); // allow_root is enforced by the session
    }
    for context in &config.contexts {
        data.push(',');
        data.push_str(context);
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = config.flags.iter().map(|flag| flag.kernel()).collect();
    let (source, fs_type) = (config.source.as_str(), config.fs_type.as_str());
    rustix::mount::mount(source, mountpoint, fs_type, flags, data.as_c_str())
}

/// Lets the setuid helper mount, and takes the device from it, and the socket by which it waits;
/// else what it said.
fn mount_by_helper(
    mountpoint: &Path,
    config: &MountConfig,
) -> Result<(OwnedFd, Option<UnixStream>), String> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    let mut helper = Command::new(HELPER);
    helper.arg("-o").arg(helper_options(config)).arg("--").arg(mountpoint);
    // It sends the device through the socket that this variable names: its stdin.
    helper.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    helper.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = helper.spawn().map_err(no_helper)?;
    drop(helper); // and with it our copy of the helper's end
    let device = receive_descriptor(&ours);
    if config.auto_unmount
        && let Ok(Some(device)) = device
    {
        return Ok((device, Some(ours))); // the helper ends after us
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok((device, None)),
        Err(errno) => Err(format!("{HELPER}: {errno}")),
        Ok(_) => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
    }
}

/// Receives the descriptor that comes with the next message; `None` if there is none.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    while let Err(errno) =
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    {
        if errno != Errno::INTR {
            return Err(errno);
        }
    }
    let mut rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(rights.next())
}

/// The helper's options, commas and backslashes in the source escaped.
fn helper_options(config: &MountConfig) -> String {
    let source = config.source.replace('\\', "\\\\").replace(',', "\\,");
    let subtype = config.fs_type.strip_prefix("fuse.").unwrap_or(&config.fs_type);
    let mut options = vec![format!("fsname={source}"), format!("subtype={subtype}")];
    options.extend(config.auto_unmount.then(|| "auto_unmount".to_owned()));
    options.extend(config.contexts.iter().cloned());
    options.extend(config.checks_permissions.then(|| "default_permissions".to_owned()));
    if config.allow != Allow::Owner {
        options.push("allow_other".to_owned()); // allow_root is enforced by the session
    }
    options.extend(config.flags.iter().map(|flag| flag.name().to_owned()));
    // The helper takes these away unless root says otherwise.
    if rustix::process::getuid().is_root() {
        let missing = |flag: MountFlag| !config.flags.contains(&flag);
        options.extend(missing(MountFlag::NoDev).then(|| "dev".to_owned()));
        options.extend(missing(MountFlag::NoSuid).then(|| "suid".to_owned()));
    }
    options.join(",")
}

fn no_helper(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("an ordinary user needs {HELPER} (Debian package fuse3)")
        }
        _ => format!("{HELPER}: {error}"),
    }
}

/// How long a mount may be busy: whoever used it may be just ending.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);
const BUSY_POLL: Duration = Duration::from_millis(20);

/// Detaches the mount on `mountpoint`; `lazy` also while it is in use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let give_up = Instant::now() + BUSY_PATIENCE;
    loop {
        match try_unmount(mountpoint, lazy) {
            Ok(()) => return Ok(()),
            Err(message) if message.contains(BUSY) && Instant::now() < give_up => {
                std::thread::sleep(BUSY_POLL);
            }
            Err(message) => {
                return Err(Error::Unmount { path: mountpoint.display().to_string(), message });
            }
        }
    }
}

/// EBUSY in words, as the kernel's errno and the helper say it.
const BUSY: &str = "resource busy";

fn try_unmount(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(Errno::INVAL) => return Err("not mounted".to_owned()),
        Err(errno) => return Err(errno.to_string()),
    }
    let mut helper = Command::new(HELPER);
    helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = helper.output().map_err(no_helper)?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}
