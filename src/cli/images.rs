//! `plyfs images`, as docker prints it.

use std::path::Path;

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

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum OutputFormat {
    /// Columns
    #[default]
    Table,
    /// One JSON object per line
    Json,
}

const NONE: &str = "<none>";
/// Digits of a shortened ID.
const SHORT_ID: usize = 12;

/// Runs `plyfs images`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let images = Store::open(root)?.images()?;
    let now = jiff::Timestamp::now().as_second();
    let rows: Vec<Row> = images.iter().map(|image| Row::new(image, args.no_trunc, now)).collect();
    if args.quiet {
        return rows.iter().try_for_each(|row| super::say(format_args!("{}", row.id)));
    }
    match args.format {
        OutputFormat::Table => print_table(&rows),
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
    fn new(image: &ImageSummary, whole_id: bool, now: i64) -> Self {
        let (repository, tag) = match &image.name {
            Some(name) => (name.repository().to_owned(), name.tag().to_owned()),
            None => (NONE.to_owned(), NONE.to_owned()),
        };
        let id =
            if whole_id { image.id.to_string() } else { image.id.hex()[..SHORT_ID].to_owned() };
        let created = image.created.as_deref().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let created = created.filter(|t| t.as_second() > 0);
        Self {
            repository,
            tag,
            id,
            created_at: image.created.clone().unwrap_or_default(),
            created_since: created.map_or("N/A".to_owned(), |t| {
                format!("{} ago", human_duration(now - t.as_second()))
            }),
            size: human_size(image.size),
        }
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

fn print_table(rows: &[Row]) -> anyhow::Result<()> {
    let width = |cell: fn(&Row) -> &String, head: &str| {
        rows.iter().map(|row| cell(row).len()).chain([head.len()]).max().unwrap_or(0)
    };
    let repository = width(|r| &r.repository, "REPOSITORY");
    let tag = width(|r| &r.tag, "TAG");
    let id = width(|r| &r.id, "IMAGE ID");
    let created = width(|r| &r.created_since, "CREATED");
    let line = |cells: [&str; 5]| {
        let [a, b, c, d, e] = cells;
        super::say(format_args!("{a:repository$}   {b:tag$}   {c:id$}   {d:created$}   {e}"))
    };
    line(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"])?;
    rows.iter().try_for_each(|row| {
        line([&row.repository, &row.tag, &row.id, &row.created_since, &row.size])
    })
}

/// Bytes in decimal units with three significant digits, as docker shows them.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let mut digits = format!("{value:.decimals$}");
    if digits.contains('.') {
        digits.truncate(digits.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{digits}{}", UNITS[unit])
}

/// A span of seconds in words, as docker says it.
fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_prints_them() {
        let table = [
            (0, "0B"),
            (999, "999B"),
            (1840, "1.84kB"),
            (5_580_000, "5.58MB"),
            (13_000_000, "13MB"),
            (133_000_000, "133MB"),
            (1_000_000_000, "1GB"),
        ];
        for (bytes, expected) in table {
            assert_eq!(human_size(bytes), expected);
        }
    }

    #[test]
    fn spans_as_docker_says_them() {
        let table = [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (100 * 86_400, "3 months"),
            (1000 * 86_400, "2 years"),
        ];
        for (seconds, expected) in table {
            assert_eq!(human_duration(seconds), expected);
        }
    }
}
