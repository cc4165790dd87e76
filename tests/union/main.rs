//! The union's operations, without /dev/fuse: each test looks at the merged tree, at what
//! lies in upper, and at both again after a remount.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod copy_ahead;
mod copy_up;
mod create;
mod hard_links;
mod marks;
mod merged_index;
mod open_files;
mod ownership;
mod readdir;
mod remove;
mod rename;
mod rich;
mod write_behind;
