//! Random operations on two filesystems that must behave as one: the union (in process, or
//! mounted) beside a plain directory with the same tree, or beside the kernel's overlayfs.
//! After each step both have given the same answer and show the same tree; in between they
//! are unmounted and mounted again, and the upper layer becomes a lower one.
//!
//! A failure is shrunk, and printed with its seed. `PLYFS_MODEL_SEED` replays one seed,
//! `PLYFS_MODEL_RUNS` and `PLYFS_MODEL_STEPS` ask for more.
#![allow(missing_docs, unreachable_pub)]

mod breakage;
#[path = "../common/mod.rs"]
mod common;
mod in_process;
mod matrix;
mod mounts;
mod op;
mod subject;

use std::path::Path;

use common::union::Union;
use in_process::InProcess;
use mounts::{By, Stacked};
use op::{Op, With};
use plyfs::layers::override_stat::OverrideXattr;
use plyfs::overlay::{Overrides, Ownership};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use subject::{Directory, Plain, Subject, age};

/// Operations of one run.
const STEPS: u64 = 120;
/// Runs in process, unless the environment asks for another number.
const RUNS: u64 = 120;
/// Runs on real mounts.
const MOUNTED_RUNS: u64 = 6;

/// Lower layers with marks, topmost first.
const MARKED: [&str; 2] = [
    "a/x=ax a/y=ay a/.wh.gone= b/.wh..wh..opq= b/own=1 f=top h=link d/e/deep=1",
    "a/x=old a/gone=1 a/z=az b/hidden=1 f=low g=low c/k=1 s->f d/e/more=2",
];
/// What [`MARKED`] shows.
const FLAT: [&str; 1] =
    ["a/x=ax a/y=ay a/z=az b/own=1 f=top h=link d/e/deep=1 d/e/more=2 g=low c/k=1 s->f"];
/// Lower layers without marks, which the kernel's overlayfs would not take as such.
const UNMARKED: [&str; 2] = [
    "a/x=ax a/y=ay b/own=1 f=top h=link d/e/deep=1",
    "a/x=old a/z=az f=low g=low c/k=1 s->f d/e/more=2",
];
/// Hard links in the topmost and in the lowest layer.
const LINKS: [&str; 2] = ["h2=>h", "c/l=>g"];

/// Bytes of a file that is large enough for a metacopy.
const BIG: usize = 40_000;

/// Two subjects, and what keeps them alive.
struct Pair {
    ours: Box<dyn Subject>,
    theirs: Box<dyn Subject>,
    /// Whether errnos must agree too; the union alone does not see what the kernel checks
    /// before it.
    same_errno: bool,
    stacks: bool,
    _dir: tempfile::TempDir,
}

/// Does the operations on a new pair; what went wrong, if anything did.
fn replay(pair: &dyn Fn() -> Pair, ops: &[Op]) -> Result<(), String> {
    let mut pair = pair();
    for (n, op) in ops.iter().enumerate() {
        let (ours, theirs) = (pair.ours.apply(op), pair.theirs.apply(op));
        // POSIX leaves the choice; the filesystem below has made another one than ours.
        let same_errno = |outcome: &subject::Outcome| match outcome {
            Err(libc::EEXIST) => Err(libc::ENOTEMPTY),
            outcome => outcome.clone(),
        };
        let agree = if pair.same_errno || ours.is_ok() && theirs.is_ok() {
            same_errno(&ours) == same_errno(&theirs)
        } else {
            ours.is_ok() == theirs.is_ok()
        };
        if !agree {
            return Err(format!("step {n}, {op:?}: ours {ours:?}, theirs {theirs:?}"));
        }
        if ours.is_ok() {
            compare(&pair).map_err(|lines| format!("step {n}, {op:?}: {lines}"))?;
        }
    }
    for op in [Op::Remount, Op::Stack] {
        if matches!(op, Op::Stack) && !pair.stacks {
            break;
        }
        let _ = (pair.ours.apply(&op), pair.theirs.apply(&op));
        compare(&pair).map_err(|lines| format!("after {op:?} at the end: {lines}"))?;
    }
    Ok(())
}

fn compare(pair: &Pair) -> Result<(), String> {
    same(&pair.ours.snapshot(), &pair.theirs.snapshot())
}

/// What the one tree has that the other has not.
fn same(ours: &[String], theirs: &[String]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|line| !b.contains(line)).cloned().collect()
    };
    Err(format!("only ours {:#?}, only theirs {:#?}", only(ours, theirs), only(theirs, ours)))
}

/// Leaves out operations as long as it still fails.
fn shrink(pair: &dyn Fn() -> Pair, mut ops: Vec<Op>) -> Vec<Op> {
    let mut size = ops.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + size).min(ops.len()));
            if replay(pair, &fewer).is_err() {
                ops = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    ops
}

fn run(pair: &dyn Fn(With) -> Pair, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let steps = from_env("PLYFS_MODEL_STEPS").unwrap_or(STEPS);
    // A layer cannot say that a name of it and one of a layer below are the same file. So it
    // is either hard links or stacking.
    let with = if seed.is_multiple_of(2) { With::Links } else { With::Stacking };
    let pair = || pair(with);
    let is_root = common::is_root();
    let ops: Vec<Op> = (0..steps).map(|_| op::random(&mut rng, is_root, with)).collect();
    if let Err(first) = replay(&pair, &ops) {
        let ops = shrink(&pair, ops);
        let least = replay(&pair, &ops).unwrap_err();
        panic!("seed {seed}: {first}\nshrunk to {ops:#?}\nwhich gives: {least}");
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn runs(name: &str, pair: &dyn Fn(With) -> Pair, count: u64) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Some(seed) = from_env("PLYFS_MODEL_SEED") {
        return run(pair, seed);
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let base = u64::from(now.subsec_nanos()) << 20;
    let count = from_env("PLYFS_MODEL_RUNS").unwrap_or(count);
    eprintln!("{name}: seeds {base} to {}", base + count);
    for n in 0..count {
        run(pair, base + n);
    }
}

/// Adds the hard links, if they are wanted, and ages the layers.
fn finish(lowers: &[std::path::PathBuf], with: With) {
    if with == With::Links {
        common::build(&lowers[0], LINKS[0]);
        common::build(&lowers[lowers.len() - 1], LINKS[1]);
    }
    let bottom = &lowers[lowers.len() - 1];
    let big: Vec<u8> = (0..BIG).map(|n| (n % 251) as u8).collect();
    std::fs::write(bottom.join("big"), &big).unwrap();
    std::fs::write(bottom.join("d/e/big"), &big[..BIG - 1]).unwrap();
    lowers.iter().for_each(|lower| age(lower));
}

/// A plain directory below `dir` with the tree of [`FLAT`].
fn plain(dir: &Path, with: With) -> Directory<Plain> {
    std::fs::create_dir(dir.join("plain")).unwrap();
    let lowers = common::build_layers(&dir.join("plain"), &FLAT);
    finish(&lowers, with);
    Directory::new(lowers[0].clone(), Plain)
}

fn in_process_beside_plain(with: With) -> Pair {
    beside_plain(Union::new(&MARKED), with)
}

fn kept_in_xattrs_beside_plain(with: With) -> Pair {
    let mut union = Union::new(&MARKED);
    let overrides = Overrides::In(OverrideXattr::Containers);
    union.own(Ownership { overrides, ..Ownership::default() });
    beside_plain(union, with)
}

fn indexed_beside_plain(with: With) -> Pair {
    // A union of a rich upper as a layer has no index.
    let mut union = Union::new(&MARKED);
    union.indexed = true;
    beside_plain(union, with)
}

fn rich_beside_plain(with: With) -> Pair {
    beside_plain(Union::rich(&MARKED), with)
}

fn beside_plain(mut union: Union, with: With) -> Pair {
    finish(&union.lowers, with);
    union.remount();
    let dir = tempfile::tempdir().unwrap();
    let theirs = Box::new(plain(dir.path(), with));
    let ours = Box::new(InProcess::new(union));
    Pair { ours, theirs, same_errno: false, stacks: with == With::Stacking, _dir: dir }
}

fn mounted(
    by: By,
    dir: &Path,
    layers: &[&str],
    with: With,
    options: &[&str],
) -> Box<Directory<Stacked>> {
    std::fs::create_dir(dir).unwrap();
    let lowers = common::build_layers(dir, layers);
    finish(&lowers, with);
    let mounting = Stacked::mount(by, dir, lowers, options);
    Box::new(Directory::new(mounting.merged(), mounting))
}

fn mounted_beside_plain(with: With) -> Pair {
    mounted_so_beside_plain(with, &[])
}

fn mounted_rich_beside_plain(with: With) -> Pair {
    mounted_so_beside_plain(with, &["--form", "rich"])
}

fn mounted_so_beside_plain(with: With, options: &[&str]) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let ours = mounted(By::Plyfs, &dir.path().join("ours"), &MARKED, with, options);
    let theirs = Box::new(plain(dir.path(), with));
    Pair { ours, theirs, same_errno: true, stacks: with == With::Stacking, _dir: dir }
}

fn mounted_beside_kernel(with: With) -> Pair {
    let dir = tempfile::tempdir().unwrap();
    let ours = mounted(By::Plyfs, &dir.path().join("ours"), &UNMARKED, with, &[]);
    let theirs = mounted(By::Kernel, &dir.path().join("theirs"), &UNMARKED, with, &[]);
    Pair { ours, theirs, same_errno: true, stacks: with == With::Stacking, _dir: dir }
}

#[test]
fn in_process_as_on_a_plain_directory() {
    runs("in process", &in_process_beside_plain, RUNS);
}

#[test]
fn with_a_merged_index_as_on_a_plain_directory() {
    runs("in process, merged index", &indexed_beside_plain, RUNS);
}

#[test]
fn with_owners_in_xattrs_as_on_a_plain_directory() {
    runs("in process, owners in xattrs", &kept_in_xattrs_beside_plain, RUNS);
}

#[test]
fn with_a_rich_upper_as_on_a_plain_directory() {
    runs("in process, rich upper", &rich_beside_plain, RUNS);
}

#[test]
fn mounted_as_on_a_plain_directory() {
    need_mount!();
    runs("mounted", &mounted_beside_plain, MOUNTED_RUNS);
}

#[test]
fn mounted_with_a_rich_upper_as_on_a_plain_directory() {
    need_mount!();
    runs("mounted, rich upper", &mounted_rich_beside_plain, MOUNTED_RUNS);
}

#[test]
fn mounted_as_on_the_kernels_overlayfs() {
    need_mount!();
    if !common::is_root() {
        return eprintln!("skipped: only root mounts the kernel's overlayfs");
    }
    runs("beside the kernel", &mounted_beside_kernel, MOUNTED_RUNS);
}
