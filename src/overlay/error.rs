//! Why an operation of the union failed, and the errno that a program sees.

use crate::sys::Errno;

/// Result of an operation of the union.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not exist in the merged directory.
    #[error("no such name")]
    NotFound,
    /// The name exists already.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Something other than a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The merged directory still has names.
    #[error("directory not empty")]
    NotEmpty,
    /// The name is longer than 255 bytes, or 246 if it begins with `.wh.`.
    #[error("name too long")]
    NameTooLong,
    /// The union has no upper layer.
    #[error("the union has no writable layer")]
    ReadOnly,
    /// The inode is not known (any more).
    #[error("stale inode")]
    Stale,
    /// An argument that the operation does not take.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The xattr does not exist.
    #[error("no such xattr")]
    NoXattr,
    /// A call on a layer failed.
    #[error("{op} {name}: {errno}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which name, escaped.
        name: String,
        /// How it failed.
        errno: Errno,
    },
}

impl Error {
    /// The errno for the program that asked.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::NOENT,
            Self::Exists => Errno::EXIST,
            Self::NotDirectory => Errno::NOTDIR,
            Self::IsDirectory => Errno::ISDIR,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::Invalid(_) => Errno::INVAL,
            Self::ReadOnly => Errno::ROFS,
            Self::Stale => Errno::STALE,
            Self::NoXattr => Errno::NODATA,
            Self::Io { errno, .. } => *errno,
        }
    }
}

/// Adds the operation and the name to a bare errno.
pub(super) trait Context<T> {
    /// `self`, or the error that says `op` failed on `name`.
    fn context(self, op: &'static str, name: &[u8]) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn context(self, op: &'static str, name: &[u8]) -> Result<T> {
        self.map_err(|errno| Error::Io { op, name: name.escape_ascii().to_string(), errno })
    }
}

/// Runs something whose failure must not fail the operation, and logs it.
pub(super) fn best_effort<T, E: std::fmt::Display>(what: &str, result: std::result::Result<T, E>) {
    if let Err(error) = result {
        log::warn!("{what}: {error}");
    }
}
