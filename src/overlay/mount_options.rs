//! What a union is made of.

use std::path::PathBuf;

use super::ownership::Ownership;

/// The layers of a union and how it treats them.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The lower layers, the topmost first. May be empty if there is an upper layer.
    pub lowers: Vec<PathBuf>,
    /// The merged index of the lowers, if there may be one (see [`crate::layers::merged_index`]).
    pub merged_index: Option<PathBuf>,
    /// The writable layer; without one the union is read-only.
    pub upper: Option<UpperOptions>,
    /// What may lie in upper.
    pub form: UpperForm,
    /// Do not sync what is copied up (mount option `volatile`): a crash of the machine
    /// may lose it.
    pub volatile: bool,
    /// Mount an upper whose last volatile mount a crash of the machine cut short.
    pub accept_loss: bool,
    /// When reading a file of upper changes its time of last access; files of lower layers
    /// keep theirs.
    pub atime: Atime,
    /// Which owners are shown for those that the layers hold.
    pub ownership: Ownership,
    /// Whether files have access control lists (mount option `noacl`: they do not).
    pub acl: bool,
    /// Whether 0:0 character devices in the lowers are devices, not the whiteouts of the kernel's
    /// overlayfs: so it is in the layers of images, where files are whiteouts.
    pub lower_devices: bool,
    /// Show a link count of 1 for every directory (mount option `static_nlink`).
    pub static_nlink: bool,
    /// Who mounts, in words, for those who find the upper layer locked.
    pub holder: String,
    /// How many descriptors may be kept open for speed, and as many again for files that are
    /// open and deleted.
    pub max_open_files: usize,
}

/// When a read counts as an access. Reads that the page cache answers never do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Atime {
    /// Never (mount option `noatime`).
    Never,
    /// As the filesystem below has it, usually when the last access was before the last
    /// change, or more than a day ago (`relatime`).
    #[default]
    Relative,
    /// Always (`strictatime`).
    Always,
}

/// What the union may leave in upper beside plain files and marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpperForm {
    /// Nothing: upper is a valid OCI changeset at any time.
    #[default]
    Plain,
    /// Private xattrs that point into the lower layers: a renamed directory is moved without
    /// copying what is in it (redirect), and a change of attributes copies no data (metacopy).
    Rich,
}

/// The writable layer.
#[derive(Clone, Debug)]
pub struct UpperOptions {
    /// Holds the changes.
    pub upper: PathBuf,
    /// Holds what is being built; on the same filesystem as `upper`.
    pub work: PathBuf,
}

impl MountOptions {
    /// A union of these lowers, read-only, with the other options at their defaults.
    pub fn new(lowers: Vec<PathBuf>) -> Self {
        Self {
            lowers,
            merged_index: None,
            upper: None,
            form: UpperForm::Plain,
            volatile: false,
            accept_loss: false,
            atime: Atime::Relative,
            ownership: Ownership::default(),
            acl: true,
            lower_devices: false,
            static_nlink: false,
            holder: format!("pid {}", std::process::id()),
            max_open_files: 256,
        }
    }
}
