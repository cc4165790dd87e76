//! `plyfs rmi`.

use std::path::Path;

use super::output::OutputFormat;
use crate::store::Store;
use crate::store::garbage::Removed;

/// Arguments of `plyfs rmi`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images: a name is taken away, and with the last name the image
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove an image that is asked for by its ID with all its names
    #[arg(short, long)]
    force: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs rmi`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    super::for_each(&args.images, |image| say(&store.remove_image(image, args.force)?, args.format))
}

/// Tells what went.
pub(super) fn say(removed: &Removed, format: OutputFormat) -> anyhow::Result<()> {
    let images = removed.images.iter().map(ToString::to_string);
    let deleted: Vec<String> =
        images.chain(removed.chains.iter().map(ToString::to_string)).collect();
    if format == OutputFormat::Json {
        let names: Vec<String> = removed.names.iter().map(ToString::to_string).collect();
        let line = serde_json::json!({
            "Untagged": names,
            "Deleted": deleted,
            "Layers": removed.layers,
            "Bytes": removed.bytes,
        });
        return super::say(format_args!("{line}"));
    }
    for name in &removed.names {
        super::say(format_args!("Untagged: {name}"))?;
    }
    deleted.iter().try_for_each(|id| super::say(format_args!("Deleted: {id}")))
}
