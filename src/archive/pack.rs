//! Writing a layer's tar again, byte for byte, from its files and its tar-split.

use std::fs::File;
use std::io::{BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::tar_split::{Crc, FilePiece, Piece, Pieces};
use super::unpack::Replaced;
use super::{Error, Result};
use crate::store::layer_files::LayerFiles;
use crate::sys::{self, Errno, FileType};

const BUFFER_SIZE: usize = 128 * 1024;

/// A file that is not what the tar held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Off {
    /// Where it was unpacked.
    pub(super) path: Vec<u8>,
    /// What is wrong with it.
    pub(super) reason: String,
}

/// A layer on disk that is written again.
pub(super) struct Packer {
    root: OwnedFd,
    home: OwnedFd,
    pieces: Pieces<BufReader<File>>,
    replaced: Replaced,
    buffer: Vec<u8>,
}

impl Packer {
    pub(super) fn open(files: &LayerFiles) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("open", files.home().display(), e);
        let record = match File::open(files.tar_split()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && files.home().exists() => {
                return Err(Error::Unsupported(format!(
                    "layer {} was unpacked without what its tar held beside the files \
                     (by an older plyfs): load its image again",
                    files.home().display()
                )));
            }
            record => record.map_err(failed)?,
        };
        Ok(Self {
            root: sys::open_dir(&files.diff()).map_err(|e| failed(e.into()))?,
            home: sys::open_dir(files.home()).map_err(|e| failed(e.into()))?,
            pieces: Pieces::new(BufReader::new(record)),
            replaced: Replaced::read(files.home()).map_err(failed)?,
            buffer: vec![0; BUFFER_SIZE],
        })
    }

    /// Writes the tar. What is off is given to `off`, with zeros in the place of what is missing;
    /// if that fails, so does this.
    pub(super) fn write(
        mut self,
        out: &mut dyn Write,
        off: &mut dyn FnMut(Off) -> Result<()>,
    ) -> Result<()> {
        while let Some(piece) = self.pieces.next() {
            match piece.map_err(|e| Error::io("read", "tar-split.json.gz", e))? {
                Piece::Segment(bytes) => out.write_all(&bytes).map_err(written)?,
                Piece::File(file) => {
                    // Directories replace nothing, and are replaced by nothing that is listed.
                    let place = self.replaced.next(&file.path).flatten();
                    if file.size > 0 {
                        self.write_file(&file, place.as_deref(), out, off)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        file: &FilePiece,
        replaced: Option<&str>,
        out: &mut dyn Write,
        off: &mut dyn FnMut(Off) -> Result<()>,
    ) -> Result<()> {
        let is_off = |reason: &str| Off { path: file.path.clone(), reason: reason.to_owned() };
        let opened = match replaced {
            Some(name) => sys::open_beneath(self.home.as_fd(), name.as_bytes(), sys::O_READ),
            None => sys::open_beneath(self.root.as_fd(), &file.path, sys::O_READ),
        };
        let data = match opened {
            Ok(fd) => Some(File::from(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                off(is_off("it is missing"))?;
                None
            }
            Err(errno) => return Err(Error::io("open", file.path.escape_ascii(), errno.into())),
        };
        let data = match data {
            Some(data) => {
                let stat = sys::fstat(&data);
                let stat =
                    stat.map_err(|e| Error::io("stat", file.path.escape_ascii(), e.into()))?;
                if stat.kind() == FileType::RegularFile {
                    Some(data)
                } else {
                    off(is_off("it is not a regular file"))?;
                    None
                }
            }
            None => None,
        };
        let whole = [(0, file.size)];
        let extents = file.extents.as_deref().unwrap_or(&whole);
        let (mut crc, mut is_short) = (Crc::default(), false);
        for (offset, len) in extents {
            let (mut at, end) = (*offset, offset.saturating_add(*len));
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(BUFFER_SIZE);
                let got = match &data {
                    Some(data) => data
                        .read_at(&mut self.buffer[..want], at)
                        .map_err(|e| Error::io("read", file.path.escape_ascii(), e))?,
                    None => 0,
                };
                let len = if got == 0 { want } else { got };
                if got == 0 {
                    is_short = true;
                    self.buffer[..want].fill(0);
                }
                crc.update(&self.buffer[..len]);
                out.write_all(&self.buffer[..len]).map_err(written)?;
                at += len as u64;
            }
        }
        match (data.is_some(), is_short, file.crc) {
            (false, ..) => Ok(()), // told already
            (true, true, _) => off(is_off("it is too short")),
            (true, false, Some(told)) if told != crc.finish() => {
                off(is_off("its content has changed"))
            }
            _ => Ok(()),
        }
    }
}

fn written(cause: std::io::Error) -> Error {
    Error::io("write", "the layer's tar", cause)
}

/// Writes the tar of a layer that is as it was.
pub(super) fn pack(files: &LayerFiles, out: &mut dyn Write) -> Result<()> {
    Packer::open(files)?.write(out, &mut |off| {
        Err(Error::Layer {
            layer: files.diff().display().to_string(),
            cause: Box::new(Error::entry(&off.path, off.reason)),
        })
    })
}

/// The bytes of a layer's tar, by its record alone.
pub(super) fn size(files: &LayerFiles) -> Result<u64> {
    let failed = |e| Error::io("read", files.tar_split().display(), e);
    let record = File::open(files.tar_split()).map_err(failed)?;
    let mut size = 0;
    for piece in Pieces::new(BufReader::new(record)) {
        size += match piece.map_err(failed)? {
            Piece::Segment(bytes) => bytes.len() as u64,
            Piece::File(file) => file.size,
        };
    }
    Ok(size)
}
