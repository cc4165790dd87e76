//! `plyfs gc`.

use std::path::Path;

use super::output::{OutputFormat, human_size};
use super::rmi;
use crate::store::Store;

/// Arguments of `plyfs gc`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs gc`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let removed = Store::open(root)?.collect_garbage()?;
    rmi::say(&removed, args.format)?;
    match args.format {
        OutputFormat::Table => {
            super::say(format_args!("Total reclaimed space: {}", human_size(removed.bytes)))
        }
        OutputFormat::Json => Ok(()),
    }
}
