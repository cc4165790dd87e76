//! plyfs as a mount program: as podman and buildah call fuse-overlayfs, and mount(8) its helpers.

use std::ffi::OsString;

use super::daemon::{self, Plan};
use super::mount_options::{self, Call, Options, Request};
use crate::fuse::{MountConfig, MountFlag};
use crate::layers::volatile;
use crate::overlay::{MountOptions, UpperOptions};

const USAGE: &str = "\
usage: plyfs -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] MOUNTPOINT
       plyfs SOURCE MOUNTPOINT -o OPTIONS
    -f           stay in the foreground
    -d, --debug  as -f, and log what happens
    -s           answer with one thread
    -V           print the version
    -o OPTION    those of fuse-overlayfs and of mount(8); plyfs(1) tells them
This is how mount programs are called; `plyfs --help` lists the commands.";

/// Runs the program as fuse-overlayfs and mount(8) call it.
pub(super) fn run(args: &[OsString]) -> anyhow::Result<()> {
    match mount_options::parse(&args[1..])? {
        Request::Mount(call) => mount(args, *call),
        Request::Help => super::say(format_args!("{USAGE}")),
        Request::Version => super::say(format_args!("plyfs {}", env!("CARGO_PKG_VERSION"))),
    }
}

fn mount(args: &[OsString], call: Call) -> anyhow::Result<()> {
    let Call { options, source, mountpoint } = call;
    super::start_log(options.debug.then_some(log::LevelFilter::Debug));
    for option in &options.unknown {
        eprintln!("plyfs: warning: unknown option {option} ignored");
    }
    let program = args[0].to_string_lossy().into_owned();
    let source = options.fsname.clone().or(source).unwrap_or(program);
    let foreground = options.foreground;
    let config = config(args, source, &options);
    daemon::start(Plan { options: layers(options), mountpoint, config, foreground, holds: None })?
        .serve()
}

/// The layers and how the union treats them.
fn layers(options: Options) -> MountOptions {
    let mut union = MountOptions::new(options.lowers);
    union.volatile = options.volatile;
    union.form = options.form;
    union.atime = options.atime;
    union.ownership = options.ownership;
    union.acl = !options.no_acl && !options.no_xattrs;
    union.static_nlink = options.static_nlink;
    if let (Some(upper), Some(work)) = (options.upper, options.work) {
        // Who calls a mount program mounts again by itself, and could not be asked.
        union.accept_loss = true;
        if volatile::was_cut_short(&work).unwrap_or(false) {
            eprintln!(
                "plyfs: warning: upper {} was mounted volatile when the machine went down: it may lack what programs synced",
                super::shown(upper.as_os_str())
            );
        }
        union.upper = Some(UpperOptions { upper, work });
    }
    union
}

/// How it is mounted.
fn config(args: &[OsString], source: String, options: &Options) -> MountConfig {
    let mut flags = options.flags.clone();
    if options.upper.is_none() && !flags.contains(&MountFlag::ReadOnly) {
        flags.push(MountFlag::ReadOnly);
    }
    let mut config = super::mount::config(source, flags, options.allow);
    let rival = mount_options::is_called_fuse_overlayfs(args).then(|| "fuse-overlayfs".to_owned());
    if let Some(subtype) = options.subtype.clone().or(rival) {
        config.fs_type = format!("fuse.{subtype}");
    }
    config.contexts = options.contexts.clone();
    config.auto_unmount = options.auto_unmount;
    config.timeout = options.timeout;
    config.threads = options.threads.unwrap_or(config.threads);
    config.max_write = options.max_write;
    config.io = options.io;
    config.idle = options.idle;
    config.priority = options.priority;
    config.uring = options.uring;
    config.xattrs = !options.no_xattrs;
    config
}
