//! A root filesystem's tar as an image of one layer.

use std::fs;
use std::io::{self, Read};
use std::sync::atomic::AtomicU64;

use serde_json::json;

use super::compression::read_full;
use super::load::{self, Load};
use super::pipeline::Bounds;
use super::platform::Platform;
use super::source::{Input, Source};
use super::tar::{BLOCK, begins_tar};
use super::{Error, LayerBlob, LoadOptions, Plan, Report, Result, pipeline, unpack};
use crate::store::Store;
use crate::store::reference::Name;

/// What an imported image says of itself.
#[derive(Debug)]
pub struct Import {
    /// Its name.
    pub name: Option<Name>,
    /// A note in its history.
    pub message: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// Imports a tar, plain or compressed.
pub fn import(
    store: &Store,
    input: Input<'_>,
    import: &Import,
    options: &LoadOptions<'_>,
) -> Result<Report> {
    let staging = store.staging()?;
    let source = Source::single(input, staging.path(), options.limits)?;
    let layers = staging.path().join("layers");
    let home = layers.join("import");
    let make = fs::create_dir(&layers).and_then(|()| fs::create_dir(&home));
    make.map_err(|e| Error::io("make", home.display(), e))?;
    let bounds = Bounds { limits: options.limits, bytes: &AtomicU64::new(0) };
    let progress = options.progress.layer("rootfs", "import", source.size(PART)?);
    let (found, left_out) = pipeline::run(source.open(PART)?, PART, bounds, &*progress, |plain| {
        let mut block = [0; BLOCK];
        let len = read_full(plain, &mut block).map_err(|e| Error::io("read", "the tar", e))?;
        if len < BLOCK || !begins_tar(&block) {
            return Err(Error::NotATar);
        }
        unpack::unpack(&mut io::Cursor::new(block).chain(plain), &home, options.limits)
    })?;
    let left_out = left_out?;
    drop(progress);
    let built = layers.join(found.diff.hex());
    fs::rename(&home, &built).map_err(|e| Error::io("make", built.display(), e))?;
    let platform = options.platform.clone().unwrap_or_else(Platform::here);
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "created": import.created,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [found.diff.to_string()] },
        "history": [{ "created": import.created, "comment": import.message }],
    });
    if let Some(variant) = platform.variant {
        config["variant"] = variant.into();
    }
    let plan = Plan {
        config: serde_json::to_vec(&config).map_err(|e| Error::document("image config", e))?,
        layers: vec![LayerBlob { path: PART.to_owned(), digest: None, size: None }],
        names: import.name.iter().cloned().collect(),
        manifest: None,
    };
    let images = [load::Image::new(plan)?];
    Load::new(store, &staging, &source, options, &images)?.publish(&images, left_out)
}

/// What the tar is called in its source.
const PART: &str = "layer";
