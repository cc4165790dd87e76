//! Image names: `[HOST/]PATH[:TAG]`, kept in Docker's familiar form.

use std::fmt;

use super::digest::Digest;

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

/// Whether docker takes it (the `reference` package's grammar, and what it reserves for digests).
fn is_repository(text: &str) -> bool {
    let (host, path) = match text.split_once('/') {
        Some((host, path)) if is_host(host) => (Some(host), path),
        _ => (None, text),
    };
    let is_digest = text == "sha256" || Digest::from_hex(text).is_ok();
    text.len() <= MAX_REPOSITORY
        && !is_digest
        && path.split('/').all(is_path_component)
        && host.is_none_or(|host| is_domain(host) || is_path_component(host))
}

/// Whether a name's first component is a host, not the first part of a path.
fn is_host(text: &str) -> bool {
    text == "localhost"
        || text.contains(['.', ':', '['])
        || text.bytes().any(|b| b.is_ascii_uppercase())
}

/// Lowercase letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(is_inner).filter(|between| !between.is_empty());
    text.starts_with(is_inner)
        && text.ends_with(is_inner)
        && separators.into_iter().all(|between| {
            [".", "_", "__"].contains(&between) || between.bytes().all(|b| b == b'-')
        })
}

/// A host name, or an IPv6 address in brackets; a port may follow.
fn is_domain(text: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let is_label = |label: &str| {
        let is_edge = |c: char| c.is_ascii_alphanumeric();
        let all = label.chars().all(|c| is_edge(c) || c == '-');
        all && label.starts_with(is_edge) && label.ends_with(is_edge)
    };
    if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_address = address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        return is_address
            && !address.is_empty()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    name.split('.').all(is_label) && port.is_none_or(is_port)
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
        const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
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
            ("a-b--c.d_e/f", Some("a-b--c.d_e/f:latest")),
            ("A.example:80/x", Some("A.example:80/x:latest")),
            ("Host/x", Some("Host/x:latest")),
            ("[::1]:5000/x", Some("[::1]:5000/x:latest")),
            ("a..b", None),
            ("a___b", None),
            ("a-.b", None),
            ("a-", None),
            ("a:b/c", None),
            ("a:5000", Some("a:5000")),
            ("[::1/x", None),
            ("host:/x", None),
            ("sha256:0123", None),
            (SHA, None),
            (&format!("{SHA}:latest"), None),
            (&format!("x/{SHA}"), Some(&format!("x/{SHA}:latest"))),
        ];
        for (text, expected) in table {
            let name = Name::parse(text).ok().map(|name| name.to_string());
            assert_eq!(name.as_deref(), expected, "{text}");
            let again = name.map(|name| Name::parse(&name).unwrap().to_string());
            assert_eq!(again.as_deref(), expected, "{text}");
        }
    }
}
