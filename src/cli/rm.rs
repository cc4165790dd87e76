//! `plyfs rm`.

use std::path::Path;

use crate::store::Store;

/// Arguments of `plyfs rm`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names (or IDs) of writable layers, as `plyfs ps` shows them
    #[arg(required = true)]
    name: Vec<String>,
}

/// Runs `plyfs rm`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    super::for_each(&args.name, |name| {
        let container = store.find_container(name)?;
        store.remove_container(&container)?;
        super::say(format_args!("{name}"))
    })
}
