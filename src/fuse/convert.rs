//! Between the union's types and the wire's.

use super::abi;
use crate::overlay::Attr;
use crate::sys::Timestamp;

pub(super) fn attr(attr: &Attr) -> abi::Attr {
    let stat = &attr.stat;
    abi::Attr {
        ino: attr.ino.0,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.secs.cast_unsigned(),
        mtime: stat.mtime.secs.cast_unsigned(),
        ctime: stat.ctime.secs.cast_unsigned(),
        atimensec: stat.atime.nanos,
        mtimensec: stat.mtime.nanos,
        ctimensec: stat.ctime.nanos,
        mode: attr.kind.as_raw_mode() | stat.permissions(),
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// A time as the kernel sends it; negative before 1970.
pub(super) fn time(secs: u64, nanos: u32) -> Timestamp {
    Timestamp { secs: secs.cast_signed(), nanos }
}

/// The kernel's 32-bit form of a device number: minor in bits 0-7 and 20-31, major in 8-19.
pub(super) fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The inverse of [`encode_device`].
pub(super) fn decode_device(rdev: u32) -> u64 {
    rustix::fs::makedev((rdev & 0xf_ff00) >> 8, rdev & 0xff | (rdev >> 12) & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_with_large_numbers_survive() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xf_ffff)] {
            let rdev = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(rdev)), rdev, "{major}:{minor}");
        }
    }
}
