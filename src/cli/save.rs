//! `plyfs save`.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::output::say_image;
use crate::archive::{self, SaveCompression, SaveFormat, SaveOptions, Target};
use crate::store::Store;
use crate::store::digest::ImageId;
use crate::store::reference::Name;

/// Arguments of `plyfs save`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images; one that is asked for by name is saved under that name
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write here instead of to stdout; with --format oci a new or empty folder
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// What to write (default: docker-archive), and how to print what was written; may be given for
    /// both
    #[arg(long, value_enum)]
    format: Vec<Format>,
    /// How to compress layers; default: as they were, if they were loaded with --keep-blobs and go
    /// into an OCI archive or layout, else not
    #[arg(long, value_enum)]
    compression: Option<Compression>,
}

/// [`SaveFormat`] and [`OutputFormat`](super::output::OutputFormat) on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// What docker save writes
    DockerArchive,
    /// A tar of an OCI image layout
    OciArchive,
    /// A folder: an OCI image layout
    Oci,
    /// Print a JSON object for each image
    Json,
}

impl Args {
    fn save_format(&self) -> SaveFormat {
        let mut kinds = self.format.iter().rev().filter_map(|format| match format {
            Format::DockerArchive => Some(SaveFormat::DockerArchive),
            Format::OciArchive => Some(SaveFormat::OciArchive),
            Format::Oci => Some(SaveFormat::Oci),
            Format::Json => None,
        });
        kinds.next().unwrap_or(SaveFormat::DockerArchive)
    }

    fn prints_json(&self) -> bool {
        self.format.contains(&Format::Json)
    }
}

/// [`SaveCompression`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Compression {
    /// Not at all
    None,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// Runs `plyfs save`.
pub(super) fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let store = Store::open(root)?;
    let images = images(&store, &args.images)?;
    // Nobody removes them meanwhile.
    let _held = images.iter().map(|(id, _)| store.hold_image(id)).collect::<Result<Vec<_>, _>>()?;
    let options = SaveOptions {
        format: args.save_format(),
        compression: args.compression.map(|compression| match compression {
            Compression::None => SaveCompression::None,
            Compression::Gzip => SaveCompression::Gzip,
            Compression::Zstd => SaveCompression::Zstd,
        }),
    };
    if args.prints_json() && args.output.is_none() {
        bail!("--format json prints where the archive would go: give --output");
    }
    match (&args.output, options.format) {
        (Some(dir), SaveFormat::Oci) => save_folder(&store, &images, options, dir),
        (None, SaveFormat::Oci) => bail!("--format oci writes a folder: give --output DIR"),
        (Some(file), _) => save_file(&store, &images, options, file),
        (None, _) if std::io::stdout().is_terminal() => {
            bail!("an archive is nothing for a terminal: give --output FILE, or a pipe")
        }
        (None, _) => {
            let stdout = BufWriter::with_capacity(1 << 17, std::io::stdout().lock());
            Ok(archive::save(&store, &images, options, Target::Archive(Box::new(stdout)))?)
        }
    }?;
    match args.prints_json() {
        true => images.iter().try_for_each(|(id, names)| say_image(id, names)),
        false => Ok(()),
    }
}

/// The images with the names that they are asked for by; the same image once.
fn images(store: &Store, asked: &[String]) -> anyhow::Result<Vec<(ImageId, Vec<Name>)>> {
    let mut images: Vec<(ImageId, Vec<Name>)> = Vec::new();
    for text in asked {
        let id = store.find_image(text)?;
        let name = Name::parse(text).ok();
        let name = name.filter(|name| store.names_of(&id).is_ok_and(|known| known.contains(name)));
        match images.iter_mut().find(|(known, _)| *known == id) {
            Some((_, names)) => names.extend(name.filter(|name| !names.contains(name))),
            None => images.push((id, name.into_iter().collect())),
        }
    }
    Ok(images)
}

/// Writes beside the file first: one that is there is whole, the old or the new.
fn save_file(
    store: &Store,
    images: &[(ImageId, Vec<Name>)],
    options: SaveOptions,
    path: &Path,
) -> anyhow::Result<()> {
    let shown = || super::shown(path.as_os_str());
    let is_special = fs::metadata(path).is_ok_and(|meta| !meta.is_file());
    if is_special {
        // A device or FIFO is written to, as cat would.
        let out = File::options().write(true).open(path).with_context(shown)?;
        let out = BufWriter::with_capacity(1 << 17, out);
        return archive::save(store, images, options, Target::Archive(Box::new(out)))
            .with_context(shown);
    }
    // Where a symlink leads, as cat would.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let permissions: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .prefix(".plyfs-save-")
        .permissions(permissions) // less the umask
        .tempfile_in(dir)
        .with_context(shown)?;
    {
        let mut out = BufWriter::with_capacity(1 << 17, file.as_file_mut());
        archive::save(store, images, options, Target::Archive(Box::new(&mut out)))
            .with_context(shown)?;
        out.flush().with_context(shown)?;
    }
    file.as_file().sync_all().with_context(shown)?;
    file.persist(path).map_err(|e| e.error).with_context(shown)?;
    Ok(())
}

fn save_folder(
    store: &Store,
    images: &[(ImageId, Vec<Name>)],
    options: SaveOptions,
    dir: &Path,
) -> anyhow::Result<()> {
    let shown = || super::shown(dir.as_os_str());
    match fs::create_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            if fs::read_dir(dir).with_context(shown)?.next().is_some() {
                bail!("{}: the folder is not empty", shown());
            }
        }
        made => made.with_context(shown)?,
    }
    let target = Target::Folder(dir.to_owned());
    let saved = archive::save(store, images, options, target);
    if saved.is_err() {
        // It was empty or not there: what is in it now is half an image.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                log::warn!("remove {}: {error}", path.display());
            }
        }
    }
    saved.with_context(shown)
}
