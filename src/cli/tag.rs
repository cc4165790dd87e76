//! `plyfs tag`.

use std::path::Path;

use super::output::OutputFormat;
use crate::store::Store;
use crate::store::reference::Name;

/// Arguments of `plyfs tag`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    image: String,
    /// Its further name; an image that had it loses it
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
    /// How to print: nothing, or the name and the image as a JSON object
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs tag`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let name = Name::parse(&args.name)?;
    let id = store.find_image(&args.image)?;
    store.tag(&id, &name)?;
    match args.format {
        OutputFormat::Table => Ok(()),
        OutputFormat::Json => {
            let line = serde_json::json!({ "ID": id.to_string(), "Name": name.to_string() });
            super::say(format_args!("{line}"))
        }
    }
}
