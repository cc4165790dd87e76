//! Why an image could not be loaded.

use std::fmt::Display;
use std::io;

use crate::store::digest::{DiffId, Digest};

/// Result of reading an archive.
pub type Result<T> = std::result::Result<T, Error>;

/// A load's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("{op} {what}: {cause}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On what.
        what: String,
        /// How it failed.
        cause: io::Error,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// Neither a tar nor one of the compressions.
    #[error("no tar, neither plain nor compressed with gzip, zstd or xz")]
    NotATar,
    /// Something else than what is wanted, which is passed over if what is wanted is there too.
    #[error("{0}")]
    Other(String),
    /// A tar or folder that holds no image.
    #[error("no image in it: neither manifest.json, index.json nor repositories")]
    NoImage,
    /// The archive ends too early.
    #[error("the archive is truncated ({0})")]
    Truncated(&'static str),
    /// The tar stream makes no sense.
    #[error("bad tar entry {name}: {reason}")]
    BadEntry {
        /// The entry, escaped.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An error inside a layer.
    #[error("layer {layer}: {cause}")]
    Layer {
        /// Its path in the archive.
        layer: String,
        /// What is wrong.
        cause: Box<Error>,
    },
    /// A manifest, index or config makes no sense.
    #[error("bad {what}: {reason}")]
    Document {
        /// Which.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A part that a manifest names is not there.
    #[error("the archive lacks {0}")]
    Missing(String),
    /// A blob's content is not what its digest says.
    #[error("{what} is damaged: its digest is {found}, not {expected}")]
    Digest {
        /// Which blob.
        what: String,
        /// Its digest as told.
        expected: Digest,
        /// Its digest as found.
        found: Digest,
    },
    /// A blob has not the size that its descriptor tells.
    #[error("{what} is damaged: it has {found} bytes, not {expected}")]
    Size {
        /// Which blob.
        what: String,
        /// Its bytes as told.
        expected: u64,
        /// Its bytes as found.
        found: u64,
    },
    /// A layer's content is not what the config says.
    #[error("layer {layer} is damaged: its DiffID is {found}, not {expected}")]
    DiffId {
        /// Its path in the archive.
        layer: String,
        /// The DiffID in the config.
        expected: DiffId,
        /// The DiffID found.
        found: DiffId,
    },
    /// Config and manifest tell different numbers of layers.
    #[error("the config tells of {config} layers, the archive has {archive}")]
    LayerCount {
        /// In the config.
        config: usize,
        /// In the manifest.
        archive: usize,
    },
    /// More than one image may take, unless it is allowed more.
    #[error(
        "{}over the limit {name}={limit} (raise it with --limit {name}=VALUE)",
        .what.as_ref().map(|what| format!("{what}: ")).unwrap_or_default()
    )]
    Limit {
        /// What is over it, if that is not clear.
        what: Option<String>,
        /// Which limit.
        name: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Something valid that cannot be loaded.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    pub(super) fn io(op: &'static str, what: impl Display, cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated("unexpected end of data");
        }
        Self::Io { op, what: what.to_string(), cause }
    }

    pub(super) fn document(what: &str, reason: impl Display) -> Self {
        Self::Document { what: what.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn entry(name: &[u8], reason: impl Display) -> Self {
        Self::BadEntry { name: name.escape_ascii().to_string(), reason: reason.to_string() }
    }

    /// Says what is over a limit.
    pub(super) fn of(self, what: &str) -> Self {
        match self {
            Self::Limit { name, limit, .. } => {
                Self::Limit { what: Some(what.to_owned()), name, limit }
            }
            other => other,
        }
    }

    /// Whether damaged input may have led to it.
    pub(super) fn may_be_of_damage(&self) -> bool {
        match self {
            Self::Layer { cause, .. } => cause.may_be_of_damage(),
            Self::Io { .. } | Self::Store(_) | Self::Limit { .. } => false,
            Self::NotATar
            | Self::NoImage
            | Self::Other(_)
            | Self::Truncated(_)
            | Self::BadEntry { .. }
            | Self::Document { .. }
            | Self::Missing(_)
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::DiffId { .. }
            | Self::LayerCount { .. }
            | Self::Unsupported(_) => true,
        }
    }

    pub(super) fn in_layer(self, layer: &str) -> Self {
        Self::Layer { layer: layer.to_owned(), cause: Box::new(self) }
    }
}
