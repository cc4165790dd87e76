//! Listings.

use super::super::abi::{Attr, ReadIn};
use super::super::convert;
use super::super::reply::{self, ListedName, Reply};
use super::super::request::Request;
use super::{Ops, Result};
use crate::overlay::DirEntry;

impl Ops {
    pub(super) fn readdir(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let ReadIn { offset, size, .. } = request.structure()?;
        self.overlay.readdir(request.ino(), offset, |entry: &DirEntry| {
            let taken = reply.name(size as usize, &listed(entry)).is_ok_and(|taken| taken);
            if taken && entry.counted {
                self.overlay.forget(entry.ino, 1); // READDIR makes no references
            }
            taken
        })?;
        Ok(())
    }

    pub(super) fn readdirplus(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<()> {
        let ReadIn { offset, size, .. } = request.structure()?;
        let seems_walked = offset == 0 && self.overlay.seems_walked(request.ino());
        self.overlay.readdir(request.ino(), offset, |entry: &DirEntry| {
            let attr = match &entry.attr {
                Some(attr) => reply::entry(attr.ino.0, &convert::attr(attr), self.ttl),
                // Node 0: no attributes come with the name.
                None => reply::entry(0, &Attr::default(), self.ttl),
            };
            let name = ListedName { attr: Some(attr), ..listed(entry) };
            reply.name(size as usize, &name).is_ok_and(|taken| taken)
        })?;
        if seems_walked {
            self.ahead.give([request.ino()]);
        }
        Ok(())
    }
}

fn listed(entry: &DirEntry) -> ListedName<'_> {
    ListedName {
        name: &entry.name,
        ino: entry.ino,
        kind: entry.kind,
        cookie: entry.cookie,
        attr: None,
    }
}
