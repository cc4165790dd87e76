//! INIT, the first request: both sides say what they can do.

use std::io;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, InHeader, InitIn, InitOut, Opcode, OutHeader, init};
use super::device::Device;

/// Largest WRITE in bytes: what the kernel's default page limit (256) allows.
const MAX_WRITE: u32 = 1 << 20;
/// What a request must have room for: an xattr's value and name (limits.h). In a ring the kernel
/// fails badly else.
const XATTR_MAX: usize = 65_536 + 256;
/// The kernel takes no less.
const MIN_WRITE: u32 = 4096;
/// What files the kernel may read and write itself: those of filesystems that stand on others, too.
const STACK_DEPTH: u32 = 2;
/// Read-ahead and other background requests in flight at a time; the kernel counts as congested
/// what has three quarters of it.
const MAX_BACKGROUND: u16 = 64;
/// Times are as exact as their fields.
const NANOSECOND: u32 = 1;

/// What a mount wants of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// ACLs, which the kernel then checks.
    pub(super) acls: bool,
    /// That the kernel reads and writes the real files itself.
    pub(super) passthrough: bool,
    /// Largest WRITE in bytes.
    pub(super) max_write: Option<u32>,
    /// That requests come by io_uring: where the kernel offers it, or not at all.
    pub(super) ring: bool,
}

/// What both sides agreed upon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// Largest data of a request or a reply, in bytes.
    pub(super) payload_size: usize,
    /// Requests come by io_uring.
    pub(super) ring: bool,
}

/// Why they did not agree.
#[derive(Debug, thiserror::Error)]
pub(super) enum Disagreement {
    #[error("the kernel has no FUSE_PASSTHROUGH")]
    NoPassthrough,
    #[error("the kernel's FUSE is too old (Linux 5.1 has what it takes)")]
    TooOld,
    #[error("INIT: {0}")]
    Io(#[from] io::Error),
}

/// Answers INIT.
pub(super) fn shake_hands(device: &Device, terms: &Terms) -> Result<Agreed, Disagreement> {
    let mut buffer = vec![0; abi::MIN_READ_BUFFER];
    loop {
        let Some(size) = device.receive(&mut buffer)? else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let (header, offer) = parse(&buffer[..size])?;
        // A newer kernel asks again, in our version.
        if offer.major > abi::VERSION {
            let ours = InitOut { major: abi::VERSION, minor: abi::MINOR, ..Default::default() };
            reply(device, header.unique, &ours)?;
            continue;
        }
        return match agree(&offer, terms) {
            Ok((answer, agreed)) => {
                reply(device, header.unique, &answer)?;
                Ok(agreed)
            }
            Err(error) => {
                let refusal = OutHeader::error(header.unique, Errno::PROTONOSUPPORT);
                device.send(&refusal, &[]).map_err(io::Error::from)?;
                Err(error)
            }
        };
    }
}

/// The header, and what the kernel offers: older ones tell less of it.
fn parse(message: &[u8]) -> io::Result<(InHeader, InitIn)> {
    let malformed = || io::Error::other("the first request is not INIT");
    let (header, body) = InHeader::read_from_prefix(message).map_err(|_| malformed())?;
    if header.opcode != Opcode::Init as u32 {
        return Err(malformed());
    }
    let mut offer = InitIn::default();
    let size = body.len().min(size_of::<InitIn>());
    offer.as_mut_bytes()[..size].copy_from_slice(&body[..size]);
    Ok((header, offer))
}

fn agree(offer: &InitIn, terms: &Terms) -> Result<(InitOut, Agreed), Disagreement> {
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(offer.flags2) << 32;
    }
    let open = match terms.passthrough {
        true => init::PASSTHROUGH,
        false => init::NO_OPEN_SUPPORT,
    };
    if offer.major < abi::VERSION || offered & init::NO_OPENDIR_SUPPORT == 0 {
        return Err(Disagreement::TooOld);
    }
    if offered & open == 0 {
        return Err(match terms.passthrough {
            true => Disagreement::NoPassthrough,
            false => Disagreement::TooOld,
        });
    }
    let wanted = init::ASYNC_READ
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::HAS_IOCTL_DIR
        | init::DO_READDIRPLUS
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::NO_OPENDIR_SUPPORT
        | init::EXPLICIT_INVAL_DATA
        | init::HANDLE_KILLPRIV_V2
        | init::INIT_EXT
        | open
        | if terms.acls { init::POSIX_ACL } else { 0 }
        | if terms.ring { init::OVER_IO_URING } else { 0 };
    let flags = wanted & offered;
    let max_write = terms.max_write.unwrap_or(MAX_WRITE).clamp(MIN_WRITE, MAX_WRITE);
    let page_size = rustix::param::page_size();
    let max_readahead = offer.max_readahead.min(MAX_WRITE);
    let max_data = (max_write.max(max_readahead) as usize).max(XATTR_MAX);
    let max_pages = max_data.div_ceil(page_size);
    let reply = InitOut {
        major: abi::VERSION,
        minor: abi::MINOR.min(offer.minor),
        max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write,
        time_gran: NANOSECOND,
        max_pages: u16::try_from(max_pages).unwrap_or(u16::MAX),
        max_stack_depth: if terms.passthrough { STACK_DEPTH } else { 0 },
        ..Default::default()
    };
    log::debug!("INIT: offered {offer:x?}, agreed upon {reply:x?}");
    Ok((
        reply,
        Agreed { payload_size: max_pages * page_size, ring: flags & init::OVER_IO_URING != 0 },
    ))
}

fn reply(device: &Device, unique: u64, answer: &InitOut) -> io::Result<()> {
    let body = answer.as_bytes();
    Ok(device.send(&OutHeader::reply(unique, body.len()), body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Terms = Terms { acls: false, passthrough: false, max_write: None, ring: false };

    fn offer(flags: u64) -> InitIn {
        let (flags, flags2) = (flags as u32, (flags >> 32) as u32);
        InitIn { major: 7, minor: 45, max_readahead: 131_072, flags, flags2, unused: [0; 11] }
    }

    const NEEDED: u64 = init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT;

    #[test]
    fn only_what_is_offered_and_wanted() {
        let (reply, agreed) = agree(&offer(NEEDED | init::POSIX_ACL | 1 << 16), &PLAIN).unwrap();
        assert_eq!(u64::from(reply.flags), NEEDED);
        assert!(!agreed.ring);
        let terms = Terms { acls: true, ring: true, ..PLAIN };
        let all = NEEDED | init::POSIX_ACL | init::INIT_EXT | init::OVER_IO_URING;
        let (reply, agreed) = agree(&offer(all), &terms).unwrap();
        assert_eq!(u64::from(reply.flags) | u64::from(reply.flags2) << 32, all);
        assert!(agreed.ring);
        // Without INIT_EXT the upper half means nothing.
        assert!(!agree(&offer(NEEDED | init::OVER_IO_URING), &terms).unwrap().1.ring);
    }

    #[test]
    fn kernels_that_lack_something() {
        let passthrough = Terms { passthrough: true, ..PLAIN };
        let too_old = |result| matches!(result, Err(Disagreement::TooOld));
        assert!(too_old(agree(&offer(init::NO_OPENDIR_SUPPORT), &PLAIN)));
        assert!(too_old(agree(&offer(init::NO_OPEN_SUPPORT), &PLAIN)));
        assert!(too_old(agree(&InitIn { major: 6, ..offer(NEEDED) }, &PLAIN)));
        let lacks = agree(&offer(NEEDED), &passthrough);
        assert!(matches!(lacks, Err(Disagreement::NoPassthrough)));
    }

    #[test]
    fn sizes() {
        let size = |max_write| {
            let (reply, agreed) = agree(&offer(NEEDED), &Terms { max_write, ..PLAIN }).unwrap();
            assert!(agreed.payload_size >= (reply.max_write as usize).max(65_536 + 256));
            reply.max_write
        };
        assert_eq!(size(None), 1 << 20);
        assert_eq!(size(Some(65_536)), 65_536);
        assert_eq!(size(Some(1)), 4096);
        assert_eq!(size(Some(u32::MAX)), 1 << 20);
    }
}
