//! `plyfs diff`, as docker prints it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::diff;
use crate::overlay::UpperOptions;
use crate::store::Store;

/// Arguments of `plyfs diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name (or ID) of a writable layer, as `plyfs ps` shows it
    name: String,
}

/// Runs `plyfs diff`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let container = store.find_container(&args.name)?;
    let lowers = store.layer_dirs(&container.image_id)?;
    let upper = UpperOptions { upper: container.upper(), work: container.work() };
    for (path, change) in diff::changes(lowers, &upper)? {
        super::say(format_args!("{change} {}", super::shown(OsStr::from_bytes(&path))))?;
    }
    Ok(())
}
