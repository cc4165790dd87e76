//! `plyfs history`, as docker prints it.

use std::path::Path;

use super::output::{OutputFormat, SHORT_ID, human_since, human_size, table};
use crate::store::Store;

/// Arguments of `plyfs history`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    image: String,
    /// Print whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: OutputFormat,
}

/// What docker prints in the place of the IDs of images that there are none of.
const MISSING: &str = "<missing>";
/// Letters of a command that a line has room for.
const COMMAND_WIDTH: usize = 45;

struct Row {
    id: String,
    created: Option<String>,
    command: String,
    size: u64,
    comment: String,
}

/// Runs `plyfs history`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let lock = store.lock_shared()?;
    let rows = rows(&store, args)?;
    drop(lock);
    match args.format {
        OutputFormat::Table => {
            let cells = |row: Row| {
                let since = human_since(row.created.as_deref());
                [row.id, since, row.command, human_size(row.size), row.comment]
            };
            let rows: Vec<_> = rows.into_iter().map(cells).collect();
            table(["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)
        }
        OutputFormat::Json => rows.iter().try_for_each(|row| {
            let line = serde_json::json!({
                "Comment": row.comment,
                "CreatedAt": row.created.as_deref().unwrap_or_default(),
                "CreatedBy": row.command,
                "CreatedSince": human_since(row.created.as_deref()),
                "ID": row.id,
                "Size": human_size(row.size),
            });
            super::say(format_args!("{line}"))
        }),
    }
}

/// The newest step first. Layers that the history does not tell of are steps too.
fn rows(store: &Store, args: &Args) -> anyhow::Result<Vec<Row>> {
    let id = store.find_image(&args.image)?;
    let mut sizes = Vec::new();
    for chain in store.chain_ids(&id)? {
        sizes.push(store.layer_size(&chain)?);
    }
    let mut sizes = sizes.into_iter();
    let mut rows = Vec::new();
    for step in store.config(&id)?.history {
        let size = if step.empty_layer { None } else { sizes.next() };
        let whole = step.created_by.unwrap_or_default();
        let command = if args.no_trunc { whole } else { shortened(&whole) };
        rows.push(Row {
            id: MISSING.to_owned(),
            created: step.created,
            command,
            size: size.unwrap_or(0),
            comment: step.comment.unwrap_or_default(),
        });
    }
    rows.extend(sizes.map(|size| Row {
        id: MISSING.to_owned(),
        created: None,
        command: String::new(),
        size,
        comment: String::new(),
    }));
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        newest.id = if args.no_trunc { id.to_string() } else { id.hex()[..SHORT_ID].to_owned() };
    }
    Ok(rows)
}

fn shortened(command: &str) -> String {
    let words = command.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(COMMAND_WIDTH) {
        Some(_) => {
            let kept: String = words.chars().take(COMMAND_WIDTH - 1).collect();
            format!("{kept}…")
        }
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shortened_by_letters() {
        assert_eq!(shortened("/bin/sh -c  #(nop)\tCMD"), "/bin/sh -c #(nop) CMD");
        let long = shortened(&"ä".repeat(50));
        assert_eq!((long.chars().count(), long.ends_with('…')), (COMMAND_WIDTH, true));
        assert_eq!(shortened(&"a".repeat(45)), "a".repeat(45));
    }
}
