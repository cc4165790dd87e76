//! The operations of a run, and how they are drawn.

use rand::Rng;
use rand::rngs::SmallRng;

/// Names that operations choose from.
const NAMES: [&str; 15] =
    ["a", "b", "big", "c", "d", "f", "g", "h", "h2", "s", "x", "y", "own", "e", "new"];
/// Files that a run keeps open at a time.
pub const SLOTS: usize = 3;

/// What rename(2) does to a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Replace,
    NoReplace,
    Exchange,
}

/// One operation. `usize` is the slot of an open file.
#[derive(Clone, Debug)]
pub enum Op {
    Create(String),
    Write(String, u64, u8),
    Truncate(String, u64),
    Chmod(String, u32),
    Chown(String, u32, u32),
    SetTime(String, i64),
    SetXattr(String, u8),
    RemoveXattr(String),
    Mkdir(String),
    Fifo(String),
    Symlink(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, How),
    Link(String, String),
    Open(usize, String),
    OpenWrite(usize, u64, u8),
    OpenTruncate(usize, u64),
    OpenChmod(usize, u32),
    OpenPunch(usize, u64, u64),
    OpenRead(usize),
    Close(usize),
    /// Unmount and mount again.
    Remount,
    /// Unmount, make upper the topmost lower layer, and mount with a new upper.
    Stack,
}

/// What a run has beside the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// Hard links.
    Links,
    /// The upper layer becomes a lower one, now and then.
    Stacking,
}

fn path(rng: &mut SmallRng) -> String {
    let depth = rng.random_range(1..=3);
    let parts: Vec<_> = (0..depth).map(|_| NAMES[rng.random_range(0..NAMES.len())]).collect();
    parts.join("/")
}

/// Draws one; a chown only where the process may do it.
pub fn random(rng: &mut SmallRng, is_root: bool, with: With) -> Op {
    let at = path(rng);
    let slot = rng.random_range(0..SLOTS);
    let byte = rng.random_range(b'A'..=b'Z');
    let mut small = |limit: u64| rng.random_range(0..limit);
    match small(48) {
        0..5 => Op::Create(at),
        5..11 => Op::Write(at, small(20), byte),
        11 => Op::Truncate(at, small(8)),
        // A directory that an ordinary user may not search would end the comparison.
        12 => Op::Chmod(at, [0o700, 0o744, 0o755, 0o2711][small(4) as usize]),
        13 if is_root => Op::Chown(at, small(3) as u32, small(3) as u32),
        13 | 14 => Op::SetTime(at, small(1000) as i64),
        15 => Op::SetXattr(at, byte),
        16 => Op::RemoveXattr(at),
        17..22 => Op::Mkdir(at),
        22 => Op::Fifo(at),
        23 => Op::Symlink(at),
        24..29 => Op::Unlink(at),
        29..32 => Op::Rmdir(at),
        32..38 => {
            let how = match small(5) {
                0 => How::Exchange,
                1 => How::NoReplace,
                _ => How::Replace,
            };
            Op::Rename(at, path(rng), how)
        }
        38 if with == With::Links => Op::Link(at, path(rng)),
        38 => Op::Stack,
        39 | 40 => Op::Open(slot, at),
        41 => Op::OpenWrite(slot, small(20), byte),
        42 => Op::OpenTruncate(slot, small(8)),
        43 => Op::OpenChmod(slot, [0o600, 0o640, 0o4755][small(3) as usize]),
        44 => Op::OpenPunch(slot, small(8), 1 + small(8)),
        45 => Op::OpenRead(slot),
        46 => Op::Close(slot),
        _ => Op::Remount,
    }
}
