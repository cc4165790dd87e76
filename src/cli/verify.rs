//! `plyfs verify`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;

use super::output::{OutputFormat, SHORT_ID};
use crate::archive::{self, Finding};
use crate::store::Store;
use crate::store::digest::DiffId;

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
    let mut off = 0;
    let mut layers: BTreeMap<DiffId, String> = BTreeMap::new();
    for id in ids {
        let found = crate::store::digest::Digest::of(&store.config_text(&id)?);
        if found != id.0 {
            off += 1;
            say(args, &id.to_string(), &store.image_path(&id), &[config_finding(found)])?;
        }
        for chain in store.chain_ids(&id)? {
            layers.entry(store.diff_of(&chain)?).or_insert_with(|| id.hex()[..SHORT_ID].to_owned());
        }
    }
    for diff in layers.keys() {
        let findings = archive::verify_layer(&store, diff)?;
        off += usize::from(!findings.is_empty());
        say(args, &diff.to_string(), &store.layer_files(diff).diff(), &findings)?;
    }
    match off {
        0 => Ok(()),
        1 => bail!("one layer or config is not what it was"),
        off => bail!("{off} layers or configs are not what they were"),
    }
}

fn config_finding(found: crate::store::digest::Digest) -> Finding {
    Finding { path: Vec::new(), reason: format!("its digest is {found}") }
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
