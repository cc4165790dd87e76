//! Image names: `[HOST/]PATH[:TAG]`, kept in Docker's familiar form.

use std::fmt;

/// What the familiar form leaves out (the distribution project's `reference` package,
/// `FamiliarName`): the default registry, and there the namespace of a name that has no other.
const DEFAULT_REGISTRIES: [&str; 2] = ["docker.io/", "index.docker.io/"];
const DEFAULT_NAMESPACE: &str = "library/";
/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";
/// Longest name and longest tag (the same package's limits).
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// An image's name with its tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    repository: String,
    tag: String,
}

/// Text that is no image name.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an image name")]
pub struct NotAName(pub String);

impl Name {
    /// Reads a name; without a tag it means `latest`.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let bad = || NotAName(text.to_owned());
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match text[last..].find(':') {
            Some(colon) => (&text[..last + colon], &text[last + colon + 1..]),
            None => (text, DEFAULT_TAG),
        };
        let familiar = familiar(repository);
        if !is_repository(familiar) || !is_tag(tag) {
            return Err(bad());
        }
        Ok(Self { repository: familiar.to_owned(), tag: tag.to_owned() })
    }

    /// The name without its tag.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// The short form, which reads as the same name.
fn familiar(repository: &str) -> &str {
    let without_registry =
        |text| DEFAULT_REGISTRIES.iter().find_map(|registry| str::strip_prefix(text, *registry));
    // What looks like a registry behind the registry would be taken for one.
    let rest = without_registry(repository).filter(|rest| without_registry(rest).is_none());
    let rest = rest.unwrap_or(repository);
    rest.strip_prefix(DEFAULT_NAMESPACE).filter(|name| !name.contains('/')).unwrap_or(rest)
}

/// Path components of lowercase letters and digits, with separators between them; the first
/// may be a host with a port.
fn is_repository(text: &str) -> bool {
    let good = |component: &str, first: bool| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let between = |b: u8| {
            inner(b) || b"._-".contains(&b) || first && (b == b':' || b.is_ascii_uppercase())
        };
        let bytes = component.as_bytes();
        match (bytes.first(), bytes.last()) {
            (Some(a), Some(z)) => {
                let edge = |b: u8| inner(b) || first && b.is_ascii_uppercase();
                edge(*a) && edge(*z) && bytes.iter().all(|b| between(*b))
            }
            _ => false,
        }
    };
    let several = text.contains('/');
    text.len() <= MAX_REPOSITORY
        && text.split('/').enumerate().all(|(n, part)| good(part, several && n == 0))
}

fn is_tag(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| first(b) || b == b'.' || b == b'-';
    text.len() <= MAX_TAG && text.bytes().next().is_some_and(first) && text.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("alpine", Some("alpine:latest")),
            ("alpine:3.10", Some("alpine:3.10")),
            ("docker.io/library/alpine:3", Some("alpine:3")),
            ("library/alpine:3", Some("alpine:3")),
            ("docker.io/grafana/loki", Some("grafana/loki:latest")),
            ("library/library/x", Some("library/library/x:latest")),
            ("docker.io/library/a/b", Some("library/a/b:latest")),
            ("index.docker.io/docker.io/x", Some("index.docker.io/docker.io/x:latest")),
            ("localhost:5000/a/b:c", Some("localhost:5000/a/b:c")),
            ("localhost:5000/a", Some("localhost:5000/a:latest")),
            ("a__b", Some("a__b:latest")),
            ("", None),
            ("a:", None),
            ("A", None),
            ("../x", None),
            ("a//b", None),
            ("a:b/c:d e", None),
            ("a\u{1b}[2J", None),
        ];
        for (text, expected) in table {
            let name = Name::parse(text).ok().map(|name| name.to_string());
            assert_eq!(name.as_deref(), expected, "{text}");
            let again = name.map(|name| Name::parse(&name).unwrap().to_string());
            assert_eq!(again.as_deref(), expected, "{text}");
        }
    }
}
