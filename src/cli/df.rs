//! `plyfs df`: what images take, by themselves and together.

use std::path::Path;

use super::output::{NONE, OutputFormat, SHORT_ID, human_size, table};
use crate::store::Store;
use crate::store::usage::Usage;

/// Arguments of `plyfs df`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs df`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let Usage { images, total, reclaimable } = store.usage()?;
    if args.format == OutputFormat::Json {
        for image in &images {
            let line = serde_json::json!({
                "ID": image.id.to_string(),
                "Names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "Size": image.size,
                "SharedSize": image.shared,
                "UniqueSize": image.size - image.shared,
                "Containers": image.containers,
            });
            super::say(format_args!("{line}"))?;
        }
        let line = serde_json::json!({ "TotalSize": total, "Reclaimable": reclaimable });
        return super::say(format_args!("{line}"));
    }
    let mut rows = Vec::new();
    for image in &images {
        let name = image.names.first();
        rows.push([
            name.map_or(NONE, |name| name.repository()).to_owned(),
            name.map_or(NONE, |name| name.tag()).to_owned(),
            image.id.hex()[..SHORT_ID].to_owned(),
            human_size(image.size),
            human_size(image.shared),
            human_size(image.size - image.shared),
            image.containers.to_string(),
        ]);
    }
    let headings =
        ["REPOSITORY", "TAG", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"];
    table(headings, &rows)?;
    let (total, reclaimable) = (human_size(total), human_size(reclaimable));
    super::say(format_args!("\nTotal: {total}, of which gc would remove {reclaimable}"))
}
