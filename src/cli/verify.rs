//! `plyfs verify`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use super::output::OutputFormat;
use crate::archive::{self, Finding};
use crate::store::digest::{DiffId, Digest, ImageId};
use crate::store::{Error, Store};

/// Arguments of `plyfs verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images; default: all
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs verify`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let ids = match &args.images[..] {
        [] => store.image_ids()?,
        asked => asked.iter().map(|name| store.find_image(name)).collect::<Result<_, _>>()?,
    };
    let mut run = Run { store: &store, args, off: 0, layers: BTreeSet::new() };
    for id in ids {
        // Nobody removes it meanwhile.
        let _held = match store.hold_image(&id) {
            Err(Error::NoImage { .. }) if args.images.is_empty() => continue, // removed since
            held => held?,
        };
        run.image(&id)?;
    }
    if args.images.is_empty() {
        for (name, id) in store.dangling_names()? {
            let place = store.image_path(&id);
            run.tell(&name.to_string(), &place, &[finding("its image's config is missing")])?;
        }
    }
    match run.off {
        0 => Ok(()),
        1 => bail!("one thing is not what it was"),
        off => bail!("{off} things are not what they were"),
    }
}

struct Run<'a> {
    store: &'a Store,
    args: &'a Args,
    /// How many things are off.
    off: usize,
    /// Layers that were verified.
    layers: BTreeSet<DiffId>,
}

impl Run<'_> {
    /// Config, layers, their records, what they take from one another, and kept blobs.
    fn image(&mut self, id: &ImageId) -> anyhow::Result<()> {
        let (store, shown) = (self.store, id.to_string());
        let place = store.image_path(id);
        let digest = Digest::of(&store.config_text(id)?);
        if digest != id.0 {
            return self.tell(&shown, &place, &[finding(format!("its digest is {digest}"))]);
        }
        let before = self.off;
        let diffs = store.config(id)?.diff_ids().map_err(anyhow::Error::msg)?;
        for (diff, chain) in diffs.iter().zip(store.chain_ids(id)?) {
            if let Err(error) = store.check_chain(&chain, diff) {
                self.tell(&chain.to_string(), &place, &[finding(error)])?;
            }
            if self.layers.insert(*diff) {
                let findings = archive::verify_layer(store, diff).unwrap_or_else(unreadable);
                let place = store.layer_files(diff).diff();
                self.tell(&diff.to_string(), &place, &findings)?;
            }
        }
        if self.off == before {
            let findings = archive::verify_inherited(store, id).unwrap_or_else(unreadable);
            if !findings.is_empty() {
                self.tell(&shown, Path::new("what its layers take from one another"), &findings)?;
            }
        }
        for (blob, is_whole) in archive::verify_blobs(store, id)? {
            if !is_whole {
                let place = store.kept_blob(&blob);
                self.tell(&blob.to_string(), &place, &[finding("it is not what was kept")])?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, what: &str, place: &Path, findings: &[Finding]) -> anyhow::Result<()> {
        self.off += usize::from(!findings.is_empty());
        say(self.args, what, place, findings)
    }
}

/// Something off about a whole.
fn finding(reason: impl ToString) -> Finding {
    Finding { path: Vec::new(), reason: reason.to_string() }
}

fn unreadable(error: archive::Error) -> Vec<Finding> {
    vec![finding(format!("it cannot be verified: {error}"))]
}

fn say(args: &Args, what: &str, place: &Path, findings: &[Finding]) -> anyhow::Result<()> {
    let lossy = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    if args.format == OutputFormat::Json {
        let off: Vec<_> = findings
            .iter()
            .map(|off| serde_json::json!({ "Path": lossy(&off.path), "Reason": off.reason }))
            .collect();
        let line = serde_json::json!({ "Digest": what, "OK": findings.is_empty(), "Off": off });
        return super::say(format_args!("{line}"));
    }
    if findings.is_empty() {
        return super::say(format_args!("{what}: OK"));
    }
    for off in findings {
        let path = match &off.path[..] {
            b"" => place.display().to_string(),
            path => place.join(lossy(path)).display().to_string(),
        };
        super::say(format_args!("{what}: {}: {}", super::shown(path.as_ref()), off.reason))?;
    }
    Ok(())
}
