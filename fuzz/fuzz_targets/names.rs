//! Any bytes as the name of an xattr or a file, as a user gives it: it is held under a name that
//! means nothing, and comes back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs::layers::{marks, private_xattr};

fuzz_target!(|data: &[u8]| {
    let held = private_xattr::escape(data);
    assert_eq!(private_xattr::unescape(&held).as_deref(), Some(data));
    if private_xattr::is_private(data) {
        assert!(private_xattr::is_private(&held) && held.len() > data.len());
    } else {
        assert_eq!(held, data);
    }
    let visible = private_xattr::visible(data);
    assert!(visible.len() <= data.len() + 1);
    for name in private_xattr::names(data) {
        let shown = private_xattr::unescape(name);
        let is_shown = |shown: &[u8]| private_xattr::names(&visible).any(|name| name == shown);
        assert!(shown.is_none_or(|shown| is_shown(&shown)));
    }

    if [&b""[..], b".", b".."].contains(&data) || data.contains(&b'/') {
        return; // no file's name
    }
    let held = marks::escape(data);
    assert_eq!(marks::unescape(&held), data);
    assert_eq!(marks::meaning(&held), marks::Meaning::Name);
    let whiteout = marks::whiteout_of(&held);
    match marks::meaning(&whiteout.file_name) {
        marks::Meaning::Whiteout(hidden) => assert_eq!(hidden, &held[..]),
        marks::Meaning::LongWhiteout => assert_eq!(whiteout.content, &held[..]),
        meaning => panic!("the whiteout of {} is {meaning:?}", data.escape_ascii()),
    }
});
