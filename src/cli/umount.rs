//! `plyfs umount`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fuse;
use crate::sys;

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
    super::for_each(&args.mountpoint, |mountpoint| {
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
        Ok(())
    })
}

/// Whether a tree of plyfs is mounted on this absolute path: by its type, or, where it has
/// another's (`subtype=`), by what it answers.
pub(super) fn is_plyfs(absolute: &Path) -> bool {
    let answers = || rustix::fs::getxattr(absolute, fuse::STATS_XATTR, &mut [0u8; 0][..]).is_ok();
    let mounts = sys::mounted_on(absolute).unwrap_or_default();
    let is = |is_type: fn(&[u8]) -> bool| mounts.iter().any(|entry| is_type(&entry.fs_type));
    is(|on_type| on_type == fuse::FS_TYPE.as_bytes())
        || is(|on_type| on_type.starts_with(b"fuse.")) && answers()
}
