//! Tar entries, byte by byte: what no tar program writes can be written here.

/// Everything in a tar comes in blocks of this many bytes.
const BLOCK: usize = 512;

/// What an entry says, before it becomes bytes. Owner, mode and time are none that anything
/// beside the store has: whoever applies one of them to a wrong file is seen.
#[derive(Clone)]
pub struct TarEntry {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    /// Numeric fields that are written as they are: where, what.
    fields: Vec<(usize, Vec<u8>)>,
    pax: Vec<u8>,
    /// Written instead of all else.
    raw: Option<Vec<u8>>,
}

impl TarEntry {
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let (name, link) = (name.as_ref().to_vec(), Vec::new());
        let (fields, pax, data) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, name, link, data, mode: 0o777, fields, pax, raw: None }
    }

    pub fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// A record of its pax header.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.extend(pax_record(key.as_bytes(), value.as_ref()));
        self
    }

    /// The size field as it is, whatever the data's length.
    pub fn size(mut self, field: &[u8]) -> Self {
        self.fields.push((124, field.to_vec()));
        self
    }

    /// Any field as it is: its offset in the header, its bytes.
    pub fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.fields.push((at, bytes.to_vec()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut pax = self.pax.clone();
        for (key, value) in [(&b"path"[..], &self.name), (b"linkpath", &self.link)] {
            if value.len() > 100 {
                pax.extend(pax_record(key, value));
            }
        }
        let mut bytes = Vec::new();
        if !pax.is_empty() {
            let header = Self { name: b"pax".to_vec(), link: Vec::new(), ..self.clone() };
            let header = Self { kind: b'x', data: pax, pax: Vec::new(), fields: vec![], ..header };
            bytes = header.bytes();
        }
        bytes.extend(self.header());
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, b"0010222"); // 4242
        put(116, b"0010222");
        put(124, format!("{:011o}", self.data.len()).as_bytes());
        put(136, b"12345670123");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, b"0000001"); // 1:3, /dev/null
        put(337, b"0000003");
        for (at, bytes) in &self.fields {
            put(*at, bytes);
        }
        put(148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// `LEN KEY=VALUE\n`, LEN being the whole record's length.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A regular file.
pub fn file(name: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'0', name).data("hit")
}

pub fn dir(name: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'5', name)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'2', name).link(target)
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'1', name).link(target)
}

pub fn fifo(name: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'6', name)
}

/// A character device, /dev/null's numbers.
pub fn device(name: impl AsRef<[u8]>) -> TarEntry {
    TarEntry::new(b'3', name)
}

/// Bytes that stand where an entry is expected.
pub fn raw(bytes: Vec<u8>) -> TarEntry {
    TarEntry { raw: Some(bytes), ..file("") }
}

/// One entry of each kind under a name; what they hold or point to is harmless.
pub fn each_kind(name: &str) -> Vec<TarEntry> {
    vec![
        file(name),
        dir(name),
        symlink(name, "own"),
        hard_link(name, "own"),
        fifo(name),
        device(name),
        TarEntry::new(b'4', name),
    ]
}

/// A layer's tar.
pub fn tar(entries: &[TarEntry]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(TarEntry::bytes).collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}
