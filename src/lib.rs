//! plyfs: a FUSE union filesystem and a container image loader.
//!
//! A *ply* is one layer of a laminate. plyfs shows an ordered stack of read-only layer
//! directories and one writable upper layer as one tree, and its loader turns container
//! images into such stacks.
//!
//! ```text
//! cli  ->  store      tag -> ImageId -> ChainIDs -> layer directories, containers
//!      ->  archive    docker-archive / OCI archive / OCI layout -> store
//!      ->  diff       what upper changes over the lowers: A/C/D
//!      ->  fuse  ->  overlay  ->  layers  ->  sys
//!          wire      the union    the stack   system calls, the only unsafe
//! ```
//!
//! Dependencies point one way, as drawn. The library reads no environment and prints
//! nothing: [`cli`] does both.

pub mod archive;
pub mod cli;
pub mod diff;
pub mod fuse;
pub mod layers;
pub mod overlay;
pub mod store;
pub mod sys;
