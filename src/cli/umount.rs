//! `plyfs umount`.

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
        if !is_mounted(&absolute, "") {
            anyhow::bail!("unmount {}: not mounted", mountpoint.display());
        }
        fuse::unmount(&absolute, args.lazy)?;
        let give_up = Instant::now() + PATIENCE;
        while is_mounted(&absolute, fuse::FS_TYPE) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Whether a filesystem whose type begins with `fs_type` is mounted on this absolute path.
pub(super) fn is_mounted(absolute: &Path, fs_type: &str) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    table.lines().any(|line| {
        let mut fields = line.split(' ');
        let mountpoint = fields.nth(4).map(unescape_octal);
        let on_type = fields.skip_while(|field| *field != "-").nth(1);
        mountpoint.is_some_and(|path| Path::new(&path) == absolute)
            && on_type.is_some_and(|on| on.starts_with(fs_type))
    })
}

/// Undoes the mount table's `\ooo` for space, tab, newline and backslash (proc(5)).
fn unescape_octal(field: &str) -> String {
    let mut plain = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_escapes_spaces() {
        assert_eq!(unescape_octal(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape_octal(r"/plain"), "/plain");
        assert_eq!(unescape_octal(r"/odd\9"), r"/odd\9");
    }

    #[test]
    fn what_is_mounted_is_seen() {
        assert!(is_mounted(Path::new("/proc"), "proc"));
        assert!(!is_mounted(Path::new("/proc"), "fuse.plyfs"));
        assert!(!is_mounted(Path::new("/proc/self"), ""));
    }
}
