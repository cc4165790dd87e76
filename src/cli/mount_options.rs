//! The mount program's command line, as fuse-overlayfs and mount(8) write it:
//! `PROG -o OPTS MOUNTPOINT`, `PROG SOURCE MOUNTPOINT -o OPTS`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::fuse::{Allow, MountFlag};
use crate::overlay::{Atime, UpperForm};

/// What the options ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) lowers: Vec<PathBuf>,
    pub(super) upper: Option<PathBuf>,
    pub(super) work: Option<PathBuf>,
    pub(super) form: UpperForm,
    pub(super) volatile: bool,
    pub(super) atime: Atime,
    pub(super) fsname: Option<String>,
    pub(super) allow: Option<Allow>,
    pub(super) flags: Vec<MountFlag>,
    /// Options that have no meaning here, to be warned of.
    pub(super) unknown: Vec<String>,
}

/// A mount program's whole command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) options: Options,
    pub(super) source: Option<String>,
    pub(super) mountpoint: PathBuf,
    pub(super) foreground: bool,
    pub(super) debug: bool,
}

/// Options that belong to mount(8) or fstab, or that say what is so anyway.
const ACCEPTED: [&str; 19] = [
    "rw",
    "dev",
    "suid",
    "exec",
    "async",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nodiratime",
    "private",
    "default_permissions",
    "nonempty",
];

/// Options of fuse-overlayfs whose silent loss would change what a program sees.
const REFUSED: [&str; 7] = [
    "uidmapping",
    "gidmapping",
    "squash_to_root",
    "squash_to_uid",
    "squash_to_gid",
    "xattr_permissions",
    "context",
];

/// Whether the arguments are a mount program's rather than a verb's.
pub(super) fn is_mount_program_call(args: &[OsString], verbs: &[&str]) -> bool {
    let is_verb = |arg: &OsString| verbs.iter().any(|verb| arg == verb);
    match args.get(1) {
        Some(first) if is_verb(first) || first.as_bytes().starts_with(b"--") => false,
        _ => args.iter().skip(1).any(|arg| arg.as_bytes().starts_with(b"-o")),
    }
}

impl Call {
    /// Reads the arguments after the program's name.
    pub(super) fn parse(args: &[OsString]) -> anyhow::Result<Self> {
        let mut call = Self::default();
        let mut positional: Vec<&OsString> = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_bytes() {
                b"-f" => call.foreground = true,
                b"-d" | b"--debug" => (call.foreground, call.debug) = (true, true),
                b"-o" => {
                    let options = rest.next().context("-o needs options after it")?;
                    call.options.add(options)?;
                }
                [b'-', b'o', options @ ..] => call.options.add(OsStr::from_bytes(options))?,
                [b'-', _, ..] => bail!("unknown option {}", super::shown(arg)),
                _ => positional.push(arg),
            }
        }
        match positional[..] {
            [mountpoint] => call.mountpoint = mountpoint.into(),
            [source, mountpoint] => {
                call.source = Some(source.to_string_lossy().into_owned());
                call.mountpoint = mountpoint.into();
            }
            [] => bail!("no mountpoint given"),
            [_, _, third, ..] => bail!("unexpected argument {}", super::shown(third)),
        }
        call.options.check()?;
        Ok(call)
    }
}

impl Options {
    /// Adds one `-o` argument.
    fn add(&mut self, options: &OsStr) -> anyhow::Result<()> {
        for option in split_unescaped(options.as_bytes(), b',') {
            if !option.is_empty() {
                self.add_one(option)?;
            }
        }
        Ok(())
    }

    fn add_one(&mut self, option: &[u8]) -> anyhow::Result<()> {
        let (name, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let needed = || value.with_context(|| format!("option {name} needs a value"));
        match name.as_str() {
            "lowerdir" => {
                let dirs = split_unescaped(needed()?, b':');
                self.lowers.extend(dirs.filter(|dir| !dir.is_empty()).map(unescape));
            }
            "upperdir" => self.upper = Some(unescape(needed()?)),
            "workdir" => self.work = Some(unescape(needed()?)),
            "fsname" => {
                self.fsname = Some(unescape(needed()?).to_string_lossy().into_owned());
            }
            "remount" => bail!(
                "a mount is not changed by its mount program: unmount it and mount it anew, or use mount -i -o remount"
            ),
            "volatile" => self.volatile = true,
            "noatime" | "atime" | "relatime" | "strictatime" => self.set_atime(&name),
            "rich" => self.form = UpperForm::Rich,
            "allow_other" => self.allow = Some(Allow::Everybody),
            "allow_root" => self.allow = Some(Allow::OwnerAndRoot),
            _ if REFUSED.contains(&name.as_str()) => {
                bail!(
                    "option {name} is not supported: this mount would show other owners than asked for"
                )
            }
            _ => self.add_flag(&name, value.is_some()),
        }
        Ok(())
    }

    /// The union follows the policy; the kernel's flag only shows it in /proc/mounts.
    fn set_atime(&mut self, name: &str) {
        self.flags.retain(|flag| *flag != MountFlag::NoAtime);
        self.atime = match name {
            "noatime" => Atime::Never,
            "strictatime" => Atime::Always,
            _ => Atime::Relative,
        };
        if self.atime == Atime::Never {
            self.flags.push(MountFlag::NoAtime);
        }
    }

    fn add_flag(&mut self, name: &str, has_value: bool) {
        let flag = match name {
            "ro" => MountFlag::ReadOnly,
            "nodev" => MountFlag::NoDev,
            "nosuid" => MountFlag::NoSuid,
            "noexec" => MountFlag::NoExec,
            "sync" => MountFlag::Sync,
            "dirsync" => MountFlag::DirSync,
            _ if !has_value && ACCEPTED.contains(&name) => {
                return self.flags.retain(|flag| !undoes(name, *flag));
            }
            _ if name.starts_with("x-") || name == "comment" => return,
            _ => return self.unknown.push(name.to_owned()),
        };
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        match (&self.upper, &self.work) {
            (Some(_), None) => bail!("upperdir= needs workdir=, on the same filesystem"),
            (None, Some(_)) => bail!("workdir= makes no sense without upperdir="),
            (None, None) if self.lowers.is_empty() => bail!("no lowerdir= given"),
            _ => Ok(()),
        }
    }
}

/// Whether the option `name`, coming later, takes `flag` back.
fn undoes(name: &str, flag: MountFlag) -> bool {
    matches!(
        (name, flag),
        ("rw", MountFlag::ReadOnly)
            | ("dev", MountFlag::NoDev)
            | ("suid", MountFlag::NoSuid)
            | ("exec", MountFlag::NoExec)
            | ("async", MountFlag::Sync)
    )
}

/// Splits at each `separator` that no backslash precedes; the parts keep their backslashes.
fn split_unescaped(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut escaped = false;
    text.split(move |byte| {
        let splits = *byte == separator && !escaped;
        escaped = *byte == b'\\' && !escaped;
        splits
    })
}

/// Takes each backslash away that escapes the byte after it.
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next().or(Some(byte))),
            _ => plain.push(*byte),
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> anyhow::Result<Call> {
        Call::parse(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn as_podman_writes_it() {
        let call = parse(&["-o", "lowerdir=l/A:l/B,upperdir=U,workdir=W,,volatile,", "M"]).unwrap();
        assert_eq!(call.options.lowers, [PathBuf::from("l/A"), "l/B".into()]);
        assert_eq!(call.options.upper, Some("U".into()));
        assert_eq!(call.options.work, Some("W".into()));
        assert!(call.options.volatile);
        assert_eq!(call.mountpoint, PathBuf::from("M"));
        assert_eq!((call.source, call.options.unknown.len()), (None, 0));
    }

    #[test]
    fn as_mount_8_writes_it() {
        let call =
            parse(&["src", "/m", "-o", "rw,dev,suid,lowerdir=a", "-oro,nosuid,fsname=x\\,y"])
                .unwrap();
        assert_eq!(call.source.as_deref(), Some("src"));
        assert_eq!(call.options.flags, [MountFlag::ReadOnly, MountFlag::NoSuid]);
        assert_eq!(call.options.fsname.as_deref(), Some("x,y"));
    }

    #[test]
    fn escapes() {
        let call = parse(&["-o", r"lowerdir=a\:b:c\,d:e\\", "m"]).unwrap();
        assert_eq!(call.options.lowers, [PathBuf::from("a:b"), "c,d".into(), r"e\".into()]);
    }

    #[test]
    fn a_later_option_takes_an_earlier_one_back() {
        let call = parse(&["-o", "lowerdir=a,ro,nodev,rw", "m"]).unwrap();
        assert_eq!(call.options.flags, [MountFlag::NoDev]);
    }

    #[test]
    fn mistakes_are_named() {
        let table: &[(&[&str], &str)] = &[
            (&["-o", "lowerdir=a"], "no mountpoint"),
            (&["-o"], "-o needs"),
            (&["-o", "upperdir=u,lowerdir=l", "m"], "needs workdir"),
            (&["-o", "ro", "m"], "no lowerdir"),
            (&["-o", "lowerdir", "m"], "lowerdir needs a value"),
            (&["-x", "-o", "lowerdir=a", "m"], "unknown option -x"),
            (&["-o", "lowerdir=a,uidmapping=0:1:2", "m"], "uidmapping is not supported"),
            (&["a", "b", "c", "-o", "lowerdir=a"], "unexpected argument c"),
        ];
        for (line, expected) in table {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
        assert_eq!(parse(&["-o", "lowerdir=a,zap=1", "m"]).unwrap().options.unknown, ["zap"]);
    }

    #[test]
    fn a_verb_is_no_mount_program_call() {
        let verbs = ["mount"];
        let is = |line: &[&str]| {
            let args: Vec<_> = std::iter::once(&"plyfs").chain(line).map(OsString::from).collect();
            is_mount_program_call(&args, &verbs)
        };
        assert!(is(&["-o", "lowerdir=a", "m"]));
        assert!(is(&["src", "m", "-o", "lowerdir=a"]));
        assert!(!is(&["mount", "-o", "x"]));
        assert!(!is(&["--version"]));
        assert!(!is(&["lod"]));
    }
}
