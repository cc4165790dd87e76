//! `plyfs mount`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::daemon::{self, Plan};
use crate::fuse::{Allow, Idle, Io, MountConfig, MountFlag, Priority, Uring};
use crate::overlay::{MountOptions, UpperForm, UpperOptions};
use crate::store::Store;

/// Arguments of `plyfs mount`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "plyfs mount [OPTIONS] IMAGE MOUNTPOINT
       plyfs mount [OPTIONS] --lower DIR... [--upper DIR --work DIR] MOUNTPOINT")]
pub(super) struct Args {
    /// IMAGE (`NAME[:TAG]`, ID, or the beginning of one) and MOUNTPOINT; with --lower only MOUNTPOINT
    #[arg(value_name = "IMAGE|MOUNTPOINT", num_args = 1..=2, required = true)]
    targets: Vec<PathBuf>,
    /// Mount this directory instead of an image; the first is on top
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// Put changes here (with --lower)
    #[arg(long, value_name = "DIR", requires = "work", requires = "lower")]
    upper: Option<PathBuf>,
    /// Build changes here; on the same filesystem as --upper
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Name of the image's writable layer; one that exists is mounted again
    #[arg(long, conflicts_with_all = ["read_only", "lower"])]
    name: Option<String>,
    /// No writable layer
    #[arg(long, conflicts_with = "upper")]
    read_only: bool,
    /// What may lie in the writable layer; default: rich for an image, plain for directories
    #[arg(long, value_name = "FORM", conflicts_with = "read_only")]
    form: Option<Form>,
    /// Do not sync what is copied up: a crash of the machine may lose changes
    #[arg(long)]
    volatile: bool,
    /// Mount an upper whose volatile mount was cut short by a crash of the machine
    #[arg(long)]
    accept_loss: bool,
    /// Let other users in, as permissions say (root's mounts always do)
    #[arg(long)]
    allow_other: bool,
    /// Who reads and writes the data: the daemon, with the kernel's cache, or the kernel itself
    #[arg(long, value_name = "MODE", default_value = "auto")]
    io: IoMode,
    /// What processors do while they wait for a request
    #[arg(long, value_name = "MODE", default_value = "sleep")]
    idle: IdleMode,
    /// The priority of the daemon where it runs on the processor of who waits for it
    #[arg(long, value_name = "MODE", default_value = "high")]
    priority: PriorityMode,
    /// Whether requests come by io_uring, which is faster
    #[arg(long, value_name = "MODE", default_value = "auto")]
    io_uring: UringMode,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
}

/// [`Io`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum IoMode {
    /// What is fastest for most: cache
    Auto,
    /// Opening and closing asks nobody; the daemon reads and writes
    Cache,
    /// Opening asks the daemon; the kernel reads and writes (root, Linux 6.9)
    Passthrough,
}

impl From<IoMode> for Io {
    fn from(mode: IoMode) -> Self {
        match mode {
            IoMode::Auto | IoMode::Cache => Self::Cache,
            IoMode::Passthrough => Self::Passthrough,
        }
    }
}

/// [`Idle`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum IdleMode {
    /// As the system does
    Sleep,
    /// Poll while requests follow one another closely: faster, and takes power (root)
    Poll,
}

impl From<IdleMode> for Idle {
    fn from(mode: IdleMode) -> Self {
        match mode {
            IdleMode::Sleep => Self::Sleep,
            IdleMode::Poll => Self::Poll,
        }
    }
}

/// [`Priority`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PriorityMode {
    /// A nice value of -10, where it may: as root
    High,
    /// That of the program that mounts
    Normal,
}

impl From<PriorityMode> for Priority {
    fn from(mode: PriorityMode) -> Self {
        match mode {
            PriorityMode::High => Self::High,
            PriorityMode::Normal => Self::Normal,
        }
    }
}

/// [`Uring`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum UringMode {
    /// Where the kernel offers it (Linux 6.14, where root has switched it on)
    Auto,
    /// Fail where it does not
    On,
    /// By /dev/fuse
    Off,
}

impl From<UringMode> for Uring {
    fn from(mode: UringMode) -> Self {
        match mode {
            UringMode::Auto => Self::Auto,
            UringMode::On => Self::On,
            UringMode::Off => Self::Off,
        }
    }
}

/// [`UpperForm`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Form {
    /// Files and marks alone: a valid OCI changeset at any time
    Plain,
    /// Private xattrs too: directories are renamed, and attributes changed, without a copy
    Rich,
}

impl From<Form> for UpperForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Plain => Self::Plain,
            Form::Rich => Self::Rich,
        }
    }
}

/// Runs `plyfs mount`.
pub(super) fn run(root: &Path, args: Args) -> anyhow::Result<()> {
    match (&args.targets[..], args.lower.is_empty()) {
        ([mountpoint], false) => mount_directories(&args, mountpoint),
        ([image, mountpoint], true) => mount_image(root, &args, image, mountpoint),
        ([_], true) => {
            bail!("what shall be mounted? give IMAGE MOUNTPOINT, or --lower DIR MOUNTPOINT")
        }
        _ => bail!("give either an image or --lower, not both"),
    }
}

fn mount_directories(args: &Args, mountpoint: &Path) -> anyhow::Result<()> {
    check_free(mountpoint)?;
    let mut options = MountOptions::new(args.lower.clone());
    options.volatile = args.volatile;
    options.accept_loss = args.accept_loss;
    if let (Some(upper), Some(work)) = (&args.upper, &args.work) {
        options.upper = Some(UpperOptions { upper: upper.clone(), work: work.clone() });
    }
    options.form = args.form.map_or(UpperForm::Plain, UpperForm::from);
    let source = args.lower[0].to_string_lossy().into_owned();
    daemon::start(plan(args, options, source, mountpoint))?.serve()
}

fn mount_image(root: &Path, args: &Args, image: &Path, mountpoint: &Path) -> anyhow::Result<()> {
    check_free(mountpoint)?;
    let asked = image.to_str().context("an image's name is UTF-8")?;
    let store = Store::open(root)?;
    let image = store.find_image(asked)?;
    let held = store.hold_image(&image)?; // nobody removes it meanwhile
    let mut options = store.mount_options(&image)?;
    check_layers(&options)?;
    options.volatile = args.volatile;
    options.accept_loss = args.accept_loss;
    if args.read_only {
        let mut plan = plan(args, options, asked.to_owned(), mountpoint);
        plan.holds = Some(held); // while it is mounted, too
        return daemon::start(plan)?.serve();
    }
    let (container, is_new) = store.container_for(&image, asked, args.name.as_deref())?;
    options.upper = Some(UpperOptions { upper: container.upper(), work: container.work() });
    options.form = args.form.map_or(UpperForm::Rich, UpperForm::from);
    drop(held); // from here on the container keeps it
    let plan = plan(args, options, asked.to_owned(), mountpoint);
    let started = daemon::start(plan);
    if started.is_err()
        && is_new
        && let Err(error) = store.remove_unused(&container)
    {
        log::warn!("remove the unused writable layer {}: {error}", container.name);
    }
    let started = started?;
    // The tree is there, whether or not its name can be printed.
    let said = super::say(format_args!("{}", container.name));
    started.serve()?;
    said
}

fn check_layers(options: &MountOptions) -> anyhow::Result<()> {
    for lower in &options.lowers {
        match lower.metadata() {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("the store lacks a layer of this image: {} is gone", lower.display())
            }
            Err(e) => bail!("read the layer {}: {e}", lower.display()),
        }
    }
    Ok(())
}

fn plan(args: &Args, options: MountOptions, source: String, mountpoint: &Path) -> Plan {
    let flags = if options.upper.is_none() { vec![MountFlag::ReadOnly] } else { Vec::new() };
    let allow = args.allow_other.then_some(Allow::Everybody);
    let config = config(source, flags, allow);
    // An ordinary user sees an image's owners, who are others, but all of the files are the user's:
    // as with fakeroot(1), they may be read and changed by who has them.
    let shows_others = options.ownership.symlinks_are.is_some();
    let is_ordinary = !rustix::process::geteuid().is_root();
    let checks_permissions = !(shows_others && is_ordinary && config.allow == Allow::Owner);
    Plan {
        options,
        mountpoint: mountpoint.to_owned(),
        config: MountConfig {
            io: args.io.into(),
            idle: args.idle.into(),
            priority: args.priority.into(),
            uring: args.io_uring.into(),
            checks_permissions,
            ..config
        },
        foreground: args.foreground,
        holds: None,
    }
}

pub(super) fn config(source: String, flags: Vec<MountFlag>, allow: Option<Allow>) -> MountConfig {
    // A root filesystem is for all its users; whoever is root here may let them in.
    let by_default =
        if rustix::process::geteuid().is_root() { Allow::Everybody } else { Allow::Owner };
    let config = MountConfig::new(source, daemon::default_threads(), allow.unwrap_or(by_default));
    MountConfig { flags, ..config }
}

/// Refuses a mountpoint that is not a directory, or has a plyfs mount already.
fn check_free(mountpoint: &Path) -> anyhow::Result<()> {
    let shown = mountpoint.display();
    let found = mountpoint.canonicalize().and_then(|at| Ok((at.metadata()?.is_dir(), at)));
    let (is_dir, absolute) = match found {
        // The second is what a mount says whose requests came by io_uring.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => {
            bail!("mountpoint {shown}: a dead mount is there; unmount it first (plyfs umount)")
        }
        result => result.with_context(|| format!("mountpoint {shown}"))?,
    };
    if !is_dir {
        bail!("mountpoint {shown}: not a directory");
    }
    if super::umount::is_plyfs(&absolute) {
        bail!("mountpoint {shown}: busy, a plyfs tree is mounted there");
    }
    Ok(())
}
