//! The process on whose behalf something is done, as far as /proc tells of it.

use std::fs;

/// CAP_FSETID of capabilities(7), as a bit.
const FSETID: u64 = 1 << 4;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; 0 if it is not seen from here.
    pub pid: u32,
}

impl Caller {
    /// Whether `gid` is the process's group or one of its supplementary groups.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid
            || self.status("Groups:").is_some_and(|groups| {
                groups.split_whitespace().any(|group| group.parse() == Ok(gid))
            })
    }

    /// Whether the process may keep setuid and setgid bits on what it changes (CAP_FSETID).
    ///
    /// A capability in a user namespace of the process's own is none here. Of a process that
    /// is not seen, root has it.
    pub fn has_fsetid(&self) -> bool {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let (ours, theirs) = (namespace("self"), namespace(&self.pid.to_string()));
        let Some(capabilities) = self.status("CapEff:") else {
            return self.uid == 0;
        };
        let has = u64::from_str_radix(capabilities.trim(), 16).is_ok_and(|set| set & FSETID != 0);
        has && ours == theirs
    }

    fn status(&self, line: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        status.lines().find_map(|found| found.strip_prefix(line)).map(str::to_owned)
    }
}
