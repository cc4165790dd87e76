//! `plyfs import`.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::load::{Reading, finish_images, stdin, tell_left_out};
use super::output::{OutputFormat, say_image};
use crate::archive::{self, Import, Input, LoadOptions};
use crate::store::Store;
use crate::store::reference::Name;

/// Arguments of `plyfs import`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The tar of a root filesystem (plain, gzip, zstd or xz), or - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// A note in the image's history
    #[arg(short, long)]
    message: Option<String>,
    #[command(flatten)]
    reading: Reading,
    /// How to print what was made
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs import`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let name = args.name.as_deref().map(Name::parse).transpose()?;
    let shown = super::shown(args.file.as_os_str());
    let import = Import {
        name,
        message: args.message.clone().unwrap_or_else(|| format!("Imported from {shown}")),
        created: jiff::Timestamp::now().to_string(),
    };
    let progress = args.reading.progress();
    let options = LoadOptions {
        limits: args.reading.limits(),
        platform: args.reading.platform.clone(),
        keep_blobs: false,
        progress: &progress,
    };
    let input = if args.file.as_os_str() == "-" {
        stdin()?
    } else {
        Input::File(std::fs::File::open(&args.file).with_context(|| shown.clone())?)
    };
    let report =
        archive::import(&store, input, &import, &options).with_context(|| shown.clone())?;
    finish_images(&store, &report);
    drop(progress);
    tell_left_out(&report);
    report.images.iter().try_for_each(|image| match args.format {
        OutputFormat::Table => super::say(format_args!("{}", image.id)),
        OutputFormat::Json => say_image(&image.id, &image.names),
    })
}
