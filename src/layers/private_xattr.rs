//! Extended attributes that unions keep for themselves: never listed, read, or set through
//! a mount, so that no user and no image can forge one.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno};

/// Name prefixes reserved by the kernel's overlayfs, fuse-overlayfs and plyfs.
const PREFIXES: [&[u8]; 5] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
    b"trusted.plyfs.",
    b"user.plyfs.",
];

/// Whether the xattr `name` belongs to a union.
pub fn is_private(name: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The visible part of a NUL-separated list as listxattr(2) gives it.
pub fn visible(list: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(list.len());
    for name in list.split_inclusive(|b| *b == 0) {
        if !is_private(name) {
            shown.extend_from_slice(name);
        }
    }
    shown
}

/// Copies all xattrs that are not private from one object to another.
pub fn copy_others(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> sys::Result<()> {
    let list = match sys::list_xattrs(from) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        result => result?,
    };
    for name in visible(&list).split(|b| *b == 0).filter(|name| !name.is_empty()) {
        sys::set_xattr(to, name, &sys::get_xattr(from, name)?, 0)?;
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
}
