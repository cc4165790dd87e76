//! Layers and archives in every form of gzip, zstd and xz: loaded, mounted, and given back as the
//! blobs that they were.

use std::io::Write;

use crate::archives::{Layer, docker_files, gzip, oci_files, rich_layers, tar_of, zstd};
use crate::common::mounted::{fails, run};
use crate::flatten::flatten;
use crate::need_mount;
use crate::place::{Place, Who};

type Pack = fn(&[u8]) -> Vec<u8>;

/// The tar in parts, most of which end within a block.
fn parts(tar: &[u8]) -> Vec<&[u8]> {
    tar.chunks(tar.len() / 5 + 77).collect()
}

/// The tar in parts that are one entry each (those of these tests have short headers), and its end.
fn entries(tar: &[u8]) -> Vec<&[u8]> {
    let mut archive = tar::Archive::new(tar);
    let mut starts = Vec::new();
    for entry in archive.entries().unwrap() {
        starts.push(usize::try_from(entry.unwrap().raw_header_position()).unwrap());
    }
    starts.push(tar.len() - 1024);
    starts.push(tar.len());
    std::iter::once(&tar[..starts[0]])
        .chain(starts.windows(2).map(|pair| &tar[pair[0]..pair[1]]))
        .filter(|part| !part.is_empty())
        .collect()
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn joined(tar: &[u8]) -> Vec<u8> {
    let members: Vec<_> = parts(tar).into_iter().map(gzip).collect();
    members.join(&gzip(b"")[..]) // with empty ones between
}

/// One member with all that a header can have (RFC 1952).
fn with_all_fields(tar: &[u8]) -> Vec<u8> {
    let (text, header_crc, extra, name, comment) = (1, 2, 4, 8, 16);
    let flags = text | header_crc | extra | name | comment;
    let mut out = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3];
    let field = b"ab\x05\0\x1f\x8b\x08\0\xff"; // an extra field that looks like a header
    out.extend((field.len() as u16).to_le_bytes());
    out.extend(field);
    out.extend(b"layer \xe9.tar\0a comment,\nof two lines\0");
    let mut crc = flate2::Crc::new();
    crc.update(&out);
    out.extend((crc.sum() as u16).to_le_bytes());
    let mut deflate = flate2::write::DeflateEncoder::new(out, flate2::Compression::best());
    deflate.write_all(tar).unwrap();
    let mut out = deflate.finish().unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(tar);
    out.extend(crc.sum().to_le_bytes());
    out.extend(crc.amount().to_le_bytes());
    out
}

fn stored(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame that decoders leave out.
fn skippable(kind: u8, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&[0x50 | kind, 0x2a, 0x4d, 0x18][..], &len, data].concat()
}

fn frames(tar: &[u8]) -> Vec<u8> {
    let frames: Vec<_> = parts(tar).into_iter().map(zstd).collect();
    let between = [skippable(0, b""), zstd(b""), skippable(15, &[0x28, 0xb5, 0x2f, 0xfd])].concat();
    [skippable(3, b"first"), frames.join(&between[..]), skippable(7, &[9; 1000])].concat()
}

fn frame(tar: &[u8], set: impl Fn(&mut zstd::Encoder<'_, Vec<u8>>)) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    set(&mut encoder);
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn with_checksum(tar: &[u8]) -> Vec<u8> {
    frame(tar, |encoder| {
        encoder.include_checksum(true).unwrap();
        encoder.set_pledged_src_size(Some(tar.len() as u64)).unwrap();
    })
}

fn without_size(tar: &[u8]) -> Vec<u8> {
    frame(tar, |encoder| encoder.include_contentsize(false).unwrap())
}

fn with_a_wide_window(tar: &[u8]) -> Vec<u8> {
    frame(tar, |encoder| encoder.window_log(27).unwrap())
}

/// As zstd:chunked: a frame for each entry, the manifest and a footer in skippable ones.
fn chunked(tar: &[u8]) -> Vec<u8> {
    let frames: Vec<_> = entries(tar).into_iter().map(zstd).collect();
    let manifest = zstd(br#"{"version":1,"entries":[]}"#);
    let footer = [&[0; 56][..], b"GNUlInUx"].concat();
    [frames.concat(), skippable(0, &manifest), skippable(0, &footer)].concat()
}

/// As eStargz: a gzip member for each entry; the last member is a footer. (That the table of
/// contents is one more entry is the layers' matter: see [`estargz_layers`].)
fn stargz(tar: &[u8]) -> Vec<u8> {
    let members: Vec<_> = entries(tar).into_iter().map(gzip).collect();
    let extra = [&b"SG\x16\0"[..], b"0000000000000200STARGZ"].concat();
    let footer = flate2::GzBuilder::new().extra(extra);
    let footer = footer.write(Vec::new(), flate2::Compression::none()).finish().unwrap();
    [members.concat(), footer].concat()
}

fn estargz_layers() -> Vec<Vec<u8>> {
    let toc = Layer::default().file("stargz.index.json", r#"{"version":1,"entries":[]}"#).tar();
    let with_contents = |tar: &Vec<u8>| [&tar[..tar.len() - 1024], &toc].concat();
    rich_layers().iter().map(with_contents).collect()
}

fn whole(tar: &[u8]) -> Vec<u8> {
    tar.to_vec()
}

#[test]
fn layers() {
    need_mount!();
    let rich = rich_layers();
    let forms: [(&str, Pack, &str); 15] = [
        ("plain", whole, "tar"),
        ("gzip", gzip, "tar+gzip"),
        ("gzip, joined members", joined, "tar+gzip"),
        ("gzip, all header fields", with_all_fields, "tar+gzip"),
        ("gzip, stored", stored, "tar+gzip"),
        ("zstd", zstd, "tar+zstd"),
        ("zstd, frames", frames, "tar+zstd"),
        ("zstd, checksum and size", with_checksum, "tar+zstd"),
        ("zstd, no size", without_size, "tar+zstd"),
        ("zstd, wide window", with_a_wide_window, "tar+zstd"),
        ("zstd:chunked", chunked, "tar+zstd"),
        ("stargz", stargz, "tar+gzip"),
        ("eStargz", stargz, "tar+gzip"),
        ("xz", xz, "tar"),
        ("zstd that is called gzip", zstd, "tar+gzip"),
    ];
    for (what, pack, kind) in forms {
        let layers = if what == "eStargz" { &estargz_layers() } else { &rich };
        let files = oci_files("x:1", layers, kind, pack);
        let archive = tar_of(&files);
        let tree = flatten(layers);
        for who in Who::all() {
            let place = Place::of(who);
            place.round_trip(&archive, &tree, what);
            // What was kept comes back: the same manifest and blobs.
            place.load_with(&["--keep-blobs"], &place.path("image"));
            let out = place.path("made/layout");
            run(place.plyfs().args(["save", "x:1", "--format", "oci", "-o"]).arg(&out));
            for (path, data) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
                assert!(std::fs::read(out.join(path)).is_ok_and(|d| d == *data), "{what}: {path}");
            }
            let index = std::fs::read_to_string(out.join("index.json")).unwrap();
            let manifest = &files[files.len() - 3].0;
            assert!(index.contains(manifest.rsplit('/').next().unwrap()), "{what}: {index}");
        }
    }
}

#[test]
fn archives() {
    need_mount!();
    let layers = rich_layers();
    let mut inside = docker_files("x:1", &layers);
    inside.iter_mut().filter(|f| f.0.ends_with("layer.tar")).for_each(|f| f.1 = gzip(&f.1));
    let plain = tar_of(&docker_files("x:1", &layers));
    let forms = [
        ("xz", xz(&plain)),
        ("xz, joined", parts(&plain).into_iter().map(xz).collect::<Vec<_>>().concat()),
        ("gzip around gzip", gzip(&tar_of(&inside))),
        ("gzip, joined members", joined(&plain)),
        ("gzip, all header fields", with_all_fields(&plain)),
        ("zstd, frames", frames(&plain)),
        ("xz around zstd", xz(&tar_of(&oci_files("x:1", &layers, "tar+zstd", zstd)))),
    ];
    let tree = flatten(&layers);
    for (what, archive) in forms {
        for who in Who::all() {
            Place::of(who).round_trip(&archive, &tree, what);
        }
    }
}

#[test]
fn damage_within_a_compressed_layer() {
    let layers = rich_layers();
    let cut: Pack = |tar| gzip(tar)[..gzip(tar).len() / 2].to_vec();
    let bad_checksum: Pack = |tar| {
        let mut packed = with_checksum(tar);
        *packed.last_mut().unwrap() ^= 1;
        packed
    };
    let bad_crc: Pack = |tar| {
        let mut packed = gzip(tar);
        let at = packed.len() - 6;
        packed[at] ^= 1;
        packed
    };
    let garbage: Pack = |tar| [gzip(tar), b"garbage behind the end".to_vec()].concat();
    let half_a_frame: Pack = |tar| [zstd(tar), zstd(tar)[..50].to_vec()].concat();
    // A terabyte's window takes more memory than a layer may ask for.
    let window: Pack = |tar| {
        let mut packed = without_size(tar);
        packed[5] = 0xff;
        packed
    };
    let forms = [
        (cut, "truncated"),
        (bad_checksum, "checksum"),
        (bad_crc, "checksum"),
        (garbage, "gzip"),
        (half_a_frame, "truncated"),
        (window, "memory"),
    ];
    for (pack, words) in forms {
        let place = Place::new();
        let archive = tar_of(&oci_files("x:1", &layers, "tar+gzip", pack));
        let line = fails(place.plyfs().arg("load").arg(place.write("image", &archive)));
        assert!(line.contains(words), "{words}: {line}");
        assert_eq!(place.layers(), 0, "{line}");
    }
}
