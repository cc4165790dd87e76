//! Uniting what the layers say of one directory: the union's rules, all in one place.
//!
//! Layers are taken from the top. A name belongs to the topmost layer that has it; a
//! directory goes on collecting the directories of that name below, until a layer has
//! something else there, a whiteout of the name (its own layer's included: it cuts what is
//! below), or an opaque mark ends the whole directory's merging.

use std::collections::HashMap;

use super::listing::{Entry, Hashing, LayerIndex, Listing, Name, Sources};
use crate::layers::lower::LayerDir;
use crate::layers::merged_index;
use crate::sys::FileType;

/// A name's fate while layers are added.
struct Fate {
    /// `None`: hidden by a whiteout before any layer had it.
    shown: Option<Shown>,
    /// Whether a lower layer may still contribute (or be covered).
    open: bool,
}

struct Shown {
    kind: FileType,
    sources: Sources,
    covers: bool,
}

/// Unites the layers of one directory, given top first.
#[derive(Default)]
pub(super) struct Merge {
    names: HashMap<Box<[u8]>, Fate>,
    opaque: bool,
}

impl Merge {
    /// Adds the next layer below; returns whether any layer further below can still show.
    pub(super) fn add(&mut self, index: LayerIndex, dir: LayerDir) -> bool {
        if self.opaque {
            return false;
        }
        for entry in dir.entries {
            self.add_entry(index, entry.name, entry.kind);
        }
        for name in dir.whiteouts {
            self.names.entry(name).or_insert(Fate { shown: None, open: false }).open = false;
        }
        self.opaque = dir.opaque;
        !self.opaque
    }

    /// Adds all layers below at once: what they show together.
    pub(super) fn add_merged<'a>(
        &mut self,
        entries: impl Iterator<Item = merged_index::Entry<'a>>,
    ) {
        if self.opaque {
            return;
        }
        for entry in entries {
            let (mut layers, kind) = (entry.layers().map(LayerIndex::Lower), entry.kind());
            let Some(fate) = self.names.get_mut(entry.name()) else {
                let mut sources = Sources::of(LayerIndex::Lower(entry.top()));
                layers.skip(1).for_each(|layer| sources.push(layer));
                let shown = Some(Shown { kind, sources, covers: false });
                self.names.insert(entry.name().into(), Fate { shown, open: false });
                continue;
            };
            let Some(shown) = fate.shown.as_mut().filter(|_| fate.open) else {
                continue;
            };
            shown.covers |= shown.sources.top() == LayerIndex::Upper;
            if shown.kind == FileType::Directory && kind == FileType::Directory {
                layers.by_ref().for_each(|layer| shown.sources.push(layer));
            }
            fate.open = false;
        }
        self.opaque = true; // nothing is below
    }

    fn add_entry(&mut self, index: LayerIndex, name: Box<[u8]>, kind: FileType) {
        let Some(fate) = self.names.get_mut(&name) else {
            let shown = Shown { kind, sources: Sources::of(index), covers: false };
            self.names.insert(name, Fate { shown: Some(shown), open: true });
            return;
        };
        let Some(shown) = fate.shown.as_mut().filter(|_| fate.open) else {
            return;
        };
        shown.covers |= shown.sources.top() == LayerIndex::Upper;
        if shown.kind == FileType::Directory && kind == FileType::Directory {
            shown.sources.push(index);
        } else {
            fate.open = false;
        }
    }

    /// The merged directory.
    pub(super) fn finish(self, hashing: &Hashing) -> Listing {
        let entry = |(name, fate): (Box<[u8]>, Fate)| {
            let Shown { kind, sources, covers } = fate.shown?;
            Some(Entry { name: Name::from(&*name), kind, sources, covers })
        };
        Listing::of(hashing, self.names.into_iter().filter_map(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::lower::LayerEntry;

    /// `a` a file, `d/` a directory, `-x` a whiteout, `!` opaque.
    fn layer(text: &str) -> LayerDir {
        let mut dir = LayerDir::default();
        for word in text.split_whitespace() {
            if word == "!" {
                dir.opaque = true;
            } else if let Some(hidden) = word.strip_prefix('-') {
                dir.whiteouts.push(hidden.as_bytes().into());
            } else {
                let (name, kind) = match word.strip_suffix('/') {
                    Some(name) => (name, FileType::Directory),
                    None => (word, FileType::RegularFile),
                };
                dir.entries.push(LayerEntry { name: name.as_bytes().into(), kind });
            }
        }
        dir
    }

    fn merged(layers: &[&str]) -> String {
        let hashing = Hashing::default();
        let mut merge = Merge::default();
        for (n, text) in layers.iter().enumerate() {
            let index = match n {
                0 => LayerIndex::Upper,
                n => LayerIndex::Lower(n as u16 - 1),
            };
            merge.add(index, layer(text));
        }
        let listing = merge.finish(&hashing);
        let mut words: Vec<String> = listing
            .after(0)
            .map(|(_, e)| {
                let sources: String = e
                    .sources
                    .iter()
                    .map(|s| match s {
                        LayerIndex::Upper => "U".to_owned(),
                        LayerIndex::Lower(n) => n.to_string(),
                    })
                    .collect();
                let covers = if e.covers { "+" } else { "" };
                format!("{}={sources}{covers}", String::from_utf8_lossy(&e.name))
            })
            .collect();
        words.sort();
        words.join(" ")
    }

    #[test]
    fn the_rules() {
        let table: &[(&[&str], &str)] = &[
            (&["", "a b", "b c"], "a=0 b=0 c=1"),
            (&["a", "a"], "a=U+"),
            (&["-a", "a b"], "b=0"),
            (&["", "-a", "a"], ""),
            // A whiteout never hides its own layer's name, but cuts a directory.
            (&["", "-a a", "a"], "a=0"),
            (&["", "-d d/", "d/"], "d=0"),
            (&["-d d/", "d/", "d/"], "d=U"),
            // Directories merge until something else comes.
            (&["d/", "d/", "d/"], "d=U01+"),
            (&["d/", "d/", "d", "d/"], "d=U0+"),
            (&["d", "d/", "d/"], "d=U+"),
            (&["d/", "-d", "d/"], "d=U"),
            // An opaque layer ends it; its own names stay.
            (&["a !", "b"], "a=U"),
            (&["a", "b !", "c"], "a=U b=0"),
            // A whiteout below another layer's name changes nothing above.
            (&["a", "-a", "a"], "a=U"),
            (&["", "a", "-a", "a"], "a=0"),
        ];
        for (layers, expected) in table {
            assert_eq!(merged(layers), *expected, "{layers:?}");
        }
    }
}
