//! `plyfs umount`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fuse;

/// Arguments of `plyfs umount`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the tree is mounted
    #[arg(required = true)]
    mountpoint: Vec<PathBuf>,
    /// Detach now, even if it is in use; it goes when nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
}

/// How long a mountpoint may take to vanish from the mount table.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `plyfs umount`.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    for mountpoint in &args.mountpoint {
        // A dead mount (ENOTCONN) cannot be resolved, but its path is still the mountpoint.
        let absolute = mountpoint.canonicalize().or_else(|_| std::path::absolute(mountpoint))?;
        if !is_plyfs(&absolute) {
            anyhow::bail!("unmount {}: no plyfs tree is mounted there", mountpoint.display());
        }
        fuse::unmount(&absolute, args.lazy)?;
        let give_up = Instant::now() + PATIENCE;
        while is_plyfs(&absolute) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Whether a tree of plyfs is mounted on this absolute path: by its type, or, where it has
/// another's (`subtype=`), by what it answers.
pub(super) fn is_plyfs(absolute: &Path) -> bool {
    let answers = || rustix::fs::getxattr(absolute, fuse::STATS_XATTR, &mut [0u8; 0][..]).is_ok();
    is_mounted(absolute, |on_type| on_type == fuse::FS_TYPE.as_bytes())
        || is_mounted(absolute, |on_type| on_type.starts_with(b"fuse.")) && answers()
}

/// Whether a filesystem of such a type is mounted on this absolute path.
fn is_mounted(absolute: &Path, is_type: impl Fn(&[u8]) -> bool) -> bool {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else {
        return false;
    };
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mountpoint = fields.nth(4).map(unescape_octal);
        let on_type = fields.skip_while(|field| *field != b"-").nth(1);
        mountpoint.is_some_and(|path| path == absolute.as_os_str().as_bytes())
            && on_type.is_some_and(&is_type)
    })
}

/// Undoes the mount table's `\ooo` for space, tab, newline and backslash (proc(5)).
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if *byte == b'\\' => {
                plain.push(code);
                rest = &after[3..];
            }
            _ => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_escapes_spaces() {
        assert_eq!(unescape_octal(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape_octal(br"/plain"), b"/plain");
        assert_eq!(unescape_octal(br"/odd\9"), br"/odd\9");
    }

    #[test]
    fn what_is_mounted_is_seen() {
        assert!(is_mounted(Path::new("/proc"), |on| on == b"proc"));
        assert!(!is_plyfs(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self"), |on| on == b"proc"));
    }
}
