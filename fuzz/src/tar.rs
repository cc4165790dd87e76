//! Writing tars, sound or not, and mutating them so that they stay readable.
//!
//! A mutated byte in a header would nearly always end at "bad checksum", and one in a pax record at
//! "malformed": checksums and lengths are put right after most mutations.

/// Everything in a tar comes in blocks of this many bytes.
const BLOCK: usize = 512;

/// One entry, as its header says it.
#[derive(Clone, Debug, Default)]
pub struct Entry<'a> {
    /// The type flag; 0 is a file, as in the oldest tars.
    pub kind: u8,
    /// Its name; one too long for the header is cut.
    pub path: &'a [u8],
    /// Where a link leads.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub mtime: i64,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Records of an extended header.
    pub pax: &'a [(Vec<u8>, Vec<u8>)],
    /// Its data.
    pub data: &'a [u8],
}

/// Appends an entry.
pub fn append(tar: &mut Vec<u8>, entry: &Entry<'_>) {
    if !entry.pax.is_empty() {
        let records: Vec<u8> = entry.pax.iter().flat_map(|(key, value)| pax(key, value)).collect();
        let header = Entry { kind: b'x', path: b"pax", data: &records, ..Entry::default() };
        append(tar, &header);
    }
    let mut header = [0; BLOCK];
    put(&mut header[..100], entry.path);
    put_number(&mut header[100..108], entry.mode.into());
    put_number(&mut header[108..116], entry.owner.0.into());
    put_number(&mut header[116..124], entry.owner.1.into());
    put_number(&mut header[124..136], entry.data.len() as i64);
    put_number(&mut header[136..148], entry.mtime);
    header[156] = entry.kind;
    put(&mut header[157..257], entry.link);
    put(&mut header[257..265], b"ustar\x0000");
    put_number(&mut header[329..337], entry.device.0.into());
    put_number(&mut header[337..345], entry.device.1.into());
    put_checksum(&mut header);
    tar.extend_from_slice(&header);
    tar.extend_from_slice(entry.data);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// A file of an archive.
pub fn append_file(tar: &mut Vec<u8>, path: &str, data: &[u8]) {
    append(tar, &Entry { kind: b'0', path: path.as_bytes(), data, ..Entry::default() });
}

fn put(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Octal digits, or base 256 for what needs more of them.
fn put_number(field: &mut [u8], number: i64) {
    let digits = format!("{number:0width$o}", width = field.len() - 1);
    if number >= 0 && digits.len() < field.len() {
        return put(field, digits.as_bytes());
    }
    let fill = if number < 0 { 0xff } else { 0 };
    field.fill(fill);
    let bytes = number.to_be_bytes();
    let len = bytes.len().min(field.len());
    let (from, to) = (bytes.len() - len, field.len() - len);
    field[to..].copy_from_slice(&bytes[from..]);
    field[0] |= 0x80;
}

fn put_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut header[148..156], format!("{sum:06o}\0 ").as_bytes());
}

/// A record `LEN KEY=VALUE\n`.
pub fn pax(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A libFuzzer mutator for tars; `mutate_bytes` is libFuzzer's own.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutate_bytes: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let blocks = size / BLOCK;
    let pick = |shift: u32| (seed >> shift) as usize % blocks.max(1) * BLOCK;
    let size = match seed % 8 {
        _ if blocks == 0 => mutate_bytes(data, size, max_size),
        0..=3 => {
            let block = &mut data[pick(8)..][..BLOCK];
            mutate_bytes(block, BLOCK, BLOCK);
            size
        }
        4 if size + BLOCK <= max_size => {
            let (from, to) = (pick(8), pick(16));
            let block = data[from..from + BLOCK].to_vec();
            data.copy_within(to..size, to + BLOCK);
            data[to..to + BLOCK].copy_from_slice(&block);
            size + BLOCK
        }
        5 => {
            let from = pick(8);
            data.copy_within(from + BLOCK..size, from);
            size - BLOCK
        }
        _ => mutate_bytes(data, size, max_size),
    };
    if seed >> 24 & 7 != 0 {
        repair(&mut data[..size]);
    }
    size
}

/// Puts checksums, and the lengths of pax records, right.
pub fn repair(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            continue;
        }
        put_checksum(header);
        let kind = header[156];
        let digits = header[124..136].iter().take_while(|byte| (b'0'..=b'7').contains(*byte));
        let size = digits.fold(0_usize, |size, digit| size << 3 | usize::from(digit - b'0'));
        let end = at.saturating_add(size).min(tar.len());
        if matches!(kind, b'x' | b'g') {
            repair_pax(&mut tar[at..end]);
        }
        at = end.next_multiple_of(BLOCK);
    }
}

/// Gives each line's first word the line's length, as far as its digits reach.
fn repair_pax(records: &mut [u8]) {
    for line in records.split_inclusive_mut(|byte| *byte == b'\n') {
        let Some(digits) = line.iter().position(|byte| *byte == b' ') else { continue };
        let len = format!("{:0digits$}", line.len());
        if len.len() == digits {
            line[..digits].copy_from_slice(len.as_bytes());
        }
    }
}
