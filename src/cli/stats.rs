//! `plyfs stats`.

use std::path::PathBuf;

use anyhow::Context;

use super::output::OutputFormat;
use crate::fuse::STATS_XATTR;

/// Arguments of `plyfs stats`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the tree is mounted
    mountpoint: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Room for the counts: a line is at most 40 bytes.
const MAX_TEXT: usize = 4096;

/// Runs `plyfs stats`.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let shown = args.mountpoint.display();
    let absolute = args.mountpoint.canonicalize().with_context(|| format!("{shown}"))?;
    if !super::umount::is_plyfs(&absolute) {
        anyhow::bail!("{shown}: no plyfs tree is mounted there");
    }
    let mut text = vec![0; MAX_TEXT];
    let len = rustix::fs::getxattr(&absolute, STATS_XATTR, &mut text[..])
        .with_context(|| format!("ask the mount on {shown}"))?;
    text.truncate(len);
    let text = String::from_utf8(text).context("counts are text")?;
    let counts = text.lines().filter_map(|line| line.split_once(' '));
    match args.format {
        OutputFormat::Table => {
            super::say(format_args!("{:15}   COUNT", "REQUEST"))?;
            for (name, count) in counts {
                super::say(format_args!("{name:15}   {count}"))?;
            }
            Ok(())
        }
        OutputFormat::Json => {
            let counts: serde_json::Map<String, serde_json::Value> = counts
                .filter_map(|(name, count)| {
                    Some((name.to_owned(), count.parse::<u64>().ok()?.into()))
                })
                .collect();
            super::say(format_args!("{}", serde_json::Value::Object(counts)))
        }
    }
}
