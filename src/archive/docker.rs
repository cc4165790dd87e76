//! `docker save` archives: v1.2 (`manifest.json`), the v25 hybrid, and the v1 form
//! (`repositories` and ID/json, ID/layer.tar).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicU64;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::limits::{self, Limits};
use super::pipeline::{self, Bounds};
use super::platform::Platform;
use super::progress::Silent;
use super::source::{Source, verify};
use super::{Error, LayerBlob, LoadOptions, Plan, Result};
use crate::store::digest::{DiffId, Digest};
use crate::store::reference::Name;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestItem {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images that `manifest.json` lists.
pub(super) fn plans(source: &Source, options: &LoadOptions<'_>) -> Result<Vec<Plan>> {
    let text = source.document("manifest.json")?;
    let items: Vec<ManifestItem> =
        serde_json::from_slice(&text).map_err(|e| Error::document("manifest.json", e))?;
    if items.is_empty() {
        return Err(Error::document("manifest.json", "it lists no image"));
    }
    options.limits.check(limits::Name::Images, items.len() as u64)?;
    fitting(items.into_iter().map(|item| plan(source, item, options)))
}

/// The plans of what is wanted; what else there is, is passed over.
pub(super) fn fitting(plans: impl Iterator<Item = Result<Plan>>) -> Result<Vec<Plan>> {
    let (mut fitting, mut other) = (Vec::new(), None);
    for plan in plans {
        match plan {
            Ok(plan) => fitting.push(plan),
            Err(error @ Error::Other(_)) => other = Some(error),
            Err(error) => return Err(error),
        }
    }
    match other {
        Some(other) if fitting.is_empty() => Err(other),
        _ => Ok(fitting),
    }
}

fn plan(source: &Source, item: ManifestItem, options: &LoadOptions<'_>) -> Result<Plan> {
    let config = source.document(&item.config)?;
    if let Some(expected) = digest_in(&item.config) {
        verify(&item.config, expected, &config)?;
    }
    check_platform(&item.config, &config, options)?;
    let layer = |path: String| LayerBlob { digest: blob_digest(&path), size: None, path };
    let layers = item.layers.unwrap_or_default().into_iter().map(layer).collect();
    let tags = item.repo_tags.unwrap_or_default();
    let names = tags.iter().map(|tag| parse_name(tag)).collect::<Result<_>>()?;
    Ok(Plan { config, layers, names, manifest: None })
}

/// What is asked for by name must be what the config says.
pub(super) fn check_platform(what: &str, config: &[u8], options: &LoadOptions<'_>) -> Result<()> {
    let Some(wanted) = &options.platform else { return Ok(()) };
    let mut found: Platform =
        serde_json::from_slice(config).map_err(|e| Error::document(what, e))?;
    let shown = found.to_string();
    found.variant = found.variant.or_else(|| wanted.variant.clone()); // many do not tell it
    match found.fits(wanted) {
        true => Ok(()),
        false => Err(Error::Other(format!("no image for {wanted}: {what} is for {shown}"))),
    }
}

fn parse_name(text: &str) -> Result<Name> {
    Name::parse(text).map_err(|e| Error::document("manifest.json", e))
}

/// The digest that a config's file name tells: `HEX.json`, `blobs/sha256/HEX`, `sha256:HEX`.
fn digest_in(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    let name = name.strip_suffix(".json").unwrap_or(name);
    Digest::from_hex(name.strip_prefix("sha256:").unwrap_or(name)).ok()
}

/// The digest of a layer blob below `blobs/sha256/`; an `ID/layer.tar` tells none.
fn blob_digest(path: &str) -> Option<Digest> {
    Digest::from_hex(path.strip_prefix("blobs/sha256/")?).ok()
}

/// The images of the v1 form: repository -> tag -> ID of the top layer.
pub(super) fn v1_plans(source: &Source, options: &LoadOptions<'_>) -> Result<Vec<Plan>> {
    let bad = |e: &dyn std::fmt::Display| Error::document("repositories", e);
    let text = source.document("repositories")?;
    let known: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&text).map_err(|e| bad(&e))?;
    let mut by_top: BTreeMap<String, Vec<Name>> = BTreeMap::new();
    for (repository, tags) in known {
        for (tag, top) in tags {
            let name = Name::parse(&format!("{repository}:{tag}")).map_err(|e| bad(&e))?;
            by_top.entry(top).or_default().push(name);
        }
    }
    if by_top.is_empty() {
        return Err(bad(&"it names no image"));
    }
    options.limits.check(limits::Name::Images, by_top.len() as u64)?;
    let mut hashed = Hashed::new(source, options);
    fitting(by_top.into_iter().map(|(top, names)| v1_plan(&mut hashed, &top, names, options)))
}

/// The DiffIDs of layers, each hashed once.
struct Hashed<'a> {
    source: &'a Source,
    limits: Limits,
    /// Uncompressed bytes so far.
    bytes: AtomicU64,
    /// By where they lie.
    known: HashMap<(u64, u64), DiffId>,
}

impl<'a> Hashed<'a> {
    fn new(source: &'a Source, options: &LoadOptions<'_>) -> Self {
        let (bytes, known) = (AtomicU64::new(0), HashMap::new());
        Self { source, limits: options.limits, bytes, known }
    }

    fn diff(&mut self, path: &str) -> Result<DiffId> {
        let identity = self.source.identity(path)?;
        if let Some(known) = self.known.get(&identity) {
            return Ok(*known);
        }
        let bounds = Bounds { limits: self.limits, bytes: &self.bytes };
        let input = self.source.open(path)?;
        let (found, _) = pipeline::run(input, path, bounds, &Silent, |_| Ok(()))?;
        self.known.insert(identity, found.diff);
        Ok(found.diff)
    }
}

fn v1_plan(
    hashed: &mut Hashed<'_>,
    top: &str,
    names: Vec<Name>,
    options: &LoadOptions<'_>,
) -> Result<Plan> {
    let mut chain = v1_chain(hashed.source, top, options.limits)?;
    chain.reverse(); // now the lowest first
    let (mut layers, mut diffs, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, json) in &chain {
        let path = format!("{id}/layer.tar");
        diffs.push(hashed.diff(&path)?.to_string());
        layers.push(LayerBlob { path, digest: None, size: None });
        history.push(v1_history(json));
    }
    let mut config = chain.pop().map(|(_, json)| json).unwrap_or_default();
    for gone in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
        config.shift_remove(gone);
    }
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diffs }));
    config.insert("history".into(), Value::Array(history));
    let config = serde_json::to_vec(&config).map_err(|e| Error::document("v1 config", e))?;
    check_platform(top, &config, options)?;
    Ok(Plan { config, layers, names, manifest: None })
}

/// The image's layers with their `json`, from the top to the one without a parent.
fn v1_chain(
    source: &Source,
    top: &str,
    limits: Limits,
) -> Result<Vec<(String, Map<String, Value>)>> {
    let mut chain = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        let path = format!("{id}/json");
        if !seen.insert(id.clone()) {
            return Err(Error::document(&path, "its parents never end"));
        }
        limits.check(limits::Name::Layers, seen.len() as u64)?;
        let text = source.document(&path)?;
        let json: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| Error::document(&path, e))?;
        let parent = json.get("parent").and_then(Value::as_str);
        next = parent.filter(|parent| !parent.is_empty()).map(str::to_owned);
        chain.push((id, json));
    }
    Ok(chain)
}

fn v1_history(json: &Map<String, Value>) -> Value {
    let mut entry = Map::new();
    for key in ["created", "author", "comment"] {
        if let Some(value) = json.get(key).filter(|value| **value != json!("")) {
            entry.insert(key.into(), value.clone());
        }
    }
    let command = json.get("container_config").and_then(|c| c.get("Cmd")).and_then(Value::as_array);
    if let Some(words) = command {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        entry.insert("created_by".into(), words.join(" ").into());
    }
    Value::Object(entry)
}
