//! How many requests of each kind the kernel has sent: what an operation costs, whatever the
//! machine's noise. `plyfs stats` reads the counts through the mount, as the xattr
//! [`STATS_XATTR`] of its root: a line `NAME COUNT` for each kind that was asked.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::Opcode;

/// Of the root alone; no list names it.
pub const STATS_XATTR: &str = "user.plyfs.stats";

/// One more than the largest number of a kind.
const KINDS: usize = Opcode::CopyFileRange as usize + 1;

/// The counts, by the kinds' numbers.
#[derive(Debug)]
pub(super) struct Stats([AtomicU64; KINDS]);

impl Default for Stats {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }
}

impl Stats {
    pub(super) fn count(&self, kind: Opcode) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts that are not 0, in lines.
    pub(super) fn tell(&self) -> String {
        let mut text = String::new();
        for kind in Opcode::ALL {
            let count = self.0[*kind as usize].load(Ordering::Relaxed);
            if count > 0 {
                let _ = writeln!(text, "{} {count}", kind.name()); // a String takes it
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_count() {
        let stats = Stats::default();
        for kind in Opcode::ALL {
            stats.count(*kind);
        }
        stats.count(Opcode::CopyFileRange);
        let told = stats.tell();
        assert_eq!(told.lines().count(), Opcode::ALL.len());
        assert!(told.starts_with("LOOKUP 1\n") && told.ends_with("COPY_FILE_RANGE 2\n"), "{told}");
    }
}
