//! `plyfs images`, as docker prints it.

use std::path::Path;

use super::output::{NONE, OutputFormat, SHORT_ID, docker_time, human_since, human_size, table};
use crate::store::Store;
use crate::store::images::ImageSummary;

/// Arguments of `plyfs images`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// Runs `plyfs images`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let images = Store::open(root)?.images()?;
    let rows: Vec<Row> = images.iter().map(|image| Row::new(image, args.no_trunc)).collect();
    if args.quiet {
        return rows.iter().try_for_each(|row| super::say(format_args!("{}", row.id)));
    }
    match args.format {
        OutputFormat::Table => {
            let rows: Vec<_> = rows.into_iter().map(Row::cells).collect();
            table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &rows)
        }
        OutputFormat::Json => {
            rows.iter().try_for_each(|row| super::say(format_args!("{}", row.json())))
        }
    }
}

struct Row {
    repository: String,
    tag: String,
    id: String,
    created_at: String,
    created_since: String,
    size: String,
}

impl Row {
    fn new(image: &ImageSummary, whole_id: bool) -> Self {
        let (repository, tag) = match &image.name {
            Some(name) => (name.repository().to_owned(), name.tag().to_owned()),
            None => (NONE.to_owned(), NONE.to_owned()),
        };
        let id =
            if whole_id { image.id.to_string() } else { image.id.hex()[..SHORT_ID].to_owned() };
        Self {
            repository,
            tag,
            id,
            created_at: docker_time(image.created.as_deref()),
            created_since: human_since(image.created.as_deref()),
            size: human_size(image.size),
        }
    }

    fn cells(self) -> [String; 5] {
        [self.repository, self.tag, self.id, self.created_since, self.size]
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "Containers": "N/A",
            "CreatedAt": self.created_at,
            "CreatedSince": self.created_since,
            "Digest": NONE,
            "ID": self.id,
            "Repository": self.repository,
            "SharedSize": "N/A",
            "Size": self.size,
            "Tag": self.tag,
            "UniqueSize": "N/A",
        })
    }
}
