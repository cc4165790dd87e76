//! How results are printed: columns, or JSON.

use clap::ValueEnum;

use crate::store::digest::ImageId;
use crate::store::reference::Name;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Text for people
    #[default]
    Table,
    /// One JSON object per line
    Json,
}

/// What a name or digest is shown as where there is none.
pub(super) const NONE: &str = "<none>";
/// Digits of a shortened ID.
pub(super) const SHORT_ID: usize = 12;

/// Prints a JSON object that tells of an image that was read or written.
pub(super) fn say_image(id: &ImageId, names: &[Name]) -> anyhow::Result<()> {
    let names: Vec<String> = names.iter().map(Name::to_string).collect();
    let line = serde_json::json!({ "ID": id.to_string(), "Names": names });
    super::say(format_args!("{line}"))
}

/// Prints rows under headings, three spaces between columns.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: &[[String; N]],
) -> anyhow::Result<()> {
    let shown: Vec<[String; N]> =
        rows.iter().map(|row| std::array::from_fn(|n| super::shown(row[n].as_ref()))).collect();
    let width = |n: usize| {
        let cells = shown.iter().map(|row| row[n].chars().count());
        cells.chain([headings[n].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (n, cell) in cells.iter().enumerate() {
            match n + 1 == N {
                true => line.push_str(cell),
                false => line.push_str(&format!("{cell:width$}   ", width = widths[n])),
            }
        }
        super::say(format_args!("{}", line.trim_end()))
    };
    line(headings)?;
    shown.iter().try_for_each(|row| line(std::array::from_fn(|n| row[n].as_str())))
}

/// Bytes in decimal units with three significant digits, as docker shows them.
pub(super) fn human_size(bytes: u64) -> String {
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

/// A time in RFC 3339 as docker's JSON has it: `2020-01-23 16:53:06 +0000 UTC`.
pub(super) fn docker_time(time: Option<&str>) -> String {
    let time = time.and_then(|t| t.parse::<jiff::Timestamp>().ok());
    time.map_or_else(|| "N/A".to_owned(), |t| t.strftime("%F %T +0000 UTC").to_string())
}

/// How long ago a time in RFC 3339 was, in words, as docker says it.
pub(super) fn human_since(time: Option<&str>) -> String {
    let then = time.and_then(|t| t.parse::<jiff::Timestamp>().ok()).map(|t| t.as_second());
    match then.filter(|then| *then > 0) {
        Some(then) => format!("{} ago", human_duration(jiff::Timestamp::now().as_second() - then)),
        None => "N/A".to_owned(),
    }
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
