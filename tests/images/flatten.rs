//! An independent flattening: from layer tars, by the rules of the OCI image-spec, to the
//! tree that a mount must show. Shares no code with the loader or the union.

use std::collections::BTreeMap;
use std::io::Read;

use sha2::{Digest, Sha256};

/// What a path must show. `None` where the layers do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: char,
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: Option<(i64, u32)>,
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Paths and the nodes that they name; hard links name the same.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub paths: BTreeMap<Vec<u8>, usize>,
    pub nodes: Vec<Node>,
}

/// Unites layers, the lowest first.
pub fn flatten(layers: &[Vec<u8>]) -> Tree {
    let mut tree = Tree::default();
    for layer in layers {
        let below = tree.paths.clone();
        tree.apply_marks(layer);
        for (path, at) in tree.own_entries(layer, &below) {
            tree.put(path, at);
        }
    }
    tree
}

fn clean(path: &[u8]) -> Vec<u8> {
    let parts: Vec<_> =
        path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    parts.join(&b"/"[..])
}

fn parent(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path[..end].to_vec()
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap()
}

/// Whether a path is one of the private files of AUFS that old layers hold.
fn is_of_aufs(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').any(|name| name.starts_with(b".wh..wh.") && name != b".wh..wh..opq")
}

impl Tree {
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.paths.get(path).map(|at| &self.nodes[*at])
    }

    /// Whiteouts act on the layers below, wherever they stand in the tar.
    fn apply_marks(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().unwrap() {
            let path = clean(&entry.unwrap().path_bytes());
            if is_of_aufs(&path) {
                continue;
            }
            let dir = parent(&path);
            match name(&path).strip_prefix(b".wh.") {
                Some(b".wh..opq") => self.remove_below(&dir),
                Some(hidden) => {
                    let hidden = if dir.is_empty() {
                        hidden.to_vec()
                    } else {
                        [&dir, &b"/"[..], hidden].concat()
                    };
                    self.paths.remove(&hidden);
                    self.remove_below(&hidden);
                }
                None => {}
            }
        }
    }

    fn remove_below(&mut self, dir: &[u8]) {
        let prefix = if dir.is_empty() { Vec::new() } else { [dir, b"/"].concat() };
        self.paths.retain(|path, _| !path.starts_with(&prefix) || path.is_empty());
    }

    /// What a layer has by itself, the last of each name; `None` for a directory that no entry
    /// lists. A hard link leads to an earlier entry of the layer, else to what is `below`.
    fn own_entries(
        &mut self,
        layer: &[u8],
        below: &BTreeMap<Vec<u8>, usize>,
    ) -> BTreeMap<Vec<u8>, Option<usize>> {
        let mut own: BTreeMap<Vec<u8>, Option<usize>> = BTreeMap::new();
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = clean(&entry.path_bytes());
            for at in (0..path.len()).filter(|at| path[*at] == b'/') {
                let is_dir = |at: &Option<usize>| at.is_none_or(|at| self.nodes[at].kind == 'd');
                if !own.get(&path[..at]).is_some_and(is_dir) {
                    own.insert(path[..at].to_vec(), None);
                }
            }
            let header = entry.header().clone();
            let at = if header.entry_type().is_hard_link() {
                let target = clean(&entry.link_name_bytes().unwrap());
                let earlier = own.get(&target).copied().flatten();
                match earlier.or(below.get(&target).copied()) {
                    Some(at) => at,
                    None if name(&path).starts_with(b".wh.") => continue, // a mark, whatever it is
                    None => panic!("a hard link to nothing: {}", target.escape_ascii()),
                }
            } else {
                self.nodes.push(node(&mut entry, &header));
                self.nodes.len() - 1
            };
            if self.nodes[at].kind != 'd' {
                let inside = [&path, &b"/"[..]].concat();
                own.retain(|known, _| !known.starts_with(&inside));
            }
            own.insert(path, Some(at));
        }
        own.retain(|path, _| !name(path).starts_with(b".wh.") && !is_of_aufs(path));
        own
    }

    /// A directory that no entry lists keeps what is below, or is root's, 0755.
    fn put(&mut self, path: Vec<u8>, at: Option<usize>) {
        let was_dir = self.get(&path).is_some_and(|node| node.kind == 'd');
        let at = match at {
            Some(at) => at,
            None if was_dir || path.is_empty() => return,
            None => {
                self.nodes.push(Node {
                    kind: 'd',
                    mode: 0o755,
                    owner: (0, 0),
                    mtime: None,
                    content: String::new(),
                    xattrs: BTreeMap::new(),
                });
                self.nodes.len() - 1
            }
        };
        if self.nodes[at].kind != 'd' {
            self.remove_below(&path);
        }
        self.paths.insert(path, at);
    }
}

fn node(entry: &mut tar::Entry<'_, &[u8]>, header: &tar::Header) -> Node {
    let mut mtime = (header.mtime().unwrap_or(0) as i64, 0);
    let mut xattrs = BTreeMap::new();
    if let Some(records) = entry.pax_extensions().unwrap() {
        for record in records.flatten() {
            let key = record.key().unwrap();
            if key == "mtime" {
                mtime = pax_time(record.value().unwrap());
            } else if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), record.value_bytes().to_vec());
            }
        }
    }
    let link = entry.link_name_bytes().unwrap_or_default().escape_ascii().to_string();
    let number = |field: std::io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
    let device = (number(header.device_major()), number(header.device_minor()));
    let (kind, content) = match header.entry_type() {
        kind if kind.is_dir() => ('d', String::new()),
        kind if kind.is_symlink() => ('l', link),
        kind if kind.is_fifo() => ('p', String::new()),
        kind if kind.is_character_special() => ('c', format!("{device:?}")),
        kind if kind.is_block_special() => ('b', format!("{device:?}")),
        _ => {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            ('f', digest(&data))
        }
    };
    Node {
        kind,
        mode: if kind == 'l' { 0o777 } else { header.mode().unwrap() & 0o7777 },
        owner: (header.uid().unwrap(), header.gid().unwrap()),
        mtime: Some(mtime),
        content,
        xattrs,
    }
}

fn pax_time(text: &str) -> (i64, u32) {
    let seconds: f64 = text.parse().unwrap();
    let whole = seconds.floor();
    let fraction = text.split_once('.').map_or("", |(_, digits)| digits);
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().unwrap();
    let nanos = if text.starts_with('-') && nanos > 0 { 1_000_000_000 - nanos } else { nanos };
    (whole as i64, nanos)
}

/// What a file of this content shows.
pub fn digest(data: &[u8]) -> String {
    let hash: Vec<String> = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
    format!("{} {}", data.len(), hash.concat())
}
