//! The mount program's command line, as fuse-overlayfs and mount(8) write it:
//! `PROG -o OPTS MOUNTPOINT`, `PROG SOURCE MOUNTPOINT -o OPTS`.
//!
//! What an option of fuse-overlayfs, libfuse or mount(8) means there it means here, or it is
//! refused with the reason; others are warned of, for callers pass what they have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::fuse::{Allow, Idle, Io, MountFlag, Priority, Uring};
use crate::layers::override_stat::OverrideXattr;
use crate::overlay::{Atime, Overrides, Ownership, UpperForm};

/// What the options ask for.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) lowers: Vec<PathBuf>,
    pub(super) upper: Option<PathBuf>,
    pub(super) work: Option<PathBuf>,
    pub(super) form: UpperForm,
    pub(super) volatile: bool,
    pub(super) atime: Atime,
    pub(super) ownership: Ownership,
    pub(super) no_acl: bool,
    pub(super) no_xattrs: bool,
    pub(super) static_nlink: bool,
    pub(super) fsname: Option<String>,
    pub(super) subtype: Option<String>,
    pub(super) contexts: Vec<String>,
    pub(super) allow: Option<Allow>,
    pub(super) flags: Vec<MountFlag>,
    pub(super) auto_unmount: bool,
    /// How long the kernel may believe names and attributes; no limit if unset.
    pub(super) timeout: Option<Duration>,
    pub(super) threads: Option<usize>,
    pub(super) max_write: Option<u32>,
    pub(super) io: Io,
    pub(super) idle: Idle,
    pub(super) priority: Priority,
    /// How requests come from the kernel.
    pub(super) uring: Uring,
    pub(super) foreground: bool,
    pub(super) debug: bool,
    /// Options that have no meaning here, to be warned of.
    pub(super) unknown: Vec<String>,
    squash_to_root: bool,
    squash_to_uid: Option<u32>,
    squash_to_gid: Option<u32>,
}

/// A mount program's whole command line.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) options: Options,
    pub(super) source: Option<String>,
    pub(super) mountpoint: PathBuf,
}

/// What a mount program is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// A mount.
    Mount(Box<Call>),
    /// The version (`-V`).
    Version,
    /// How it is called (`-h`).
    Help,
}

/// Options that belong to mount(8) or fstab, or that say what is so anyway.
const ACCEPTED: [&str; 21] = [
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
    "clone_fd",
    "xino",
];

/// The name under which the program is fuse-overlayfs, whatever its arguments.
const RIVAL: &str = "fuse-overlayfs";
/// The name by which mount(8) finds a helper for the type `fuse.plyfs`.
const HELPER: &str = "mount.fuse.plyfs";

/// The program's name as it was called, without directories.
pub(super) fn name_of(args: &[OsString]) -> &OsStr {
    let first = args.first().map(std::path::Path::new);
    first.and_then(|path| path.file_name()).unwrap_or(OsStr::new("plyfs"))
}

/// Whether the program was called as fuse-overlayfs.
pub(super) fn is_called_fuse_overlayfs(args: &[OsString]) -> bool {
    name_of(args) == RIVAL
}

/// Whether the arguments are a mount program's rather than a verb's.
pub(super) fn is_mount_program_call(args: &[OsString], verbs: &[&str]) -> bool {
    if is_called_fuse_overlayfs(args) || name_of(args) == HELPER {
        return true;
    }
    let is_verb = |arg: &OsString| verbs.iter().any(|verb| arg == verb);
    match args.get(1) {
        Some(first) if is_verb(first) || first.as_bytes().starts_with(b"--") => false,
        _ => args.iter().skip(1).any(|arg| arg.as_bytes().starts_with(b"-o")),
    }
}

/// Reads the arguments after the program's name.
pub(super) fn parse(args: &[OsString]) -> anyhow::Result<Request> {
    let is = |short: &str, long: &str| args.iter().any(|arg| arg == short || arg == long);
    if is("-V", "--version") {
        return Ok(Request::Version);
    }
    if is("-h", "--help") {
        return Ok(Request::Help);
    }
    Call::parse(args).map(|call| Request::Mount(Box::new(call)))
}

impl Call {
    fn parse(args: &[OsString]) -> anyhow::Result<Self> {
        let mut call = Self::default();
        let mut positional: Vec<&OsString> = Vec::new();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match arg.as_bytes() {
                b"-f" => call.options.foreground = true,
                b"-d" | b"--debug" => call.options.debug = true,
                b"-s" => call.options.threads = Some(1),
                // mount(8) passes them to its helpers: no mtab, sloppy, verbose, type.
                b"-n" | b"-v" => {}
                b"-t" => drop(rest.next().context("-t needs a type after it")?),
                b"-o" => {
                    let options = rest.next().context("-o needs options after it")?;
                    call.options.add(options)?;
                }
                [b'-', b'o', options @ ..] => call.options.add(OsStr::from_bytes(options))?,
                b"--" => positional.extend(rest.by_ref()),
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
        call.options.finish()?;
        Ok(call)
    }
}

impl Options {
    /// Adds one `-o` argument.
    fn add(&mut self, options: &OsStr) -> anyhow::Result<()> {
        for option in split_options(options.as_bytes()) {
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
        let value = Value { option: &name, bytes: value };
        match name.as_str() {
            "lowerdir" => {
                let dirs = split_unescaped(value.needed()?, b':');
                self.lowers.extend(dirs.filter(|dir| !dir.is_empty()).map(unescape));
            }
            "upperdir" => self.upper = Some(unescape(value.needed()?)),
            "workdir" => self.work = Some(unescape(value.needed()?)),
            "volatile" => self.volatile = value.flag()?,
            "fsync" => self.volatile = !value.switch()?,
            "rich" if value.flag()? => self.form = UpperForm::Rich,
            "redirect_dir" => match value.text()?.as_str() {
                "off" => self.form = UpperForm::Plain,
                _ => bail!("only redirect_dir=off is supported; -o rich has upper hold redirects"),
            },
            "noatime" | "atime" | "relatime" | "strictatime" if value.flag()? => {
                self.set_atime(&name)
            }
            "static_nlink" => self.static_nlink = value.flag()?,
            _ if self.add_owner_option(&value)? || self.add_wire_option(&value)? => {}
            _ => return self.add_flag(&value),
        }
        Ok(())
    }

    /// Who owns what the mount shows, and what else a file has beside its content.
    fn add_owner_option(&mut self, value: &Value<'_>) -> anyhow::Result<bool> {
        match value.option {
            "uidmapping" => self.ownership.uids = value.parsed()?,
            "gidmapping" => self.ownership.gids = value.parsed()?,
            "squash_to_root" => self.squash_to_root = value.flag()?,
            "squash_to_uid" => self.squash_to_uid = Some(value.parsed()?),
            "squash_to_gid" => self.squash_to_gid = Some(value.parsed()?),
            "xattr_permissions" => {
                self.ownership.overrides = match value.text()?.as_str() {
                    "0" => Overrides::No,
                    "1" => Overrides::In(OverrideXattr::Privileged),
                    "2" => Overrides::In(OverrideXattr::Containers),
                    other => bail!("xattr_permissions is 0, 1 or 2, not {other}"),
                }
            }
            "noacl" => self.no_acl = value.flag()?,
            "noxattrs" => self.no_xattrs = value.switch()?,
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                let context = value.text()?;
                self.contexts.push(format!("{}={context}", value.option));
            }
            // Numbers are always unique, last, and cost no look at the file below.
            "xino" if value.bytes.is_some() => match value.text()?.as_str() {
                "on" | "off" | "auto" => {}
                other => bail!("xino is on, off or auto, not {other}"),
            },
            "fast_ino" => drop(value.switch()?),
            "ino32_t" => bail!(
                "ino32_t is not supported: inode numbers have 64 bits here, and would not be unique in 32"
            ),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// How the mount is made and talks to the kernel.
    fn add_wire_option(&mut self, value: &Value<'_>) -> anyhow::Result<bool> {
        match value.option {
            "fsname" => self.fsname = Some(value.unescaped()?),
            "subtype" => self.subtype = Some(value.unescaped()?),
            "allow_other" if value.flag()? => self.allow = Some(Allow::Everybody),
            "allow_root" if value.flag()? => self.allow = Some(Allow::OwnerAndRoot),
            "auto_unmount" => self.auto_unmount = value.flag()?,
            "timeout" => {
                let seconds: f64 = value.parsed()?;
                let timeout = Duration::try_from_secs_f64(seconds);
                self.timeout = Some(timeout.with_context(|| format!("timeout={seconds}"))?);
            }
            "threaded" => self.threads = (!value.switch()?).then_some(1),
            "max_threads" => {
                let threads = value.parsed()?;
                ensure!((1..=MAX_THREADS).contains(&threads), "max_threads is 1 to {MAX_THREADS}");
                self.threads = Some(threads);
            }
            "max_write" => {
                let bytes = value.parsed()?;
                ensure!(bytes >= MIN_MAX_WRITE, "max_write is at least {MIN_MAX_WRITE} bytes");
                self.max_write = Some(bytes);
            }
            "io" => {
                self.io = match value.text()?.as_str() {
                    "auto" | "cache" => Io::Cache,
                    "passthrough" => Io::Passthrough,
                    other => bail!("io is auto, cache or passthrough, not {other}"),
                }
            }
            "idle" => {
                self.idle = match value.text()?.as_str() {
                    "sleep" => Idle::Sleep,
                    "poll" => Idle::Poll,
                    other => bail!("idle is sleep or poll, not {other}"),
                }
            }
            "priority" => {
                self.priority = match value.text()?.as_str() {
                    "high" => Priority::High,
                    "normal" => Priority::Normal,
                    other => bail!("priority is high or normal, not {other}"),
                }
            }
            "io_uring" => {
                self.uring = match value.bytes {
                    None | Some(b"on") => Uring::On,
                    Some(b"auto") => Uring::Auto,
                    Some(b"off") => Uring::Off,
                    Some(_) => bail!("io_uring is auto, on or off, not {}", value.text()?),
                }
            }
            // What is written is cached by the kernel in any case, and passed on at once.
            "writeback" => drop(value.switch()?),
            "max_idle_threads" => drop(value.parsed::<i64>()?),
            "debug" => self.debug = value.flag()?,
            "plugins" => bail!("plugins are not supported: layers are directories here"),
            "remount" => bail!(
                "a mount is not changed by its mount program: unmount it and mount it anew, or use mount -i -o remount"
            ),
            _ => return Ok(false),
        }
        Ok(true)
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

    fn add_flag(&mut self, value: &Value<'_>) -> anyhow::Result<()> {
        let name = value.option;
        let flag = match name {
            "ro" => MountFlag::ReadOnly,
            "nodev" => MountFlag::NoDev,
            "nosuid" => MountFlag::NoSuid,
            "noexec" => MountFlag::NoExec,
            "sync" => MountFlag::Sync,
            "dirsync" => MountFlag::DirSync,
            _ if ACCEPTED.contains(&name) => {
                value.flag()?;
                self.flags.retain(|flag| !undoes(name, *flag));
                return Ok(());
            }
            _ if name.starts_with("x-") || name == "comment" => return Ok(()),
            _ => {
                self.unknown.push(name.to_owned());
                return Ok(());
            }
        };
        value.flag()?;
        if !self.flags.contains(&flag) {
            self.flags.push(flag);
        }
        Ok(())
    }

    /// Checks what belongs together, once all is read.
    fn finish(&mut self) -> anyhow::Result<()> {
        let root = self.squash_to_root.then_some(0);
        let squash = [
            (&mut self.ownership.uids, self.squash_to_uid.or(root)),
            (&mut self.ownership.gids, self.squash_to_gid.or(root)),
        ];
        for (map, id) in squash {
            id.into_iter().for_each(|id| map.squash_to(id));
        }
        self.foreground |= self.debug;
        match (&self.upper, &self.work) {
            (Some(_), None) => bail!("upperdir= needs workdir=, on the same filesystem"),
            (None, Some(_)) => bail!("workdir= makes no sense without upperdir="),
            (None, None) if self.lowers.is_empty() => bail!("no lowerdir= given"),
            _ => Ok(()),
        }
    }
}

/// More threads than that only wait.
const MAX_THREADS: usize = 256;
/// What the kernel takes at least (FUSE_MIN_READ_BUFFER).
const MIN_MAX_WRITE: u32 = 8192;

/// An option's value, if it has one.
struct Value<'a> {
    option: &'a str,
    bytes: Option<&'a [u8]>,
}

impl Value<'_> {
    fn needed(&self) -> anyhow::Result<&[u8]> {
        self.bytes.with_context(|| format!("option {} needs a value", self.option))
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(self.needed()?).into_owned())
    }

    fn unescaped(&self) -> anyhow::Result<String> {
        Ok(unescape(self.needed()?).to_string_lossy().into_owned())
    }

    fn parsed<T>(&self) -> anyhow::Result<T>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let text = self.text()?;
        text.parse().with_context(|| format!("option {}={text}", self.option))
    }

    /// That there is none: `volatile=0` would say the opposite of what it does.
    fn flag(&self) -> anyhow::Result<bool> {
        ensure!(self.bytes.is_none(), "option {} takes no value", self.option);
        Ok(true)
    }

    /// `0` or `1`, with or without a value.
    fn switch(&self) -> anyhow::Result<bool> {
        match self.bytes {
            None | Some(b"1") => Ok(true),
            Some(b"0") => Ok(false),
            Some(_) => bail!("option {} is 0 or 1, not {}", self.option, self.text()?),
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

/// Splits options at commas, but for escaped ones and those in a quoted context (`context="…"`,
/// for SELinux's categories have commas).
fn split_options(text: &[u8]) -> Vec<&[u8]> {
    let (mut options, mut start) = (Vec::new(), 0);
    let (mut escaped, mut quoted) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if quoted || text[start..at].ends_with(b"context=") => quoted = !quoted,
            b',' if !escaped && !quoted => {
                options.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        escaped = *byte == b'\\' && !escaped;
    }
    options.push(&text[start..]);
    options
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
    fn owners() {
        let options =
            |text: &str| parse(&["-o", &format!("lowerdir=a,{text}"), "m"]).unwrap().options;
        let shown = |text: &str| {
            let Ownership { uids, gids, .. } = options(text).ownership;
            (uids.shown(7), gids.shown(7))
        };
        assert_eq!(shown(""), (7, 7));
        assert_eq!(shown("uidmapping=:0:1000:10,gidmapping=:0:2000:10"), (1007, 2007));
        assert_eq!(shown("squash_to_root"), (0, 0));
        assert_eq!(shown("squash_to_gid=5"), (7, 5));
        assert_eq!(shown("squash_to_uid=9,squash_to_root"), (9, 0));
        let overrides = |text: &str| options(text).ownership.overrides;
        assert_eq!(overrides(""), Overrides::AsLayers);
        assert_eq!(overrides("xattr_permissions=0"), Overrides::No);
        assert_eq!(overrides("xattr_permissions=1"), Overrides::In(OverrideXattr::Privileged));
        assert_eq!(overrides("xattr_permissions=2"), Overrides::In(OverrideXattr::Containers));
    }

    #[test]
    fn what_fuse_overlayfs_and_libfuse_know() {
        let text = "lowerdir=a,fsync=0,threaded=0,timeout=1.5,noxattrs=1,static_nlink,noacl,\
                    fast_ino=1,writeback=1,xino=auto,redirect_dir=off,max_write=65536,subtype=s,\
                    clone_fd,max_idle_threads=-1,auto_unmount,default_permissions";
        let options = parse(&["-o", text, "m"]).unwrap().options;
        assert!(options.volatile && options.no_xattrs && options.no_acl && options.static_nlink);
        assert!(options.auto_unmount && options.unknown.is_empty(), "{:?}", options.unknown);
        assert_eq!((options.threads, options.max_write), (Some(1), Some(65536)));
        assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(options.subtype.as_deref(), Some("s"));
        let options = parse(&["-o", "lowerdir=a,volatile,fsync=1,noxattrs=0,threaded=1", "m"]);
        let options = options.unwrap().options;
        assert!(!options.volatile && !options.no_xattrs && options.threads.is_none());
    }

    #[test]
    fn a_context_has_commas() {
        let call = parse(&["-o", r#"lowerdir=a,context="u:r:t:s0:c1,c2",ro"#, "m"]).unwrap();
        assert_eq!(call.options.contexts, [r#"context="u:r:t:s0:c1,c2""#]);
        assert_eq!(call.options.flags, [MountFlag::ReadOnly]);
    }

    #[test]
    fn as_mount_8_calls_its_helper() {
        let call =
            parse(&["src", "/m", "-n", "-v", "-t", "fuse.plyfs", "-o", "lowerdir=a"]).unwrap();
        assert_eq!((call.source.as_deref(), call.mountpoint), (Some("src"), "/m".into()));
        let named = |name: &str| is_mount_program_call(&[name.into(), "--version".into()], &[]);
        assert!(named("/sbin/mount.fuse.plyfs") && named("fuse-overlayfs") && !named("plyfs"));
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
            (&["-o", "lowerdir=a,uidmapping=0:1", "m"], "uidmapping=0:1: an id map is"),
            (&["-o", "lowerdir=a,squash_to_uid=x", "m"], "squash_to_uid=x: invalid"),
            (&["-o", "lowerdir=a,xattr_permissions=3", "m"], "is 0, 1 or 2, not 3"),
            (&["-o", "lowerdir=a,redirect_dir=on", "m"], "only redirect_dir=off"),
            (&["-o", "lowerdir=a,xino=maybe", "m"], "xino is on, off or auto"),
            (&["-o", "lowerdir=a,ino32_t", "m"], "ino32_t is not supported"),
            (&["-o", "lowerdir=a,plugins=x", "m"], "plugins are not supported"),
            (&["-o", "lowerdir=a,timeout=-1", "m"], "timeout=-1"),
            (&["-o", "lowerdir=a,threaded=2", "m"], "threaded is 0 or 1"),
            (&["-o", "lowerdir=a,max_write=100", "m"], "max_write is at least 8192"),
            (&["-o", "lowerdir=a,volatile=0", "m"], "volatile takes no value"),
            (&["-o", "lowerdir=a,ro=0", "m"], "ro takes no value"),
            (&["-o", "lowerdir=a,io=fast", "m"], "io is auto, cache or passthrough"),
            (&["-o", "lowerdir=a,idle=spin", "m"], "idle is sleep or poll, not spin"),
            (&["-o", "lowerdir=a,priority=1", "m"], "priority is high or normal, not 1"),
            (&["-o", "lowerdir=a,io_uring=1", "m"], "io_uring is auto, on or off, not 1"),
            (&["a", "b", "c", "-o", "lowerdir=a"], "unexpected argument c"),
        ];
        for (line, expected) in table {
            let error = format!("{:#}", parse(line).unwrap_err());
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
