//! `plyfs inspect`: what docker's `inspect` tells.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::daemon::mountpoint_of;
use super::output::OutputFormat;
use crate::layers::upper::lock_holder;
use crate::store::containers::Container;
use crate::store::digest::{Digest, ImageId};
use crate::store::{Error, Store};

/// Arguments of `plyfs inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images, or writable layers
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How to print: a JSON array, or one object per line
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs inspect`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let lock = store.lock_shared()?;
    let mut all = Vec::new();
    let result = super::for_each(&args.names, |name| {
        all.push(match store.find_image(name) {
            Ok(id) => image(&store, &id)?,
            Err(no_image @ Error::NoImage { .. }) => match store.find_container(name) {
                Ok(found) => container(&store, &found)?,
                Err(Error::NoContainer(_)) => return Err(no_image.into()),
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        });
        Ok(())
    });
    drop(lock);
    match args.format {
        OutputFormat::Table if all.is_empty() => Ok(()),
        OutputFormat::Table => {
            super::say(format_args!("{}", serde_json::to_string_pretty(&Value::Array(all))?))
        }
        OutputFormat::Json => all.iter().try_for_each(|one| super::say(format_args!("{one}"))),
    }?;
    result
}

fn image(store: &Store, id: &ImageId) -> anyhow::Result<Value> {
    let config: Value = serde_json::from_slice(&store.config_text(id)?)?;
    let field = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let names = store.names_of(id)?;
    let tags: Vec<String> = names.iter().map(ToString::to_string).collect();
    let digest = store.kept_manifest(id)?.map(|manifest| Digest::of(&manifest));
    let digests =
        names.iter().filter_map(|name| Some(format!("{}@{}", name.repository(), digest?)));
    let digests: BTreeSet<String> = digests.collect();
    let diffs = field("rootfs").get("diff_ids").cloned().unwrap_or(json!([]));
    let comment = store.config(id)?.history.last().and_then(|step| step.comment.clone());
    let mut shown = json!({
        "Id": id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment.unwrap_or_default(),
        "Created": text("created"),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": field("config"),
        "Architecture": text("architecture"),
        "Os": text("os"),
        "Size": store.image_size(id)?,
        "GraphDriver": graph_driver(&store.layer_dirs(id)?, None),
        "RootFS": { "Type": "layers", "Layers": diffs },
    });
    if let Some(variant) = config.get("variant") {
        shown["Variant"] = variant.clone();
    }
    Ok(shown)
}

/// Directories as overlay drivers tell them: those of an image are its layers, the topmost in
/// `UpperDir`; a container has its own.
fn graph_driver(layers: &[PathBuf], own: Option<(PathBuf, PathBuf, String)>) -> Value {
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let joined = |dirs: &[PathBuf]| dirs.iter().map(|dir| shown(dir)).collect::<Vec<_>>().join(":");
    let data = match own {
        Some((upper, work, merged)) => json!({
            "LowerDir": joined(layers),
            "MergedDir": merged,
            "UpperDir": shown(&upper),
            "WorkDir": shown(&work),
        }),
        None => json!({
            "LowerDir": joined(layers.get(1..).unwrap_or_default()),
            "MergedDir": Value::Null,
            "UpperDir": layers.first().map(|top| shown(top)),
            "WorkDir": Value::Null,
        }),
    };
    json!({ "Name": "plyfs", "Data": data })
}

fn container(store: &Store, found: &Container) -> anyhow::Result<Value> {
    let holder = lock_holder(&found.work());
    let merged = holder.as_deref().map(mountpoint_of).unwrap_or_default().to_owned();
    let layers = store.layer_dirs(&found.image_id)?;
    Ok(json!({
        "Id": found.id,
        "Created": found.created,
        "Name": format!("/{}", found.name),
        "Image": found.image_id.to_string(),
        "Config": { "Image": found.image },
        "GraphDriver": graph_driver(&layers, Some((found.upper(), found.work(), merged))),
    }))
}
