//! Paths below a layer's root: bytes, components separated by `/`, the root itself empty.

/// The directory and the name; both empty for the root.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The path of a name in a directory.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Makes a directory's path that of a name in it; `truncate` to the length before goes back.
pub fn push(dir: &mut Vec<u8>, name: &[u8]) {
    if !dir.is_empty() {
        dir.push(b'/');
    }
    dir.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (path, dir, name) in [("", "", ""), ("a", "", "a"), ("a/b/c", "a/b", "c")] {
            assert_eq!(split(path.as_bytes()), (dir.as_bytes(), name.as_bytes()));
            assert_eq!(join(dir.as_bytes(), name.as_bytes()), path.as_bytes());
            let mut at = dir.as_bytes().to_vec();
            push(&mut at, name.as_bytes());
            assert_eq!(at, path.as_bytes());
        }
    }
}
