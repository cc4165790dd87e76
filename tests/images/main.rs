//! Images: what is loaded and mounted is exactly what the layers' tar streams say.
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod attributes;
mod bad_images;
mod compressed;
mod containers;
mod damage;
mod duplicates;
mod faults;
mod flatten;
mod formats;
mod fuzzed;
mod hostile;
mod layer_rules;
mod limits;
mod manifests;
mod place;
mod rich_dir;
mod shown;
mod store;
mod third_party;
