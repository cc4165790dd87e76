//! Extended attributes that unions keep for themselves: no user and no image can forge one.
//!
//! A name that is private to unions is *escaped* on its way through the mount, as the
//! kernel's overlayfs does it: who sets `trusted.overlay.opaque` in the mount gets
//! `trusted.overlay.overlay.opaque` in the layer, which marks nothing, and reads it back
//! under the name that was set. So a union can be a layer of another one. What a layer holds
//! under a private name is never seen.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno};

/// The namespaces and words that the kernel's overlayfs, fuse-overlayfs, containers/storage and
/// plyfs reserve: all names that begin with the two.
const RESERVED: [(&[u8], &[u8]); 7] = [
    (b"trusted.", b"overlay."),
    (b"user.", b"overlay."),
    (b"user.", b"fuseoverlayfs."),
    (b"security.", b"fuseoverlayfs."),
    (b"user.", b"containers.override_"),
    (b"trusted.", b"plyfs."),
    (b"user.", b"plyfs."),
];

/// The reserved words of a private name, and what follows them.
fn split(name: &[u8]) -> Option<(&'static [u8], &'static [u8], &[u8])> {
    RESERVED.iter().find_map(|(namespace, word)| {
        let rest = name.strip_prefix(*namespace)?.strip_prefix(*word)?;
        Some((*namespace, *word, rest))
    })
}

/// Whether the xattr `name` belongs to a union.
pub fn is_private(name: &[u8]) -> bool {
    split(name).is_some()
}

/// The name under which a layer holds what the mount shows as `name`.
pub fn escape(name: &[u8]) -> Cow<'_, [u8]> {
    match split(name) {
        Some((namespace, word, rest)) => Cow::Owned([namespace, word, word, rest].concat()),
        None => Cow::Borrowed(name),
    }
}

/// The name that the mount shows for a layer's `name`; `None` if it is a union's own.
pub fn unescape(name: &[u8]) -> Option<Cow<'_, [u8]>> {
    match split(name) {
        Some((namespace, word, rest)) => {
            Some(Cow::Owned([namespace, word, rest.strip_prefix(word)?].concat()))
        }
        None => Some(Cow::Borrowed(name)),
    }
}

/// The names in a NUL-separated list.
pub fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0).filter(|name| !name.is_empty())
}

/// What the mount shows of a NUL-separated list as listxattr(2) gives it.
pub fn visible(list: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(list.len());
    for name in names(list).filter_map(unescape) {
        shown.extend_from_slice(&name);
        shown.push(0);
    }
    shown
}

/// Copies all xattrs that are not a union's own from one object to another. Returns their number.
pub fn copy_others(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> sys::Result<usize> {
    copy_with(from, to, |name| unescape(name).map(|_| name.to_vec().into()))
}

/// Copies xattrs, each under the name that `rename` gives; one of none is left out. Returns their
/// number.
pub fn copy_with<'a>(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    rename: impl Fn(&[u8]) -> Option<Cow<'a, [u8]>>,
) -> sys::Result<usize> {
    let list = match sys::list_xattrs(from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(0),
        result => result?,
    };
    let mut copied = 0;
    for name in names(&list) {
        if let Some(new_name) = rename(name) {
            sys::set_xattr(to, &new_name, &sys::get_xattr(from, name)?, 0)?;
            copied += 1;
        }
    }
    Ok(copied)
}

/// Removes what `from` does not have, of those that `is_copied` says.
pub fn drop_excess(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    is_copied: impl Fn(&[u8]) -> bool,
) -> sys::Result<()> {
    let wanted = match sys::list_xattrs(from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        result => result?,
    };
    let found = sys::list_xattrs(to)?;
    for name in names(&found).filter(|name| is_copied(name)) {
        if !names(&wanted).any(|kept| kept == name) {
            sys::remove_xattr(to, name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_names_do_not_show() {
        let list = b"user.a\0trusted.overlay.opaque\0user.overlayed\0user.fuseoverlayfs.x\0";
        assert_eq!(visible(list), b"user.a\0user.overlayed\0");
        assert_eq!(visible(b""), b"");
    }

    #[test]
    fn what_a_user_sets_is_escaped_and_comes_back() {
        let table: &[(&[u8], &[u8])] = &[
            (b"user.note", b"user.note"),
            (b"trusted.overlay.opaque", b"trusted.overlay.overlay.opaque"),
            (b"user.plyfs.redirect", b"user.plyfs.plyfs.redirect"),
            (b"user.overlay.overlay.x", b"user.overlay.overlay.overlay.x"),
            (
                b"user.containers.override_stat",
                b"user.containers.override_containers.override_stat",
            ),
        ];
        for (shown, held) in table {
            assert_eq!(&escape(shown)[..], *held);
            assert_eq!(visible(&[*held, b"\0"].concat()), [*shown, b"\0"].concat());
        }
    }
}
