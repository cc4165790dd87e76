//! What `cargo deb` packs is there, and says this version. `scripts/package` builds and tries it.
#![allow(missing_docs)]

use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(name)).unwrap()
}

#[test]
fn debian_s_changelog_begins_with_this_version() {
    let first = text("debian/changelog").lines().next().unwrap().to_owned();
    let expected = format!("plyfs ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(first.starts_with(&expected), "{first}");
}

#[test]
fn every_asset_is_there() {
    let manifest = text("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").unwrap();
    let (assets, _) = assets.split_once("\n]\n").unwrap();
    let sources =
        assets.lines().filter_map(|line| line.trim().strip_prefix("[\"")?.split('"').next());
    let own = sources.filter(|source| !source.starts_with("target/") && !source.contains('*'));
    let mut count = 0;
    for source in own {
        assert!(Path::new(ROOT).join(source).is_file(), "{source}");
        count += 1;
    }
    assert!(count > 5, "{assets}");
}
