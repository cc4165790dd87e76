//! The stack before anything is united: lower layers, the upper layer, and the marks in them.
//!
//! A layer is an open directory; names below it resolve with openat2(2) beneath it and
//! without symlinks, for a layer is untrusted input. A lower layer is only read: this
//! module has no call that writes one.
//!
//! - [`marks`]: whiteouts and opaque marks in every form found in the field
//! - [`lower`]: reading one directory of one layer, marks told apart from names
//! - [`upper`]: upper and workdir: temporaries, publish-by-rename, the lock
//! - [`index`]: hard links and inode numbers that outlive copy-up, kept in workdir
//! - [`private_xattr`]: xattrs that belong to unions and are never shown
//! - [`merged_index`]: the merged tree of layers that never change, written once
//! - [`id_map`], [`override_stat`], [`acl`]: owners, permissions and types that differ from the
//!   files' own
//! - [`redirect`]: where a renamed directory's or a metacopy's rest lies in the layers below
//! - [`volatile`]: the marker of a mount that skips syncs
//! - [`number`]: one number space for the inodes of several devices

pub mod acl;
pub mod id_map;
pub mod index;
pub mod lower;
pub mod marks;
pub mod merged_index;
pub mod number;
pub mod override_stat;
pub mod path;
pub mod private_xattr;
pub mod redirect;
mod shared_mount;
pub mod upper;
pub mod volatile;

use crate::sys::Errno;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a layer failed.
    #[error("{op} {path}: {errno}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On what.
        path: String,
        /// How it failed.
        errno: Errno,
    },
    /// Upper and workdir are on different filesystems, so nothing can be renamed between them.
    #[error("workdir {work} is not on the same filesystem (and mount) as upper {upper}")]
    WorkElsewhere {
        /// The upper directory.
        upper: String,
        /// The workdir.
        work: String,
    },
    /// One of upper and workdir lies in the other.
    #[error(
        "upper {upper} and workdir {work} must be separate directories, neither inside the other"
    )]
    WorkInsideUpper {
        /// The upper directory.
        upper: String,
        /// The workdir.
        work: String,
    },
    /// A lower layer would be written: upper or workdir overlaps it.
    #[error("{place} overlaps the lower layer {lower}, which must never be written")]
    Overlap {
        /// Upper or workdir.
        place: String,
        /// The lower layer.
        lower: String,
    },
    /// The machine went down while syncs were skipped.
    #[error(
        "upper {upper} was mounted volatile when the machine went down: it may lack what programs synced (--accept-loss mounts it nevertheless)"
    )]
    CutShort {
        /// The upper directory.
        upper: String,
    },
    /// The layer points into those below in a way that this process must not, or cannot, follow.
    #[error(
        "{path} was the rich upper layer of {other}: what was renamed there can be shown to {other} only"
    )]
    ForeignPointers {
        /// The layer.
        path: String,
        /// Whose mounts made the pointers.
        other: &'static str,
    },
    /// Another mount holds the upper layer.
    #[error("upper {upper} is in use: {holder}")]
    Busy {
        /// The upper directory.
        upper: String,
        /// Who holds it, as written into the lock.
        holder: String,
    },
}

impl Error {
    /// What [`redirect::Namespace::is_rich`] failed with.
    fn of_pointers(
        namespace: redirect::Namespace,
        path: &std::path::Path,
    ) -> impl FnOnce(Errno) -> Self {
        let other = match namespace {
            redirect::Namespace::Trusted => "an ordinary user",
            redirect::Namespace::User => "root",
        };
        move |errno| match errno {
            Errno::KEYREJECTED => Self::ForeignPointers { path: path.display().to_string(), other },
            errno => Self::io("read xattrs of", path)(errno),
        }
    }

    pub(crate) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(Errno) -> Self {
        let path = path.display().to_string();
        move |errno| Self::Io { op, path, errno }
    }
}
