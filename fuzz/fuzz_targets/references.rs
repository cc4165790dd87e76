//! Any text as an image's name, a digest, a platform, a limit, a map of ids: what is read is shown
//! as something that is read the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs::archive::limits::{Limit, Limits};
use plyfs::archive::platform::Platform;
use plyfs::layers::id_map::{IdMap, UNMAPPED};
use plyfs::store::digest::Digest;
use plyfs::store::reference::Name;

fuzz_target!(|text: &str| {
    if let Ok(name) = Name::parse(text) {
        let shown = name.to_string();
        assert_eq!(Name::parse(&shown).ok(), Some(name), "{text:?} is shown as {shown:?}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(Digest::from_hex(&digest.hex()).ok(), Some(digest));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string(), text);
        assert!(platform.fits(&platform));
    }
    if let Ok(limit) = text.parse::<Limit>() {
        Limits::default().set(limit);
    }
    if let Ok(map) = text.parse::<IdMap>() {
        for id in [0, 1, 999, 1000, 65_534, u32::MAX - 1] {
            let shown = map.shown(id);
            assert!(shown == UNMAPPED || map.held(shown) == Some(id), "{text:?}: {id}");
        }
    }
});
