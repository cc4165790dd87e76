//! `plyfs load`.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::archive::{self, Loaded};
use crate::store::Store;

/// Arguments of `plyfs load`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Archives (docker save, OCI; plain, gzip, zstd or xz), OCI layout folders, or - for stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs `plyfs load`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let mut said = Ok(());
    for file in &args.files {
        let report = if file.as_os_str() == "-" {
            archive::load(&store, std::io::stdin().lock()).context("stdin")
        } else {
            archive::load_path(&store, file).with_context(|| super::shown(file.as_os_str()))
        }?;
        for loaded in &report.images {
            index(&store, loaded);
            match loaded {
                Loaded::Named(name) => super::say(format_args!("Loaded image: {name}")),
                Loaded::Unnamed(id) => super::say(format_args!("Loaded image ID: {id}")),
            }
            .or_else(|error| {
                said = Err(error); // what was asked for goes on
                anyhow::Ok(())
            })?;
        }
        if !report.left_out.is_empty() {
            eprintln!("plyfs: note: what cannot be set here is left out: {}", report.left_out);
        }
    }
    said
}

/// Makes the image's index now, so that its first mount need not.
fn index(store: &Store, loaded: &Loaded) {
    let made = match loaded {
        Loaded::Named(name) => store.find_image(&name.to_string()),
        Loaded::Unnamed(id) => Ok(*id),
    }
    .and_then(|id| store.merged_index(&id));
    if let Err(error) = made {
        log::warn!("index the image: {error}"); // it can be mounted without
    }
}
