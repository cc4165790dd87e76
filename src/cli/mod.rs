//! The command line. One file per verb; arguments become a plain configuration once, then
//! the library does the work. Results go to stdout, talk to stderr.

mod completions;
mod daemon;
mod df;
mod diff;
mod exit;
mod gc;
mod history;
mod images;
mod import;
mod inspect;
mod load;
#[cfg(test)]
mod man_page;
mod mount;
mod mount_options;
mod mount_program;
mod output;
mod progress;
mod ps;
mod rm;
mod rmi;
mod save;
mod stats;
mod tag;
mod umount;
mod verify;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::sys;
use exit::Exit;

/// Union mounts of directories and container images
#[derive(Debug, Parser)]
#[command(name = "plyfs", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
struct Cli {
    /// The image store
    /// [default: /var/lib/plyfs for root, $XDG_DATA_HOME/plyfs otherwise]
    #[arg(long, global = true, env = "PLYFS_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
As mount program (fuse-overlayfs, mount(8), fstab):
  plyfs -o lowerdir=A:B,upperdir=U,workdir=W[,OPTION...] MOUNTPOINT
  plyfs SOURCE MOUNTPOINT -o OPTIONS

PLYFS_LOG=debug shows what happens below (see -f).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Load images from archives or OCI layout folders into the store
    Load(load::Args),
    /// Make an image of one layer from the tar of a root filesystem
    Import(import::Args),
    /// Write images into a docker-archive, an OCI archive or an OCI layout
    Save(save::Args),
    /// List the images in the store
    Images(images::Args),
    /// Tell all about images, or writable layers, as JSON
    Inspect(inspect::Args),
    /// Tell how an image came about, step by step
    History(history::Args),
    /// Give an image one more name
    Tag(tag::Args),
    /// Take names from images; with the last name the image goes
    Rmi(rmi::Args),
    /// Tell what images take, by themselves and together
    Df(df::Args),
    /// Remove what no image uses
    Gc(gc::Args),
    /// Check that layers on disk are what their digests say
    Verify(verify::Args),
    /// Mount an image, or directories, as one tree
    Mount(mount::Args),
    /// Unmount a tree
    Umount(umount::Args),
    /// List the writable layers and where they are mounted
    Ps(ps::Args),
    /// List what a writable layer adds (A), changes (C) and deletes (D)
    Diff(diff::Args),
    /// Remove writable layers that are not mounted
    Rm(rm::Args),
    /// Count the requests that a mount has answered
    Stats(stats::Args),
    /// Print a shell's completions of this command line
    Completions(completions::Args),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let command = Cli::command();
    let verbs: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    if mount_options::is_mount_program_call(&args, &verbs) {
        return finish(mount_program::run(&args));
    }
    start_log(None);
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr()
                && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            {
                eprintln!("plyfs: {} (see plyfs --help)", in_one_line(&error.to_string()));
                return Exit::Usage.into();
            }
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            let _ = error.print(); // stdout or stderr is gone: the exit code remains
            return code.into();
        }
    };
    finish(run(cli))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let root = || store_root(cli.root);
    match cli.command {
        Command::Load(args) => load::run(&root()?, &args),
        Command::Import(args) => import::run(&root()?, &args),
        Command::Save(args) => save::run(&root()?, &args),
        Command::Images(args) => images::run(&root()?, &args),
        Command::Inspect(args) => inspect::run(&root()?, &args),
        Command::History(args) => history::run(&root()?, &args),
        Command::Tag(args) => tag::run(&root()?, &args),
        Command::Rmi(args) => rmi::run(&root()?, &args),
        Command::Df(args) => df::run(&root()?, &args),
        Command::Gc(args) => gc::run(&root()?, &args),
        Command::Verify(args) => verify::run(&root()?, &args),
        Command::Mount(args) => mount::run(&root()?, args),
        Command::Umount(args) => umount::run(&args),
        Command::Ps(args) => ps::run(&root()?, &args),
        Command::Diff(args) => diff::run(&root()?, &args),
        Command::Rm(args) => rm::run(&root()?, &args),
        Command::Stats(args) => stats::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

/// What a usage error says before its blank line: the mistake, without the advice.
fn in_one_line(error: &str) -> String {
    let mistake = error.split("\n\n").next().unwrap_or(error);
    let words: Vec<_> = mistake.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

/// One line for the user, with the causes, and the exit code.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => Exit::Success.into(),
        // `plyfs images | head -1`: the reader has what it wanted.
        Err(error) if is_broken_pipe(&error) => Exit::Success.into(),
        Err(error) => {
            tell(&error);
            Exit::Failure.into()
        }
    }
}

/// Prints an error: one line, and nothing that a terminal would obey: names come from archives.
fn tell(error: &anyhow::Error) {
    let line = format!("{error:#}");
    eprintln!("plyfs: {}", line.chars().flat_map(escape_control).collect::<String>());
}

/// Does the same for each argument, whatever fails: what could be done is done, all errors are
/// told, and the last one is the program's.
fn for_each<T>(args: &[T], mut run: impl FnMut(&T) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut result = Ok(());
    for arg in args {
        let this = run(arg);
        if this.as_ref().is_err_and(is_broken_pipe) {
            return this;
        }
        if let (Err(before), Err(_)) = (&result, &this) {
            tell(before);
        }
        result = if this.is_err() { this } else { result };
    }
    result
}

/// Prints a line of the result.
fn say(line: fmt::Arguments<'_>) -> anyhow::Result<()> {
    // C1 controls that JSON leaves as they are; their escapes are JSON too.
    let is_raw = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    let mut text = line.to_string();
    if text.contains(is_raw) {
        let escape = |c: char| match is_raw(c) {
            true => format!("\\u{:04x}", u32::from(c)),
            false => c.to_string(),
        };
        text = text.chars().map(escape).collect();
    }
    text.push('\n');
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|cause| anyhow::Error::new(cause).context("print the result"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.root_cause().downcast_ref::<std::io::Error>().is_some_and(pipe)
}

/// Where the store is, by the command line, else by who asks.
fn store_root(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    // An empty PLYFS_ROOT is none.
    if let Some(root) = given.filter(|root| !root.as_os_str().is_empty()) {
        return Ok(std::path::absolute(root)?);
    }
    // Who is root in a user namespace alone has the store of who made it.
    if rustix::process::geteuid().is_root() && sys::is_in_first_user_namespace() {
        return Ok("/var/lib/plyfs".into());
    }
    let from_env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let data = match (from_env("XDG_DATA_HOME"), from_env("HOME")) {
        (Some(data), _) => PathBuf::from(data),
        (None, Some(home)) => PathBuf::from(home).join(".local/share"),
        (None, None) => anyhow::bail!("no store: set --root, PLYFS_ROOT, XDG_DATA_HOME or HOME"),
    };
    Ok(std::path::absolute(data)?.join("plyfs"))
}

/// Sends the log to stderr, at `level` or at what PLYFS_LOG says.
fn start_log(level: Option<log::LevelFilter>) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    builder.parse_env("PLYFS_LOG");
    if let Some(level) = level {
        builder.filter_level(level);
    }
    builder.format_timestamp(None).init();
}

/// A file name for messages: what a terminal could take for a command is escaped.
fn shown(name: &OsStr) -> String {
    name.to_string_lossy().chars().flat_map(escape_control).collect()
}

fn escape_control(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escaped.into_iter().flatten().chain(plain)
}
