//! Starting the daemon: the command returns when the tree is there, or fails with the
//! daemon's own reason.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::fuse::{self, MountConfig, Mounted};
use crate::overlay::{MountOptions, Overlay};
use crate::sys::{self, Forked};

/// A mount, ready to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: MountOptions,
    pub(super) mountpoint: PathBuf,
    pub(super) config: MountConfig,
    pub(super) foreground: bool,
    /// What stays open for as long as the tree is there.
    pub(super) holds: Option<File>,
}

/// Descriptors kept for speed, and as many for deleted open files: a third each of what the
/// process may open beside its layers and what it opens in passing, within bounds.
const MIN_KEPT_FILES: u64 = 16;
const MAX_KEPT_FILES: u64 = 2048;
const IN_PASSING: u64 = 96;

/// How many threads answer the kernel: enough that a few long copy-ups leave some free.
pub(super) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 14) + 2
}

/// What the parent reads when the tree is there.
const READY: &[u8] = b"\0";

/// A tree that is there.
#[derive(Debug)]
pub(super) enum Started {
    /// A daemon serves it.
    Daemon,
    /// This process has to.
    Foreground(Box<Mounted>),
}

impl Started {
    /// Serves the tree in the foreground, if that was asked for.
    pub(super) fn serve(self) -> anyhow::Result<()> {
        match self {
            Self::Daemon => Ok(()),
            Self::Foreground(mounted) => mounted.serve().context("serve the mount"),
        }
    }
}

/// Mounts, in the foreground or in a daemon; the tree is there when it returns.
pub(super) fn start(plan: Plan) -> anyhow::Result<Started> {
    if plan.foreground {
        return Ok(Started::Foreground(Box::new(mount(plan)?)));
    }
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("start the daemon")?;
    match sys::fork().context("start the daemon")? {
        Forked::Parent(_) => {
            drop(writer);
            wait_until_ready(reader)?;
            Ok(Started::Daemon)
        }
        Forked::Child => {
            drop(reader);
            let served = run_daemon(plan, File::from(writer));
            std::process::exit(i32::from(!served))
        }
    }
}

fn wait_until_ready(reader: OwnedFd) -> anyhow::Result<()> {
    let mut message = Vec::new();
    File::from(reader).read_to_end(&mut message).context("wait for the daemon")?;
    match &message[..] {
        READY => Ok(()),
        b"" => anyhow::bail!("the daemon ended before the tree was mounted"),
        reason => anyhow::bail!("{}", String::from_utf8_lossy(reason)),
    }
}

/// Mounts, tells the parent how that went, and serves; false if any of it failed.
fn run_daemon(plan: Plan, mut parent: File) -> bool {
    let closed = sys::close_inherited().context("close the caller's files");
    let mounted = closed.and_then(|()| mount(plan)).and_then(|mut mounted| {
        detach_from_caller().context("detach from the caller")?;
        mounted.leave_namespace();
        Ok(mounted)
    });
    let told = match &mounted {
        Ok(_) => parent.write_all(READY),
        Err(error) => write!(parent, "{error:#}"),
    };
    drop(parent);
    // A parent that is gone cannot be told; the mount is as good.
    let _ = told;
    mounted.is_ok_and(|mounted| {
        mounted.serve().inspect_err(|error| log::error!("serve: {error}")).is_ok()
    })
}

fn mount(plan: Plan) -> anyhow::Result<Mounted> {
    fuse::check(&plan.mountpoint)?;
    sys::set_umask_zero();
    let limit = sys::raise_nofile_limit();
    let mut options = plan.options;
    let free = limit.saturating_sub(options.lowers.len() as u64 + IN_PASSING);
    options.max_open_files = (free / 3).clamp(MIN_KEPT_FILES, MAX_KEPT_FILES) as usize;
    let shown = std::path::absolute(&plan.mountpoint).unwrap_or_else(|_| plan.mountpoint.clone());
    options.holder = holder(&shown);
    let overlay = Overlay::open(&options)?;
    std::mem::forget(plan.holds); // it closes when the process ends
    Ok(fuse::mount(overlay, &plan.mountpoint, &plan.config)?)
}

const MOUNTED_ON: &str = ", mounted on ";

/// What a locked upper layer says of who holds it.
fn holder(mountpoint: &Path) -> String {
    format!("pid {}{MOUNTED_ON}{}", std::process::id(), mountpoint.display())
}

/// The mountpoint out of what [`holder`] wrote.
pub(super) fn mountpoint_of(holder: &str) -> &str {
    holder.split_once(MOUNTED_ON).map_or(holder, |(_, mountpoint)| mountpoint)
}

/// Lets go of the caller's terminal, directory and streams.
///
/// It stays in the caller's session, for the scheduler makes a group of each (sched(7), autogroup), and
/// moves whom a thread of another group wakes to a processor that sleeps. What is typed at the terminal,
/// and its end, send signals to its foreground group alone.
fn detach_from_caller() -> anyhow::Result<()> {
    rustix::process::setpgid(None, None)?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
