//! What only ioctl(2) asks of /dev/fuse (`FUSE_DEV_IOC_*` of linux/fuse.h).

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use super::Result;

/// The group of the ioctls' numbers.
const GROUP: u8 = 229;

/// Makes `new`, a /dev/fuse that was just opened, another descriptor of the connection that
/// `device` has (FUSE_DEV_IOC_CLONE).
pub fn clone_fuse_device(new: BorrowedFd<'_>, device: BorrowedFd<'_>) -> Result<()> {
    const NUMBER: Opcode = opcode::read::<u32>(GROUP, 0);
    let descriptor = device.as_raw_fd().cast_unsigned();
    // SAFETY: FUSE_DEV_IOC_CLONE reads a u32.
    let clone = unsafe { rustix::ioctl::Setter::<NUMBER, u32>::new(descriptor) };
    // SAFETY: the kernel takes nothing but that number, and refuses what is no connection.
    unsafe { rustix::ioctl::ioctl(new, clone) }
}

/// Lets the kernel read and write `file` itself; its number is for a reply
/// (FUSE_DEV_IOC_BACKING_OPEN).
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let open = BackingOpen(BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 });
    // SAFETY: `open` is FUSE_DEV_IOC_BACKING_OPEN with the structure that this reads.
    unsafe { rustix::ioctl::ioctl(device, open) }
}

/// Ends that (FUSE_DEV_IOC_BACKING_CLOSE).
pub fn close_backing(device: BorrowedFd<'_>, number: u32) -> Result<()> {
    const NUMBER: Opcode = opcode::write::<u32>(GROUP, 2);
    // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads a u32.
    let close = unsafe { rustix::ioctl::Setter::<NUMBER, u32>::new(number) };
    // SAFETY: the kernel takes nothing but that number, and refuses one that it did not give.
    unsafe { rustix::ioctl::ioctl(device, close) }
}

/// `struct fuse_backing_map`
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

struct BackingOpen(BackingMap);

// SAFETY: the number is that of FUSE_DEV_IOC_BACKING_OPEN, which reads a `struct fuse_backing_map`
// through the pointer and writes nothing; its result is the number of the file.
unsafe impl Ioctl for BackingOpen {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<BackingMap>(GROUP, 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<u32> {
        Ok(out.cast_unsigned())
    }
}
