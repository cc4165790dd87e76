//! `plyfs load`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::output::{OutputFormat, say_image};
use super::progress::Shown;
use crate::archive::limits::{Limit, Limits};
use crate::archive::platform::Platform;
use crate::archive::{self, Input, LoadOptions, Loaded, Report};
use crate::store::{Error, Store};

/// Arguments of `plyfs load`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Archives (docker save, OCI; plain, gzip, zstd or xz), OCI layout folders, or - for stdin, which
    /// is read too if none is given
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The same, as docker has it
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Keep the layers' blobs as they are compressed, and the manifest: `save` gives them back
    #[arg(long)]
    keep_blobs: bool,
    #[command(flatten)]
    reading: Reading,
    /// How to print what was loaded
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// What all that read images take.
#[derive(Debug, clap::Args)]
pub(super) struct Reading {
    /// Of an index, the image for OS/ARCHITECTURE[/VARIANT]; default: this machine's
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    /// Raise (or lower) a limit: bytes, entries, depth, path, xattr, ratio, document, layers, images,
    /// names or lookups
    #[arg(long, value_name = "NAME=VALUE")]
    limit: Vec<Limit>,
    /// Do not show how far it is
    #[arg(short, long)]
    quiet: bool,
}

impl Reading {
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        self.limit.iter().for_each(|limit| limits.set(*limit));
        limits
    }

    pub(super) fn progress(&self) -> Shown {
        Shown::new(self.quiet)
    }
}

/// Runs `plyfs load`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let mut said = Ok(());
    let from_stdin = (args.files.is_empty() && args.input.is_none()).then(|| PathBuf::from("-"));
    for file in args.files.iter().chain(&args.input).chain(&from_stdin) {
        let progress = args.reading.progress();
        let options = LoadOptions {
            limits: args.reading.limits(),
            platform: args.reading.platform.clone(),
            keep_blobs: args.keep_blobs,
            progress: &progress,
        };
        let report = if file.as_os_str() == "-" {
            archive::load(&store, stdin()?, &options).context("stdin")
        } else {
            let shown = || super::shown(file.as_os_str());
            archive::load_path(&store, file, &options).with_context(shown)
        }?;
        finish_images(&store, &report);
        drop(progress);
        for loaded in &report.images {
            say(loaded, args.format).or_else(|error| {
                said = Err(error); // what was asked for goes on
                anyhow::Ok(())
            })?;
        }
        tell_left_out(&report);
    }
    said
}

/// Standard input, which may be a file too, but no terminal.
pub(super) fn stdin() -> anyhow::Result<Input<'static>> {
    if std::io::stdin().is_terminal() {
        bail!("no archive comes from a terminal: give a FILE, or a pipe");
    }
    let stdin = rustix::io::dup(rustix::stdio::stdin());
    Ok(match stdin {
        Ok(stdin) => Input::Stream(Box::new(std::fs::File::from(stdin))),
        Err(_) => Input::Stream(Box::new(std::io::stdin())),
    })
}

fn say(loaded: &Loaded, format: OutputFormat) -> anyhow::Result<()> {
    if format == OutputFormat::Json {
        return say_image(&loaded.id, &loaded.names);
    }
    if loaded.names.is_empty() {
        return super::say(format_args!("Loaded image ID: {}", loaded.id));
    }
    loaded.names.iter().try_for_each(|name| super::say(format_args!("Loaded image: {name}")))
}

/// Of an archive of more images, the indexes of the rest are made when they are mounted.
const MAX_INDEXED: usize = 16;

/// Makes the images' indexes now, so that their first mount need not.
pub(super) fn finish_images(store: &Store, report: &Report) {
    for loaded in report.images.iter().take(MAX_INDEXED) {
        let indexed =
            store.hold_image(&loaded.id).and_then(|_held| store.mount_options(&loaded.id));
        match indexed {
            Ok(_) | Err(Error::NoImage { .. }) => {} // removed meanwhile
            Err(error) => log::warn!("index the image: {error}"), // it can be mounted without
        }
    }
}

pub(super) fn tell_left_out(report: &Report) {
    if !report.left_out.is_empty() {
        eprintln!("plyfs: note: what cannot be kept here is left out: {}", report.left_out);
    }
}
