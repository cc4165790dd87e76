//! One number space for the inodes of several devices.
//!
//! A number is made from the device's place in the order in which the stack shows them and
//! the inode number there, so it is the same in every mount of the same stack:
//!
//! ```text
//! 63      56 55                                   0
//! [ device ][ inode number on that device         ]
//! ```
//!
//! Devices beyond 250 and inode numbers beyond 2^56 (a union as a layer makes them) are
//! hashed into the range whose top byte is 0xff. Number 1 is the root's.

use std::hash::{Hash, Hasher};

use parking_lot::RwLock;

/// An inode number of the union, which is also its FUSE node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The union's root.
    pub const ROOT: Self = Self(1);
}

const DEVICE_SHIFT: u32 = 56;
const MAX_DEVICES: usize = 250;
/// Top byte of the root-like inode 1 of a device, which would collide with [`Ino::ROOT`].
const ONE: u64 = 0xfe;
const HASHED: u64 = 0xff;

/// Gives each (device, inode) its number.
#[derive(Debug, Default)]
pub struct Numbering {
    devices: RwLock<Vec<u64>>,
}

impl Numbering {
    /// The number of inode `ino` on device `dev`.
    pub fn number(&self, dev: u64, ino: u64) -> Ino {
        let place = self.place(dev);
        if ino == 1 {
            return Ino(ONE << DEVICE_SHIFT | place as u64);
        }
        if place < MAX_DEVICES && ino < 1 << DEVICE_SHIFT {
            return Ino((place as u64) << DEVICE_SHIFT | ino);
        }
        // SipHash with fixed keys: the same number after a remount.
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        (place, ino).hash(&mut hasher);
        Ino(HASHED << DEVICE_SHIFT | hasher.finish() >> 8)
    }

    fn place(&self, dev: u64) -> usize {
        if let Some(place) = self.devices.read().iter().position(|d| *d == dev) {
            return place;
        }
        let mut devices = self.devices.write();
        devices.iter().position(|d| *d == dev).unwrap_or_else(|| {
            devices.push(dev);
            devices.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_stay() {
        let numbering = Numbering::default();
        assert_eq!(numbering.number(7, 42), Ino(42));
        assert_eq!(numbering.number(9, 42), Ino(1 << 56 | 42));
        assert_eq!(numbering.number(7, 42), Ino(42));
        assert_ne!(numbering.number(7, 1), Ino::ROOT);
        assert_ne!(numbering.number(9, 1), numbering.number(7, 1));
        let big = numbering.number(7, u64::MAX);
        assert_eq!(big, Numbering::default().number(7, u64::MAX));
        assert_eq!(big.0 >> 56, 0xff);
    }
}
