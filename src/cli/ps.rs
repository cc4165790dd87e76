//! `plyfs ps`.

use std::path::Path;

use super::daemon::mountpoint_of;
use super::output::{OutputFormat, table};
use crate::layers::upper::lock_holder;
use crate::store::Store;
use crate::store::containers::Container;

/// Arguments of `plyfs ps`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs ps`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for container in Store::open(root)?.containers()? {
        let holder = lock_holder(&container.work());
        let mounted_on = holder.as_deref().map(mountpoint_of).unwrap_or_default();
        // A daemon that is just ending holds its lock for a moment longer than its mount.
        let is_there = super::umount::is_plyfs(Path::new(mounted_on));
        let mounted_on = if is_there { mounted_on.to_owned() } else { String::new() };
        rows.push((container, mounted_on));
    }
    match args.format {
        OutputFormat::Table => {
            let cells = |(container, on): &(Container, String)| {
                let on = if on.is_empty() { "-".to_owned() } else { on.clone() };
                [container.name.clone(), container.image.clone(), on]
            };
            let rows: Vec<_> = rows.iter().map(cells).collect();
            table(["NAME", "IMAGE", "MOUNTED ON"], &rows)?;
        }
        OutputFormat::Json => {
            for (container, mounted_on) in &rows {
                let row = serde_json::json!({
                    "Name": container.name,
                    "ID": container.id,
                    "Image": container.image,
                    "ImageID": container.image_id.to_string(),
                    "Created": container.created,
                    "Mountpoint": mounted_on,
                });
                super::say(format_args!("{row}"))?;
            }
        }
    }
    Ok(())
}
