//! OCI image layouts, in a folder or a tar: `index.json`, indexes, manifests.
//!
//! Every document but `index.json` is named by a digest, which is verified.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::{Source, blob_path};
use super::{Error, LayerBlob, Plan, Result};
use crate::store::digest::Digest;
use crate::store::reference::Name;

/// Indexes within indexes, at most.
const MAX_DEPTH: usize = 8;
/// Annotations that carry a name; the first one found counts.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
}

/// An index or a manifest: what it is shows in its fields.
#[derive(Debug, Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Descriptor {
    fn digest(&self) -> Result<Digest> {
        self.digest.parse().map_err(|e| Error::document("descriptor", e))
    }

    /// A name, where the annotation holds more than a tag.
    fn name(&self) -> Option<Name> {
        let annotations = self.annotations.as_ref()?;
        let text = NAME_ANNOTATIONS.iter().find_map(|key| annotations.get(*key))?;
        Name::parse(text).ok().filter(|_| text.contains([':', '/']))
    }

    /// Whether this is an attestation or the like, not something to run.
    fn is_beside_the_image(&self) -> bool {
        let attests = |a: &BTreeMap<String, String>| a.contains_key("vnd.docker.reference.type");
        self.annotations.as_ref().is_some_and(attests)
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown")
    }
}

impl Platform {
    fn is_here(&self) -> bool {
        let says_nothing = self.os.is_empty() && self.architecture.is_empty();
        says_nothing || self.os == "linux" && self.architecture == host_architecture()
    }

    fn shown(&self) -> String {
        let variant = self.variant.as_ref().map(|v| format!("/{v}")).unwrap_or_default();
        format!("{}/{}{variant}", self.os, self.architecture)
    }
}

/// This machine's architecture in Go's words, as images use them.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The images that the layout's index lists, for this machine's platform.
pub(super) fn plans(source: &Source) -> Result<Vec<Plan>> {
    let index = parse("index.json", &source.document("index.json")?)?;
    let listed = index.manifests.unwrap_or_default();
    let mut plans = Vec::new();
    for descriptor in fitting(&listed)? {
        let names = descriptor.name().into_iter().collect();
        plans.push(resolve(source, descriptor, names, 0)?);
    }
    if plans.is_empty() {
        return Err(Error::document("index.json", "it lists no image"));
    }
    Ok(plans)
}

/// The descriptors for this platform; those that tell no platform are for every one, and a
/// single image is what was asked for, whatever it is for.
fn fitting(listed: &[Descriptor]) -> Result<Vec<&Descriptor>> {
    let images: Vec<_> = listed.iter().filter(|d| !d.is_beside_the_image()).collect();
    let fits = |d: &&Descriptor| d.platform.as_ref().is_none_or(Platform::is_here);
    let fitting: Vec<_> = images.iter().copied().filter(fits).collect();
    if fitting.is_empty() && images.len() > 1 {
        let platforms: Vec<_> =
            images.iter().filter_map(|d| d.platform.as_ref()).map(Platform::shown).collect();
        return Err(Error::Unsupported(format!(
            "no image for linux/{}; there are images for {}",
            host_architecture(),
            platforms.join(", ")
        )));
    }
    Ok(if fitting.is_empty() { images } else { fitting })
}

fn parse(what: &str, text: &[u8]) -> Result<Document> {
    let document: Document = serde_json::from_slice(text).map_err(|e| Error::document(what, e))?;
    if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some()) {
        return Err(Error::document(what, "it is both an index and a manifest"));
    }
    Ok(document)
}

fn resolve(source: &Source, at: &Descriptor, names: Vec<Name>, depth: usize) -> Result<Plan> {
    let digest = at.digest()?;
    let path = blob_path(&digest);
    let document = parse(&path, &source.blob(&digest)?)?;
    if let Some(listed) = document.manifests {
        let next = fitting(&listed)?;
        return match next.first() {
            Some(next) if depth < MAX_DEPTH => resolve(source, next, names, depth + 1),
            Some(_) => Err(Error::document(&path, "indexes within indexes never end")),
            None => Err(Error::document(&path, "the index is empty")),
        };
    }
    let config = document.config.ok_or_else(|| Error::document(&path, "no config"))?;
    check_config_type(&config)?;
    let layers = document.layers.unwrap_or_default();
    let layers = layers.iter().map(layer).collect::<Result<_>>()?;
    Ok(Plan { config: source.blob(&config.digest()?)?, layers, names })
}

fn check_config_type(config: &Descriptor) -> Result<()> {
    match config.media_type.as_str() {
        ""
        | "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json" => Ok(()),
        other => Err(Error::Unsupported(format!(
            "an artifact ({}), not a container image",
            other.escape_default()
        ))),
    }
}

fn layer(descriptor: &Descriptor) -> Result<LayerBlob> {
    let kind = descriptor.media_type.as_str();
    let is_tar = kind.is_empty()
        || kind.starts_with("application/vnd.oci.image.layer.") && !kind.contains("encrypted")
        || kind.starts_with("application/vnd.docker.image.rootfs.") && !kind.contains("squashfs");
    if !is_tar {
        let kind = kind.escape_default();
        return Err(Error::Unsupported(format!(
            "a layer of type {kind}: only tar layers are read"
        )));
    }
    let digest = descriptor.digest()?;
    Ok(LayerBlob { path: blob_path(&digest), digest: Some(digest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_a_manifest_too_is_refused() {
        let both = br#"{"manifests": [], "layers": []}"#;
        assert!(parse("x", both).unwrap_err().to_string().contains("both"));
    }

    #[test]
    fn names_need_more_than_a_tag() {
        let with = |text: &str| Descriptor {
            media_type: String::new(),
            digest: String::new(),
            annotations: Some([("org.opencontainers.image.ref.name".into(), text.into())].into()),
            platform: None,
        };
        assert_eq!(with("latest").name(), None);
        assert_eq!(with("a:b").name().unwrap().to_string(), "a:b");
        assert_eq!(with("host/a").name().unwrap().to_string(), "host/a:latest");
    }

    #[test]
    fn a_missing_platform_is_told() {
        let text = br#"{"manifests": [
            {"digest": "x", "platform": {"os": "linux", "architecture": "vax"}},
            {"digest": "y", "platform": {"os": "plan9", "architecture": "amd64"}}]}"#;
        let listed = parse("x", text).unwrap().manifests.unwrap();
        assert_eq!(fitting(&listed[..1]).unwrap().len(), 1);
        let error = fitting(&listed).unwrap_err().to_string();
        assert!(error.contains("linux/vax"), "{error}");
    }
}
