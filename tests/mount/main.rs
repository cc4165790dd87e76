//! Real mounts: what only shows with the kernel above, and the program's ways of starting
//! and ending one.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod crash;
mod data;
mod endurance;
mod forms;
mod io;
mod limits;
mod metadata;
mod near;
mod program;
mod requests;
mod tree;
mod uring;
