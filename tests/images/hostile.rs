//! Images made to do harm, loaded and mounted by root and by an ordinary user.
//!
//! ```text
//! DIR/victim/     what attacks aim at: everything in it is the attacked user's to change
//! DIR/secret      holds a random word, as files in victim/ do
//! DIR/cwd/        where plyfs runs; it may have 1,024 files
//!                 open and has inherited victim/ as descriptor 9
//! DIR/store/      the image store, with another image's layer in it (the neighbour)
//! DIR/m/, DIR/in/ the mountpoint; what is loaded
//! ```
//!
//! Whatever comes of an attack, afterwards: victim, neighbour and DIR are as they were, to the
//! last access time; the store has its own names alone; no file in the store, nothing printed
//! and no path of the mount, symlinks followed as a chroot would, gives the word away; nothing
//! printed could command a terminal; plyfs has ended by itself, within limits of time and
//! memory; and what was refused has left the store as it was.
//!
//! - `arena`: the place, and an attack
//! - `running`: plyfs, watched
//! - `tar_entry`: tar entries, byte by byte
//! - `witness`: what must not change
//! - all others: the attacks

mod arena;
mod bombs;
mod documents;
mod folders;
mod marks;
mod paths;
mod running;
mod streams;
mod tar_entry;
mod witness;

use rustix::process::{Gid, Uid};

use crate::common::is_root;
use arena::Arena;

/// The ordinary user.
const NOBODY: u32 = 65534;

/// What became of an attack. Harmless it was either way.
#[must_use]
enum Outcome {
    /// With this line.
    Refused(String),
    /// The mount shows this; unknown where nothing can be mounted.
    Loaded(Option<Vec<String>>),
}

impl Outcome {
    #[track_caller]
    fn refused(self, expected: &str) {
        match self {
            Self::Refused(line) => assert!(line.contains(expected), "{line:?}, not {expected:?}"),
            Self::Loaded(tree) => panic!("loaded, not refused ({expected}): {tree:?}"),
        }
    }

    /// It was loaded, and these lines (see `common::tell`) are among what the mount shows.
    #[track_caller]
    fn shows(self, expected: &[&str]) {
        match self {
            Self::Refused(line) => panic!("refused: {line}"),
            Self::Loaded(None) => eprintln!("skipped: a look at the mount"),
            Self::Loaded(Some(tree)) => {
                for line in expected {
                    assert!(tree.iter().any(|shown| shown == line), "no {line} in {tree:?}");
                }
            }
        }
    }

    /// It was loaded, and the mount shows this and nothing else.
    #[track_caller]
    fn shows_only(self, expected: &[&str]) {
        if let Self::Loaded(Some(tree)) = &self {
            assert_eq!(tree, expected);
        }
        self.shows(&[]);
    }

    /// Refused or loaded: both will do.
    fn harmless(self) {}
}

/// Runs a test as who runs the tests and, if that is root, as an ordinary user.
fn for_each_user(test: impl Fn(&mut Arena)) {
    test(&mut Arena::new(None));
    if is_root() {
        test(&mut Arena::new(Some(NOBODY)));
    } else {
        eprintln!("skipped: root's half; this was the ordinary user's");
    }
}

/// Runs `act` with a user's rights, as `setpriv --reuid --regid --clear-groups` would.
fn as_user<T: Send>(user: Option<u32>, act: impl FnOnce() -> T + Send) -> T {
    let Some(id) = user else { return act() };
    let act = || {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap(); // this thread's alone
        act()
    };
    let ended = std::thread::scope(|scope| scope.spawn(act).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}
