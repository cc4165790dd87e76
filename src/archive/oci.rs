//! OCI image layouts, in a folder or a tar: `index.json`, indexes, manifests.
//!
//! Every document but `index.json` is named by a digest, which is verified.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::platform::Platform;
use super::source::{Source, blob_path};
use super::{Error, LayerBlob, LoadOptions, Plan, Result, docker, limits};
use crate::store::digest::Digest;
use crate::store::reference::Name;

/// Indexes within indexes, at most.
const MAX_DEPTH: usize = 8;
/// Annotations that carry a name; the first one that is one counts.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: Option<u64>,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

/// An index or a manifest: what it is shows in its fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    artifact_type: Option<String>,
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
        let texts = NAME_ANNOTATIONS.iter().filter_map(|key| annotations.get(*key));
        texts.filter(|text| text.contains([':', '/'])).find_map(|text| Name::parse(text).ok())
    }

    /// Whether this is an attestation or the like, not something to run.
    fn is_beside_the_image(&self) -> bool {
        let attests = |a: &BTreeMap<String, String>| a.contains_key("vnd.docker.reference.type");
        self.annotations.as_ref().is_some_and(attests)
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown")
    }
}

/// The images that the layout's index lists, for the platform that is wanted.
pub(super) fn plans(source: &Source, options: &LoadOptions<'_>) -> Result<Vec<Plan>> {
    let index = parse("index.json", &source.document("index.json")?)?;
    let listed = index.manifests.unwrap_or_default();
    let fitting = fitting(&listed, options.platform.as_ref())?;
    options.limits.check(limits::Name::Images, fitting.len() as u64)?;
    let mut passed = HashSet::new();
    let plans = docker::fitting(fitting.into_iter().map(|descriptor| {
        let names = descriptor.name().into_iter().collect();
        resolve(source, descriptor, names, options, 0, &mut passed)
    }))?;
    if plans.is_empty() {
        return Err(Error::document("index.json", "it lists no image"));
    }
    Ok(plans)
}

/// The descriptors for the wanted platform; those that tell no platform are for every one. If none
/// is asked for, a single image, by whatever names, is what was meant, whatever it is for.
fn fitting<'a>(listed: &'a [Descriptor], asked: Option<&Platform>) -> Result<Vec<&'a Descriptor>> {
    let images: Vec<_> = listed.iter().filter(|d| !d.is_beside_the_image()).collect();
    let wanted = asked.cloned().unwrap_or_else(Platform::here);
    let fits = |d: &&Descriptor| d.platform.as_ref().is_none_or(|found| found.fits(&wanted));
    let fitting: Vec<_> = images.iter().copied().filter(fits).collect();
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let same = |image: &&Descriptor| {
        (&image.digest, &image.platform) == (&images[0].digest, &images[0].platform)
    };
    let is_one = images.iter().all(same);
    if !is_one || asked.is_some() && !images.is_empty() {
        let platforms: Vec<_> =
            images.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
        return Err(Error::Other(format!(
            "no image for {wanted}; there are images for {}",
            platforms.join(", ")
        )));
    }
    Ok(images)
}

fn parse(what: &str, text: &[u8]) -> Result<Document> {
    let document: Document = serde_json::from_slice(text).map_err(|e| Error::document(what, e))?;
    if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some()) {
        return Err(Error::document(what, "it is both an index and a manifest"));
    }
    Ok(document)
}

/// The image behind a descriptor: of an index within the index, the first one that fits. What was
/// `passed` over is not looked at again, however often it is listed.
fn resolve(
    source: &Source,
    at: &Descriptor,
    names: Vec<Name>,
    options: &LoadOptions<'_>,
    depth: usize,
    passed: &mut HashSet<Digest>,
) -> Result<Plan> {
    let text = blob(source, at)?;
    let path = blob_path(&at.digest()?);
    let document = parse(&path, &text)?;
    if let Some(listed) = document.manifests {
        if depth >= MAX_DEPTH {
            return Err(Error::document(&path, "indexes within indexes never end"));
        }
        let mut result = Err(match listed.is_empty() {
            true => Error::document(&path, "the index is empty"),
            false => Error::Other(format!("{path}: no image that fits")),
        });
        for next in fitting(&listed, options.platform.as_ref())? {
            if passed.contains(&next.digest()?) {
                continue;
            }
            result = resolve(source, next, names.clone(), options, depth + 1, passed);
            if !matches!(result, Err(Error::Other(_))) {
                break;
            }
            passed.insert(next.digest()?);
        }
        return result;
    }
    let config = document.config.ok_or_else(|| Error::document(&path, "no config"))?;
    if !is_image_config(&config.media_type) {
        let kind = document.artifact_type.or(at.artifact_type.clone()).unwrap_or(config.media_type);
        let kind = kind.escape_default();
        return Err(Error::Other(format!("an artifact ({kind}), not a container image")));
    }
    let layers = document.layers.unwrap_or_default();
    let layers = layers.iter().map(|layer| layer_blob(source, layer)).collect::<Result<_>>()?;
    let config = blob(source, &config)?;
    if at.platform.is_none() {
        docker::check_platform(&path, &config, options)?;
    }
    Ok(Plan { config, layers, names, manifest: Some(text) })
}

/// A document of the size and digest that its descriptor tells.
fn blob(source: &Source, at: &Descriptor) -> Result<Vec<u8>> {
    let text = source.blob(&at.digest()?)?;
    match at.size {
        Some(expected) if expected != text.len() as u64 => {
            let what = blob_path(&at.digest()?);
            Err(Error::Size { what, expected, found: text.len() as u64 })
        }
        _ => Ok(text),
    }
}

fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

fn layer_blob(source: &Source, descriptor: &Descriptor) -> Result<LayerBlob> {
    let kind = descriptor.media_type.as_str();
    let refuse = |what: &str| {
        let kind = kind.escape_default();
        Err(Error::Unsupported(format!("{what} layer ({kind}): only plain tar layers are read")))
    };
    let is_of_images = kind.is_empty()
        || kind.starts_with("application/vnd.oci.image.layer.")
        || kind.starts_with("application/vnd.docker.image.rootfs.");
    if kind.contains("encrypted") {
        return refuse("an encrypted");
    } else if kind.contains("squashfs") {
        return refuse("a squashfs");
    } else if !is_of_images {
        return refuse("an unknown kind of");
    }
    let digest = descriptor.digest()?;
    let path = blob_path(&digest);
    let is_foreign = kind.contains("foreign") || kind.contains("nondistributable");
    if is_foreign && !source.has(&path) {
        let kind = kind.escape_default();
        return Err(Error::Unsupported(format!(
            "a foreign layer ({kind}): its content is not in the archive, only elsewhere"
        )));
    }
    Ok(LayerBlob { path, digest: Some(digest), size: descriptor.size })
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
            size: None,
            artifact_type: None,
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
        assert_eq!(fitting(&listed[..1], None).unwrap().len(), 1);
        let error = fitting(&listed, None).unwrap_err().to_string();
        assert!(error.contains("linux/vax"), "{error}");
        let vax = "linux/vax".parse().unwrap();
        assert_eq!(fitting(&listed, Some(&vax)).unwrap()[0].digest, "x");
        assert!(fitting(&listed[..1], Some(&Platform::here())).is_err());
        let twice = [listed[0].clone(), listed[0].clone()];
        assert_eq!(fitting(&twice, None).unwrap().len(), 2, "one image that has two names");
    }
}
