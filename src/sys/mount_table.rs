//! What is mounted where, as /proc tells the calling thread (proc_pid_mountinfo(5)).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Device of the filesystem, `MAJOR:MINOR`.
    pub device: Vec<u8>,
    /// Its type, with the subtype.
    pub fs_type: Vec<u8>,
}

/// What is mounted on this absolute path, the topmost last.
pub fn mounted_on(absolute: &Path) -> std::io::Result<Vec<MountEntry>> {
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| parse(line, absolute.as_os_str().as_bytes())).collect())
}

/// Reads a line, if it is that of a mount on `path`.
fn parse(line: &[u8], path: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?.to_vec();
    let mountpoint = unescape_octal(fields.nth(1)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?.to_vec();
    (mountpoint == path).then_some(MountEntry { device, fs_type })
}

/// Undoes the mount table's `\ooo` for space, tab, newline and backslash.
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
    fn a_line_of_the_table() {
        let line =
            b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 - fuse.plyfs src rw,errors=x";
        let entry = parse(line, b"/mnt/a b").unwrap();
        assert_eq!((&entry.device[..], &entry.fs_type[..]), (&b"98:0"[..], &b"fuse.plyfs"[..]));
        assert_eq!(parse(line, b"/mnt/a"), None);
        assert_eq!(parse(b"", b"/"), None);
    }

    #[test]
    fn what_is_mounted_is_seen() {
        let proc = mounted_on(Path::new("/proc")).unwrap();
        assert!(proc.iter().any(|entry| entry.fs_type == b"proc"));
        assert_eq!(mounted_on(Path::new("/proc/self")).unwrap(), []);
    }
}
