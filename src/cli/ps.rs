//! `plyfs ps`.

use std::ffi::OsStr;
use std::path::Path;

use super::daemon::mountpoint_of;
use super::images::OutputFormat;
use crate::layers::upper::lock_holder;
use crate::store::Store;

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
            let width = |len: fn(&(crate::store::containers::Container, String)) -> usize,
                         head: &str| {
                rows.iter().map(len).chain([head.len()]).max().unwrap_or(0)
            };
            let name = width(|(c, _)| c.name.len(), "NAME");
            let image = width(|(c, _)| c.image.len(), "IMAGE");
            super::say(format_args!("{:name$}   {:image$}   MOUNTED ON", "NAME", "IMAGE"))?;
            for (container, mounted_on) in &rows {
                let on = if mounted_on.is_empty() { "-" } else { mounted_on };
                let on = super::shown(OsStr::new(on));
                let (own, of) = (&container.name, &container.image);
                super::say(format_args!("{own:name$}   {of:image$}   {on}"))?;
            }
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
